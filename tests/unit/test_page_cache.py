"""Reading ahead: what is read is resident, proved by the kernel; where memory is short nothing is read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheagent import memory
from cacheagent.memory import Memory, read_memory, resident_bytes
from cacheagent.page_cache import CHUNK_BYTES, PageCache
from cacheagent.store import Record, Store
from tests.conftest import missing
from tests.fakes.cache import NO_FLOOR, bring, content_of

MIB = 2**20
PLENTY = Memory(64 * 2**30, 32 * 2**30)
FILES = {"a.bin": content_of("a", 3 * MIB + 5), "sub/b.bin": content_of("b", CHUNK_BYTES + 4097), "empty": b""}


def forget(path: Path) -> None:
    """Drop a file's pages."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def can_tell(directory: Path) -> bool:
    """Whether this kernel has cachestat(2), and this filesystem lets its pages go."""
    probe = directory / "probe"
    probe.write_bytes(b"x" * 100_000)
    forget(probe)
    with probe.open("rb") as file:
        return resident_bytes(file.fileno()) == 0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty one."""
    made = Store.open(tmp_path / "cache", NO_FLOOR)
    yield made
    made.close()


@pytest.fixture
def cold(store: Store, tmp_path: Path) -> Record:
    """A published model of which nothing is in memory."""
    if not can_tell(tmp_path):
        missing("cachestat(2)", "this kernel lacks it, or the filesystem keeps its pages")
    record = bring(store, FILES)
    for path in FILES:
        forget(store.path(record.digest) / "files" / path)
    return record


def reader(store: Store, now: Memory = PLENTY, *, min_memory_bytes: int = 0) -> PageCache:
    """One that believes in this much memory."""
    return PageCache(store, min_memory_bytes=min_memory_bytes, keep_available=0.1, memory=lambda: now)


async def until_done(under_test: PageCache, count: int = 1) -> None:
    """Run it until so many reads have ended."""
    running = asyncio.create_task(under_test.run())
    async with asyncio.timeout(60):
        while under_test.results.total() < count:  # noqa: ASYNC110 - there is nothing to wait on
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.asyncio
async def test_what_is_read_is_resident(store: Store, cold: Record) -> None:
    """The kernel says so before and after; what is resident is not read a second time."""
    under_test = reader(store)
    under_test.ask(cold)
    await until_done(under_test)
    assert under_test.results == {"read": 1}
    assert under_test.bytes_read == cold.size_bytes
    assert await under_test.residency() == {"m": 1.0}
    under_test.ask(cold)
    await until_done(under_test, 2)
    assert under_test.results == {"read": 1, "resident": 1}
    assert under_test.bytes_read == cold.size_bytes


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("now", "least", "why"),
    [
        (Memory(1000 * MIB, 130 * MIB), 0, "of memory may be used"),
        (Memory(16 * 2**30, 15 * 2**30), 32 * 2**30, "less than"),
    ],
)
async def test_nothing_is_read_where_memory_is_short(
    store: Store, cold: Record, caplog: pytest.LogCaptureFixture, now: Memory, least: int, why: str
) -> None:
    """Quietly, with a line in the log; the same model is read where there is plenty (the test above)."""
    caplog.set_level("INFO")
    under_test = reader(store, now, min_memory_bytes=least)
    under_test.ask(cold)
    await until_done(under_test)
    assert under_test.results == {"no-memory": 1}
    assert under_test.bytes_read == 0
    assert why in caplog.text


@pytest.mark.asyncio
async def test_an_order_to_stop_ends_a_read(store: Store, cold: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the chunk that is being read, not after the model."""
    reads = 0

    def preadv(fd: int, buffers: list[memoryview], offset: int, *, _real: object = os.preadv) -> int:
        nonlocal reads
        reads += 1
        running.get_loop().call_soon_threadsafe(running.cancel)
        return _real(fd, buffers, offset)  # type: ignore[operator, no-any-return]

    under_test = reader(store)
    under_test.ask(cold)
    running = asyncio.create_task(under_test.run())
    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert 0 < reads <= 2
    assert under_test.results == {}


@pytest.mark.asyncio
async def test_a_version_that_is_gone_is_a_failure_and_no_end(store: Store, cold: Record) -> None:
    """The next one is read all the same."""
    under_test = reader(store)
    other = bring(store, {"c.bin": content_of("c", MIB)}, name="other")
    store.evict(cold.digest)
    under_test.ask(cold)
    under_test.ask(other)
    await until_done(under_test, 2)
    assert under_test.results["failed"] == 1
    assert under_test.results.total() == 2


@pytest.mark.asyncio
async def test_an_old_kernel_is_asked_in_another_way(
    store: Store, cold: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old kernels and old seccomp profiles have no cachestat(2), but mincore(2), which says the same."""
    monkeypatch.setattr(memory, "CACHESTAT", 100_000)
    monkeypatch.setattr(memory, "WINDOW_BYTES", 2**20)
    with (store.path(cold.digest) / "files/a.bin").open("rb") as file:
        assert resident_bytes(file.fileno()) == 0
        assert os.pread(file.fileno(), 1, 0)
        assert 0 < (resident_bytes(file.fileno()) or 0) < 3 * MIB
    under_test = reader(store)
    under_test.ask(cold)
    await until_done(under_test)
    assert under_test.results == {"read": 1}
    assert await under_test.residency() == {cold.name: 1.0}


@pytest.mark.asyncio
async def test_what_nobody_can_tell_is_not_told(store: Store, cold: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """mincore(2) says to strangers that all of a file is there: then the figure is absent, not wrong."""
    monkeypatch.setattr(memory, "CACHESTAT", 100_000)
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    under_test = reader(store)
    under_test.ask(cold)
    await until_done(under_test)
    assert under_test.results == {"read": 1}
    assert await under_test.residency() == {}


def test_memory_is_that_of_the_node_or_of_our_own_limit(tmp_path: Path) -> None:
    """Whichever is less; both versions of cgroups; `max` is no limit."""
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    for place in (proc, cgroup / "memory"):
        place.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  600 kB\n")
    assert read_memory(proc, cgroup) == Memory(1000 * 1024, 600 * 1024)
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("4096\n")
    assert read_memory(proc, cgroup) == Memory(1000 * 1024, 600 * 1024)
    (cgroup / "memory.max").write_text("102400\n")
    assert read_memory(proc, cgroup) == Memory(102400, 98304)
    (cgroup / "memory.max").unlink()
    (cgroup / "memory/memory.limit_in_bytes").write_text("204800\n")
    (cgroup / "memory/memory.usage_in_bytes").write_text("4800\n")
    assert read_memory(proc, cgroup) == Memory(204800, 200000)
    assert read_memory().total_bytes > 0
