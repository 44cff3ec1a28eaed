"""The fake API server behaves as the real one does, and its own means do what they say."""

from __future__ import annotations

import asyncio

import pytest

from cacheagent.kube.api import MODEL_CACHES, PODS, KubeApi, KubeConflict, KubeExpired, KubeNotFound, KubeUnavailable
from tests.conformance.kube import KubeBehaviour, model, take
from tests.fakes.kube import FakeKube, error_of, names


@pytest.fixture
def fake() -> FakeKube:
    return FakeKube()


@pytest.fixture
def api(fake: FakeKube) -> KubeApi:
    return fake


class TestFake(KubeBehaviour):
    """The same suite runs on a real API server in tests/integration/test_kube_client.py."""


@pytest.mark.asyncio
async def test_fail_next(fake: FakeKube) -> None:
    """The next call of that verb fails and does nothing; the one after it is served."""
    fake.fail_next("create", KubeConflict("made up", status=409))
    fake.fail_next("get", error_of(503), resource=PODS)
    with pytest.raises(KubeConflict):
        await fake.create(MODEL_CACHES, model("a"))
    assert fake.all(MODEL_CACHES) == []
    await fake.create(MODEL_CACHES, model("a"))
    await fake.get(MODEL_CACHES, "a")
    with pytest.raises(KubeUnavailable):
        await fake.get(PODS, "a", namespace="default")
    assert fake.calls["create"] == 2
    assert fake.calls_of["get", "pods"] == 1


@pytest.mark.asyncio
async def test_down(fake: FakeKube) -> None:
    """Running watches break, calls fail, nothing is lost."""
    await fake.create(MODEL_CACHES, model("a"))
    watching = asyncio.create_task(take(fake.watch(MODEL_CACHES, "1001"), 1))
    await fake.watched()
    fake.set_down(True)
    with pytest.raises(KubeUnavailable):
        await watching
    with pytest.raises(KubeUnavailable):
        await fake.get(MODEL_CACHES, "a")
    fake.set_down(False)
    assert (await fake.get(MODEL_CACHES, "a"))["metadata"]["name"] == "a"
    assert fake.watching == 0


@pytest.mark.asyncio
async def test_expire(fake: FakeKube) -> None:
    """Every version known so far is too old, and a new list's is not."""
    await fake.create(MODEL_CACHES, model("a"))
    before = (await fake.list(MODEL_CACHES)).resource_version
    fake.expire()
    with pytest.raises(KubeExpired):
        await take(fake.watch(MODEL_CACHES, before), 1)
    after = (await fake.list(MODEL_CACHES)).resource_version
    await fake.create(MODEL_CACHES, model("b"))
    (event,) = await take(fake.watch(MODEL_CACHES, after), 1)
    assert event.object["metadata"]["name"] == "b"


@pytest.mark.asyncio
async def test_put_and_remove(fake: FakeKube) -> None:
    """Somebody else's hand writes specs and statuses alike, and watches see it."""
    version = (await fake.list(PODS)).resource_version
    pod = {"metadata": {"name": "a", "namespace": "shop"}, "spec": {}, "status": {"phase": "Running"}}
    fake.put(PODS, pod)
    fake.put(PODS, pod | {"status": {"phase": "Failed"}})
    fake.remove(PODS, "a", namespace="shop")
    events = await take(fake.watch(PODS, version), 3)
    assert [event.type for event in events] == ["ADDED", "MODIFIED", "DELETED"]
    assert [event.object["status"]["phase"] for event in events] == ["Running", "Failed", "Failed"]
    assert fake.calls["create"] == 0


@pytest.mark.asyncio
async def test_what_is_handed_out_is_a_copy(fake: FakeKube) -> None:
    """Nobody changes an object by holding it."""
    made = await fake.create(MODEL_CACHES, model("a"))
    made["spec"]["pin"] = True
    (await fake.list(MODEL_CACHES)).items[0]["spec"]["pin"] = True
    fake.all(MODEL_CACHES)[0]["spec"]["pin"] = True
    assert "pin" not in (await fake.get(MODEL_CACHES, "a"))["spec"]


@pytest.mark.asyncio
async def test_end_watches(fake: FakeKube) -> None:
    """A bookmark says where to go on, then comes the end."""

    async def listen() -> list[str]:
        return [event.type async for event in fake.watch(MODEL_CACHES, "1000")]

    watching = asyncio.create_task(listen())
    await fake.watched()
    await fake.create(MODEL_CACHES, model("a"))
    fake.end_watches()
    assert await watching == ["ADDED", "BOOKMARK"]


@pytest.mark.asyncio
async def test_what_belongs_to_a_deleted_owner_goes(fake: FakeKube) -> None:
    """Unless another owner lives; the real collector does the same a moment later."""
    owner, other = [(await fake.create(MODEL_CACHES, model(name)))["metadata"]["uid"] for name in ("owner", "other")]
    for name, owners in (("child", [owner]), ("shared", [owner, other]), ("free", [])):
        references = [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid} for uid in owners]
        await fake.create(PODS, {"metadata": {"name": name, "ownerReferences": references}}, namespace="shop")
    await fake.delete(MODEL_CACHES, "owner")
    assert names(fake.all(PODS)) == ["free", "shared"]
    with pytest.raises(KubeNotFound):
        await fake.get(PODS, "child", namespace="shop")
