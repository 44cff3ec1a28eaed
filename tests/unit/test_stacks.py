"""Pods as the stacks make them that people run (`tests/fixtures/stacks`), each with our annotation, through the real
webhook: from the API server's words to the patch, and nothing of theirs is touched."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import kubernetes_validate
import pytest
import yaml

from cacheagent.kube import names
from cacheagent.kube.webhook.catalog import MirrorCatalog
from cacheagent.kube.webhook.decide import volume_name
from cacheagent.kube.webhook.refusal import PodRefused
from tests.fakes import admission
from tests.fakes.admission import Pod, containers_of
from tests.fakes.webhook import LLAMA, cluster, model

FIXTURES: Final = Path(__file__).resolve().parents[1] / "fixtures/stacks"
OTHERS: Final = ("kserve",)
"""Stacks whose pods have a test of their own."""
NEWEST: Final = "1.37"
HF: Final = ("HF_HUB_CACHE", "HF_HUB_OFFLINE")


class Weights(NamedTuple):
    """What a fixture is to get. `containers`: who reads them, and nobody else. `paths`: where, by the model. `named`:
    by which words of the container's own arguments the stack finds them. `variables`: what is set for it."""

    containers: tuple[str, ...]
    paths: dict[str, str]
    named: str = "/mnt/models"
    variables: tuple[str, ...] = ()


STACKS: Final = {
    "argo/workflow": Weights(("main",), {"llama": "/mnt/models"}),
    "istio/sidecar": Weights(("vllm",), {"llama": "/mnt/models"}),
    "knative/revision": Weights(("vllm",), {"llama": "/mnt/models"}),
    "kubeflow/katib-trial": Weights(("training-container",), {"llama": "/mnt/models"}),
    "kubeflow/pipelines-step": Weights(("main",), {"llama": "/mnt/models"}),
    "kubeflow/pytorchjob-worker": Weights(("pytorch",), {"images": "/data/images"}, "/data/images"),
    "kubeflow/trainjob-node": Weights(("node",), {"llama": "/mnt/models"}),
    "kubeflow/trainjob-torchtune": Weights(("node",), {"llama": "/workspace/model"}, "_dir=/workspace/model"),
    "triton/gcp": Weights(("triton-inference-server",), {"triton-repository": "/mnt/models"}),
    "triton/k8s-onprem": Weights(
        ("triton-inference-server",), {"triton-repository": "/models"}, "--model-repository=/models"
    ),
    "triton/vllm-backend": Weights(
        ("triton-inference-server",), {"triton-repository": "/models", "llama": "/weights/llama"}, "=/models"
    ),
    "vllm/llm-d-decode": Weights(("vllm",), {"tiny": "/mnt/models"}, "org/tiny", HF),
    "vllm/llm-d-own-cache": Weights(("vllm",), {"tiny": "/mnt/models"}, "org/tiny", ("HF_HUB_OFFLINE",)),
    "vllm/production-stack": Weights(("vllm",), {"tiny": "/mnt/models"}, "org/tiny", HF),
    "vllm/production-stack-lora": Weights(("vllm",), {"llama": "/mnt/models"}),
}

every_stack = pytest.mark.parametrize("name", STACKS)


def fixture(name: str) -> Pod:
    """The pod as its stack makes it, with our annotation."""
    pod: Pod = yaml.safe_load((FIXTURES / f"{name}.yaml").read_text())
    return pod


def catalog() -> MirrorCatalog:
    """A cluster that knows the models that the fixtures ask for."""
    _, namespaces = cluster()
    models = [
        model("llama", LLAMA),
        model("tiny", LLAMA, source={"uri": "s3://models/tiny", "repoId": "org/tiny"}),
        model("triton-repository", LLAMA, kind="tree"),
        model("images", LLAMA, kind="tree"),
    ]
    return MirrorCatalog({("", each["metadata"]["name"]): each for each in models}, namespaces)


