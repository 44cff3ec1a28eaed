"""This node's disk: full although room was reserved, read-only, failing writes, reads, fsyncs; models too large."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cacheagent.errors import DiskFault, NoRoom
from cacheagent.model import MIB, PIECE_SIZE_BYTES
from cacheagent.progress import JobStatus, Phase
from cacheagent.store import StorePolicy
from tests.fakes.fusefs import DiskFaults, FaultyDisk
from tests.fakes.origin import Origin
from tests.faults.scene import (
    SHARD,
    SMALL,
    Cache,
    OnDisk,
    SentSince,
    assert_claims_are_true,
    assert_published,
    ensure,
    ensure_fails,
    look,
    put_model,
    small_tree,
    web_spec,
)

FILES = small_tree(1)
SIZE = len(FILES[SHARD])
SMALL_SIZES = tuple(sorted(map(len, SMALL.values())))
LOOK_AT_THE_DISK = "look at the disk: dmesg"

pytestmark = pytest.mark.asyncio


@pytest.fixture
def faulty_cache(faulty_disk: FaultyDisk) -> Cache:
    """On a FUSE disk; `faulty_disk.backing / "cache"` is what is really there."""
    return Cache(faulty_disk.mountpoint / "cache")


class Hog:
    """Somebody else's file: it takes what is left of a disk when a job enters a phase."""

    def __init__(self, directory: Path, phase: Phase) -> None:
        self._path = directory / "somebody-elses-file"
        self._phase = phase

    def hear(self, status: JobStatus) -> None:
        if status.phase == self._phase and not self._path.exists():
            disk = os.statvfs(self._path.parent)
            with self._path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize)

    def remove(self) -> None:
        self._path.unlink()


def on_small_disk(mountpoint: Path, *, floor_bytes: int = 4 * MIB) -> Cache:
    return Cache(mountpoint / "cache", policy=StorePolicy(floor_bytes=floor_bytes, boot_grace_s=0))


async def test_full_although_room_was_reserved(small_disk: Path, origin: Origin) -> None:
    """Somebody else takes the room between the promise and the first byte: said so, and nothing was asked for."""
    put_model(origin, "m", FILES)
    cache, hog = on_small_disk(small_disk), Hog(small_disk, "fetching")
    cache.on_event = hog.hear
    says = "room for a file can't be allocated: No space left on device"
    await cache.fail(web_spec(origin, "m"), DiskFault, says, LOOK_AT_THE_DISK)
    found = look(cache.root)
    assert replace(found, small=(), staged={}) == OnDisk()
    assert origin.requests_for(f"m/{SHARD}") == []
    cache.on_event = lambda _: None
    hog.remove()
    got = await cache.recover(web_spec(origin, "m"), FILES)
    assert_published(cache.root, {got.digest: FILES})


async def test_full_when_it_is_published(small_disk: Path, origin: Origin) -> None:
    """All bytes are here and the record has no room: nothing is visible, and not one byte travels again."""
    put_model(origin, "m", FILES)
    cache, hog = on_small_disk(small_disk, floor_bytes=0), Hog(small_disk, "publishing")
    cache.on_event = hog.hear
    says = "the model can't be published: No space left on device"
    await cache.fail(web_spec(origin, "m"), DiskFault, says, LOOK_AT_THE_DISK)
    assert look(cache.root) == OnDisk(staged={SIZE: frozenset({0, 1, 2})}, small=SMALL_SIZES)
    assert_claims_are_true(cache.root, FILES[SHARD])
    cache.on_event = lambda _: None
    hog.remove()
    again = SentSince(origin)
    got = await cache.recover(web_spec(origin, "m"), FILES)
    assert again.bytes_of(f"m/{SHARD}") == 0
    assert_published(cache.root, {got.digest: FILES})


async def test_a_model_that_does_not_fit(small_disk: Path, origin: Origin) -> None:
    """The sentence has the numbers, nothing was asked for or removed, and what can be evicted is, when it is enough."""
    put_model(origin, "first", FILES)
    cache = on_small_disk(small_disk)
    first = await cache.pull(web_spec(origin, "first", pin=True))
    before = look(cache.root)
    two = {"a.bin": FILES[SHARD], "b.bin": small_tree(2)[SHARD]}
    put_model(origin, "two", two)
    says = r"needs 74\.\d MB: \d\d\.\d MB free above the floor, 0 B can be freed, 1 pinned model holds 36\.7 MB"
    error = await cache.fail(web_spec(origin, "two"), NoRoom, says, "unpin or evict models, lower the floor")
    assert error.exit_code == 1
    assert look(cache.root) == before
    assert origin.requests_for("two/a.bin") == origin.requests_for("two/b.bin") == []
    async with cache.node() as node:
        node.store.unpin(first.digest)
    got = await cache.recover(web_spec(origin, "two"), two)
    assert_published(cache.root, {got.digest: two})


