"""The mirror: whatever the server does, the copy is right in the end and nothing is told that did not happen."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cacheagent.kube.api import MODEL_CACHES, PODS, KubeRefused, KubeUnavailable, Object
from cacheagent.kube.mirror import Mirror, without_managed_fields
from tests.conformance.kube import model
from tests.fakes.kube import FakeKube
from tests.fakes.running import running, until


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds."""
    monkeypatch.setattr("cacheagent.kube.mirror.FIRST_RETRY_S", 0.002)
    monkeypatch.setattr("cacheagent.kube.mirror.LONGEST_RETRY_S", 0.02)


class Diary:
    """What a mirror told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, before: Object | None, after: Object | None) -> None:
        kind = "+" if before is None else "-" if after is None else "~"
        self.lines.append(kind + (after or before or {})["metadata"]["name"])

    def take(self) -> list[str]:
        """Lines since the last time, sorted."""
        lines, self.lines = sorted(self.lines), []
        return lines


@pytest.fixture
def fake() -> FakeKube:
    return FakeKube()


@pytest.fixture
def diary() -> Diary:
    return Diary()


def mirror_of(fake: FakeKube, diary: Diary, **options: Any) -> Mirror:
    return Mirror(fake, MODEL_CACHES, on_change=diary.note, **options)


@pytest.mark.asyncio
async def test_it_follows(fake: FakeKube, diary: Diary) -> None:
    """First what is there, then every change; one watch for all of it."""
    await fake.create(MODEL_CACHES, model("a"))
    mirror = mirror_of(fake, diary)
    assert not mirror.is_synced
    async with running(mirror.run()):
        await mirror.synced()
        assert diary.take() == ["+a"]
        await fake.create(MODEL_CACHES, model("b"))
        await fake.patch(MODEL_CACHES, "a", {"spec": {"pin": True}})
        await until(lambda: len(diary.lines) == 2, "two changes")
        assert diary.take() == ["+b", "~a"]
        assert mirror.items["", "a"]["spec"]["pin"] is True
        assert mirror.get("b") is not None
        await fake.delete(MODEL_CACHES, "b")
        await until(lambda: diary.lines, "a change")
        assert diary.take() == ["-b"]
        assert mirror.get("b") is None
    assert (fake.calls["list"], fake.calls["watch"]) == (1, 1)


@pytest.mark.asyncio
async def test_it_goes_on_where_a_watch_ended(fake: FakeKube, diary: Diary) -> None:
    """In order or broken: nothing is listed again, and nothing is missed or told twice."""

    def break_watches() -> None:
        fake.set_down(True)
        fake.set_down(False)

    mirror = mirror_of(fake, diary)
    async with running(mirror.run()):
        for index, end in enumerate((fake.end_watches, break_watches)):
            await mirror.synced()
            await fake.watched()
            end()
            await fake.create(MODEL_CACHES, model(f"m{index}"))
            await until(lambda: diary.lines, "a change")
            assert diary.take() == [f"+m{index}"]
    assert fake.calls["list"] == 1
    assert fake.calls["watch"] >= 3


@pytest.mark.asyncio
async def test_a_bookmark_moves_it_on(fake: FakeKube, diary: Diary) -> None:
    """After one, what happened elsewhere long ago is not needed any more."""
    mirror = mirror_of(fake, diary)
    async with running(mirror.run()):
        await mirror.synced()
        await fake.watched()
        await fake.create(PODS, {"metadata": {"name": "p"}}, namespace="shop")
        fake.bookmark()
        version = (await fake.list(PODS)).resource_version
        await until(lambda: mirror._resource_version == version, "the bookmark is taken in")
        assert diary.take() == []


@pytest.mark.asyncio
async def test_a_relist_is_a_difference(fake: FakeKube, diary: Diary) -> None:
    """What was missed is told as it is now, and nothing else."""
    for name in ("stays", "changes", "goes", "is made anew"):
        await fake.create(MODEL_CACHES, model(name))
    mirror = mirror_of(fake, diary)
    async with running(mirror.run()):
        await mirror.synced()
        await fake.watched()
        diary.take()
        fake.set_down(True)
        await until(lambda: mirror.error is not None, "it notices")
        assert len(mirror.items) == 4, "a copy that is behind is better than none"
        fake.put(MODEL_CACHES, model("new"))
        fake.put(MODEL_CACHES, model("changes", pin=True))
        fake.remove(MODEL_CACHES, "goes")
        fake.remove(MODEL_CACHES, "is made anew")
        fake.put(MODEL_CACHES, model("is made anew"))
        fake.expire()
        fake.set_down(False)
        await until(lambda: mirror.get("new"), "it lists again")
        assert diary.take() == ["+new", "-goes", "~changes", "~is made anew"]
        fake.expire()
        await fake.create(MODEL_CACHES, model("last"))
        await until(lambda: mirror.get("last"), "it lists again")
        assert diary.take() == ["+last"]
        await until(lambda: mirror.error is None, "all is well")


@pytest.mark.asyncio
async def test_a_server_that_fails_and_refuses(fake: FakeKube, diary: Diary, caplog: pytest.LogCaptureFixture) -> None:
    """It asks again for ever, and tells the log once of each kind of trouble."""
    fake.fail_next("list", KubeUnavailable("away"), times=3)
    fake.fail_next("list", KubeRefused("not permitted", status=403), times=3)
    mirror = mirror_of(fake, diary)
    async with running(mirror.run()):
        await mirror.synced()
        await until(lambda: fake.watching, "it watches")
    assert fake.calls["list"] == 7
    said = [record.getMessage() for record in caplog.records if "not up to date" in record.getMessage()]
    assert said == ["not up to date: away", "not up to date: not permitted"]


@pytest.mark.asyncio
async def test_what_is_not_kept_is_no_change(fake: FakeKube, diary: Diary) -> None:
    """`keep` strips objects; the version of what is kept is still the newest one."""

    def keep(item: Object) -> Object:
        return {"metadata": item["metadata"], "spec": item["spec"]}

    await fake.create(MODEL_CACHES, model("a"))
    mirror = mirror_of(fake, diary, keep=keep)
    async with running(mirror.run()):
        await mirror.synced()
        diary.take()
        await fake.patch(MODEL_CACHES, "a", {"status": {"progress": "1 %"}}, subresource="status")
        told = await fake.patch(MODEL_CACHES, "a", {"status": {"progress": "2 %"}}, subresource="status")
        version = told["metadata"]["resourceVersion"]
        await until(lambda: mirror.items["", "a"]["metadata"]["resourceVersion"] == version, "the newest version")
        assert "status" not in mirror.items["", "a"]
        assert diary.take() == []
        await fake.patch(MODEL_CACHES, "a", {"spec": {"pin": True}})
        await until(lambda: diary.lines, "a change")
        assert diary.take() == ["~a"]


@pytest.mark.asyncio
async def test_selectors(fake: FakeKube, diary: Diary) -> None:
    """An object that no longer matches is gone from the copy."""
    for name, labels in (("ours", {"a": "1"}), ("theirs", {})):
        body = model(name)
        body["metadata"]["labels"] = labels
        await fake.create(MODEL_CACHES, body)
    mirror = mirror_of(fake, diary, labels="a=1")
    async with running(mirror.run()):
        await mirror.synced()
        assert diary.take() == ["+ours"]
        await fake.patch(MODEL_CACHES, "ours", {"metadata": {"labels": {"a": None}}})
        await fake.patch(MODEL_CACHES, "theirs", {"metadata": {"labels": {"a": "1"}}})
        await until(lambda: len(diary.lines) == 2, "two changes")
        assert diary.take() == ["+theirs", "-ours"]


@pytest.mark.asyncio
async def test_waiting_for_a_change(fake: FakeKube, diary: Diary) -> None:
    """Several may wait; who slept through some changes sees one."""
    mirror = mirror_of(fake, diary)
    async with running(mirror.run()):
        await mirror.synced()
        waiting = [asyncio.create_task(mirror.changed(mirror.version)) for _ in range(3)]
        await asyncio.sleep(0)
        await fake.create(MODEL_CACHES, model("a"))
        assert len({await each for each in waiting}) == 1
        seen = mirror.version
        for name in ("b", "c"):
            await fake.create(MODEL_CACHES, model(name))
        await until(lambda: mirror.version == seen + 2, "two changes")
        assert await mirror.changed(seen) == seen + 2


@pytest.mark.asyncio
async def test_a_server_that_ends_watches_at_once_is_left_in_peace(
    fake: FakeKube, diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause comes between two watches that last no time."""
    monkeypatch.setattr("cacheagent.kube.mirror.FIRST_RETRY_S", 0.2)
    monkeypatch.setattr("cacheagent.kube.mirror.LONGEST_RETRY_S", 0.2)
    mirror = mirror_of(fake, diary)
    async with running(mirror.run()):
        await mirror.synced()
        for _ in range(50):
            fake.end_watches()
            await asyncio.sleep(0.002)
    assert fake.calls["watch"] < 5


def test_managed_fields() -> None:
    """They are dropped unless somebody says what to keep."""
    assert without_managed_fields({"metadata": {"name": "a", "managedFields": [1]}}) == {"metadata": {"name": "a"}}
