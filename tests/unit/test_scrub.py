"""Bytes that went bad at rest are found, fetched again and restored under running readers, or their versions go."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cacheagent.errors import ChecksumMismatch, CorruptModel, DiskFault, OriginUnavailable, SourceChanged
from cacheagent.model import PIECE_SIZE_BYTES, piece_range
from cacheagent.scrub import Scrub, ScrubPolicy
from cacheagent.store import Store
from tests.fakes.cache import NO_FLOOR, blobs_of, bring, content_of, files_under, immortal, names_in
from tests.fakes.memory import MemoryTransport

pytestmark = pytest.mark.asyncio

BIG = content_of("big", PIECE_SIZE_BYTES + 5000)
FILES = {"big.bin": BIG, "small.json": b"{}", "empty": b""}
(BIG_BLOB,) = blobs_of({"big.bin": BIG})
DAY = 86400.0


class World:
    """A store with one model, an origin that has its bytes, and a clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.time = 1_000_000.0
        self.store = Store.open(root, NO_FLOOR, now=lambda: self.time)
        self.record = bring(self.store, FILES, name="llama")
        self.digest = self.record.digest
        self.origin = dict(blobs_of(FILES))
        self.fails: Exception | None = None
        self.refetched: list[tuple[str, int]] = []
        self.pauses: list[float] = []
        self.transport = UnreadableTransport()

    def scrub(self, policy: ScrubPolicy | None = None) -> Scrub:
        policy = policy or ScrubPolicy()
        return Scrub(self.store, self.transport, self.refetch, policy, now=lambda: self.time, sleep=self.sleep)

    async def refetch(self, blob: str, index: int) -> bytes:
        self.refetched.append((blob, index))
        if self.fails is not None:
            raise self.fails
        offset, length = piece_range(len(self.origin[blob]), index)
        return self.origin[blob][offset : offset + length]

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def spoil(self, blob: str, offset: int, bad: bytes = b"rotten") -> None:
        path = self.store.blob_path(blob)
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(bad)
        path.chmod(0o444)

    def published(self) -> dict[str, bytes]:
        return files_under(self.store.path(self.digest) / "files")


class UnreadableTransport(MemoryTransport):
    """Can be told which pieces the disk refuses to read, once."""

    def __init__(self) -> None:
        super().__init__()
        self.unreadable: set[int] = set()

    async def rehash(self, target: str, size_bytes: int, indexes: Sequence[int]) -> dict[int, str]:
        if refused := self.unreadable.intersection(indexes):
            if len(indexes) == 1:
                self.unreadable -= refused
            raise DiskFault("EIO")
        return await super().rehash(target, size_bytes, indexes)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with immortal():
        made = World(tmp_path / "cache")
        yield made
        made.store.close()


async def test_what_is_right_is_read_once_a_period(world: World) -> None:
    """Nothing is due before its time, everything after it, oldest first; a new process knows what the last one read."""
    scrub = world.scrub()
    await scrub.scrub_due()
    assert scrub.counts.bytes_read == 0
    assert scrub.progress() == 1
    world.time += 8 * DAY
    assert scrub.progress() == 0
    await scrub.scrub_due()
    assert scrub.counts.bytes_read == sum(map(len, FILES.values()))
    assert scrub.counts.pieces_wrong == 0
    assert not world.refetched
    again = world.scrub()
    await again.scrub_due()
    assert again.counts.bytes_read == 0
    world.time -= 30 * DAY  # a clock that is set back puts nothing off
    await again.scrub_due()
    assert again.counts.bytes_read == sum(map(len, FILES.values()))


