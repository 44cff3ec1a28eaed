"""Nodes and pods that come and go, with the files of `examples/autoscaling`: the test plays the autoscalers, but for
the horizontal one of pods, which is Kubernetes' own, and KEDA."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from cacheagent.kube.names import API_VERSION, COLD_TAINT
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.faults import events_on, node_model, node_status
from tests.e2e.cluster.models import (
    START_AND_STAY,
    Weights,
    clean_up,
    condition,
    events_of,
    model_status,
    pods_of,
    upload_checkpoint,
    wait_until_cached,
    wait_until_running,
)
from tests.e2e.cluster.node import NodeOptions
from tests.e2e.cluster.paced import PacedOrigin, paced_origin
from tests.e2e.cluster.product import install
from tests.e2e.cluster.readers import digest_label
from tests.e2e.cluster.waiting import wait_until
from tests.e2e.cluster.workload import python_pod
from tests.e2e.figures import report
from tests.fakes.origin import Origin
from tests.stacks.examples import NEXT_TO_NOTHING, adapted, read, seen_by, set_gpus, values_of
from tests.stacks.keda import running_keda

pytestmark = [pytest.mark.stacks, pytest.mark.kube, pytest.mark.timeout(900, func_only=True)]

STACK: Final = "autoscaling"
NAME: Final = "llama-3-8b-elastic"
"""Of all objects of the example."""
POOL: Final = {"pool": "inference"}
COLD: Final = f"{COLD_TAINT}:NoSchedule"
SIZE: Final = 60_000_000
SCALED: Final = "scaledobjects.keda.sh"
QUERY: Final = "api/v1/query"
"""Of Prometheus."""
SLOW: Final = 1_000_000
"""Bytes a second: a download of a minute."""


@pytest.fixture(scope="module")
def growing(product: Cluster) -> Iterator[Cluster]:
    """The chart with the example's values; its nodes so far belong to no pool of the example."""
    install(product, values_of(STACK))
    yield product
    install(product)


@pytest.fixture
def weights(growing: Cluster) -> Weights:
    return upload_checkpoint(growing.object_store, STACK, size_bytes=SIZE, shards=3, seed=91)


@pytest.fixture
def origin(weights: Weights) -> Iterator[PacedOrigin]:
    """Each test's own: it counts, and nobody has what comes from it."""
    with paced_origin(weights.endpoint, None) as paced:
        yield paced


@pytest.fixture
def example(
    growing: Cluster, namespace: str, weights: Weights, origin: PacedOrigin, joined: set[str]
) -> Iterator[dict[str, Any]]:
    """Its objects by their kinds, not applied yet; what was applied is gone afterwards, and before the nodes go."""
    objects = adapted(STACK, namespace, weights, {"endpoint": origin.endpoint})
    yield {item["kind"]: item for item in objects}
    for kind in ("hpa", "deployment"):
        growing.kubectl("delete", kind, "--all", "-n", namespace, "--timeout=60s")
    clean_up(growing, namespace, NAME)
    growing.kubectl("delete", "modelwarmups", "--all", "--timeout=60s")


@pytest.fixture
def joined(growing: Cluster) -> Iterator[set[str]]:
    """Names of nodes that the test has added, which it may remove itself."""
    names: set[str] = set()
    yield names
    for name in names & {node.name for node in growing.nodes}:
        growing.remove_node(name)
    for name in names:
        for kind in ("node", "modelcachenode"):
            growing.kubectl("wait", "--for=delete", kind, name, "--timeout=90s")


def join(cluster: Cluster, name: str, joined: set[str]) -> None:
    """A new node of the pool, born with the label and the cold taint, and with one GPU."""
    joined.add(name)
    cluster.add_node(NodeOptions(name=name, labels=POOL, taints=(COLD,)))
    set_gpus(cluster, name, 1)


def is_cold(cluster: Cluster, node: str) -> bool:
    return any(taint["key"] == COLD_TAINT for taint in cluster.get("node", node)["spec"].get("taints", []))


def wait_until_warm(cluster: Cluster, node: str, limit: float = 90.0) -> None:
    """The taint is gone, and because all is there: not for the deadline's sake."""
    wait_until(lambda: not is_cold(cluster, node), f"{node} isn't cold any more", limit)
    said = wait_until(lambda: ours_of(cluster, node), "the node's events say why", 30)
    assert said == ["Warm: all required models are ready"]


