"""What the documentation tells people to apply means what its comments say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from cacheagent.kube.names import DRIVER, GROUP
from cacheagent.kube.objects import ModelCacheSpec
from cacheagent.kube.uris import AllowList, UriRule, find_rule, parse_uri
from cacheagent.kube.webhook.annotations import Asked, parse_annotations
from csi.validate import ATTRIBUTES
from tests.manifests.chart import ROOT, Object, parse, render

FOLDER = ROOT / "examples/kubernetes"
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


def objects() -> Iterator[tuple[str, Object]]:
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.name != "values.yaml":
            for item in parse(path.read_text()).objects:
                yield path.name, item


def pods() -> Iterator[tuple[str, Object]]:
    for name, item in objects():
        if item["kind"] == "Pod":
            yield name, item
        elif item["kind"] in WORKLOADS:
            yield name, item["spec"]["template"]


def models() -> dict[str, ModelCacheSpec]:
    return {
        item["metadata"]["name"]: msgspec.convert(item["spec"], ModelCacheSpec)
        for _, item in objects()
        if item["kind"] == "ModelCache"
    }


def asked(file: str) -> Asked:
    (found,) = [pod["metadata"]["annotations"] for name, pod in pods() if name == file]
    result = parse_annotations(found)
    assert result is not None
    return result


def test_every_pod_asks_for_what_is_there() -> None:
    """The webhook's own parser accepts the annotations; the models are those of modelcaches.yaml, or URIs."""
    for file, pod in pods():
        annotations = pod["metadata"].get("annotations", {})
        if any(key.startswith(f"{GROUP}/") for key in annotations):
            for model in asked(file).models:
                assert model in models() or "://" in model, file


def test_modes_are_those_that_the_files_are_named_after() -> None:
    assert asked("pv.yaml").mode == "pv"
    assert asked("gate.yaml").wait == "gate"
    assert (asked("gate.yaml").gate_nodes, asked("gate.yaml").gate_deadline_s) == (2, 3600)
    assert (asked("init.yaml").wait, asked("init.yaml").view) == ("init", "hf")
    assert asked("vllm.yaml").mount_path("llama-3-70b", "llama-3-70b") == "/mnt/models"


def test_local_volumes_are_asked_for_where_the_model_offers_them() -> None:
    """Otherwise the pod of pv.yaml would be refused."""
    (model,) = asked("pv.yaml").models
    assert "inference" in models()[model].local_persistent_volumes.namespaces


def test_sources_are_understood() -> None:
    """Both kinds are shown."""
    for spec in models().values():
        assert parse_uri(spec.source.uri).scheme in {"s3", "hf"}


def test_volume_by_hand() -> None:
    """Driver and attributes are those that the driver knows."""
    ((_, pod),) = [(name, pod) for name, pod in pods() if name == "inline-volume.yaml"]
    (volume,) = pod["spec"]["volumes"]
    assert volume["csi"]["driver"] == DRIVER
    assert volume["csi"]["volumeAttributes"].keys() <= ATTRIBUTES
    assert volume["csi"]["volumeAttributes"]["model"] in models()


def test_values_are_accepted_and_permit_the_uri() -> None:
    """The chart renders with them, and their rule covers the pod of on-demand.yaml; its neighbour is not covered."""
    values = yaml.safe_load((FOLDER / "values.yaml").read_text())
    assert parse(render(values)).all("PodMonitor")
    rules = AllowList(rules=tuple(msgspec.convert(rule, UriRule) for rule in values["onDemand"]["rules"]))
    (uri,) = asked("on-demand.yaml").models
    assert find_rule(uri, "inference", rules)
    assert not find_rule(uri, "others", rules)
    assert not find_rule(uri.replace("experiments", "experiments-private"), "inference", rules)


def test_credentials_are_those_of_the_values() -> None:
    """A name that the chart does not know would fail every download."""
    values = yaml.safe_load((FOLDER / "values.yaml").read_text())
    named = {spec.source.credentials for spec in models().values()} - {""}
    assert named <= values["credentials"].keys()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_examples_say_what_they_are(path: Path) -> None:
    """In a comment at the top, for whoever opens only that file."""
    assert path.read_text().startswith("# ")
