"""Every object that we ship or show, strictly against the schemas of Kubernetes 1.30 to 1.37, offline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from cacheagent.kube import names
from tests.manifests.chart import ROOT, SETS, VERSIONS, Manifests, Object, parse, render

NOT_KUBERNETES_OWN = ("cacheagent.io/", "monitoring.coreos.com/", "kustomize.config.k8s.io/")
EXAMPLES = sorted(path for path in (ROOT / "examples/kubernetes").glob("*.yaml") if path.name != "values.yaml")


def check(item: Object, version: str) -> None:
    """Raises a ValidationError."""
    kubernetes_validate.validate(item, version, strict=True)


@pytest.fixture(scope="module", params=SETS)
def rendered(request: pytest.FixtureRequest) -> Manifests:
    return parse(render(SETS[request.param]))


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid(rendered: Manifests, version: str) -> None:
    """No unknown field, no wrong type, in any set of values."""
    for item in rendered.objects:
        if not item["apiVersion"].startswith(NOT_KUBERNETES_OWN):
            check(item, version)


def test_validation_refuses_what_is_wrong() -> None:
    """A field that no Kubernetes knows is found, at any depth, in the oldest and in the newest."""
    for version in (VERSIONS[0], VERSIONS[-1]):
        wrong = parse(render()).get("DaemonSet", "cacheagent-node")
        wrong["spec"]["template"]["spec"]["containers"][0]["privileged"] = True
        with pytest.raises(kubernetes_validate.ValidationError, match="privileged"):
            check(wrong, version)


def definitions() -> dict[str, Any]:
    """Schema of each kind of ours, with unknown fields refused as kubectl's strict validation does."""
    found: dict[str, Any] = {}
    for path in (ROOT / "daemonset/chart/files/crds").glob("*.yaml"):
        for item in parse(path.read_text()).objects:
            schema = item["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            found[item["spec"]["names"]["kind"]] = strictly(schema)
    return found


def strictly(schema: Any) -> Any:
    """A copy in which objects have only the properties that are listed."""
    if isinstance(schema, list):
        return [strictly(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: strictly(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and schema.get("type") == "object":
        copy.setdefault("additionalProperties", False)
    return copy


def check_example(item: Object, schemas: Mapping[str, Any]) -> None:
    """By our `definitions`, or by Kubernetes' own, its oldest and its newest. Raises a ValidationError."""
    if item["apiVersion"] == names.API_VERSION:
        schema = schemas[item["kind"]]
        whole = schema | {"properties": schema["properties"] | {"apiVersion": {}, "kind": {}, "metadata": {}}}
        jsonschema.validate(item, whole)
    else:
        for version in (VERSIONS[0], VERSIONS[-1]):
            check(item, version)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Any) -> None:
    """What the documentation tells people to apply is accepted, by Kubernetes' schemas and by ours."""
    schemas = definitions()
    for item in parse(path.read_text()).objects:
        check_example(item, schemas)
