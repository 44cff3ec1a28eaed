"""Sources on a mounted file system that hangs, fails, or changes its files while they are read."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cacheagent.errors import OriginUnavailable, SourceChanged, TargetAbandoned
from cacheagent.model import MIB, PIECE_SIZE_BYTES
from tests.fakes.fusefs import DiskFaults, FaultyDisk
from tests.fakes.models import write_files
from tests.fakes.origin import Origin
from tests.fakes.transfer import until
from tests.faults.scene import (
    SHARD,
    Cache,
    OnDisk,
    assert_claims_are_true,
    assert_published,
    directory_spec,
    ensure,
    ensure_fails,
    look,
    put_model,
    small_tree,
    web_spec,
)

FILES, NEW = small_tree(1), small_tree(2)
SIZE = len(FILES[SHARD])
RESOLVE = "resolve again to get the new version"

pytestmark = [pytest.mark.asyncio, pytest.mark.fuse]


@pytest.fixture
def mounted(faulty_disk: FaultyDisk) -> Path:
    """The model's directory as it is seen through the mount."""
    write_files(faulty_disk.backing / "m", FILES)
    return faulty_disk.mountpoint / "m"


async def test_a_source_whose_reads_hang(cache: Cache, faulty_disk: FaultyDisk, mounted: Path, origin: Origin) -> None:
    """Its workers are given up and replaced, others go on, and it comes when the file server is back."""
    put_model(origin, "web", NEW)
    async with cache.node() as node:
        before = {child.pid for child in psutil.Process().children()}
        faulty_disk.inject(DiskFaults(paths="m/*", hang_reads=True))
        hanging = asyncio.create_task(
            ensure_fails(
                node,
                directory_spec(mounted),
                TargetAbandoned,
                "hangs in the kernel and may still write",
                "look for a file server or disk that stopped answering: dmesg, ps state D",
            )
        )
        await until(lambda: faulty_disk.state().hanging > 0, "a read that hangs")
        stuck = [child for child in psutil.Process().children() if child.pid not in before and _is_worker(child)]
        web = await ensure(node, web_spec(origin, "web"))
        assert not hanging.done()
        await hanging
        assert cache.observer.counts["worker_abandoned"] >= 1
        found = look(cache.root)
        assert replace(found, models=frozenset(), records=frozenset(), resolved=0, blobs=()) == OnDisk()
        assert_published(cache.root, {web.digest: NEW})
        assert any(map(_is_there, stuck)), "a direct read that hangs can't be killed"

        faulty_disk.heal()
        await until(lambda: not any(map(_is_there, stuck)), "the end of the workers that hung")
        record = await ensure(node, directory_spec(mounted))
    assert_published(cache.root, {web.digest: NEW, record.digest: FILES})


async def test_a_node_closes_although_a_source_hangs(
    cache: Cache, faulty_disk: FaultyDisk, mounted: Path, origin: Origin
) -> None:
    """Nothing waits for a file server that is gone; the next node takes the directory over, and the model comes."""
    put_model(origin, "web", NEW)
    async with cache.node() as node:
        faulty_disk.inject(DiskFaults(paths="m/*", hang_reads=True))
        node.flights.start(directory_spec(mounted))
        await until(lambda: faulty_disk.state().hanging > 0, "a read that hangs")
    web = await cache.recover(web_spec(origin, "web"), NEW)
    faulty_disk.heal()
    got = await cache.recover(directory_spec(mounted), FILES)
    assert_published(cache.root, {web.digest: NEW, got.digest: FILES})


async def test_many_reads_are_in_flight(cache: Cache, faulty_disk: FaultyDisk, mounted: Path) -> None:
    """Of one file and of several files: as many as there are connections wait for the server at a time."""
    two = {**FILES, "weights/other.bin": NEW[SHARD]}
    write_files(faulty_disk.backing / "m", {"weights/other.bin": NEW[SHARD]})
    faulty_disk.inject(DiskFaults(paths="m/weights/*", hang_reads=True))
    pull = asyncio.create_task(cache.recover(directory_spec(mounted), two, workers=2, connections=5, idle_timeout_s=60))
    await until(lambda: _threads_in_the_kernel() == 5, "five reads at a time")
    faulty_disk.heal()
    got = await pull
    assert_published(cache.root, {got.digest: two})