def ours_of(cluster: Cluster, node: str) -> list[str]:
    """What the controller has said of this very Node, not of one before with its name."""
    uid = cluster.get("node", node)["metadata"]["uid"]
    events = cluster.get("events", "-A", "--field-selector", f"involvedObject.uid={uid}")["items"]
    ours = ("Cold", "ColdDeadline", "Warm")
    return [f"{each['reason']}: {each['message']}" for each in events if each["reason"] in ours]


def counts(cluster: Cluster) -> tuple[int, int]:
    """Of the model: ready, assigned."""
    nodes = model_status(cluster, NAME)["nodes"]
    return nodes["ready"], nodes["assigned"]


def test_a_node_joins_cold_is_filled_and_takes_the_pod_that_waits(
    growing: Cluster, namespace: str, example: dict[str, Any], weights: Weights, origin: PacedOrigin, joined: set[str]
) -> None:
    """From no node at all: a pod that tolerates the taint starts there at once, the other one when all is there."""
    growing.apply(*example.values())
    (waiting,) = wait_until(lambda: pods_of(growing, namespace, NAME), "the Deployment has made its pod", 60)
    name = waiting["metadata"]["name"]
    wait_until(lambda: condition(model_status(growing, NAME), "Ready") == "False", "the model has no node", 30)
    assert counts(growing) == (0, 0)

    origin.bytes_per_s = 4 * SLOW
    begin = time.monotonic()
    join(growing, "n4", joined)
    brave = python_pod(
        "brave",
        START_AND_STAY,
        namespace=namespace,
        spec={"nodeSelector": POOL, "tolerations": [{"key": COLD_TAINT, "operator": "Exists"}]},
    )
    growing.apply(brave)
    wait_until_running(growing, namespace, "brave")
    wait_until(
        lambda: any("1 node(s) had untolerated taint" in each for each in events_of(growing, namespace, name)),
        "it is told of the taint",
        60,
    )
    wait_until(lambda: node_model(growing, "n4", NAME).get("bytesDone"), "the download is under way", 60)
    assert is_cold(growing, "n4")
    assert "nodeName" not in growing.get("pod", name, "-n", namespace)["spec"]
    origin.bytes_per_s = None

    wait_until_warm(growing, "n4")
    warm_s = time.monotonic() - begin
    digest = wait_until_cached(growing, NAME, nodes=1)["digest"]
    wait_until_running(growing, namespace, NAME)
    seen = seen_by(growing, namespace, name)
    assert seen.files == weights.files
    assert seen.write == "Read-only file system"
    assert growing.get("pod", name, "-n", namespace)["spec"]["nodeName"] == "n4"
    assert digest_label(growing, "n4", digest) == "ready"
    assert weights.size_bytes <= origin.bytes_sent < weights.size_bytes * 1.05
    report("a node that joins cold", from_machine_to_warm_s=warm_s, size_bytes=weights.size_bytes)


def test_a_node_that_leaves_in_mid_download_is_forgotten(
    growing: Cluster, example: dict[str, Any], origin: PacedOrigin, joined: set[str]
) -> None:
    """By the model's status, the warm-up's counts, and its own object; who stays is Ready as before."""
    join(growing, "n4", joined)
    warmup = {"apiVersion": API_VERSION, "kind": "ModelWarmup", "metadata": {"name": "pool"}}
    spec = {"model": NAME, "nodeSelector": POOL}
    growing.apply(example["ModelCache"], {**warmup, "spec": spec})
    wait_until_cached(growing, NAME, nodes=1)
    wait_until_warm(growing, "n4")

    origin.bytes_per_s = SLOW
    join(growing, "n5", joined)
    wait_until(lambda: node_model(growing, "n5", NAME).get("bytesDone"), "n5 is in mid-download", 90)
    wait_until(lambda: counts(growing) == (1, 2), "the model counts it", 30)
    wait_until(lambda: warmup_text(growing) == ("1/2", "False"), "so does the warm-up", 30)
    assert condition(model_status(growing, NAME), "Ready") == "False"
    assert is_cold(growing, "n5")

    growing.remove_node("n5")
    for kind in ("node", "modelcachenode"):
        growing.kubectl("wait", "--for=delete", kind, "n5", "--timeout=90s")
    wait_until(lambda: counts(growing) == (1, 1), "the model has forgotten it", 30)
    wait_until(lambda: condition(model_status(growing, NAME), "Ready") == "True", "it is Ready", 30)
    wait_until(lambda: warmup_text(growing) == ("1/1", "True"), "the warm-up is done", 30)
    assert condition(model_status(growing, NAME), "Degraded") == "False"