def admitted(pod: Pod) -> Pod:
    """What the API server would store of it, where the models are known. Raises PodRefused."""
    return admission.admitted(pod, catalog())


def without_ours(pod: Pod) -> Pod:
    """As its stack makes it when nobody asks for weights."""
    pod = copy.deepcopy(pod)
    kept = {key: text for key, text in pod["metadata"]["annotations"].items() if not key.startswith(names.GROUP)}
    pod["metadata"]["annotations"] = kept
    return pod


def additions(before: Any, after: Any, at: str = "") -> Iterator[str]:
    """JSON pointers of what `after` has more than `before`. Fails where anything of `before` is changed, gone, or has
    moved: to the byte, the order of fields and of items included."""
    if isinstance(before, dict) and isinstance(after, dict):
        assert [key for key in after if key in before] == list(before), f"{at}: a field is gone, or moved"
        for key, value in after.items():
            step = f"{at}/{key.replace('~', '~0').replace('/', '~1')}"
            yield from additions(before[key], value, step) if key in before else [step]
    elif isinstance(before, list) and isinstance(after, list):
        assert len(after) >= len(before), f"{at}: an item is gone"
        for index, value in enumerate(after):
            yield from additions(before[index], value, f"{at}/{index}") if index < len(before) else [f"{at}/{index}"]
    else:
        assert json.dumps(before) == json.dumps(after), f"{at} was changed"


def expected_additions(pod: Pod, weights: Weights) -> set[str]:
    """Volumes, mounts, variables, a preference, a mark and the decision; not a byte more."""
    spec = pod["spec"]
    preference, there = "/spec/affinity", spec.get("affinity")
    for inner in ("nodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution"):
        if there is not None:
            preference, there = f"{preference}/{inner}", there.get(inner)
    found = {
        "/metadata/annotations/cacheagent.io~1decision",
        "/metadata/labels/cacheagent.io~1injected",
        preference,
        *appended("/spec/volumes", spec.get("volumes"), len(weights.paths)),
    }
    for index, container in enumerate(spec["containers"]):
        if container["name"] in weights.containers:
            at = f"/spec/containers/{index}"
            found |= appended(f"{at}/volumeMounts", container.get("volumeMounts"), len(weights.paths))
            found |= appended(f"{at}/env", container.get("env"), len(weights.variables))
    return found


def appended(at: str, there: list[Any] | None, count: int) -> set[str]:
    """Pointers of so many items behind those of a list; of the list itself where there was none."""
    if not count:
        return set()
    return {at} if there is None else {f"{at}/{len(there) + each}" for each in range(count)}


def with_later_fields(pod: Pod) -> Pod:
    """The pod with fields of Kubernetes releases to come, at each level."""
    pod = copy.deepcopy(pod)
    for holder in (pod, pod["metadata"], pod["spec"], *containers_of(pod), *pod["spec"].get("volumes", [])):
        holder["fieldToCome"] = {"list": [1, None, {"text": "<ü>"}], "number": 1.50}
    return pod


def test_every_fixture_is_expected_something() -> None:
    """A pod that is recorded and not judged would prove nothing."""
    found = {path.relative_to(FIXTURES).with_suffix("").as_posix() for path in FIXTURES.rglob("*.yaml")}
    assert {name for name in found if not name.startswith(OTHERS)} == STACKS.keys()


@every_stack
def test_a_fixture_says_where_it_comes_from(name: str) -> None:
    """Project and file, for whoever has to bring it up to date."""
    head = [line for line in (FIXTURES / f"{name}.yaml").read_text().splitlines() if line.startswith("# ")]
    assert "Shape: github.com/" in "\n".join(head)