async def test_a_bad_piece_is_restored_under_an_open_mapping(world: World) -> None:
    """Only the bad piece travels; whoever has the file mapped sees the recorded bytes; the version is whole again."""
    with (world.store.path(world.digest) / "files" / "big.bin").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    world.spoil(BIG_BLOB, PIECE_SIZE_BYTES + 10)
    assert mapped[PIECE_SIZE_BYTES + 10 :].startswith(b"rotten")
    withdrawn_meanwhile = []
    refetch = world.refetch

    async def look(blob: str, index: int) -> bytes:
        with pytest.raises(CorruptModel, match="llama takes no new volumes: 1 of its pieces on this disk went bad"):
            world.store.lease("volume", world.digest)
        withdrawn_meanwhile.append(world.store.record(world.digest))
        return await refetch(blob, index)

    world.refetch = look  # type: ignore[method-assign]
    world.time += 8 * DAY
    scrub = world.scrub()
    await scrub.scrub_due()
    assert world.refetched == [(BIG_BLOB, 1)]
    assert mapped[:] == BIG
    assert world.published() == FILES
    record = world.store.record(world.digest)
    assert record is not None
    assert not record.suspect
    assert withdrawn_meanwhile[0] is not None
    assert withdrawn_meanwhile[0].suspect
    assert world.store.lease("volume", world.digest) == world.store.path(world.digest)
    assert (scrub.counts.pieces_wrong, scrub.counts.pieces_repaired, scrub.counts.blobs_lost) == (1, 1, 0)
    assert os.stat(world.store.blob_path(BIG_BLOB)).st_mode & 0o777 == 0o444
    mapped.close()


async def test_a_piece_that_the_disk_refuses_to_read_is_written_anew(world: World) -> None:
    """Its neighbours are read one by one and stay as they are."""
    world.transport.unreadable = {1}
    await world.scrub().scrub_blob(BIG_BLOB)
    assert world.refetched == [(BIG_BLOB, 1)]
    assert world.published() == FILES


async def test_while_the_origin_is_away_the_version_stays_withdrawn_and_is_repaired_later(world: World) -> None:
    """Also by another process."""
    world.spoil(BIG_BLOB, 0)
    world.fails = OriginUnavailable("the origin is away")
    assert not await world.scrub().scrub_blob(BIG_BLOB)
    record = world.store.record(world.digest)
    assert record is not None
    assert record.suspect
    assert names_in(world.root, "quarantine") == set()
    world.store.close()
    world.store = Store.open(world.root, NO_FLOOR, now=lambda: world.time)
    world.fails = None
    await world.scrub().scrub_due()
    assert world.published() == FILES
    record = world.store.record(world.digest)
    assert record is not None
    assert not record.suspect


async def test_a_version_with_two_bad_blobs_is_reinstated_after_the_second(world: World) -> None:
    """One repair is not enough."""
    (small,) = blobs_of({"small.json": b"{}"})
    world.spoil(BIG_BLOB, 0)
    world.spoil(small, 0, b"!")
    world.time += 8 * DAY
    scrub = world.scrub()
    world.fails = OriginUnavailable("away")
    await scrub.scrub_due()
    world.fails = None
    assert await scrub.scrub_blob(small)
    record = world.store.record(world.digest)
    assert record is not None
    assert record.suspect
    assert await scrub.scrub_blob(BIG_BLOB)
    record = world.store.record(world.digest)
    assert record is not None
    assert not record.suspect
    assert world.published() == FILES


async def test_what_cannot_be_repaired_goes_with_a_copy_for_the_operator(world: World) -> None:
    """The version is gone, so that the next asking fetches it whole; the bad blob is kept."""
    world.spoil(BIG_BLOB, 0)
    world.fails = SourceChanged("another object now")
    scrub = world.scrub()
    assert not await scrub.scrub_blob(BIG_BLOB)
    assert world.store.record(world.digest) is None
    assert names_in(world.root, "models", "records", "blobs") == set()
    (kept,) = names_in(world.root, "quarantine")
    assert BIG_BLOB in kept
    assert (world.root / kept).read_bytes() == b"rotten" + BIG[6:]
    assert world.store.usage().quarantined == 1
    assert scrub.counts.blobs_lost == 1
    assert bring(world.store, FILES).digest == world.digest


async def test_a_mounted_version_that_cannot_be_repaired_stays_until_it_is_released(world: World) -> None:
    """I3 before everything: no new leases, but the tree remains; after the release it goes."""
    world.store.lease("volume", world.digest)
    world.spoil(BIG_BLOB, 0)
    world.origin[BIG_BLOB] = b"x" * len(BIG)
    scrub = world.scrub()
    assert not await scrub.scrub_blob(BIG_BLOB)
    assert world.store.path(world.digest).exists()
    with pytest.raises(CorruptModel):
        world.store.lease("another volume"[:7], world.digest)
    world.store.lease("volume", world.digest)  # one that is mounted already may ask again
    world.store.release("volume")
    await scrub.scrub_due()
    assert world.store.record(world.digest) is None
    assert not world.store.path(world.digest).exists()


