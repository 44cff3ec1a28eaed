"""The controller's loop against an API server in memory: convergence, failures, leaders, writes that it trusts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from cacheagent.kube import controller as controller_module
from cacheagent.kube.api import (
    CLAIMS,
    EVENTS,
    MODEL_CACHE_NODES,
    MODEL_CACHES,
    NAMESPACES,
    NODES,
    PODS,
    VOLUMES,
    KubeConflict,
    KubeRefused,
    KubeUnavailable,
    Object,
)
from cacheagent.kube.controller import Controller
from cacheagent.kube.copies import Copies
from cacheagent.kube.events import Events
from cacheagent.kube.leader import Leader, Times
from cacheagent.kube.metrics import ControllerMetrics
from cacheagent.kube.names import REFRESH, claim_name, version_label
from cacheagent.kube.plan import PlanSettings
from cacheagent.kube.plan import plan as make_plan
from cacheagent.kube.plan.times import written_time
from cacheagent.kube.plan.views import Pod
from cacheagent.kube.plan.volumes import SUPERSEDED_FOR_S
from tests.fakes.kube_scene import SYSTEM, Scene
from tests.fakes.node_agents import digest_of

A1, A2 = digest_of("a1"), digest_of("a2")
PATIENCE_S = 90.0
QUICK = Times(lease_s=1.0, renew_s=0.6, retry_s=0.05)


async def until(true: Callable[[], object], what: str = "") -> None:
    """Wait for a condition."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, f"never came true: {what or true}"
        await asyncio.sleep(0.005)