async def test_a_slow_source_is_not_a_hung_one(cache: Cache, faulty_disk: FaultyDisk, mounted: Path) -> None:
    """The control: reads that take their time are waited for, and no worker is lost."""
    faulty_disk.inject(DiskFaults(paths="m/*", read_delay_s=0.1))
    got = await cache.recover(directory_spec(mounted), FILES)
    assert cache.observer.counts["worker_abandoned"] == cache.observer.counts["worker_lost"] == 0
    assert_published(cache.root, {got.digest: FILES})


async def test_a_read_error_that_passes(cache: Cache, faulty_disk: FaultyDisk, mounted: Path) -> None:
    """EIO of a network mount is trouble that may pass: tried again."""
    faulty_disk.inject(DiskFaults(paths="m/weights/*", read_errno=errno.EIO))
    pull = asyncio.create_task(cache.recover(directory_spec(mounted), FILES, give_up_after_s=60.0))
    await until(lambda: cache.observer.counts["retry source-io"] >= 2, "two tries")
    faulty_disk.heal()
    got = await pull
    assert_published(cache.root, {got.digest: FILES})


async def test_a_read_error_that_stays(cache: Cache, faulty_disk: FaultyDisk, mounted: Path) -> None:
    """Given up with the cause; what came before is kept."""
    faulty_disk.inject(DiskFaults(paths="m/weights/*", read_errno=errno.EIO))
    says = rf"m/{SHARD}.*reading: Input/output error \(errno 5\); gave up after"
    await cache.fail(
        directory_spec(mounted), OriginUnavailable, says, "check that the origin is up", give_up_after_s=2.0
    )
    assert replace(look(cache.root), small=()) == OnDisk(staged={SIZE: frozenset()})
    faulty_disk.heal()
    got = await cache.recover(directory_spec(mounted), FILES)
    assert_published(cache.root, {got.digest: FILES})


@pytest.mark.parametrize("read", [1, 8, 20])
async def test_touched_while_it_is_read(cache: Cache, faulty_disk: FaultyDisk, mounted: Path, read: int) -> None:
    """A new mtime under the read, in whichever piece: nothing that was read is believed, in none of them."""
    faulty_disk.inject(DiskFaults(paths="m/weights/*", touch_at_read=read))
    says = rf"m/{SHARD}: size {SIZE}, mtime \d+ ns; was listed with size {SIZE}, mtime \d+ ns"
    await cache.fail(directory_spec(mounted), SourceChanged, says, RESOLVE)
    assert replace(look(cache.root), small=()) == OnDisk()
    faulty_disk.heal()
    got = await cache.recover(directory_spec(mounted), FILES)
    assert_published(cache.root, {got.digest: FILES})


@pytest.mark.parametrize("how", ["in place", "renamed over", "shorter", "deleted"])
async def test_replaced_while_it_is_read(cache: Cache, faulty_disk: FaultyDisk, mounted: Path, how: str) -> None:
    """What a training job does to its checkpoint while it is being fetched; the next try gets what is there then."""
    real = faulty_disk.backing / "m" / SHARD
    faulty_disk.inject(DiskFaults(paths="m/weights/*", read_delay_s=0.05))
    failing = asyncio.create_task(
        cache.fail(directory_spec(mounted), SourceChanged, rf"m/{SHARD}", "resolve again", connections=1)
    )
    await until(lambda: cache.observer.bytes_done >= PIECE_SIZE_BYTES, "the first piece")
    match how:
        case "in place":
            with real.open("r+b") as file:
                file.write(NEW[SHARD])
        case "renamed over":
            (real.parent / "new").write_bytes(NEW[SHARD])
            os.rename(real.parent / "new", real)
        case "shorter":
            os.truncate(real, MIB)
        case _:
            real.unlink()
    await failing
    assert replace(look(cache.root), small=()) == OnDisk()
    faulty_disk.heal()
    real.write_bytes(NEW[SHARD])
    now = {**FILES, SHARD: NEW[SHARD]}
    got = await cache.recover(directory_spec(mounted), now)
    assert_claims_are_true(cache.root)
    assert_published(cache.root, {got.digest: now})


def _is_worker(process: psutil.Process) -> bool:
    return process.status() != psutil.STATUS_ZOMBIE and "cacheagent.transfer.worker" in process.cmdline()


def _threads_in_the_kernel() -> int:
    """Of all workers: uninterruptible, as who waits for a file server is."""
    states = []
    for worker in filter(_is_worker, psutil.Process().children()):
        for stat in Path(f"/proc/{worker.pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                states.append(stat.read_text().rpartition(")")[2].split()[0])
    return states.count("D")


def _is_there(process: psutil.Process) -> bool:
    """Its first thread may be gone: it counts for as long as it has not been reaped."""
    return bool(process.is_running())
