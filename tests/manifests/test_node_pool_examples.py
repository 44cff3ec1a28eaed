"""Examples for pools of nodes: valid as they are, accepted by chart and webhook, and nothing of ours asks for a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import yaml

from cacheagent.kube import names
from cacheagent.kube.controller_config import parse_controller_config
from cacheagent.kube.objects import ModelCacheSpec
from cacheagent.kube.webhook.catalog import MirrorCatalog
from tests.fakes.admission import admitted, containers_of
from tests.fakes.webhook import LLAMA
from tests.manifests.chart import ROOT, SETS, VERSIONS, Manifests, Object, parse, render
from tests.manifests.test_versions import check, check_example, definitions

STACKS: Final = ("autoscaling", "gpu-operator")
by_stack = pytest.mark.parametrize("stack", STACKS)


def text_of(stack: str, name: str) -> str:
    return (ROOT / "examples" / stack / name).read_text()


def objects_of(stack: str) -> Manifests:
    return parse(text_of(stack, "deployment.yaml"))


def values_of(stack: str) -> Object:
    return dict(yaml.safe_load(text_of(stack, "values.yaml")))


def pod_of(stack: str, **annotations: str) -> Object:
    """What the Deployment's template comes to."""
    (deployment,) = objects_of(stack).all("Deployment")
    template = deployment["spec"]["template"]
    template["metadata"]["annotations"] |= annotations
    metadata = {"generateName": "x-", **template["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def catalog(stack: str) -> MirrorCatalog:
    """A cluster in which the example's model is known."""
    (item,) = objects_of(stack).all("ModelCache")
    return MirrorCatalog({("", item["metadata"]["name"]): {**item, "status": {"digest": LLAMA}}}, {})


def gpus_of(spec: Mapping[str, Any]) -> list[str]:
    """Names of the containers that ask for anything of NVIDIA's."""
    return [
        each["name"]
        for each in [*spec.get("initContainers", []), *spec["containers"]]
        if any(name.startswith("nvidia.com/") for kind in each.get("resources", {}).values() for name in kind)
    ]


@by_stack
def test_objects_are_valid_and_say_what_to_change(stack: str) -> None:
    """By our schemas and by Kubernetes' own, its oldest and its newest."""
    for name in ("values.yaml", "deployment.yaml"):
        assert text_of(stack, name).startswith("# ")
        assert "# Change: " in text_of(stack, name)
    schemas = definitions()
    for item in objects_of(stack).objects:
        check_example(item, schemas)


@by_stack
def test_pods_find_their_weights_where_the_nodes_are_that_fetch_them(stack: str) -> None:
    """The pod goes to the nodes of the model, tolerates what such nodes have, and gets the volume."""
    (item,) = objects_of(stack).all("ModelCache")
    spec = msgspec.convert(item["spec"], ModelCacheSpec)
    pod = admitted(pod_of(stack), catalog(stack))
    check(pod, VERSIONS[-1])
    assert pod["spec"]["nodeSelector"] == spec.node_selector
    assert {"key": "nvidia.com/gpu", "operator": "Exists"} in pod["spec"]["tolerations"]
    (container,) = pod["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] in container["args"]
    assert spec.source.credentials in values_of(stack)["credentials"]
    assert spec.required == (stack == "autoscaling")


@by_stack
@pytest.mark.parametrize("wait", ["mount", "init"])
def test_the_webhook_adds_nothing_that_asks_for_a_gpu(stack: str, wait: str) -> None:
    """The pod's own container does, which is the control; an injected one doesn't."""
    pod = admitted(pod_of(stack, **{names.WAIT: wait}), catalog(stack))
    assert len(containers_of(pod)) == (2 if wait == "init" else 1)
    assert gpus_of(pod["spec"]) == ["vllm"]


@pytest.mark.parametrize("values", [*SETS.values(), *map(values_of, STACKS)], ids=[*SETS, *STACKS])
def test_the_chart_asks_for_no_gpu(values: Mapping[str, Any]) -> None:
    """In any set of values: no pod of ours takes one from those that compute."""
    rendered = parse(render(values))
    assert gpus_of(rendered.node_pod) == gpus_of(rendered.controller_pod) == []


def test_the_values_for_gpu_nodes_are_the_defaults() -> None:
    """Nobody has to set them: they are there to be seen."""
    values = values_of("gpu-operator")
    defaults = yaml.safe_load((ROOT / "daemonset/chart/values.yaml").read_text())
    assert values["nodes"] == defaults["nodes"] == "gpu"
    assert values["agent"]["tolerations"] == defaults["agent"]["tolerations"]


def test_the_values_for_pools_that_grow_mind_the_taint() -> None:
    """The controller does, and our own pods tolerate it."""
    rendered = parse(render(values_of("autoscaling")))
    text = rendered.get("ConfigMap", "cacheagent-controller")["data"]["controller.yaml"]
    config = parse_controller_config(text, Path("controller.yaml"))
    assert (config.cold.enabled, float(config.cold.deadline)) == (True, 1800)
    assert {"key": names.COLD_TAINT, "operator": "Exists"} in rendered.node_pod["tolerations"]


def test_keda_scales_the_deployment_and_says_nothing_of_ours() -> None:
    """The same one that the horizontal autoscaler of the other file scales, and between zero and as many."""
    (scaled,) = parse(text_of("autoscaling", "keda.yaml")).objects
    (autoscaler,) = objects_of("autoscaling").all("HorizontalPodAutoscaler")
    target = autoscaler["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == ("apps/v1", "Deployment")
    assert scaled["spec"]["scaleTargetRef"] == {"name": target["name"]}
    assert scaled["metadata"] == autoscaler["metadata"]
    assert scaled["spec"]["maxReplicaCount"] == autoscaler["spec"]["maxReplicas"]
    assert names.GROUP not in yaml.safe_dump(scaled)