class Cluster(Scene):
    """A scene whose agents and volume controller answer by themselves while the block lasts."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.now = time.time()
        self.extra_s = 0.0

    def clock(self) -> float:
        """The controller's: a test may let time pass."""
        return time.time() + self.extra_s

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Agents report, volumes bind."""
        task = asyncio.create_task(self._live())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _live(self) -> None:
        while True:
            self.report()
            self.bind()
            await asyncio.sleep(0.01)

    @asynccontextmanager
    async def controller(self, identity: str = "one", **kwargs: Any) -> AsyncIterator[Replica]:
        """A replica with all that it consists of."""
        replica = Replica(self, identity, **kwargs)
        async with replica.running():
            yield replica


class Replica:
    """One controller."""

    def __init__(self, cluster: Cluster, identity: str) -> None:
        self.copies = Copies(cluster.kube, SYSTEM)
        self.leader = Leader(
            cluster.kube,
            namespace=SYSTEM,
            name="cacheagent-controller",
            identity=identity,
            on_change=lambda leads: self.controller.lead(leads),  # noqa: PLW0108
            times=QUICK,
        )
        self.events = Events(cluster.kube, component="cacheagent-controller", instance=identity)
        self.metrics = ControllerMetrics()
        self.started: list[Pod] = []
        self.controller = Controller(
            cluster.kube,
            self.copies,
            PlanSettings(),
            is_leader=self.leader.is_leader,
            events=self.events,
            metrics=self.metrics,
            writes_per_second=2000,
            clock=cluster.clock,
            on_starts=self.started.extend,
        )
        self.tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """From start to end."""
        roots = {**self.copies.roots(), "events": self.events.run(), "planning": self.controller.run()}
        self.tasks = [asyncio.create_task(root, name=name) for name, root in roots.items()]
        self.tasks.append(asyncio.create_task(self.leader.run(), name="leading"))
        try:
            yield
        finally:
            for task in self.tasks:
                task.cancel()
            ended = await asyncio.gather(*self.tasks, return_exceptions=True)
            assert [error for error in ended if not isinstance(error, asyncio.CancelledError)] in ([], [None])

    async def rounds(self, more: int = 1) -> None:
        """So many more plans were made."""
        wanted = self.controller.rounds + more
        await until(lambda: self.controller.rounds >= wanted, f"{more} more rounds")


def fleet(count: int = 3) -> Cluster:
    cluster = Cluster()
    for number in range(count):
        cluster.node(f"n{number}", pool="gpu")
    return cluster


def ready(cluster: Cluster, model: str, digest: str) -> Callable[[], bool]:
    """Whether that version of the model is ready on all its nodes."""

    def check() -> bool:
        status = cluster.status(model)
        states = {each.type: each.status for each in status.conditions}
        return status.digest == digest and states.get("Ready") == "True"

    return check


def events(cluster: Cluster) -> set[str]:
    return {item["reason"] for item in cluster.kube.all(EVENTS)}


@pytest.mark.asyncio
async def test_it_converges_and_then_asks_for_nothing() -> None:
    """From nothing to ready; then a change that concerns nobody brings a plan and not one write."""
    cluster = fleet()
    cluster.namespace("shop")
    cluster.model("llama", digest=A1, localPersistentVolumes={"namespaces": ["shop"]})
    async with cluster.living(), cluster.controller() as replica:
        await until(ready(cluster, "llama", A1))
        await until(lambda: all(version_label(A1) in cluster.labels(f"n{number}") for number in range(3)))
        await until(lambda: len(cluster.names(CLAIMS)) == 1)
        await until(lambda: {"Resolved", "Ready"} <= events(cluster))
        await until(lambda: replica.controller.writer.backlog == 0)
        await replica.rounds()
        before = {key: count for key, count in cluster.kube.calls_of.items() if key[1] not in {"leases", "events"}}
        cluster.namespace("elsewhere")
        await replica.rounds()
        after = {key: count for key, count in cluster.kube.calls_of.items() if key[1] not in {"leases", "events"}}
        assert after == before
    assert b"cacheagent_controller_writes_total" in replica.metrics.render(leads=True, backlog=0)


@pytest.mark.asyncio
async def test_a_change_is_answered_within_a_second() -> None:
    """A pod lands outside the selector: the assignment is there before a person has read the event."""
    cluster = fleet(2)
    cluster.model("llama", digest=A1, prefetch=False)
    async with cluster.living(), cluster.controller() as replica:
        await until(lambda: cluster.names(MODEL_CACHE_NODES) == ["n0", "n1"])
        await replica.rounds()
        began = time.monotonic()
        cluster.pod("web", "llama", node="n1")
        await until(lambda: cluster.assigned("llama") == ["n1"])
        took_s = time.monotonic() - began
        await until(ready(cluster, "llama", A1))
    assert took_s < 1.0


@pytest.mark.asyncio
async def test_failures_of_the_server_are_outlasted() -> None:
    """Unavailable, conflicts, refusals, a server that is away: each delays, none is final."""
    cluster = fleet()
    cluster.namespace("shop")
    cluster.model("llama", digest=A1, localPersistentVolumes={"namespaces": ["shop"]})
    kube = cluster.kube
    async with cluster.living(), cluster.controller():
        kube.fail_next("create", KubeUnavailable("503"), times=3, resource=MODEL_CACHE_NODES)
        kube.fail_next("patch", KubeConflict("409"), times=3, resource=MODEL_CACHE_NODES)
        kube.fail_next("patch", KubeUnavailable("500"), times=2, resource=MODEL_CACHES)
        kube.fail_next("create", KubeRefused("403"), times=1, resource=VOLUMES)
        await until(lambda: cluster.status("llama").digest == A1)
        kube.set_down(True)
        await asyncio.sleep(0.3)
        kube.set_down(False)
        await until(ready(cluster, "llama", A1))
        await until(lambda: len(cluster.names(CLAIMS)) == 1)


@pytest.mark.asyncio
async def test_another_leader_goes_on_in_the_middle() -> None:
    """The first dies without a word while a new version is on its way; the second brings it to its end."""
    cluster = fleet()
    cluster.model("llama", digest=A1)
    for agent in cluster.agents.values():
        agent.slowness = 20
    async with cluster.living(), AsyncExitStack() as stack:
        first = await stack.enter_async_context(cluster.controller("first"))
        await until(ready(cluster, "llama", A1))
        second = await stack.enter_async_context(cluster.controller("second"))
        cluster.origins.digests["s3://models/llama"] = A2
        cluster.change(MODEL_CACHES, "llama", lambda item: item["metadata"].update(annotations={REFRESH: "1"}))
        await until(lambda: any(cluster.entry(f"n{n}", "llama").resolve for n in range(3)))
        assert not second.leader.is_leader()
        _kill(first)
        await until(second.leader.is_leader, "the second leads")
        await until(ready(cluster, "llama", A2))
        assert cluster.status("llama").previous_digests == (A1,)


def _kill(replica: Replica) -> None:
    """No task runs on, and the lease is not given back."""

    async def nothing() -> None:
        return None

    replica.leader._release = nothing  # type: ignore[method-assign]
    for task in replica.tasks:
        task.cancel()


@pytest.mark.asyncio
async def test_who_does_not_lead_writes_nothing() -> None:
    """A replica that lost the lease between its plan and its writes keeps still; the same replica writes when it
    leads."""
    cluster = fleet(1)
    cluster.model("llama", digest=A1)
    leads = False
    copies = Copies(cluster.kube, SYSTEM)
    posted: list[str] = []
    controller = Controller(
        cluster.kube,
        copies,
        PlanSettings(),
        is_leader=lambda: leads,
        events=_Posted(posted),
        metrics=ControllerMetrics(),
        clock=cluster.clock,
    )
    controller.lead(True)  # it was told so a moment ago, but the lease's time is over
    tasks = [asyncio.create_task(root) for root in (*copies.roots().values(), controller.run())]
    try:
        await copies.synced()
        controller.writer.want(cluster.plan().changes)
        await until(lambda: controller.writer.backlog == 0)
        assert cluster.names(MODEL_CACHE_NODES) == []
        leads = True
        controller.lead(True)
        await until(lambda: cluster.names(MODEL_CACHE_NODES) == ["n0"])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Posted:
    def __init__(self, posted: list[str]) -> None:
        self._posted = posted

    def post(self, about: Object, type: Any, reason: str, message: str) -> None:  # noqa: A002
        self._posted.append(f"{about['kind']} {about['metadata']['name']}: {reason}: {message}")


@pytest.mark.asyncio
async def test_a_claim_that_is_found_in_use_is_asked_for_again_later() -> None:
    """The check right before the deletion finds a pod that nobody watches; without it the claim goes."""
    cluster = fleet(1)
    cluster.namespace("shop")
    cluster.model("llama", digest=A1, localPersistentVolumes={"namespaces": ["shop"]})
    async with cluster.living(), cluster.controller() as replica:
        await until(lambda: len(cluster.names(CLAIMS)) == 1)
        volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim_name("llama", A1)}}]
        cluster.kube.put(PODS, {"metadata": {"name": "by-hand", "namespace": "shop"}, "spec": {"volumes": volumes}})
        cluster.kube.remove(MODEL_CACHES, "llama")
        await replica.rounds(2)
        listed = cluster.kube.calls_of["list", "pods"]
        cluster.extra_s += SUPERSEDED_FOR_S + 1
        cluster.namespace("nudge")
        await until(lambda: cluster.kube.calls_of["list", "pods"] > listed, "pods were looked at")
        await replica.rounds()
        assert len(cluster.names(CLAIMS)) == 1
        cluster.kube.remove(PODS, "by-hand", namespace="shop")
        for number in range(3):
            cluster.extra_s += SUPERSEDED_FOR_S + 1
            cluster.namespace(f"nudge-{number}")
            await replica.rounds()
        await until(lambda: cluster.names(CLAIMS) == [] and cluster.names(VOLUMES) == [])


@pytest.mark.asyncio
async def test_a_node_that_leaves_while_it_is_written_about_disturbs_nothing() -> None:
    """Its object is gone when the patch arrives."""
    cluster = fleet(3)
    cluster.model("llama", digest=A1)
    async with cluster.living(), cluster.controller():
        await until(lambda: cluster.assigned("llama"))
        cluster.kube.remove(PODS, "agent-n2", namespace=SYSTEM)
        cluster.kube.remove(NODES, "n2")
        await until(ready(cluster, "llama", A1))
        await until(lambda: cluster.status("llama").nodes.assigned == 2)


@pytest.mark.asyncio
async def test_a_namespace_that_changes_reaches_the_nodes() -> None:
    """Selectors of namespaces are followed."""
    cluster = fleet(1)
    cluster.model("llama", digest=A1, allowedNamespaces={"selector": {"matchLabels": {"team": "a"}}})
    async with cluster.living(), cluster.controller():
        await until(lambda: cluster.assigned("llama"))
        cluster.namespace("one", team="a")
        await until(lambda: cluster.entry("n0", "llama").namespaces == ("one",))
        cluster.kube.remove(NAMESPACES, "one")
        await until(lambda: cluster.entry("n0", "llama").namespaces == ())


@pytest.mark.asyncio
async def test_a_defect_in_the_plan_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its trace, and planned again."""
    cluster = fleet(1)
    cluster.model("llama", digest=A1)
    real, failures = make_plan, [RuntimeError("a defect")]

    def plan(*given: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*given)

    monkeypatch.setattr(controller_module, "plan", plan)
    monkeypatch.setattr(controller_module, "AFTER_DEFECT_S", 0.01)
    async with cluster.living(), cluster.controller():
        await until(ready(cluster, "llama", A1))
    assert [record for record in caplog.records if record.exc_info and "a defect" in record.getMessage()]