async def test_a_floor_that_leaves_nothing(tmp_path: Path, origin: Origin) -> None:
    """The control without a mount: the floor is above what is free."""
    put_model(origin, "m", FILES)
    cache = Cache(tmp_path / "cache", policy=StorePolicy(floor_bytes=10**15, boot_grace_s=0))
    await cache.fail(web_spec(origin, "m"), NoRoom, r"needs 3\d(\.\d+)? MB", "lower the floor")
    assert look(cache.root) == OnDisk()
    assert origin.requests_for(f"m/{SHARD}") == origin.requests_for("m/config.json") == []
    cache.policy = StorePolicy(floor_bytes=MIB, boot_grace_s=0)
    got = await cache.recover(web_spec(origin, "m"), FILES)
    assert_published(cache.root, {got.digest: FILES})


@pytest.mark.fuse
@pytest.mark.parametrize("listing", ["sums", "index"])
@pytest.mark.parametrize(
    ("faults", "says", "next_step"),
    [
        (
            DiskFaults(paths="cache/staging/*/data", write_errno=errno.EIO, past_byte=PIECE_SIZE_BYTES),
            r"staging/[0-9a-f]{64}/data: Input/output error \(errno 5\)",
            "look at the disk: dmesg, smartctl, mount options",
        ),
        (
            DiskFaults(paths="cache/staging/*/data", write_errno=errno.ENOSPC, past_byte=PIECE_SIZE_BYTES),
            r"staging/[0-9a-f]{64}/data: No space left on device \(errno 28\)",
            "something else took the room that was reserved; free some and try again",
        ),
    ],
    ids=["EIO", "ENOSPC"],
)
async def test_a_write_that_fails(
    faulty_cache: Cache,
    faulty_disk: FaultyDisk,
    origin: Origin,
    listing: str,
    faults: DiskFaults,
    says: str,
    next_step: str,
) -> None:
    """Never retried on a failing disk; pieces that were written before are kept and proved when it is whole again."""
    put_model(origin, "m", FILES, listing)  # type: ignore[arg-type]
    faulty_disk.inject(faults)
    await faulty_cache.fail(web_spec(origin, "m"), DiskFault, says, next_step, connections=1)
    real = faulty_disk.backing / "cache"
    found = look(real)
    assert replace(found, small=()) == OnDisk(staged={SIZE: frozenset({0})})
    assert_claims_are_true(real, FILES[SHARD])
    faulty_disk.heal()
    got = await faulty_cache.recover(web_spec(origin, "m"), FILES)
    assert got.bytes_kept >= PIECE_SIZE_BYTES
    assert_published(real, {got.digest: FILES})


@pytest.mark.fuse
async def test_a_small_file_that_cannot_be_written(
    faulty_cache: Cache, faulty_disk: FaultyDisk, origin: Origin
) -> None:
    """As for a large one; the file is told by its place."""
    put_model(origin, "m", SMALL)
    faulty_disk.inject(DiskFaults(paths="cache/staging/small/*", write_errno=errno.EIO))
    says = r"staging/small/.*Input/output error"
    await faulty_cache.fail(web_spec(origin, "m"), DiskFault, says, "look at the disk")
    real = faulty_disk.backing / "cache"
    assert replace(look(real), small=()) == OnDisk()
    faulty_disk.heal()
    got = await faulty_cache.recover(web_spec(origin, "m"), SMALL)
    assert_published(real, {got.digest: SMALL})


@pytest.mark.fuse
@pytest.mark.parametrize("phase", ["reserving", "fetching", "publishing"])
async def test_the_disk_becomes_read_only(
    faulty_cache: Cache, faulty_disk: FaultyDisk, origin: Origin, phase: Phase
) -> None:
    """As ext4 becomes after an error: the pull ends with a sentence at whatever step; after a remount all is well."""
    put_model(origin, "m", FILES)

    def remount(status: JobStatus) -> None:
        if status.phase == phase:
            faulty_disk.inject(DiskFaults(read_only=True))

    faulty_cache.on_event = remount
    await faulty_cache.fail(web_spec(origin, "m"), DiskFault, "Read-only file system", LOOK_AT_THE_DISK)
    faulty_cache.on_event = lambda _: None
    real = faulty_disk.backing / "cache"
    assert replace(look(real), small=(), staged={}) == OnDisk()
    assert_claims_are_true(real, FILES[SHARD])
    assert list(look(real).staged.values()) == ([frozenset({0, 1, 2})] if phase == "publishing" else [])
    faulty_disk.heal()
    got = await faulty_cache.recover(web_spec(origin, "m"), FILES)
    assert_published(real, {got.digest: FILES})


