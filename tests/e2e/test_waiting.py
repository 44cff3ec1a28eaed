"""Pods that are there before their weights: what they are told meanwhile, and how soon they start afterwards.

The long downloads are begun by the first test here and travel while the others run; the last tests look at how their
pods fared. Times are of one machine: the agent's record of the publish, and what the container prints as it starts.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.models import (
    START_AND_STAY,
    Weights,
    allow_volumes,
    clean_up,
    events_of,
    model_cache,
    our_volumes,
    printed,
    reading_pod,
    upload_checkpoint,
    wait_until_running,
)
from tests.e2e.cluster.paced import PacedOrigin, paced_origin
from tests.e2e.cluster.product import NAMESPACE, agent_pod
from tests.e2e.cluster.waiting import NotSeen, wait_until
from tests.e2e.cluster.workload import python_pod
from tests.e2e.figures import report

pytestmark = pytest.mark.kube

RATE = 1_000_000
SHARD = 2_000_000
"""Small, so that a slow download is seen to move."""
BAR_S, LIMIT_S = 2.0, 6.0
"""What a pod may start after the publish: as it is meant to be, and what fails on a machine that is busy otherwise."""
TRICKLE = 55_000
"""What keeps one connection alive, and 14 MB on their way for four minutes."""
TOGETHER_BAR_S, TOGETHER_LIMIT_S = 5.0, 180.0
"""What the last of twenty pods may take after the publish; and for how long they are waited for where the machine needs
seconds for the start of each."""


@dataclass
class Slow:
    """Models at origins of their own pace."""

    product: Cluster
    stack: contextlib.ExitStack
    namespace: str
    models: list[str] = field(default_factory=list)

    def begin(self, name: str, node: str, *, seconds: float, rate: float = RATE, shards: int = 0) -> PacedOrigin:
        """Apply a ModelCache for one node, whose download takes about so long."""
        store = self.product.object_store
        origin = self.stack.enter_context(paced_origin(store.endpoint, rate))
        size = int(seconds * rate)
        shards = shards or size // SHARD
        weights = upload_checkpoint(store, f"waiting/{name}", size_bytes=size, shards=shards, seed=len(self.models) + 1)
        selector = {"kubernetes.io/hostname": node}
        cache = model_cache(name, weights, source={"endpoint": origin.endpoint}, nodeSelector=selector)
        self.product.apply(cache)
        self.models.append(name)
        return origin

    def pod(self, name: str, model: str, node: str, **options: str) -> dict[str, Any]:
        pod = reading_pod(name, self.namespace, model, START_AND_STAY, node=node, options=options)
        self.product.apply(pod)
        return pod

    def twenty(self, make: Callable[[str], dict[str, Any]]) -> list[float]:
        """When the containers of twenty pods started, the earliest first; then the pods are gone."""
        pods = [make(f"one-of-twenty-{number}") for number in range(20)]
        for pod in pods:
            pod["metadata"]["labels"] = {"group": "twenty"}
        self.product.apply(*pods)
        of_all = ("-n", self.namespace, "-l", "group=twenty")

        def printed_by_all() -> list[float]:
            lines = self.product.kubectl("logs", *of_all, "--max-log-requests=20").splitlines()
            return sorted(map(float, lines)) if len(lines) == len(pods) else []

        try:
            started = wait_until(printed_by_all, "twenty pods run", TOGETHER_LIMIT_S, pause=3.0)
        except NotSeen as error:
            found = self.product.kubectl("get", "pods", *of_all, "--no-headers")
            late = next((line.split()[0] for line in found.splitlines() if " Running " not in line), "")
            told = "\n".join(self.events(late)[-4:])
            raise NotSeen(f"{error}\n{found}\n{late} was told:\n{told}") from error
        self.product.kubectl("delete", "pods", *of_all)
        return started

    def events(self, pod: str) -> list[str]:
        return events_of(self.product, self.namespace, pod)


@pytest.fixture(scope="module")
def slow(product: Cluster) -> Iterator[Slow]:
    with contextlib.ExitStack() as stack, product.namespace("waiting") as namespace:
        made = Slow(product, stack, namespace)
        yield made
        clean_up(product, namespace, *made.models)


@pytest.fixture(scope="module")
def long_ones(slow: Slow) -> dict[str, PacedOrigin]:
    """Downloads of 126 s and 260 s, and one that ends when a test says so; a pod waits for each of them."""
    origins = {
        "minutes": slow.begin("minutes", "n2", seconds=126),
        "ages": slow.begin("ages", "n3", seconds=260),
        "trickle": slow.begin("trickle", "n1", seconds=255, rate=TRICKLE, shards=1),
    }
    slow.pod("minutes", "minutes", "n2")
    slow.pod("ages", "ages", "n3")
    slow.pod("ages-init", "ages", "n3", wait="init")
    slow.pod("ages-gate", "ages", "n3", wait="gate")
    slow.pod("trickle", "trickle", "n1")
    return origins


@pytest.fixture(scope="module")
def withdrawn(product: Cluster, llama: Weights) -> Iterator[tuple[str, str]]:
    """Two namespaces that had a local PersistentVolume of llama and may have none now; a pod of the first uses it."""
    with product.namespace("uses-it") as used, product.namespace("leaves-it") as unused:
        allow_volumes(product, "llama", used, unused)
        wait_until(lambda: our_volumes(product, used) and our_volumes(product, unused), "both have a volume")
        product.apply(reading_pod("reader", used, "llama", options={"mode": "pv"}))
        wait_until_running(product, used, "reader")
        allow_volumes(product, "llama")
        yield used, unused


def published_at(product: Cluster, node: str, model: str) -> float:
    """When the agent made it visible there."""
    asked = ("cacheagent", "ls", "-o", "json")
    answer = product.kubectl("exec", "-n", NAMESPACE, agent_pod(product, node), "-c", "agent", "--", *asked)
    return max(float(each["published_at"]) for each in json.loads(answer) if each["name"] == model)


def lateness(slow: Slow, pod: str, model: str, node: str, *, limit: float) -> float:
    """Seconds from the publish to the pod's container; waits for that."""
    started = float(printed(slow.product, slow.namespace, pod, limit=limit))
    return started - published_at(slow.product, node, model)