def warmup_text(cluster: Cluster) -> tuple[str, str]:
    """Of the warm-up `pool`: its counts and whether it is Ready."""
    status = cluster.get("modelwarmup", "pool")["status"]
    return status["ready"], condition(status, "Ready")


def test_a_node_goes_and_comes_back_with_its_disk_and_without_it(
    growing: Cluster, namespace: str, example: dict[str, Any], weights: Weights, origin: PacedOrigin, joined: set[str]
) -> None:
    """Both times its Node object was deleted and it registers anew, cold. With its disk nothing is fetched again."""
    join(growing, "n4", joined)
    growing.apply(example["ModelCache"], example["Deployment"])
    digest = wait_until_cached(growing, NAME, nodes=1)["digest"]
    wait_until_running(growing, namespace, NAME)
    first = growing.get("modelcachenode", "n4")
    fetched = origin.bytes_sent
    assert fetched >= weights.size_bytes

    growing.cut_power("n4")
    growing.kubectl("delete", "node", "n4", "--wait=false")
    forget_pods(growing, namespace)
    wait_until(lambda: counts(growing) == (0, 0), "nobody has it", 30)
    begin = time.monotonic()
    growing.power_on("n4")
    set_gpus(growing, "n4", 1)
    with_disk = back(growing, namespace, weights, digest)
    with_disk_s = time.monotonic() - begin
    assert with_disk["metadata"]["uid"] != first["metadata"]["uid"]
    assert with_disk["status"]["incarnation"] == first["status"]["incarnation"]
    assert origin.bytes_sent - fetched < NEXT_TO_NOTHING

    fetched = origin.bytes_sent
    growing.remove_node("n4")
    forget_pods(growing, namespace)
    begin = time.monotonic()
    join(growing, "n4", joined)
    without = back(growing, namespace, weights, digest)
    report("a node that comes back", with_disk_s=with_disk_s, without_s=time.monotonic() - begin)
    assert without["status"]["incarnation"] != first["status"]["incarnation"]
    assert origin.bytes_sent - fetched >= weights.size_bytes


def forget_pods(cluster: Cluster, namespace: str) -> None:
    """n4 is gone, and so are its pods: what Kubernetes collects by itself within a minute."""
    for kind in ("node", "modelcachenode"):
        cluster.kubectl("wait", "--for=delete", kind, "n4", "--timeout=90s")
    cluster.kubectl("delete", "pods", "-n", namespace, "-l", f"app={NAME}", "--grace-period=0", "--force")


def back(cluster: Cluster, namespace: str, weights: Weights, digest: str) -> Any:
    """n4's object, once the node is warm with that version and a new pod there has read it."""
    wait_until(lambda: node_status(cluster, "n4"), "the agent reports", 120)
    wait_until_warm(cluster, "n4")
    assert wait_until_cached(cluster, NAME, nodes=1)["digest"] == digest
    (pod,) = wait_until_running(cluster, namespace, NAME, limit=120)
    assert seen_by(cluster, namespace, pod["metadata"]["name"]).files == weights.files
    return cluster.get("modelcachenode", "n4")


@pytest.fixture
def warm_pool(growing: Cluster) -> Iterator[int]:
    """The nodes that are always there as the pool, each with a GPU; how many they are."""
    before = {node: growing.get("node", node)["metadata"]["labels"].get("pool") for node in ("n1", "n2", "n3")}
    growing.kubectl("label", "node", *before, "pool=inference", "--overwrite")
    for node in before:
        set_gpus(growing, node, 1)
    yield len(before)
    for node, pool in before.items():
        set_gpus(growing, node, None)
        growing.kubectl("label", "node", node, f"pool={pool}" if pool else "pool-", "--overwrite")


