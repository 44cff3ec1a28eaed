"""Nodes as NVIDIA's GPU Operator and Node Feature Discovery leave them, with the files of `examples/gpu-operator`. No
GPU and no operator is here: the test writes the labels, the taint and the resources that they write, and reboots."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.faults import published_versions
from tests.e2e.cluster.models import (
    READ_AND_STAY,
    Weights,
    clean_up,
    condition,
    events_of,
    model_status,
    pods_of,
    read_report,
    reading_pod,
    upload_checkpoint,
    wait_until_cached,
    wait_until_running,
)
from tests.e2e.cluster.paced import PacedOrigin, paced_origin
from tests.e2e.cluster.product import NAMESPACE, agent_nodes, agent_pod, install, wait_until_ready
from tests.e2e.cluster.readers import MODES, digest_label
from tests.e2e.cluster.waiting import wait_until
from tests.e2e.cluster.workload import python_pod
from tests.e2e.figures import report
from tests.stacks.examples import GPU, NEXT_TO_NOTHING, adapted, seen_by, set_gpus, values_of

pytestmark = [pytest.mark.stacks, pytest.mark.kube, pytest.mark.timeout(900, func_only=True)]

STACK: Final = "gpu-operator"
NAME: Final = "llama-3-8b-gpu"
"""Of all objects of the example."""
GPU_NODES: Final = ("n1", "n2")
OTHER: Final = "n3"
TAINT: Final = f"{GPU}=present:NoSchedule"
FOUND_BY_NFD: Final = {
    "n1": "feature.node.kubernetes.io/pci-10de.present",
    "n2": "feature.node.kubernetes.io/pci-0302_10de.present",
}
"""NFD tells devices by vendor, or by class and vendor, as it is configured."""
PRESENT: Final = "nvidia.com/gpu.present"
WITH_DRIVER: Final = (
    "nvidia.com/cuda.driver-version.major=580",
    "nvidia.com/gpu.count=1",
    f"{GPU}.product=NVIDIA-H100-80GB-HBM3",
)
MIG: Final = "nvidia.com/mig.config"
TOLERATES: Final = {"tolerations": [{"key": GPU, "operator": "Exists"}]}


class Scene(NamedTuple):
    """The chart with the example's values, the example's objects by their kinds, and an origin that counts."""

    cluster: Cluster
    namespace: str
    weights: Weights
    origin: PacedOrigin
    objects: Mapping[str, Any]


@pytest.fixture(scope="module")
def scene(product: Cluster) -> Iterator[Scene]:
    """n1 and n2 repel pods that don't tolerate GPU nodes; nobody has found their GPUs yet."""
    product.kubectl("taint", "node", *GPU_NODES, TAINT)
    weights = upload_checkpoint(product.object_store, STACK, size_bytes=40_000_000, shards=2, seed=92)
    with product.namespace(STACK) as namespace, paced_origin(weights.endpoint, None) as origin:
        objects = {item["kind"]: item for item in adapted(STACK, namespace, weights, {"endpoint": origin.endpoint})}
        objects["ModelCache"]["spec"]["localPersistentVolumes"] = {"namespaces": [namespace]}
        try:
            install(product, values_of(STACK))
            yield Scene(product, namespace, weights, origin, objects)
        finally:
            product.kubectl("uncordon", *GPU_NODES)
            product.kubectl("delete", "deployment", "--all", "-n", namespace, "--timeout=60s")
            clean_up(product, namespace, NAME)
            product.kubectl("taint", "node", *GPU_NODES, f"{TAINT}-")
            labels = [PRESENT, *FOUND_BY_NFD.values(), *(each.partition("=")[0] for each in WITH_DRIVER)]
            labels += [MIG, f"{MIG}.state"]
            product.kubectl("label", "node", *GPU_NODES, *(f"{label}-" for label in labels))
            for node in GPU_NODES:
                set_gpus(product, node, None)
            install(product)


@pytest.fixture(scope="module")
def serving(scene: Scene) -> Scene:
    """The example runs: a pod with a GPU on each node. Whatever was there before is taken as it is."""
    cluster = scene.cluster
    cluster.kubectl("label", "node", *GPU_NODES, f"{PRESENT}=true", *WITH_DRIVER, "--overwrite")
    for node in GPU_NODES:
        set_gpus(cluster, node, 1)
    cluster.apply(*scene.objects.values())
    wait_until_cached(cluster, NAME, nodes=2)
    wait_until_running(cluster, scene.namespace, NAME, pods=2)
    return scene


def uids(cluster: Cluster) -> dict[str, str]:
    """Of the agents' pods, by node."""
    return {
        node: cluster.get("pod", agent_pod(cluster, node), "-n", NAMESPACE)["metadata"]["uid"]
        for node in agent_nodes(cluster)
    }