def check_progress(slow: Slow, pod: str) -> list[str]:
    """Its events say that it waits and how far the download is."""
    wait_until(lambda: any("FailedMount" in each for each in slow.events(pod)), f"{pod} is told that it waits")

    def told() -> list[str]:
        return [each for each in slow.events(pod) if re.search(r"\d+ ?%", each)]

    return wait_until(told, f"{pod} is told how far its weights are")


def test_a_pod_waits_with_progress_and_starts_when_its_weights_are_there(
    slow: Slow, long_ones: Mapping[str, PacedOrigin], withdrawn: tuple[str, str]
) -> None:
    """A download of 20 s. From its first second the pod's events say what it waits for."""
    origin = slow.begin("short", "n1", seconds=20)
    slow.pod("short", "short", "n1")
    check_progress(slow, "short")
    late = lateness(slow, "short", "short", "n1", limit=60)
    report("start after a download of 20 s", late_s=late, bar_s=BAR_S, events=slow.events("short"))
    assert late < LIMIT_S
    assert origin.bytes_sent > 0


def test_twenty_pods_cause_one_download_and_start_together(slow: Slow) -> None:
    """All on one node, created while the weights travel; compared with twenty pods that have nothing to wait for."""
    product = slow.product
    origin = slow.begin("shared", "n1", seconds=20)
    waiting = slow.twenty(lambda name: reading_pod(name, slow.namespace, "shared", START_AND_STAY, node="n1"))
    published = published_at(product, "n1", "shared")
    late = [each - published for each in waiting]
    size = product.get("modelcache", "shared")["status"]["sizeBytes"]
    begin = time.time()
    plain = slow.twenty(lambda name: python_pod(name, START_AND_STAY, node="n1", namespace=slow.namespace))
    usual = [each - begin for each in plain]
    report(
        "twenty pods, one download",
        late_s=late,
        without_weights_s=usual,
        bar_s=TOGETHER_BAR_S,
        origin_bytes=origin.bytes_sent,
        size_bytes=size,
    )
    assert size <= origin.bytes_sent < 1.05 * size
    assert late[-1] < max(TOGETHER_BAR_S, 1.5 * usual[-1])  # on a machine that is busy otherwise, any pod takes longer


def test_a_gate_holds_no_node(slow: Slow, long_ones: Mapping[str, PacedOrigin]) -> None:
    """The pod has no node while its weights travel, and is told what it waits for."""
    pod = slow.product.get("pod", "ages-gate", "-n", slow.namespace)
    assert "nodeName" not in pod["spec"]
    assert [each["reason"] for each in pod["status"]["conditions"]] == ["SchedulingGated"]
    wait_until(lambda: any("WaitingForWeights" in each for each in slow.events("ages-gate")), "it is told")


