"""Examples for the stacks that people run: valid as they are, and each pod finds its weights where it looks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import yaml

from cacheagent.kube import names
from cacheagent.kube.objects import ModelCacheSpec
from cacheagent.kube.uris import parse_uri
from cacheagent.kube.webhook.annotations import parse_annotations
from cacheagent.kube.webhook.catalog import MirrorCatalog
from cacheagent.kube.webhook.refusal import PodRefused
from tests.fakes.admission import admitted, containers_of
from tests.fakes.webhook import LLAMA
from tests.manifests.chart import ROOT, VERSIONS, Object, parse
from tests.manifests.test_versions import check, check_example, definitions

STACKS: Final = ("vllm", "triton", "knative", "kubeflow", "pytorch")
FILES: Final = tuple(path for stack in STACKS for path in sorted((ROOT / "examples" / stack).glob("*.yaml")))
NOT_OBJECTS: Final = (".values.yaml", "-patch.yaml", "kubeflow/pipeline.yaml")
"""Values of other projects' charts, what is patched into their workloads, and a compiled pipeline."""
OBJECTS: Final = tuple(path for path in FILES if not path.as_posix().endswith(NOT_OBJECTS))
WITHOUT_PODS: Final = ("TrainJob",)
"""Its runtime describes them."""
KUBERNETES: Final = {"v1", "apps/v1", "batch/v1"}
KNATIVE_WITHOUT_FLAGS: Final = {
    "containers", "volumes", "serviceAccountName", "imagePullSecrets", "enableServiceLinks",
    "containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds", "idleTimeoutSeconds",
}  # fmt: skip
"""Fields of a revision that Knative accepts as installed: its own, and those of pkg/apis/serving/fieldmask.go."""

by_file = pytest.mark.parametrize("path", OBJECTS, ids=lambda path: f"{path.parent.name}/{path.name}")


def mappings(value: Any) -> Iterator[Object]:
    """Every mapping, at any depth."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from mappings(each)


def templates(item: Any) -> Iterator[Object]:
    """Pod templates at any depth: what has a pod's specification."""
    return (each for each in mappings(item) if "containers" in (each.get("spec") or {}))


def annotated(item: Any) -> Iterator[Object]:
    """Templates whose pods ask for a model."""
    return (each for each in templates(item) if names.MODEL in each.get("metadata", {}).get("annotations", {}))


def pods(path: Path) -> Iterator[Object]:
    """What the templates of a file that ask for a model come to; Knative's own fields are not a pod's."""
    for item in parse(path.read_text()).objects:
        for template in annotated(item):
            spec = {key: value for key, value in template["spec"].items() if not key.lower().endswith("timeoutseconds")}
            yield {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"generateName": "x-", **template["metadata"]},
                "spec": spec,
            }


def models() -> dict[str, Object]:
    """ModelCaches of all the examples here, by their names."""
    found = [item for path in OBJECTS for item in parse(path.read_text()).objects if item["kind"] == "ModelCache"]
    assert len({item["metadata"]["name"] for item in found}) == len(found), "a model is described twice"
    return {item["metadata"]["name"]: item for item in found}


def catalog() -> MirrorCatalog:
    """A cluster in which all of them have been resolved."""
    return MirrorCatalog({("", name): {**item, "status": {"digest": LLAMA}} for name, item in models().items()}, {})


def annotations_in(value: Any) -> Iterator[dict[str, str]]:
    """Every mapping with annotations of ours, at any depth."""
    return (each for each in mappings(value) if names.MODEL in each)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_say_what_to_change(path: Path) -> None:
    """A comment at the top; and every annotation of ours is understood and names a model of these examples."""
    assert path.read_text().startswith("# ")
    found = [parse_annotations(each) for each in annotations_in(list(yaml.safe_load_all(path.read_text())))]
    assert found
    for asked in found:
        assert asked is not None
        assert set(asked.models) <= models().keys()


@by_file
def test_objects_are_valid(path: Path) -> None:
    """By our schemas and by Kubernetes' own, its oldest and its newest; of other stacks' objects, their pods."""
    schemas = definitions()
    for item in parse(path.read_text()).objects:
        if item["apiVersion"] in {names.API_VERSION, *KUBERNETES}:
            check_example(item, schemas)
        else:
            assert item["kind"] in WITHOUT_PODS or list(templates(item)), f"{item['kind']} makes no pods"
    for pod in pods(path):
        check(admitted(pod, catalog()), VERSIONS[-1])


