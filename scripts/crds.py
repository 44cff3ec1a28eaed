"""Writes the CRDs in daemonset/chart/files/crds from the values of cacheagent.kube.objects and crd_fields.yaml.

`tests/unit/test_kube_crds.py` compares; so what the code reads and what the API server lets through is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from cacheagent.kube import objects
from cacheagent.kube.api import MODEL_CACHE_NODES, MODEL_CACHE_PEERS, MODEL_CACHES, MODEL_WARMUPS, Resource
from cacheagent.kube.names import GROUP, VERSION

FOLDER: Final = Path(__file__).parents[1] / "daemonset/chart/files/crds"
TEXTS: Final = Path(__file__).with_name("crd_fields.yaml")
HEAD: Final = "# Written by scripts/crds.py from cacheagent/kube/objects.py and scripts/crd_fields.yaml.\n"
CATEGORIES: Final = ["cacheagent"]

Schema = dict[str, Any]


class Schemas:
    """Makes a structural schema of a value, and knows which texts were used."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self.used: set[str] = set()

    def of_struct(self, kind: type[msgspec.Struct]) -> Schema:
        """An object with all of its fields. Raises SystemExit where fields and texts differ."""
        name = kind.__name__
        self.used.add(name)
        texts = self._values.get(name, {"fields": {}})
        fields = msgspec.structs.fields(kind)
        names = {field.encode_name for field in fields}
        if names != texts["fields"].keys():
            raise SystemExit(f"{TEXTS.name}, {name}: fields differ: {sorted(names ^ texts['fields'].keys())}")
        schema: Schema = {"type": "object", "description": texts["description"]}
        if rules := texts.get("rules"):
            schema["x-kubernetes-validations"] = rules
        if required := [field.encode_name for field in fields if field.required]:
            schema["required"] = required
        schema["properties"] = {
            field.encode_name: self._of_field(field.type, texts["fields"][field.encode_name]) for field in fields
        }
        return schema

    def _of_field(self, kind: Any, text: str | Schema) -> Schema:
        said = {"description": text} if isinstance(text, str) else text
        made = self._of_type(msgspec.inspect.type_info(kind))
        made.pop("description", None)
        items = made.get("items", {}) | said.get("items", {})
        return {"description": said["description"]} | made | said | ({"items": items} if items else {})

    def _of_type(self, kind: msgspec.inspect.Type) -> Schema:
        match kind:
            case msgspec.inspect.StrType():
                return {"type": "string"}
            case msgspec.inspect.BoolType():
                return {"type": "boolean"}
            case msgspec.inspect.IntType():
                return {"type": "integer", "format": "int64"}
            case msgspec.inspect.LiteralType(values=values):
                return {"type": "string", "enum": list(values)}
            case msgspec.inspect.DictType(value_type=msgspec.inspect.StrType()):
                return {"type": "object", "additionalProperties": {"type": "string"}}
            case msgspec.inspect.DictType():
                return {"type": "object"}  # its text says what is in it
            case msgspec.inspect.VarTupleType(item_type=item):
                return {"type": "array", "items": self._of_type(item), "x-kubernetes-list-type": "atomic"}
            case msgspec.inspect.StructType(cls=cls):
                return self.of_struct(cls)
            case msgspec.inspect.UnionType(types=types):
                (inner,) = (each for each in types if not isinstance(each, msgspec.inspect.NoneType))
                return self._of_type(inner)
            case _:
                raise SystemExit(f"{kind} has no schema")


def crd(resource: Resource, schemas: Schemas, texts: dict[str, Any]) -> dict[str, Any]:
    """One CustomResourceDefinition."""
    whole: Schema = {"type": "object", "description": texts["description"]}
    if rules := texts.get("rules"):
        whole["x-kubernetes-validations"] = rules
    spec = schemas.of_struct(getattr(objects, texts["spec"]))
    if "required" in spec:
        whole["required"] = ["spec"]
    whole["properties"] = {
        "apiVersion": {"type": "string", "description": "As in every object of Kubernetes."},
        "kind": {"type": "string", "description": "As in every object of Kubernetes."},
        "metadata": {"type": "object"},
        "spec": spec,
    }
    if "status" in texts:
        whole["properties"]["status"] = schemas.of_struct(getattr(objects, texts["status"]))
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{resource.plural}.{GROUP}",
            # helm uninstall must not take every model's objects, and with them what nodes know, away
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": texts["shortNames"],
                "categories": CATEGORIES,
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    **({"subresources": {"status": {}}} if "status" in texts else {}),
                    "additionalPrinterColumns": texts["columns"],
                    "schema": {"openAPIV3Schema": whole},
                }
            ],
        },
    }


def documents() -> dict[str, str]:
    """File name -> YAML. Raises SystemExit where texts are left over."""
    texts = yaml.safe_load(TEXTS.read_text())
    schemas = Schemas(texts["values"])
    found = {}
    for resource in (MODEL_CACHES, MODEL_CACHE_NODES, MODEL_CACHE_PEERS, MODEL_WARMUPS):
        body = crd(resource, schemas, texts["resources"][resource.kind])
        found[f"{resource.plural}.yaml"] = HEAD + yaml.dump(body, Dumper=Plain, sort_keys=False, width=116)
    if unused := texts["values"].keys() - schemas.used:
        raise SystemExit(f"{TEXTS.name}: no such values: {sorted(unused)}")
    return found


class Plain(yaml.SafeDumper):
    """Without anchors: people and diff tools read it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text)
        print(f"wrote {FOLDER / name}")
