"""When a node writes its status, and when it does not; and how questions about sources are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from cacheagent.errors import CacheAgentError, DiskFault, OriginUnavailable
from cacheagent.kube import node_report
from cacheagent.kube.api import MODEL_CACHE_NODES, KubeRefused, KubeUnavailable
from cacheagent.kube.convert import status_of
from cacheagent.kube.names import API_VERSION
from cacheagent.kube.node_lookups import Lookups
from cacheagent.kube.node_models import NodePolicy
from cacheagent.kube.node_report import Reporter
from cacheagent.kube.objects import ModelCacheNodeStatus, NodeModel, NodeModelStatus, Source
from cacheagent.model import Manifest
from cacheagent.spec import ModelSpec
from tests.fakes.kube import FakeKube

pytestmark = pytest.mark.asyncio
NODE = "gpu-1"


class World:
    """An API server with the object, and what the node would say now."""

    def __init__(self) -> None:
        self.kube = FakeKube()
        self.kube.put(
            MODEL_CACHE_NODES, {"apiVersion": API_VERSION, "kind": "ModelCacheNode", "metadata": {"name": NODE}}
        )
        self.now = ModelCacheNodeStatus(models=(NodeModelStatus(name="m", phase="fetching", bytes_done=1),))
        self.looks = 0
        self.wrong: DiskFault | None = None
        self.reporter = Reporter(self.kube, NODE, self.look)

    async def look(self) -> ModelCacheNodeStatus:
        self.looks += 1
        if self.wrong is not None:
            raise self.wrong
        return self.now

    def say(self, **changes: object) -> None:
        """Change the one model, and tell."""
        self.now = replace(self.now, models=(replace(self.now.models[0], **changes),))
        self.reporter.tell()

    @property
    def written(self) -> ModelCacheNodeStatus:
        return status_of(self.kube.peek(MODEL_CACHE_NODES, NODE) or {"metadata": {}}, ModelCacheNodeStatus)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.reporter.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that tells nobody when it happens."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on
            await asyncio.sleep(0.005)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """In which an hour passes between reports of progress, and nobody pauses between changes of state."""
    monkeypatch.setattr(node_report, "PROGRESS_EVERY_S", 3600.0)
    monkeypatch.setattr(node_report, "PACE_S", 0.0)
    monkeypatch.setattr(node_report, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(node_report, "LONGEST_RETRY_S", 0.01)
    return World()


async def test_states_are_written_and_progress_is_not_yet(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing before the object is there; a look without news writes nothing."""
    async with world.running():
        world.say(bytes_done=2)
        assert world.looks == 0
        world.reporter.forget(there=True)
        await until(lambda: world.kube.calls["apply"] == 1)
        world.say(bytes_done=3)
        await until(lambda: world.looks == 2)
        world.say(phase="ready")
        await until(lambda: world.kube.calls["apply"] == 2)
        assert world.written.models[0].phase == "ready"
        looks = world.looks
        world.say()
        await until(lambda: world.looks > looks)
        assert world.kube.calls["apply"] == 2
    monkeypatch.setattr(node_report, "PROGRESS_EVERY_S", 0.01)
    async with world.running():
        world.say(bytes_done=9)
        await until(lambda: world.written.models[0].bytes_done == 9)


async def test_a_disk_that_can_not_be_looked_at_ends_nothing(world: World) -> None:
    """It is looked at again, and reported on when it answers."""
    world.wrong = DiskFault("the disk can't be looked at")
    async with world.running():
        world.reporter.forget(there=True)
        await until(lambda: world.looks > 2)
        assert world.kube.calls["apply"] == 0
        assert world.reporter.error is None
        world.wrong = None
        await until(lambda: world.kube.calls["apply"] == 1)


