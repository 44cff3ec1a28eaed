"""The CRDs and the values of the code are the same thing."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import yaml

from cacheagent.kube import convert, objects
from cacheagent.kube.objects import (
    Condition,
    KubeValue,
    ModelCacheNodeSpec,
    ModelCacheNodeStatus,
    ModelCachePeersSpec,
    ModelCacheSpec,
    ModelCacheStatus,
    ModelWarmupSpec,
    ModelWarmupStatus,
    NodeCounts,
    NodeModelStatus,
    NodeUsage,
)
from tests.fakes.kube_values import MODEL, MODEL_STATUS, NODE, NODE_STATUS, PEERS, WARMUP, WARMUP_STATUS

REPOSITORY: Final = Path(__file__).parents[2]
CRDS: Final = REPOSITORY / "daemonset/chart/files/crds"


def schema_of(plural: str) -> dict[str, Any]:
    version = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())["spec"]["versions"][0]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def test_the_crds_are_what_the_code_would_write() -> None:
    """Nobody changes one without the other."""
    written = runpy.run_path(str(REPOSITORY / "scripts/crds.py"))["documents"]()
    found = {path.name: path.read_text() for path in CRDS.glob("*.yaml")}
    assert found == written, "run python scripts/crds.py"


def _undocumented(schema: dict[str, Any], path: str = "") -> list[str]:
    missing = [] if schema.get("description") else [path]
    for name, inner in schema.get("properties", {}).items():
        if name != "metadata":
            missing += _undocumented(inner, f"{path}.{name}")
    if schema.get("items", {}).get("type") == "object":
        missing += _undocumented(schema["items"], f"{path}[]")
    return missing


@pytest.mark.parametrize("plural", ["modelcaches", "modelcachenodes", "modelcachepeers", "modelwarmups"])
def test_every_field_is_documented(plural: str) -> None:
    """Also those of objects in lists: `kubectl explain` answers everywhere."""
    assert _undocumented(schema_of(plural)) == []
    assert _undocumented({"properties": {"a": {"type": "string"}}}) == ["", ".a"]


def _defaults(schema: Any) -> list[Any]:
    if isinstance(schema, dict):
        here = ["default"] if "default" in schema and "type" in schema else []
        return here + [found for inner in schema.values() for found in _defaults(inner)]
    return [found for inner in schema for found in _defaults(inner)] if isinstance(schema, list) else []


@pytest.mark.parametrize("plural", ["modelcaches", "modelcachenodes", "modelcachepeers", "modelwarmups"])
def test_the_server_fills_in_no_defaults(plural: str) -> None:
    """What is written is what is read back: a default of the server's would look like somebody's change."""
    assert _defaults(schema_of(plural)) == []
    assert _defaults({"a": {"type": "string", "default": "x"}})


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (MODEL, ModelCacheSpec),
        (NODE, ModelCacheNodeSpec),
        (NODE_STATUS, ModelCacheNodeStatus),
        (MODEL_STATUS, ModelCacheStatus),
        (PEERS, ModelCachePeersSpec),
        (WARMUP, ModelWarmupSpec),
        (WARMUP_STATUS, ModelWarmupStatus),
        (ModelCacheNodeSpec(), ModelCacheNodeSpec),
    ],
)
def test_values_survive_the_way_through_an_object(value: KubeValue, kind: type[KubeValue]) -> None:
    """Encoded without defaults, read back the same, and encoded the same again."""
    encoded = convert.to_json(value)
    found = convert.spec_of({"spec": encoded}, kind)
    assert found == value
    assert convert.to_json(found) == encoded


def _left_at_default(value: object, path: str) -> list[str]:
    if isinstance(value, tuple):
        return [found for each in value for found in _left_at_default(each, f"{path}[]")]
    if not isinstance(value, KubeValue):
        return []
    found = []
    for field in msgspec.structs.fields(type(value)):
        inner, here = getattr(value, field.name), f"{path}.{field.name}"
        found += [here] if inner == field.default else _left_at_default(inner, here)
    return found


@pytest.mark.parametrize("value", [MODEL, MODEL_STATUS, NODE, NODE_STATUS, PEERS, WARMUP, WARMUP_STATUS])
def test_the_examples_say_something_in_every_field(value: KubeValue) -> None:
    """They go to a real API server elsewhere: a field that they leave out would be pruned unnoticed."""
    assert _left_at_default(value, type(value).__name__) == []
    assert _left_at_default(ModelCacheNodeSpec(), "empty") != []


def test_a_newer_release_may_add_fields() -> None:
    """They are ignored, everywhere."""
    spec = {"source": {"uri": "s3://b/x", "new": 1}, "newer": {"a": []}}
    assert convert.spec_of({"spec": spec}, ModelCacheSpec) == ModelCacheSpec(source=objects.Source(uri="s3://b/x"))


def test_an_object_that_cannot_be_read_names_itself() -> None:
    """The error says which object and which field."""
    item = {"kind": "ModelCache", "metadata": {"name": "llama"}, "spec": {"source": {"uri": 5}}}
    with pytest.raises(convert.Unreadable, match=r'ModelCache "llama": its spec cannot be read: .*source\.uri'):
        convert.spec_of(item, ModelCacheSpec)


def test_texts_for_people_follow_the_numbers() -> None:
    """A writer can't forget them, a reader can't be fooled by old ones."""
    status = ModelCacheStatus(digest="sha256:" + "ab" * 32, size_bytes=141_000_000_000, nodes=NodeCounts(assigned=3))
    assert (status.ready, status.size, status.version) == ("0/3", "141 GB", "abababababab")
    later = msgspec.structs.replace(status, nodes=NodeCounts(assigned=3, ready=2))
    assert later.ready == "2/3"
    assert convert.status_of({"status": {"ready": "9/9"}}, ModelCacheStatus).ready == "0/0"
    node = ModelCacheNodeStatus(
        usage=NodeUsage(capacity_bytes=2_000_000_000_000, free_bytes=1_200_000_000_000),
        models=(NodeModelStatus(name="a", phase="ready"), NodeModelStatus(name="b", phase="fetching")),
    )
    assert (node.ready, node.free) == ("1/2", "1.2 TB")


def test_conditions_are_as_everywhere_in_kubernetes() -> None:
    """`kubectl wait --for=condition=Ready` reads these names."""
    condition = Condition(
        type="Ready",
        status="True",
        reason="AllNodes",
        last_transition_time="2026-01-01T00:00:00Z",
        observed_generation=2,
    )
    assert convert.to_json(condition) == {
        "type": "Ready",
        "status": "True",
        "reason": "AllNodes",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "observedGeneration": 2,
    }