def test_replicas_that_an_autoscaler_adds_start_where_the_weights_are(
    growing: Cluster,
    namespace: str,
    example: dict[str, Any],
    weights: Weights,
    origin: PacedOrigin,
    warm_pool: int,
) -> None:
    """From 1 to 3 by Kubernetes' own horizontal autoscaler, to zero and back: not one byte leaves the origin for it."""
    growing.apply(example["ModelCache"])
    wait_until_cached(growing, NAME, nodes=warm_pool)
    assert origin.bytes_sent >= warm_pool * weights.size_bytes
    fetched = origin.bytes_sent
    growing.apply(example["Deployment"], example["HorizontalPodAutoscaler"])
    wait_until_running(growing, namespace, NAME)

    # There are no metrics here; below its minimum it acts without any.
    more = {"spec": {"minReplicas": 3}}
    growing.kubectl("patch", "hpa", NAME, "-n", namespace, "--type=merge", "-p", json.dumps(more))
    pods = wait_until_running(growing, namespace, NAME, pods=3, limit=120)
    assert {pod["spec"]["nodeName"] for pod in pods} == {"n1", "n2", "n3"}
    assert all(seen_by(growing, namespace, pod["metadata"]["name"]).files == weights.files for pod in pods)
    said = wait_until(lambda: events_on(growing, NAME, "HorizontalPodAutoscaler"), "it says what it did", 30)
    assert any("New size: 3" in each for each in said), said

    growing.kubectl("scale", "deployment", NAME, "-n", namespace, "--replicas=0")
    wait_until(lambda: not pods_of(growing, namespace, NAME), "all are gone", 60)
    begin = time.time()
    growing.kubectl("scale", "deployment", NAME, "-n", namespace, "--replicas=1")
    pods = wait_until_running(growing, namespace, NAME, pods=3, limit=120)
    starts = sorted(seen_by(growing, namespace, pod["metadata"]["name"]).started - begin for pod in pods)
    report("from zero on warm nodes", first_pod_s=starts[0], all_three_s=starts[-1])
    assert origin.bytes_sent - fetched < NEXT_TO_NOTHING


def test_keda_takes_it_from_zero_to_where_the_weights_are_and_back(
    growing: Cluster,
    namespace: str,
    example: dict[str, Any],
    weights: Weights,
    origin: PacedOrigin,
    warm_pool: int,
    tmp_path: Path,
) -> None:
    """Its real operator, with the example's ScaledObject and a stand-in for Prometheus that says how many wait: from
    zero to one, to more by the bound that it sets for the horizontal autoscaler, and to zero, without a download."""
    (scaled,) = read(STACK, "keda.yaml")
    scaled["metadata"]["namespace"] = namespace
    scaled["spec"] |= {"pollingInterval": 1, "cooldownPeriod": 2}
    growing.apply(example["ModelCache"])
    wait_until_cached(growing, NAME, nodes=warm_pool)
    fetched = origin.bytes_sent
    assert fetched >= warm_pool * weights.size_bytes
    example["Deployment"]["spec"]["replicas"] = 0
    with running_keda(growing, tmp_path), Origin({QUERY: waiting(0)}) as prometheus:
        scaled["spec"]["triggers"][0]["metadata"]["serverAddress"] = prometheus.url
        growing.apply(example["Deployment"], scaled)
        wait_until(lambda: len(prometheus.requests) > 2, "it asks how many wait", 60)
        assert not pods_of(growing, namespace, NAME)

        begin = time.time()
        prometheus.put(QUERY, waiting(1))
        (pod,) = wait_until_running(growing, namespace, NAME, limit=120)
        first = seen_by(growing, namespace, pod["metadata"]["name"])
        assert (first.files, first.write) == (weights.files, "Read-only file system")
        report("KEDA, from zero on a warm node", from_metric_to_pod_s=first.started - begin)

        change = json.dumps({"spec": {"minReplicaCount": 3}})
        growing.kubectl("patch", SCALED, NAME, "-n", namespace, "--type=merge", "-p", change)
        pods = wait_until_running(growing, namespace, NAME, pods=3, limit=120)
        assert {pod["spec"]["nodeName"] for pod in pods} == {"n1", "n2", "n3"}
        assert all(seen_by(growing, namespace, pod["metadata"]["name"]).files == weights.files for pod in pods)

        prometheus.put(QUERY, waiting(0))
        change = json.dumps({"spec": {"minReplicaCount": 0}})
        growing.kubectl("patch", SCALED, NAME, "-n", namespace, "--type=merge", "-p", change)
        wait_until(lambda: not pods_of(growing, namespace, NAME), "all are gone", 120)
        growing.kubectl("delete", SCALED, NAME, "-n", namespace, "--timeout=60s")
    assert origin.bytes_sent - fetched < NEXT_TO_NOTHING


def waiting(requests: int) -> bytes:
    """Prometheus' answer to the example's query."""
    result = [{"metric": {}, "value": [time.time(), str(requests)]}]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