# --- copies


async def _copies(cluster: Cluster) -> tuple[Copies, list[asyncio.Task[None]]]:
    copies = Copies(cluster.kube, SYSTEM)
    tasks = [asyncio.create_task(root) for root in copies.roots().values()]
    await copies.synced()
    return copies, tasks


async def _stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.asyncio
async def test_own_writes_are_believed_until_the_mirror_shows_them() -> None:
    """The mirrors are stopped: what was written is seen all the same, made, changed and deleted."""
    cluster = fleet(1)
    cluster.model("llama", digest=A1)
    copies, tasks = await _copies(cluster)
    await _stop(tasks)
    made = await cluster.kube.create(MODEL_CACHES, {"metadata": {"name": "b"}, "spec": {"source": {"uri": "s3://b"}}})
    copies.wrote(MODEL_CACHES, made)
    changed = await cluster.kube.patch(MODEL_CACHES, "llama", {"spec": {"priority": 7}})
    copies.wrote(MODEL_CACHES, changed)
    world = copies.world(PlanSettings(), cluster.memory)
    assert world.models["b"].spec.source.uri == "s3://b"
    assert world.models["llama"].spec.priority == 7
    copies.deleted(MODEL_CACHES, "llama", "")
    assert copies.world(PlanSettings(), cluster.memory).models["llama"].meta.deleting