async def test_changes_in_a_row_are_one_report(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one counts, within the pace."""
    async with world.running():
        world.reporter.forget(there=True)
        await until(lambda: world.kube.calls["apply"] == 1)
        monkeypatch.setattr(node_report, "PACE_S", 0.3)
        for number in range(20):
            world.say(mounted=number)
            await asyncio.sleep(0)
        await until(lambda: world.written.models[0].mounted == 19)
        assert world.kube.calls["apply"] <= 3


@pytest.mark.parametrize("error", [KubeUnavailable("no answer"), KubeRefused("not your object")])
async def test_a_report_that_is_not_taken_is_made_again(world: World, error: Exception) -> None:
    """Whatever the reason; meanwhile the reason can be told."""
    world.kube.fail_next("apply", error, times=3)
    async with world.running():
        world.reporter.forget(there=True)
        await until(lambda: world.reporter.error is error)
        await until(lambda: world.written.models != ())
        assert world.reporter.error is None


async def test_an_object_that_is_gone_is_waited_for(world: World) -> None:
    """And everything is written into the new one, though nothing has changed."""
    async with world.running():
        world.reporter.forget(there=True)
        await until(lambda: world.kube.calls["apply"] == 1)
        world.kube.remove(MODEL_CACHE_NODES, NODE)
        world.say(phase="ready")
        await until(lambda: world.reporter.error is not None)
        applied = world.kube.calls["apply"]
        world.say(phase="failed")
        world.kube.put(
            MODEL_CACHE_NODES, {"apiVersion": API_VERSION, "kind": "ModelCacheNode", "metadata": {"name": NODE}}
        )
        assert world.kube.calls["apply"] == applied
        world.reporter.forget(there=True)
        await until(lambda: world.written.models != ())
        assert world.written.models[0].phase == "failed"


# --- questions


def model(token: str, name: str = "llama") -> NodeModel:
    """Assigned with a question."""
    return NodeModel(name=name, source=Source(uri=f"s3://bucket/{name}"), resolve=token)


class Origin:
    """Lists a source when it is let, or fails."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failures: list[Exception] = []
        self.open = asyncio.Event()
        self.open.set()
        self.changes = 0

    async def look_up(self, spec: ModelSpec) -> Manifest:
        self.asked.append(spec.name)
        await self.open.wait()
        if self.failures:
            raise self.failures.pop(0)
        return Manifest(kind="tree", source_kind="s3", files=(), revision=f"r{len(self.asked)}")

    def changed(self) -> None:
        self.changes += 1


async def test_each_question_is_asked_once_and_its_answer_kept() -> None:
    """Another assignment with the same question asks nothing; one without it drops the answer."""
    origin = Origin()
    lookups = Lookups(origin.look_up, NodePolicy(), changed=origin.changed)
    lookups.want([model("q1")])
    lookups.want([model("q1")])
    await until(lambda: "q1" in lookups.found)
    lookups.want([model("q1")])
    assert (origin.asked, origin.changes) == (["llama"], 1)
    lookups.want([model("q2")])
    await until(lambda: "q2" in lookups.found)
    assert lookups.found.keys() == {"q2"}
    lookups.want([])
    assert lookups.found == {}
    await lookups.close()


async def test_a_failure_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Defects too; the answer ends the error."""
    origin = Origin()
    origin.failures = [OriginUnavailable("no answer"), RuntimeError("a defect")]
    lookups = Lookups(origin.look_up, NodePolicy(), changed=origin.changed, first_retry_s=0.01)
    lookups.want([model("q1")])
    await until(lambda: "q1" in lookups.found)
    assert (lookups.errors, origin.changes) == ({}, 3)
    assert "a defect ended a look-up" in caplog.text
    refused = replace(model("q3"), source=Source(uri="file:///etc"))
    lookups.want([refused])
    await until(lambda: "q3" in lookups.errors)
    assert isinstance(lookups.errors["q3"], CacheAgentError)
    await lookups.close()


async def test_a_question_that_is_taken_back_is_not_answered() -> None:
    """Its work ends; at the end all ends."""
    origin = Origin()
    origin.open.clear()
    lookups = Lookups(origin.look_up, NodePolicy(), changed=origin.changed)
    lookups.want([model("q1"), model("q2", "qwen")])
    await until(lambda: len(origin.asked) == 2)
    lookups.want([model("q2", "qwen")])
    origin.open.set()
    await until(lambda: "q2" in lookups.found)
    assert lookups.found.keys() == {"q2"}
    await lookups.close()
