"""The writer: order, pace, backing off, and what has to hold right before a write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from cacheagent.kube.api import (
    MODEL_CACHES,
    PODS,
    KubeError,
    KubeRefused,
    KubeUnavailable,
    Object,
)
from cacheagent.kube.plan import Change, Unused
from cacheagent.kube.plan.changes import POD_WAITS, STEERS, TELLS, TIDIES, Urgency
from cacheagent.kube.plan.world import InUse
from cacheagent.kube.writer import Pace, Writer
from tests.fakes.kube import FakeKube
from tests.unit.test_controller_loop import until


class Heard:
    """What a writer told."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.used: list[frozenset[InUse]] = []
        self.errors: list[str] = []

    def written(self, change: Change, item: Object | None) -> None:
        self.done.append(change.name)

    def found_in_use(self, what: frozenset[InUse]) -> None:
        self.used.append(what)

    def failed(self, change: Change, error: KubeError) -> None:
        self.errors.append(error.code)


def made(name: str, urgency: Urgency = STEERS, unless_used: Unused | None = None) -> Change:
    body = {"metadata": {"name": name}, "spec": {"source": {"uri": "s3://x"}}}
    return Change(verb="create", resource=MODEL_CACHES, name=name, body=body, urgency=urgency, unless_used=unless_used)


@asynccontextmanager
async def running(
    kube: FakeKube, heard: Heard, *, per_second: float = 1000, may_write: Callable[[], bool] = lambda: True
) -> AsyncIterator[Writer]:
    writer = Writer(kube, heard, may_write=may_write, per_second=per_second)
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.asyncio
async def test_within_the_rate_the_most_urgent_go_first() -> None:
    """With one write at a time, in the order that the plan gave."""
    kube, heard = FakeKube(), Heard()
    async with running(kube, heard, per_second=20) as writer:
        changes = [made(f"c{number:02}") for number in range(30)]
        writer.want([made("first", POD_WAITS), *changes, made("last", TIDIES)])
        await until(lambda: "first" in heard.done)
        assert len(heard.done) <= 21, "more than a second's burst at once"
        await until(lambda: "last" in heard.done)
    assert heard.done[0] == "first"
    assert heard.done[-1] == "last"


@pytest.mark.asyncio
async def test_news_for_people_come_through_while_thousands_of_nodes_are_written() -> None:
    """One write in five is theirs; the others keep their order."""
    kube, heard = FakeKube(), Heard()
    kube.put(MODEL_CACHES, {"metadata": {"name": "told"}, "spec": {}})
    body = {"status": {"progress": "37 %"}}
    news = Change(verb="patch", resource=MODEL_CACHES, name="told", subresource="status", body=body, urgency=TELLS)
    async with running(kube, heard) as writer:
        writer.want([*(made(f"c{number:02}") for number in range(30)), news])
        await until(lambda: len(heard.done) == 31)
    assert heard.done.index("told") < 10
    assert [name for name in heard.done if name != "told"] == [f"c{number:02}" for number in range(30)]


@pytest.mark.asyncio
async def test_what_is_wanted_no_more_is_not_written() -> None:
    """A newer plan replaces what has not begun."""
    kube, heard = FakeKube(), Heard()
    kube.fail_next("create", KubeUnavailable("503"), resource=MODEL_CACHES)
    async with running(kube, heard) as writer:
        writer.want([made("old")])
        await until(lambda: heard.errors)
        writer.want([made("new")])
        await until(lambda: heard.done)
    assert heard.done == ["new"]
    assert kube.peek(MODEL_CACHES, "old") is None


@pytest.mark.asyncio
async def test_failures_of_one_object_delay_no_other() -> None:
    """The failed one is tried again after its own pause, if it is still wanted."""
    kube, heard = FakeKube(), Heard()
    kube.fail_next("create", KubeRefused("403"), resource=MODEL_CACHES)
    async with running(kube, heard) as writer:
        writer.want([made("bad"), made("good")])
        await until(lambda: heard.done)
        assert heard.done == ["good"]
        writer.want([made("bad")])
        await until(lambda: heard.done == ["good", "bad"])
    assert heard.errors == ["kubernetes-refused"]


@pytest.mark.asyncio
async def test_a_lazy_write_waits_for_the_last_one_of_its_object() -> None:
    """The first goes at once, the second is held back, an urgent one is not."""
    kube, heard = FakeKube(), Heard()
    kube.put(MODEL_CACHES, {"metadata": {"name": "m"}, "spec": {}})

    def status(files: int, lazy_s: float) -> Change:
        return Change(
            verb="patch",
            resource=MODEL_CACHES,
            name="m",
            subresource="status",
            body={"status": {"files": files}},
            lazy_s=lazy_s,
        )

    async with running(kube, heard) as writer:
        writer.want([status(1, 20.0)])
        await until(lambda: len(heard.done) == 1)
        writer.want([status(2, 20.0), made("marker")])
        await until(lambda: "marker" in heard.done)
        assert heard.done == ["m", "marker"]
        writer.want([status(3, 0.0)])
        await until(lambda: len(heard.done) == 3)
    item = kube.peek(MODEL_CACHES, "m")
    assert item is not None
    assert item["status"]["files"] == 3


@pytest.mark.asyncio
@pytest.mark.parametrize("node", ["", "n0"], ids=["anywhere", "on a node"])
async def test_what_is_in_use_is_not_written(node: str) -> None:
    """A running pod counts, one that is over and one elsewhere do not."""
    kube, heard = FakeKube(), Heard()
    claims = frozenset({("shop", "c")})
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]
    pod: Object = {"metadata": {"name": "p", "namespace": "shop"}, "spec": {"volumes": volumes, "nodeName": "n0"}}
    kube.put(PODS, {**pod, "status": {"phase": "Running"}})
    async with running(kube, heard) as writer:
        writer.want([made("x", unless_used=Unused(claims, node))])
        await until(lambda: heard.used)
        assert heard.used == [frozenset({(node, "shop", "c")})]
        assert kube.peek(MODEL_CACHES, "x") is None
        kube.put(PODS, {**pod, "status": {"phase": "Succeeded"}})
        elsewhere = {**pod, "metadata": {"name": "q", "namespace": "shop" if node else "other"}}
        elsewhere["spec"] = {**pod["spec"], "nodeName": "n1"}
        kube.put(PODS, elsewhere)
        writer.want([made("x", unless_used=Unused(claims, node))])
        await until(lambda: heard.done == ["x"])


def test_a_pace_lets_a_second_s_worth_through_at_once() -> None:
    """Then it says how long to wait."""
    pace = Pace(10)
    assert [pace.take() for _ in range(10)] == [0.0] * 10
    assert 0 < pace.take() <= 0.1