@pytest.mark.asyncio
async def test_a_newer_object_in_the_mirror_wins() -> None:
    """Somebody changed it after us."""
    cluster = fleet(1)
    cluster.model("llama", digest=A1)
    copies, tasks = await _copies(cluster)
    try:
        ours = await cluster.kube.patch(MODEL_CACHES, "llama", {"spec": {"priority": 7}})
        await cluster.kube.patch(MODEL_CACHES, "llama", {"spec": {"priority": 8}})
        copies.wrote(MODEL_CACHES, ours)

        def priority() -> int:
            return copies.world(PlanSettings(), cluster.memory).models["llama"].spec.priority

        await until(lambda: priority() == 8)
        await cluster.kube.delete(MODEL_CACHES, "llama")
        await until(lambda: "llama" not in copies.world(PlanSettings(), cluster.memory).models)
    finally:
        await _stop(tasks)


@pytest.mark.asyncio
async def test_an_object_that_nobody_understands_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """One wrong object does not stop the others."""
    cluster = fleet(1)
    cluster.model("llama", digest=A1)
    cluster.kube.put(MODEL_CACHES, {"metadata": {"name": "odd"}, "spec": {"source": "a sentence"}})
    copies, tasks = await _copies(cluster)
    try:
        assert list(copies.world(PlanSettings(), cluster.memory).models) == ["llama"]
        copies.world(PlanSettings(), cluster.memory)
        assert len([record for record in caplog.records if "odd" in record.getMessage()]) == 1
    finally:
        await _stop(tasks)


@pytest.mark.asyncio
async def test_what_nobody_needs_is_not_kept() -> None:
    """A node's images and heartbeats are not in memory, and do not wake the planner."""
    cluster = fleet(1)
    copies, tasks = await _copies(cluster)
    try:
        status: Object = {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "x"}], "images": [1]}
        version = copies.nodes.mirror.version
        cluster.change(NODES, "n0", lambda item: item.update(status=status))
        cluster.relabel("n0", seen="yes")
        await until(lambda: copies.world(PlanSettings(), cluster.memory).nodes["n0"].meta.labels.get("seen") == "yes")
        assert copies.nodes.mirror.version == version + 1
        kept = copies.nodes.mirror.get("n0")
        assert kept is not None
        assert kept["status"] == {"conditions": [{"type": "Ready", "status": "True"}]}
    finally:
        await _stop(tasks)


def test_times_are_written_as_kubernetes_does() -> None:
    """Whole seconds, UTC."""
    assert written_time(1_800_000_000.9) == "2027-01-15T08:00:00Z"
