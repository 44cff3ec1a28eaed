"""Events are counted, never in the way, and forgotten rather than insisted on."""

from __future__ import annotations

import asyncio
import time

import pytest

from cacheagent.kube.api import EVENTS, KubeRefused, KubeUnavailable, Object
from cacheagent.kube.events import BURST, LONGEST_MESSAGE, PER_SECOND, QUEUE, Events
from tests.fakes.kube import FakeKube
from tests.fakes.running import running, until

POD: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "uid": "u-1"}}
MODEL: Object = {"apiVersion": "cacheagent.io/v1alpha1", "kind": "ModelCache", "metadata": {"name": "a", "uid": "u-2"}}


@pytest.fixture
def fake() -> FakeKube:
    return FakeKube()


@pytest.fixture
def events(fake: FakeKube) -> Events:
    return Events(fake, component="cacheagent-controller", instance="pod-0")


@pytest.mark.asyncio
async def test_what_an_event_says(fake: FakeKube, events: Events) -> None:
    """Who it is about, who says it, in the object's namespace or in `default`."""
    async with running(events.run()):
        events.post(POD, "Warning", "WeightsMissing", "llama is 37 % here")
        events.post(MODEL, "Normal", "Resolved", "x" * 5000)
        await events.written()
    about_model, about_pod = fake.all(EVENTS)
    assert about_pod["metadata"]["namespace"] == "shop"
    assert about_pod["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "web",
        "namespace": "shop",
        "uid": "u-1",
    }
    assert (about_pod["type"], about_pod["reason"], about_pod["count"]) == ("Warning", "WeightsMissing", 1)
    assert about_pod["source"] == {"component": "cacheagent-controller"}
    assert about_model["metadata"]["namespace"] == "default"
    assert "namespace" not in about_model["involvedObject"]
    assert len(about_model["message"]) == LONGEST_MESSAGE


@pytest.mark.asyncio
async def test_repetitions_are_counted(fake: FakeKube, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same again changes its event; when the server has forgotten it, or after a while, it is said anew."""
    async with running(events.run()):
        for _ in range(3):
            events.post(POD, "Normal", "Waiting", "for weights")
        events.post(POD, "Normal", "Waiting", "for something else")
        await events.written()
        assert sorted(each["count"] for each in fake.all(EVENTS)) == [1, 3]
        for each in fake.all(EVENTS):
            fake.remove(EVENTS, each["metadata"]["name"], namespace="shop")
        events.post(POD, "Normal", "Waiting", "for weights")
        await events.written()
        assert [each["count"] for each in fake.all(EVENTS)] == [1]
        monkeypatch.setattr("cacheagent.kube.events.FORGOTTEN_AFTER_S", -1.0)
        events.post(POD, "Normal", "Waiting", "for weights")
        await events.written()
        assert [each["count"] for each in fake.all(EVENTS)] == [1, 1]


@pytest.mark.asyncio
async def test_an_api_server_in_trouble(
    fake: FakeKube, events: Events, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tried again a few times, then dropped and counted; a refusal is not argued with; the next event is written."""
    monkeypatch.setattr("cacheagent.kube.events.RETRY_S", 0.001)
    async with running(events.run()):
        fake.fail_next("create", KubeUnavailable("busy"), times=2)
        events.post(POD, "Normal", "One", "in the end")
        await events.written()
        assert (len(fake.all(EVENTS)), events.dropped) == (1, 0)
        fake.fail_next("create", KubeUnavailable("busy"), times=3)
        events.post(POD, "Normal", "Two", "never")
        await events.written()
        fake.fail_next("create", KubeRefused("namespace is being deleted", status=403))
        events.post(POD, "Normal", "Three", "never")
        events.post(POD, "Normal", "Four", "written")
        await events.written()
    assert sorted(each["reason"] for each in fake.all(EVENTS)) == ["Four", "One"]
    assert events.dropped == 2
    assert "namespace is being deleted" in caplog.text


@pytest.mark.asyncio
async def test_nobody_waits_for_a_full_queue(fake: FakeKube, events: Events) -> None:
    """What does not fit is dropped and counted."""
    for index in range(QUEUE + 7):
        events.post(POD, "Normal", "Many", f"{index}")
    assert events.dropped == 7
    assert fake.calls["create"] == 0


@pytest.mark.asyncio
async def test_a_flood_is_slowed_down(fake: FakeKube, events: Events) -> None:
    """A burst at once, the rest at a rate."""
    more = 10
    async with running(events.run()):
        begin = time.monotonic()
        for index in range(BURST + more):
            events.post(POD, "Normal", "Many", f"{index}")
        await until(lambda: fake.calls["create"] >= BURST, "the burst")
        await events.written()
        assert time.monotonic() - begin >= (more - 1) / PER_SECOND
    assert len(fake.all(EVENTS)) == BURST + more


@pytest.mark.asyncio
async def test_a_cancelled_writer_leaves_nothing_half_done(fake: FakeKube, events: Events) -> None:
    """What was not written stays in the queue for nobody; posting still fails nobody."""
    async with running(events.run()):
        await asyncio.sleep(0)
    events.post(POD, "Normal", "Late", "nobody writes any more")
    assert fake.all(EVENTS) == []