@by_file
def test_pods_find_their_weights(path: Path) -> None:
    """Admitted by the webhook; the mount's path, or the repository's name, is what the container's arguments say."""
    for pod in pods(path):
        after = admitted(pod, catalog())
        asked = parse_annotations(pod["metadata"]["annotations"])
        assert asked is not None
        (container,) = after["spec"]["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        said = " ".join(
            text for each in containers_of(pod) for text in [*each.get("command", []), *each.get("args", [])]
        )
        for model in asked.models:
            spec = msgspec.convert(models()[model]["spec"], ModelCacheSpec)
            path_there = mounts[f"cacheagent-{model}"]
            assert path_there == asked.mount_path(model, model)
            looked_for = spec.source.uri.removeprefix("hf://") if asked.view == "hf" else path_there
            assert looked_for in said or looked_for in path.read_text().partition("apiVersion")[0], looked_for


def test_a_misspelt_annotation_is_refused() -> None:
    """The positive control: the examples do go through the webhook."""
    (pod, *_) = pods(ROOT / "examples/vllm/path.yaml")
    pod["metadata"]["annotations"] = {"cacheagent.io/model": "llama-3-8b", "cacheagent.io/vieww": "hf"}
    with pytest.raises(PodRefused, match="is not known"):
        admitted(pod, catalog())


def test_models_are_what_their_stacks_need() -> None:
    """Sources are understood, credentials are those of the example values, and only checkpoints are held to be such."""
    values = yaml.safe_load((ROOT / "examples/kubernetes/values.yaml").read_text())
    for name, item in models().items():
        spec = msgspec.convert(item["spec"], ModelCacheSpec)
        assert parse_uri(spec.source.uri).scheme in {"s3", "hf"}
        assert spec.source.credentials in values["credentials"]
        assert spec.kind == ("tree" if name.startswith(("triton", "image")) else "checkpoint")


def test_knative_accepts_the_service_without_a_flag() -> None:
    """What the person writes has nothing that Knative would refuse; the volume appears in the pod only."""
    (service,) = parse((ROOT / "examples/knative/service.yaml").read_text()).objects
    revision = service["spec"]["template"]["spec"]
    assert revision.keys() <= KNATIVE_WITHOUT_FLAGS
    assert "volumes" not in revision
    assert all("volumeMounts" not in container for container in revision["containers"])
    (pod,) = pods(ROOT / "examples/knative/service.yaml")
    assert "csi" in admitted(pod, catalog())["spec"]["volumes"][0]


def test_the_compiled_pipelines_step_finds_its_weights() -> None:
    """Its annotations, on the pod that Pipelines makes of such a step: `main` alone has the mount, where its arguments
    look; and the Python beside it says the same."""
    folder = ROOT / "examples/kubeflow"
    pipeline, platform = yaml.safe_load_all((folder / "pipeline.yaml").read_text())
    ((name, executor),) = pipeline["deploymentSpec"]["executors"].items()
    asked = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][name]["podMetadata"]["annotations"]
    pod = yaml.safe_load((ROOT / "tests/fixtures/stacks/kubeflow/pipelines-step.yaml").read_text())
    step = next(each for each in pod["spec"]["containers"] if each["name"] == "main")
    assert step["args"] == executor["container"]["command"] + executor["container"]["args"]
    assert {key for key in pod["metadata"]["annotations"] if key.startswith(names.GROUP)} == asked.keys()
    pod["metadata"]["annotations"] |= asked
    mounts = {
        each["name"]: [mount["mountPath"] for mount in each["volumeMounts"] if mount["name"] == "cacheagent-llama-3-8b"]
        for each in containers_of(admitted(pod, catalog()))
    }
    assert {name: paths for name, paths in mounts.items() if paths} == {"main": ["/mnt/models"]}
    assert "/mnt/models" in step["args"]
    source = (folder / "pipeline.py").read_text()
    compile(source, "pipeline.py", "exec")
    assert all(f'"{key}", "{value}"' in source for key, value in asked.items())


@by_file
def test_scripts_are_python(path: Path) -> None:
    """Those that an example brings along; `make test-stacks` runs them."""
    for item in parse(path.read_text()).objects:
        for name, text in item.get("data", {}).items():
            compile(text, name, "exec")