def test_nodes_are_found_before_the_driver_is_there_and_filled_before_there_is_a_gpu(scene: Scene) -> None:
    """By NFD's labels; the operator's and the driver's come later and change nothing. A node without has no cache."""
    cluster, namespace = scene.cluster, scene.namespace
    assert agent_nodes(cluster) == set()
    cluster.apply(python_pod("stranger", node="n1", namespace=namespace), *scene.objects.values())
    for node, label in FOUND_BY_NFD.items():
        cluster.kubectl("label", "node", node, f"{label}=true")
        wait_until(lambda node=node: node in agent_nodes(cluster), f"{node} gets a cache", 60)  # type: ignore[misc]
    wait_until_ready(cluster)
    assert agent_nodes(cluster) == set(GPU_NODES)
    before = uids(cluster)
    told = wait_until(lambda: events_of(cluster, namespace, "stranger"), "the taint does keep pods away", 30)
    assert "had untolerated taint" in told[-1]

    cluster.kubectl("label", "node", *GPU_NODES, f"{PRESENT}=true")  # the operator's, because of NFD's
    wait_until_cached(cluster, NAME, nodes=2)
    pods = wait_until(lambda: pods_of(cluster, namespace, NAME), "the example has its pods", 30)
    first = pods[0]["metadata"]["name"]
    wait_until(
        lambda: any(f"Insufficient {GPU}" in each for each in events_of(cluster, namespace, first)),
        "they wait for a GPU and for nothing else",
        60,
    )
    fetched = scene.origin.bytes_sent
    assert 2 * scene.weights.size_bytes <= fetched < 2.1 * scene.weights.size_bytes

    cluster.kubectl("label", "node", *GPU_NODES, *WITH_DRIVER)
    for node in GPU_NODES:
        set_gpus(cluster, node, 1)
    pods = wait_until_running(cluster, namespace, NAME, pods=2)
    assert {pod["spec"]["nodeName"] for pod in pods} == set(GPU_NODES)
    for pod in pods:
        assert seen_by(cluster, namespace, pod["metadata"]["name"]).files == scene.weights.files
    assert scene.origin.bytes_sent - fetched < NEXT_TO_NOTHING
    assert uids(cluster) == before
    assert OTHER not in agent_nodes(cluster)
    cluster.kubectl("delete", "pod", "stranger", "-n", namespace)


def test_nothing_of_ours_asks_for_a_gpu(serving: Scene) -> None:
    """Neither our own pods nor what the webhook puts into others; all GPUs are given to the example's pods."""
    cluster, namespace = serving.cluster, serving.namespace
    pods = cluster.get("pods", "-n", NAMESPACE)["items"]
    assert len(pods) >= 3
    assert not [pod["metadata"]["name"] for pod in pods if asks_for_gpus(pod["spec"])]
    plain = reading_pod("plain", namespace, NAME, options={"wait": "init"}, node="n1", spec=TOLERATES)
    cluster.apply(plain)
    wait_until_running(cluster, namespace, "plain")
    assert asks_for_gpus(cluster.get("pod", "plain", "-n", namespace)["spec"]) == 0
    assert [asks_for_gpus(pod["spec"]) for pod in pods_of(cluster, namespace, NAME)] == [1, 1]
    cluster.kubectl("delete", "pod", "plain", "-n", namespace)


def asks_for_gpus(spec: Mapping[str, Any]) -> int:
    """How many of its containers ask for anything of NVIDIA's."""
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    return sum(
        any(name.startswith("nvidia.com/") for kind in each.get("resources", {}).values() for name in kind)
        for each in containers
    )


