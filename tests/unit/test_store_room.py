"""Room: promised before the first byte, made by eviction, never below the floor, whatever others do to the disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cacheagent.errors import DiskFault, ModelInUse, NoRoom
from cacheagent.model import SMALL_FILE_BYTES
from cacheagent.store import Boot, Store, StorePolicy
from tests.fakes.cache import (
    blobs_of,
    bring,
    content_of,
    files_under,
    immortal,
    manifest_of,
    names_in,
    publish,
    reserve,
    stage,
)

MIB = 2**20
FLOOR = 2 * MIB


def model(name: str, size_mib: int = 4) -> dict[str, bytes]:
    return {f"{name}.bin": content_of(name, size_mib * MIB)}


class Disk:
    """A filesystem of 20 MiB around one cache directory, and what somebody else has written to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.capacity = 20 * MIB
        self.strangers = 0
        self.lowest = self.capacity

    def free(self) -> int:
        inodes = {}
        for path in self.root.rglob("*"):
            if not path.is_dir():
                found = path.stat()
                inodes[found.st_ino] = found.st_blocks * 512
        self.lowest = min(self.lowest, self.capacity - self.strangers - sum(inodes.values()))
        return self.capacity - self.strangers - sum(inodes.values())

    def statvfs(self, path: str) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=max(0, self.free()), f_blocks=self.capacity, f_frsize=1)


class World:
    def __init__(self, root: Path) -> None:
        self.disk = Disk(root)
        self.time = 1000.0
        self.boot = Boot(id="one", seconds=50.0)
        self.root = root
        self.open()

    def open(self) -> None:
        policy = StorePolicy(floor_bytes=FLOOR)
        self.store = Store.open(self.root, policy, now=self.tick, boot=lambda: self.boot)

    def tick(self) -> float:
        self.time += 1
        return self.time

    def names(self) -> set[str]:
        return {record.name for record in self.store.records()}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with immortal():
        made = World(tmp_path / "cache")
        monkeypatch.setattr(os, "statvfs", made.disk.statvfs)
        monkeypatch.setattr("cacheagent.store.room.FREEING_TAKES_S", 0.0)
        yield made
        made.store.close()


def test_the_one_used_longest_ago_makes_room(world: World) -> None:
    """And no more than is needed; the floor holds at every moment."""
    for name in "abc":
        bring(world.store, model(name, 5), name=name)
    world.store.touch(manifest_of(model("a", 5)).digest)
    bring(world.store, model("d", 5), name="d")
    assert world.names() == {"a", "c", "d"}
    assert world.disk.lowest >= FLOOR
    assert names_in(world.root, "trash") == set()
    assert world.store.evictions() == {"room": 1, "watermark": 0, "asked": 0}


def test_what_can_not_fit_fails_before_its_first_byte_with_the_numbers(world: World) -> None:
    """Nothing is evicted, staged or kept reserved; unpinned, it fits."""
    for name, pin in (("a", True), ("b", True), ("c", False)):
        bring(world.store, model(name), name=name, pin=pin)
    before = names_in(world.root, ".")
    with pytest.raises(NoRoom) as refused:
        reserve(world.store, model("big", 12))
    message = refused.value.message
    assert message.startswith(manifest_of(model("big", 12)).digest + " needs 13.6 MB: ")
    assert message.endswith(" free above the floor, 4.19 MB can be freed, 2 pinned models hold 8.39 MB")
    assert "unpin or evict models" in refused.value.hint
    assert names_in(world.root, ".") == before
    assert world.store.usage().reserved == 0
    world.store.unpin(manifest_of(model("a")).digest)
    world.store.unpin(manifest_of(model("b")).digest)
    bring(world.store, model("big", 12), name="big")
    assert world.names() == {"c", "big"}


def test_a_reservation_counts_until_its_bytes_are_on_disk_and_not_twice(world: World) -> None:
    """Promised, then preallocated, then published: at each step the same total."""
    files = model("a", 8)
    free = world.disk.free()
    reservation = reserve(world.store, files)
    assert 8 * MIB <= world.store.usage().reserved <= 10 * MIB
    with pytest.raises(NoRoom):
        reserve(world.store, model("b", 9))
    (blob,) = blobs_of(files)
    world.store.stage(blob, 8 * MIB)
    assert world.store.usage().reserved <= 2 * MIB
    assert free - world.disk.free() >= 8 * MIB
    with pytest.raises(NoRoom):
        reserve(world.store, model("b", 9))
    held = reserve(world.store, model("c", 7))
    held.release()
    held.release()
    stage(world.store, files)
    publish(world.store, files)
    reservation.release()
    assert world.store.usage().reserved == 0
    reserve(world.store, model("c", 7)).release()