@every_stack
def test_who_reads_the_weights_finds_them(name: str) -> None:
    """Volume and mounts, read-only, where the stack's own arguments point; no sidecar and no helper sees them."""
    after = admitted(fixture(name))
    weights = STACKS[name]
    expected = {volume_name(asked): path for asked, path in weights.paths.items()}
    ours = {volume["name"]: volume["csi"] for volume in after["spec"]["volumes"] if volume["name"] in expected}
    assert ours.keys() == expected.keys()
    for model_name, csi in zip(weights.paths, ours.values(), strict=True):
        assert csi["driver"] == names.DRIVER
        assert csi["readOnly"] is True
        assert csi["volumeAttributes"]["model"] == model_name
        assert csi["volumeAttributes"]["view"] == ("hf" if weights.variables else "files")
    for container in containers_of(after):
        mounts = [mount for mount in container.get("volumeMounts", []) if mount["name"] in expected]
        if container["name"] not in weights.containers:
            assert mounts == [], container["name"]
            continue
        assert {mount["name"]: mount["mountPath"] for mount in mounts} == expected
        assert all(mount["readOnly"] is True for mount in mounts)
        assert weights.named in " ".join([*container.get("command", []), *container.get("args", [])])


@every_stack
def test_nothing_of_the_stacks_own_is_touched(name: str) -> None:
    """What the pod has more afterwards is known to the field; all else is as it came, fields to come included."""
    before = with_later_fields(fixture(name))
    assert set(additions(before, admitted(before))) == expected_additions(before, STACKS[name])


def test_a_changed_argument_would_be_found() -> None:
    """The positive control of the comparison: a byte, an item, an order, a field."""
    before = fixture("knative/revision")
    changes: list[Callable[[Pod], Any]] = [
        lambda spec: spec["containers"][0]["args"].append("--more") or spec["containers"][0]["args"].pop(0),
        lambda spec: spec["containers"][1]["env"].pop(),
        lambda spec: spec["containers"].reverse(),
        lambda spec: spec.pop("enableServiceLinks"),
        lambda spec: spec.update(terminationGracePeriodSeconds="300"),
    ]
    for change in changes:
        after = admitted(before)
        change(after["spec"])
        with pytest.raises(AssertionError):
            list(additions(before, after))


@every_stack
def test_without_the_annotation_nothing_is_done(name: str) -> None:
    """The positive control of all of the above."""
    pod = without_ours(fixture(name))
    assert admitted(pod) == pod


@every_stack
def test_the_second_call_finds_nothing_to_do(name: str) -> None:
    """Other webhooks add their containers, and ours is called again: the late ones get nothing."""
    after = admitted(fixture(name))
    assert admitted(after) == after
    after["spec"]["containers"].append({"name": "late", "image": "registry.example/late:1"})
    assert admitted(after) == after


@every_stack
def test_variables_are_the_authors_first(name: str) -> None:
    """The hf view sets what a container has not set, to the mount's path; values of the author stay."""
    before, after = fixture(name), admitted(fixture(name))
    weights = STACKS[name]
    for was, container in zip(containers_of(before), containers_of(after), strict=True):
        set_here = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
        own = {variable["name"]: variable.get("value") for variable in was.get("env", [])}
        ours = {key: value for key, value in set_here.items() if key not in own}
        wanted = {"HF_HUB_CACHE": "/mnt/models", "HF_HUB_OFFLINE": "1"}
        reads = container["name"] in weights.containers
        assert ours == ({key: wanted[key] for key in weights.variables} if reads else {})
        assert len(set_here) == len(container.get("env", [])), "a variable is set twice"


@every_stack
def test_the_pods_are_kubernetes_own(name: str) -> None:
    """As recorded and as admitted: strictly what the schema knows."""
    for pod in (fixture(name), admitted(fixture(name))):
        kubernetes_validate.validate(pod, NEWEST, strict=True)