def test_a_waiting_pod_is_deleted_at_once(slow: Slow, long_ones: Mapping[str, PacedOrigin]) -> None:
    """Also while the kubelet's call is held."""
    slow.pod("given-up", "ages", "n3")
    check_progress(slow, "given-up")
    time.sleep(3)  # by then the second call is under way, and it is held
    begin = time.monotonic()
    slow.product.kubectl("delete", "pod", "given-up", "-n", slow.namespace)
    seconds = time.monotonic() - begin
    report("deleting a waiting pod", seconds=seconds, bar_s=5.0)
    assert seconds < 10


def test_a_gate_ends_at_its_deadline(slow: Slow, long_ones: Mapping[str, PacedOrigin]) -> None:
    """The pod is scheduled then, with an event that says why, and waits on its node."""
    slow.pod("impatient", "ages", "n3", wait="gate", **{"gate-deadline": "5s"})
    wait_until(lambda: any("WaitingForWeights" in each for each in slow.events("impatient")), "it is told")
    assert "nodeName" not in slow.product.get("pod", "impatient", "-n", slow.namespace)["spec"]
    wait_until(lambda: any("GateDeadline" in each for each in slow.events("impatient")), "the gate ends")
    wait_until(lambda: any("FailedMount" in each for each in slow.events("impatient")), "it waits there")
    slow.product.kubectl("delete", "pod", "impatient", "-n", slow.namespace)


def test_start_after_a_download_of_126_s(slow: Slow, long_ones: Mapping[str, PacedOrigin]) -> None:
    """Longer than the kubelet's patience with one call."""
    late = lateness(slow, "minutes", "minutes", "n2", limit=180)
    report("start after a download of 126 s", late_s=late, bar_s=BAR_S, events=slow.events("minutes"))
    assert late < LIMIT_S


def test_a_publish_in_the_kubelets_pause(slow: Slow, long_ones: Mapping[str, PacedOrigin]) -> None:
    """Between its third and its fourth call the kubelet pauses for 2 s; a publish then costs at most that."""
    wait_until(lambda: failed_calls(slow, "trickle") >= 3, "the kubelet's third call has ended", 280, pause=0.1)
    seen = time.time()
    long_ones["trickle"].bytes_per_s = None
    late = lateness(slow, "trickle", "trickle", "n1", limit=60)
    published = published_at(slow.product, "n1", "trickle")
    report("publish in the kubelet's pause", late_s=late, pause_s=2.0, published_after_the_call_s=published - seen)
    assert late < 2 + LIMIT_S


def failed_calls(slow: Slow, pod: str) -> int:
    """How many of the kubelet's calls for it have ended: each makes an event, or counts in one."""
    selector = f"involvedObject.name={pod},reason=FailedMount"
    found = slow.product.get("events", "-n", slow.namespace, "--field-selector", selector)["items"]
    return sum(int(each.get("count") or 1) for each in found)


def test_start_after_a_download_of_260_s(slow: Slow, long_ones: Mapping[str, PacedOrigin]) -> None:
    """Three pods, three ways to wait; each is told how far it is."""
    late = {pod: lateness(slow, pod, "ages", "n3", limit=280) for pod in ("ages", "ages-init", "ages-gate")}
    progress = slow.product.kubectl("logs", "-n", slow.namespace, "ages-init", "-c", "cacheagent-wait").splitlines()
    gate = [each for each in slow.events("ages-gate") if "eight" in each]
    report("start after a download of 260 s", late_s=late, bar_s=BAR_S, init_log=progress[-3:], gate_events=gate)
    assert late["ages"] < LIMIT_S
    assert late["ages-init"] < LIMIT_S
    assert late["ages-gate"] < 2 * LIMIT_S  # it is scheduled, and its images and volumes are set up, only then
    assert any(re.search(r"\d+ %", line) for line in progress)
    assert [each.partition(":")[0] for each in gate][-1] == "WeightsReady"


def test_a_local_volume_goes_when_nobody_may_use_it_and_nobody_does(
    product: Cluster, withdrawn: tuple[str, str]
) -> None:
    """Two minutes after the permission was withdrawn; the one that a pod has mounted stays, and so do its files."""
    used, unused = withdrawn
    wait_until(lambda: not product.get("pvc", "-n", unused)["items"], "the claim is gone", 180)
    wait_until(lambda: not our_volumes(product, unused), "the volume is gone")
    assert len(our_volumes(product, used)) == 1
    assert [each["status"]["phase"] for each in product.get("pvc", "-n", used)["items"]] == ["Bound"]
    code = "import os; print(len(os.listdir('/mnt/models')))"
    read = product.kubectl("exec", "-n", used, "reader", "--", "/usr/bin/python3", "-c", code)
    assert int(read) > 0