def test_two_reservations_of_one_blob_need_it_once_and_the_second_keeps_it(world: World) -> None:
    """When the first is released the other still has its room."""
    shared = model("shared", 10)
    one = reserve(world.store, shared)
    two = reserve(world.store, shared | {"x": b"x"})
    assert world.store.usage().reserved < 13 * MIB
    one.release()
    assert world.store.usage().reserved > 10 * MIB
    with pytest.raises(NoRoom):
        reserve(world.store, model("other", 8))
    two.release()
    reserve(world.store, model("other", 8)).release()


def test_what_is_here_of_a_model_is_not_evicted_for_it(world: World) -> None:
    """The old revision goes; the shards that the new one shares stay, and are not fetched again."""
    shared, old, new = model("shared", 8), model("old", 4), model("new", 6)
    bring(world.store, shared | old, name="v1")
    (blob,) = blobs_of(shared)
    reservation = reserve(world.store, shared | new)
    assert world.names() == set()
    assert world.store.blob_hashes(blob) is not None
    world.store.small_path(blob)
    stage(world.store, shared | new)
    record = publish(world.store, shared | new)
    reservation.release()
    assert files_under(world.store.path(record.digest) / "files") == shared | new
    assert world.disk.lowest >= FLOOR


def test_interrupted_downloads_go_before_models(world: World) -> None:
    """The oldest first; those of a reservation not at all."""
    bring(world.store, model("kept"), name="kept")
    for name in ("x", "y"):
        reservation = reserve(world.store, model(name))
        stage(world.store, model(name))
        reservation.release()
    assert world.store.usage().evictable == 12 * MIB
    bring(world.store, model("new", 6), name="new")
    assert world.names() == {"kept", "new"}
    (x,), (y,) = blobs_of(model("x")), blobs_of(model("y"))
    assert world.store.blob_hashes(x) is None
    assert not (world.root / "staging" / x).exists()
    assert world.store.blob_hashes(y) is not None or world.disk.lowest >= FLOOR


def test_a_more_important_model_is_not_evicted_for_a_lesser_one(world: World) -> None:
    """Nor the other way round spared."""
    bring(world.store, model("dear", 10), name="dear", priority=5)
    with pytest.raises(NoRoom, match=r"1 more important model holds 10\.5 MB"):
        reserve(world.store, model("cheap", 10), priority=4)
    assert world.names() == {"dear"}
    bring(world.store, model("equal", 10), name="equal", priority=5)
    assert world.names() == {"equal"}


def test_what_the_controller_says_today_goes_before_what_it_said_at_the_fetch(world: World) -> None:
    """What it wants here no more goes for anything, however important it was; what it made important stays."""
    for name, priority in (("was-dear", 9), ("was-cheap", 0)):
        bring(world.store, model(name, 5), name=name, priority=priority)
    cheap = manifest_of(model("was-cheap", 5)).digest
    assert not world.store.rank({cheap: 8})
    assert world.store.rank({cheap: 7})
    bring(world.store, model("new", 11), name="new", priority=5)
    assert world.names() == {"was-cheap", "new"}
    with pytest.raises(NoRoom, match=r"1 more important model holds 5\.24 MB"):
        reserve(world.store, model("big", 14), priority=6)


def test_what_the_controller_let_go_of_stays_announced_until_it_is_gone(world: World) -> None:
    """Else it would be held again while whoever needs the room is about to come back."""
    bring(world.store, model("pv", 10), name="pv")
    digest = manifest_of(model("pv", 10)).digest
    world.store.hold({digest})
    with pytest.raises(NoRoom, match="PersistentVolumes point at"):
        reserve(world.store, model("new", 10), priority=0)
    assert world.store.evicting() == (digest,)
    assert world.store.hold(set())
    assert world.store.evicting() == (digest,)
    bring(world.store, model("new", 10), name="new")
    assert world.names() == {"new"}
    assert world.store.evicting() == ()


def test_after_a_boot_nothing_is_evicted_for_ten_minutes(world: World) -> None:
    """Counted from the first start after it, over restarts of the agent; an order of a person is obeyed at once."""
    bring(world.store, model("a", 10), name="a")
    bring(world.store, model("tiny", 1), name="tiny")
    world.store.close()
    world.boot = Boot(id="two", seconds=30.0)
    world.open()
    with pytest.raises(NoRoom, match="2 models that may be mounted since before the boot hold") as refused:
        reserve(world.store, model("b", 10))
    assert "nothing is evicted for another 600 s after the boot" in refused.value.hint
    assert world.store.evict(manifest_of(model("tiny", 1)).digest) == MIB
    world.store.close()
    world.boot = Boot(id="two", seconds=629.0)
    world.open()
    with pytest.raises(NoRoom):
        reserve(world.store, model("b", 10))
    world.boot = Boot(id="two", seconds=631.0)
    bring(world.store, model("b", 10), name="b")
    assert world.names() == {"b"}


