"""A small cluster as the webhook sees it, pods that ask for models, and how a patch is applied."""

from __future__ import annotations

import copy
from typing import Any

from cacheagent.kube import names
from cacheagent.kube.uris import AllowList, UriRule
from cacheagent.kube.webhook.catalog import MirrorCatalog
from cacheagent.kube.webhook.settings import WebhookSettings

LLAMA = "sha256:" + "a" * 64
OLD_LLAMA = "sha256:" + "b" * 64
QWEN = "sha256:" + "c" * 64

SETTINGS = WebhookSettings(
    image="registry.example/cacheagent:1",
    allow_list=AllowList(rules=(UriRule(prefix="s3://team-a", namespaces=("team-a",), credentials="a"),
                                UriRule(prefix="hf://org", namespaces=("*",)))),
)  # fmt: skip


def model(name: str, digest: str = "", **spec: Any) -> dict[str, Any]:
    """A ModelCache as the API server sends it."""
    status: dict[str, Any] = {"digest": digest} if digest else {}
    spec = {"source": {"uri": f"s3://models/{name}"}, **spec}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ModelCache",
        "metadata": {"name": name},
        "spec": spec,
        "status": status,
    }


def cluster() -> tuple[dict[tuple[str, str], Any], dict[tuple[str, str], Any]]:
    """Models and namespaces, as mirrors keep them."""
    models: list[dict[str, Any]] = [
        model("llama", LLAMA, localPersistentVolumes={"namespaces": ["team-a"]}),
        model("qwen", QWEN, source={"uri": "s3://models/qwen", "repoId": "Qwen/Qwen3"}),
        model("hub", LLAMA, source={"uri": "hf://org/hub@main"}),
        model("fresh", localPersistentVolumes={"namespaces": ["team-a"]}),
        model("secret", QWEN, allowedNamespaces={"names": ["team-b"], "selector": {"matchLabels": {"tier": "gold"}}}),
        model("l" * 63, LLAMA),
    ]
    models[0]["status"]["previousDigests"] = [OLD_LLAMA]
    namespaces: list[dict[str, Any]] = [
        {"metadata": {"name": "team-a", "labels": {"tier": "silver"}}},
        {"metadata": {"name": "team-b"}},
        {"metadata": {"name": "golden", "labels": {"tier": "gold"}}},
    ]
    return {("", m["metadata"]["name"]): m for m in models}, {("", n["metadata"]["name"]): n for n in namespaces}


def catalog() -> MirrorCatalog:
    """The same as a catalog."""
    return MirrorCatalog(*cluster())


def pod(annotations: dict[str, str], **spec: Any) -> dict[str, Any]:
    """A pod as a controller makes it. Keys of annotations are without the group."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "web-5c7-",
            "annotations": {f"{names.GROUP}/{key}": value for key, value in annotations.items()},
        },
        "spec": {"containers": [{"name": "main", "image": "vllm"}], **spec},
    }


def apply_patch(original: Any, operations: list[dict[str, Any]]) -> Any:
    """RFC 6902, as strictly as the API server: the holder of what is added must be there. Additions are understood, and
    an item of a list in the place of another."""
    result = copy.deepcopy(original)
    for operation in operations:
        assert set(operation) == {"op", "path", "value"}
        assert operation["op"] in {"add", "replace"}, "the webhook takes nothing away"
        *parents, last = [step.replace("~1", "/").replace("~0", "~") for step in operation["path"].split("/")[1:]]
        holder = result
        for step in parents:
            holder = holder[int(step)] if isinstance(holder, list) else holder[step]
        value = copy.deepcopy(operation["value"])
        if isinstance(holder, list):
            index = len(holder) if last == "-" else int(last)
            assert 0 <= index <= len(holder)
            if operation["op"] == "replace":
                holder[index] = value
            else:
                holder.insert(index, value)
        else:
            assert isinstance(holder, dict)
            assert operation["op"] == "add"
            holder[last] = value
    return result