def test_a_mig_reconfiguration_with_a_reboot_loses_nothing(serving: Scene) -> None:
    """As the MIG manager goes about it: pods leave, the node reboots, another number of GPUs is there, pods come."""
    cluster, namespace = serving.cluster, serving.namespace
    digest = model_status(cluster, NAME)["digest"]
    fetched, before = serving.origin.bytes_sent, uids(cluster)
    (other,) = [pod for pod in pods_of(cluster, namespace, NAME) if pod["spec"]["nodeName"] == "n2"]

    cluster.kubectl("label", "node", "n1", f"{MIG}=all-3g.40gb", f"{MIG}.state=pending", "--overwrite")
    set_gpus(cluster, "n1", 0)
    cluster.kubectl("drain", "n1", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s")
    (waiting,) = wait_until(
        lambda: [pod for pod in pods_of(cluster, namespace, NAME) if "nodeName" not in pod["spec"]],
        "the evicted pod's successor waits",
        60,
    )
    assert uids(cluster) == before, "a drained node keeps its cache"
    cluster.kubectl("label", "node", "n1", f"{MIG}.state=rebooting", "--overwrite")
    begin = time.monotonic()
    reboot(cluster, "n1")
    assert published_versions(cluster.node("n1")) >= {digest}
    cluster.kubectl("label", "node", "n1", f"{MIG}.state=success", "--overwrite")
    set_gpus(cluster, "n1", 2)
    cluster.kubectl("uncordon", "n1")

    pods = wait_until_running(cluster, namespace, NAME, pods=2, limit=150)
    report("a reboot for MIG", from_power_off_to_pod_s=time.monotonic() - begin)
    (came,) = [pod for pod in pods if pod["metadata"]["name"] == waiting["metadata"]["name"]]
    assert came["spec"]["nodeName"] == "n1"
    assert seen_by(cluster, namespace, came["metadata"]["name"]).files == serving.weights.files
    (stayed,) = [pod for pod in pods if pod["spec"]["nodeName"] == "n2"]
    assert stayed["status"]["containerStatuses"] == other["status"]["containerStatuses"], "n2 noticed nothing"
    must_have_lost_nothing(serving, digest, fetched, before)


def test_a_reboot_without_a_word_loses_nothing_and_needs_nobody(serving: Scene) -> None:
    """Pods in both modes run on the node as its power goes; each runs again and reads the same bytes."""
    cluster, namespace = serving.cluster, serving.namespace
    digest = model_status(cluster, NAME)["digest"]
    more: dict[str, Any] = {"spec": {**TOLERATES, "restartPolicy": "Always"}}
    for mode in MODES:
        options = {"mode": mode}
        cluster.apply(reading_pod(f"reads-{mode}", namespace, NAME, READ_AND_STAY, node="n2", options=options, **more))
    first = {mode: running(cluster, namespace, f"reads-{mode}") for mode in MODES}
    fetched, before = serving.origin.bytes_sent, uids(cluster)
    assert len(volumes_on(cluster, "n2")) == 3

    begin = time.monotonic()
    reboot(cluster, "n2")
    for mode, pod in first.items():
        again = wait_until(
            lambda mode=mode, pod=pod: running_anew(cluster, namespace, f"reads-{mode}", pod),  # type: ignore[misc]
            f"reads-{mode} runs again",
            150,
        )
        assert again["metadata"]["uid"] == pod["metadata"]["uid"]
        seen = read_report(cluster, namespace, f"reads-{mode}")
        assert (seen.files, seen.write) == (serving.weights.files, "Read-only file system")
    report("a reboot without a word", from_power_off_to_pods_s=time.monotonic() - begin)
    mounts = volumes_on(cluster, "n2")
    assert len(mounts) >= 2
    assert all(mount.is_read_only for mount in mounts)
    must_have_lost_nothing(serving, digest, fetched, before)
    cluster.kubectl("delete", "pod", *(f"reads-{mode}" for mode in MODES), "-n", namespace, "--timeout=60s")


def reboot(cluster: Cluster, node: str) -> None:
    """The kubelet has reported again when this returns; what comes back, does so by itself."""
    cluster.cut_power(node)
    cluster.power_on(node)


def running(cluster: Cluster, namespace: str, name: str) -> Any:
    (pod,) = wait_until_running(cluster, namespace, name)
    return pod


def running_anew(cluster: Cluster, namespace: str, name: str, before: Any) -> Any:
    """The pod, if its container is another one than before and ready."""
    pod = cluster.get("pod", name, "-n", namespace)
    (now,), (then,) = pod["status"]["containerStatuses"], before["status"]["containerStatuses"]
    return pod if now["ready"] and now.get("containerID") != then["containerID"] else None


def volumes_on(cluster: Cluster, node: str) -> list[Any]:
    """The node's mounts that show the cache to pods."""
    mounts = cluster.node(node).host_mounts()
    return [mount for mount in mounts if "/pods/" in mount.mount_point and "/models/sha256-" in mount.root]


def must_have_lost_nothing(scene: Scene, digest: str, fetched: int, agents: Mapping[str, str]) -> None:
    """The same version on both nodes by the same agents' pods, and no byte of it from the origin."""
    cluster = scene.cluster
    wait_until_ready(cluster)
    assert wait_until_cached(cluster, NAME, nodes=2)["digest"] == digest
    assert condition(model_status(cluster, NAME), "Degraded") == "False"
    assert all(digest_label(cluster, node, digest) == "ready" for node in GPU_NODES)
    assert scene.origin.bytes_sent - fetched < NEXT_TO_NOTHING
    assert uids(cluster) == agents