def test_a_first_start_has_no_grace_and_a_garbled_note_has(world: World) -> None:
    """Nothing of ours can be mounted in a new directory; where it is not known, caution."""
    bring(world.store, model("a", 10), name="a")
    bring(world.store, model("b", 10), name="b")
    assert world.names() == {"b"}
    world.store.close()
    (world.root / "boot.json").write_text("{")
    world.open()
    with pytest.raises(NoRoom):
        reserve(world.store, model("c", 10))


def test_trimming_goes_from_the_high_to_the_low_watermark(world: World) -> None:
    """Below the high one nothing happens; what is held stays even if the low one is not reached."""
    for name in "abcd":
        bring(world.store, model(name), name=name)
    assert world.names() == set("abcd")
    (world.root / "trash" / "0123456789abcdef").mkdir()
    assert world.store.trim() == 0
    assert names_in(world.root, "trash") == set()
    world.disk.strangers = 2 * MIB - 200_000
    assert world.store.trim() == 4 * MIB
    assert world.names() == set("bcd")
    assert world.store.trim() == 0
    for name in "bcd":
        world.store.pin(manifest_of(model(name)).digest)
    world.disk.strangers = 6 * MIB
    assert world.store.trim() == 0
    assert world.names() == set("bcd")
    assert world.store.evictions()["watermark"] == 1


def test_somebody_else_fills_the_disk_while_room_is_reserved(world: World) -> None:
    """What is published stays whole and usable; the next reservation says what is wrong; later all is well again."""
    bring(world.store, model("a"), name="a")
    files = model("b", 8)
    reservation = reserve(world.store, files)
    stage(world.store, {})
    world.disk.strangers = world.disk.free()
    with pytest.raises(NoRoom, match="0 B free above the floor"):
        reserve(world.store, model("c"), priority=-1)
    world.store.touch(manifest_of(model("a")).digest)
    world.store.lease("v", manifest_of(model("a")).digest)
    reservation.release()
    world.disk.strangers = 0
    bring(world.store, files, name="b")
    assert world.names() == {"a", "b"}


def test_a_preallocation_that_finds_the_disk_full_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """DiskFault with the file; nothing is published; when there is room again it goes on."""
    reservation = reserve(world.store, model("a"))
    (blob,) = blobs_of(model("a"))

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(DiskFault, match="room for a file can't be allocated: No space left on device"):
            world.store.stage(blob, SMALL_FILE_BYTES)
    reservation.release()
    assert names_in(world.root, "models", "records", "blobs") == set()
    bring(world.store, model("a"), name="a")
    assert world.names() == {"a"}


def test_many_reservations_at_once_never_promise_the_same_room_twice(world: World) -> None:
    """Sixteen threads want 4 MiB each where three find room: the floor holds, the others are told."""
    start, outcomes = threading.Barrier(16), []

    def run(number: int) -> None:
        files = model(str(number))
        start.wait()
        try:
            reservation = reserve(world.store, files)
        except NoRoom:
            outcomes.append("refused")
            return
        stage(world.store, files)
        outcomes.append("staged")
        held.append(reservation)

    held: list[object] = []
    threads = [threading.Thread(target=run, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 13 + ["staged"] * 3
    assert world.disk.lowest >= FLOOR


def test_an_event_loop_waits_for_no_eviction(world: World) -> None:
    """What it says of versions that stay is said at once, whoever has the store; and it counts."""
    bring(world.store, model("kept", 5), name="kept")
    digest = manifest_of(model("kept", 5)).digest

    def speak() -> None:
        world.store.keep_warm({digest})
        world.store.hold_promised({digest})

    with world.store._state.lock:
        speaker = threading.Thread(target=speak)
        speaker.start()
        speaker.join(30)
        assert not speaker.is_alive()
    with pytest.raises(ModelInUse, match="about to be mounted"):
        world.store.evict(digest)
    world.store.hold_promised(())
    with pytest.raises(NoRoom):
        reserve(world.store, model("new", 14), priority=0)
    world.store.keep_warm(())
    bring(world.store, model("new", 14), name="new")
    assert world.names() == {"new"}