@every_stack
@pytest.mark.parametrize("wait", ["gate", "init"])
def test_every_way_to_wait_goes_with_it(name: str, wait: str) -> None:
    """A gate, or an init container of ours that comes first; the containers' own order stays."""
    pod = fixture(name)
    pod["metadata"]["annotations"][names.WAIT] = wait
    after = admitted(pod)
    order = [each["name"] for each in pod["spec"]["containers"]]
    assert [each["name"] for each in after["spec"]["containers"]] == order
    theirs = [each["name"] for each in pod["spec"].get("initContainers", [])]
    first = [names.WAIT_CONTAINER] if wait == "init" else []
    assert [each["name"] for each in after["spec"].get("initContainers", [])] == first + theirs
    assert after["spec"].get("schedulingGates", []) == ([{"name": names.GATE}] if wait == "gate" else [])
    assert admitted(after) == after


def test_knatives_queue_proxy_is_knatives() -> None:
    """To the byte, and behind the user's container, where Knative put it."""
    before, after = fixture("knative/revision"), admitted(fixture("knative/revision"))
    assert json.dumps(before["spec"]["containers"][1]) == json.dumps(after["spec"]["containers"][1])
    assert after["spec"]["containers"][1]["name"] == "queue-proxy"


@pytest.mark.parametrize("collector", ["metrics-logger-and-collector", "metrics-collector"])
@pytest.mark.parametrize("katib_first", [True, False])
def test_katibs_collector_is_katibs(collector: str, *, katib_first: bool) -> None:
    """By either of its names, and whichever webhook comes first, it is as Katib made it, and so is the wrapped command;
    nothing has to be named. Under a name of somebody else's it would see the weights."""
    trial = fixture("kubeflow/katib-trial")
    trial["spec"]["containers"][1]["name"] = collector
    before = copy.deepcopy(trial)
    if not katib_first:
        late = trial["spec"]["containers"].pop()
        trial = admitted(trial)
        trial["spec"]["containers"].append(late)
    after = admitted(trial)["spec"]["containers"]
    assert json.dumps(after[1]) == json.dumps(before["spec"]["containers"][1])
    assert {key: after[0][key] for key in ("command", "args")} == {
        "command": ["sh", "-c"],
        "args": before["spec"]["containers"][0]["args"],
    }
    assert after[0]["args"][0].endswith("&& echo completed > /var/log/katib/$$$$.pid")
    before["spec"]["containers"][1]["name"] = "own-collector"
    assert len(admitted(before)["spec"]["containers"][1]["volumeMounts"]) == 2


def test_tritons_own_volume_has_to_go() -> None:
    """With the chart's NFS volume left at /models, the pod is refused with a sentence that says what to do."""
    pod = fixture("triton/k8s-onprem")
    pod["spec"]["volumes"] = [{"name": "models", "nfs": {"server": "nas.example", "path": "/srv/models"}}]
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "models", "mountPath": "/models"}]
    with pytest.raises(PodRefused, match=r"/models mounted already.*choose another cacheagent\.io/mount-path"):
        admitted(pod)
    pod["metadata"]["annotations"][names.MOUNT_PATH] = "/weights"
    assert admitted(pod)


@pytest.mark.parametrize(
    ("name", "helpers"),
    [
        ("argo/workflow", {"init", "wait"}),
        ("kubeflow/pipelines-step", {"init", "kfp-launcher", "wait"}),
        ("kubeflow/pytorchjob-worker", {"init-pytorch"}),
        ("vllm/production-stack-lora", {"sidecar"}),
    ],
)
def test_helpers_with_plain_names_have_to_be_left_out_by_the_pod(name: str, helpers: set[str]) -> None:
    """No list can know that `wait` or `sidecar` is one: without `containers` they see the weights as well."""
    pod = fixture(name)
    del pod["metadata"]["annotations"][names.CONTAINERS]
    seen = {
        each["name"]
        for each in containers_of(admitted(pod))
        if any(mount["name"].startswith("cacheagent-") for mount in each.get("volumeMounts", []))
    }
    assert seen == {*STACKS[name].containers, *helpers}