async def test_only_recorded_bytes_are_restored(world: World) -> None:
    """I2: other bytes of the right length are refused and nothing is written; the recorded ones are taken."""
    before = world.published()
    with pytest.raises(ChecksumMismatch, match=r"piece 0 of blob .* nothing was written"):
        world.store.repair_piece(BIG_BLOB, 0, b"x" * PIECE_SIZE_BYTES)
    with pytest.raises(ChecksumMismatch, match="5 bytes with BLAKE3"):
        world.store.repair_piece(BIG_BLOB, 0, b"short")
    assert world.published() == before
    world.spoil(BIG_BLOB, 0)
    world.store.repair_piece(BIG_BLOB, 0, BIG[:PIECE_SIZE_BYTES])
    assert world.published() == before


async def test_reading_is_paced(world: World) -> None:
    """It rests nineteen times as long as it reads, and longer where a rate is set."""
    await world.scrub(ScrubPolicy(bytes_per_s=1_000_000)).scrub_blob(BIG_BLOB)
    assert sum(world.pauses) >= len(BIG) / 1_000_000 - 10
    world.pauses.clear()
    await world.scrub(ScrubPolicy(busy_fraction=1e-6)).scrub_blob(BIG_BLOB)
    assert sum(world.pauses) > 100


async def test_a_blob_that_is_evicted_meanwhile_is_fine(world: World) -> None:
    """The scrub goes on with the others."""
    world.transport.unreadable = {0}
    rehash = world.transport.rehash

    async def evict_and_read(target: str, size_bytes: int, indexes: Sequence[int]) -> dict[int, str]:
        if world.store.record(world.digest) is not None:
            world.store.evict(world.digest)
        try:
            return await rehash(target, size_bytes, indexes)
        except FileNotFoundError:
            raise DiskFault("gone") from None

    world.transport.rehash = evict_and_read  # type: ignore[method-assign]
    assert await world.scrub().scrub_blob(BIG_BLOB)
    assert not world.refetched
    assert await world.scrub().scrub_blob("0" * 64)


async def test_it_runs_until_it_is_cancelled(world: World) -> None:
    """A root task of the agent; with a period of 0 it reads nothing."""
    for policy, reads in ((ScrubPolicy(), True), (ScrubPolicy(period_s=0), False)):
        slept_often = asyncio.Event()

        async def sleep(seconds: float, slept_often: asyncio.Event = slept_often) -> None:
            world.pauses.append(seconds)
            world.time += 8 * DAY
            if len(world.pauses) >= 10:
                slept_often.set()
            await asyncio.sleep(0)

        world.sleep = sleep  # type: ignore[method-assign]
        world.pauses.clear()
        scrub = world.scrub(policy)
        task = asyncio.create_task(scrub.run())
        await slept_often.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (scrub.counts.bytes_read > 0) == reads


async def test_the_quarantine_is_capped(tmp_path: Path) -> None:
    """The oldest copy goes for the next one; what is larger than all of it is not kept."""
    with immortal():
        policy = type(NO_FLOOR)(floor_bytes=0, quarantine_bytes=6000)
        times = iter(range(1, 1000))
        store = Store.open(tmp_path / "cache", policy, now=lambda: float(next(times)))
        blobs: list[str] = []
        for seed, size in (("a", 1000), ("b", 1000), ("c", 9000)):
            bring(store, {"f": content_of(seed, size)}, name=seed)
            blobs += blobs_of({"f": content_of(seed, size)})
        first, second = store.quarantine(blobs[0]), store.quarantine(blobs[1])
        assert first is not None
        assert not first.exists()
        assert second is not None
        assert second.read_bytes() == content_of("b", 1000)
        assert store.quarantine(blobs[2]) is None
        assert names_in(tmp_path / "cache", "quarantine") == {f"quarantine/{second.name}"}
        store.close()