@pytest.mark.fuse
async def test_the_disk_is_read_only_at_the_start(faulty_cache: Cache, faulty_disk: FaultyDisk, origin: Origin) -> None:
    """A cache in order is adopted as it is, and what must be written is refused; one that needs a hand is not."""
    put_model(origin, "m", FILES)
    digest = (await faulty_cache.pull(web_spec(origin, "m"))).digest
    real = faulty_disk.backing / "cache"
    before = look(real)
    faulty_disk.inject(DiskFaults(read_only=True))
    async with faulty_cache.node() as node:
        assert node.flights.find(web_spec(origin, "m")) is not None
        await node.flights.verify(digest)
        with pytest.raises(DiskFault, match="a lease can't be written: Read-only file system") as caught:
            node.store.lease("volume", digest)
    assert LOOK_AT_THE_DISK in caught.value.hint
    (real / "records/.left-by-a-crash.tmp").touch()
    with pytest.raises(DiskFault, match=r"the cache directory .* can't be opened: Read-only file system") as caught:
        async with faulty_cache.node():
            pass
    assert LOOK_AT_THE_DISK in caught.value.hint
    faulty_disk.heal()
    async with faulty_cache.node() as node:
        node.store.lease("volume", digest)
        node.store.release("volume")
    assert look(real) == before
    await faulty_cache.recover(web_spec(origin, "m"), FILES)
    assert_published(real, {digest: FILES})


@pytest.mark.fuse
@pytest.mark.parametrize("paths", ["cache/records/*", "cache/blobs*", "cache/models*"])
async def test_fsync_of_a_name_fails_at_the_publish(
    faulty_cache: Cache, faulty_disk: FaultyDisk, origin: Origin, paths: str
) -> None:
    """It is no success; the next try, in the same process too, is one, and not one byte travels again."""
    put_model(origin, "m", FILES)
    async with faulty_cache.node() as node:
        faulty_disk.inject(DiskFaults(paths=paths, fsync_errno=errno.EIO))
        says = "the model can't be published: Input/output error"
        await ensure_fails(node, web_spec(origin, "m"), DiskFault, says, LOOK_AT_THE_DISK)
        assert node.store.records() == []
        faulty_disk.heal()
        record = await ensure(node, web_spec(origin, "m"))
        node.store.sweep_trash()
    origin.wait_until_idle()
    assert origin.body_bytes_sent(f"m/{SHARD}") == SIZE
    assert_published(faulty_disk.backing / "cache", {record.digest: FILES})


@pytest.mark.fuse
@pytest.mark.parametrize("paths", ["cache/staging/*/data", "cache/staging/small/*"])
async def test_fsync_of_bytes_fails_at_the_publish(
    faulty_cache: Cache, faulty_disk: FaultyDisk, origin: Origin, paths: str
) -> None:
    """A kernel that could not write a page takes it for clean: the bytes are thrown away and fetched again."""
    put_model(origin, "m", FILES)
    real = faulty_disk.backing / "cache"
    async with faulty_cache.node() as node:
        faulty_disk.inject(DiskFaults(paths=paths, fsync_errno=errno.EIO))
        says = "the model can't be published: Input/output error"
        await ensure_fails(node, web_spec(origin, "m"), DiskFault, says, LOOK_AT_THE_DISK)
        node.store.sweep_trash()
        assert look(real) == OnDisk()
        faulty_disk.heal()
        record = await ensure(node, web_spec(origin, "m"))
    origin.wait_until_idle()
    assert origin.body_bytes_sent(f"m/{SHARD}") == 2 * SIZE
    assert_published(real, {record.digest: FILES})


@pytest.mark.fuse
async def test_what_was_kept_cannot_be_read_back(faulty_cache: Cache, faulty_disk: FaultyDisk, origin: Origin) -> None:
    """A bad sector under a piece that an earlier try left: said so; when it can be read again the piece is kept."""
    put_model(origin, "m", FILES, "index")
    faulty_disk.inject(DiskFaults(paths="cache/staging/*/data", write_errno=errno.EIO, past_byte=PIECE_SIZE_BYTES))
    await faulty_cache.fail(web_spec(origin, "m"), DiskFault, "Input/output error", "", connections=1)
    faulty_disk.inject(DiskFaults(paths="cache/staging/*/data", read_errno=errno.EIO))
    await faulty_cache.fail(
        web_spec(origin, "m"), DiskFault, r"data: Input/output error \(errno 5\)", "look at the disk"
    )
    real = faulty_disk.backing / "cache"
    assert_claims_are_true(real, FILES[SHARD])
    assert replace(look(real), small=(), staged={}) == OnDisk()
    faulty_disk.heal()
    got = await faulty_cache.recover(web_spec(origin, "m"), FILES)
    assert got.bytes_kept >= PIECE_SIZE_BYTES
    assert_published(real, {got.digest: FILES})
