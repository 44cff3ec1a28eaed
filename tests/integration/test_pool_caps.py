"""Caps of single jobs, kept by real workers against a real origin: what the shared memory counted, window by window."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest

from cacheagent.errors import TransferFailed
from cacheagent.location import HttpLocation
from cacheagent.model import MIB, PIECE_SIZE_BYTES, Checksum
from cacheagent.transfer import caps
from cacheagent.transfer.base import SmallOrder, SmallResult
from cacheagent.transfer.caps import Cap, Caps
from cacheagent.transfer.job import Flight, Job, Unit
from cacheagent.transfer.pool import TransferConfig, WorkerPool
from cacheagent.transfer.rate import BURST_NS, LARGEST_SLICE_BYTES, SharedRate
from tests.fakes.origin import Origin
from tests.fakes.transfer import Blob, CountingObserver, random_bytes, until

DATA = random_bytes(2 * PIECE_SIZE_BYTES, seed=3)
SHA256 = Checksum(algorithm="sha256", value=hashlib.sha256(DATA).hexdigest())
QUICK = TransferConfig(workers=2, connections=4, tick_s=0.1)
BOTH_WAYS = pytest.mark.parametrize("checksums", [(), (SHA256,)], ids=["pieces", "stream"])
SLOW, FAST = 1_000_000, 20_000_000


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"a.bin": DATA, "b.bin": DATA}) as server:
        yield server


class Sample(NamedTuple):
    """Bytes received by a time that lies between `before` and `after`."""

    before: float
    after: float
    received: int


@asynccontextmanager
async def sampled(pool: WorkerPool) -> AsyncIterator[list[Sample]]:
    """What the pool has received, now and then, while the block runs."""
    samples: list[Sample] = []

    def sample() -> None:
        before = time.monotonic()
        received = pool.received_bytes
        samples.append(Sample(before, time.monotonic(), received))

    async def look() -> None:
        while True:
            sample()
            await asyncio.sleep(0.05)

    task = asyncio.create_task(look())
    try:
        yield samples
    finally:
        task.cancel()
        sample()


def assert_no_window_exceeds(samples: list[Sample], cap: int, connections: int) -> None:
    """However long: what was allowed in it, a burst, and a slice that each connection had reserved before."""
    slack = cap * BURST_NS / 1e9 + connections * LARGEST_SLICE_BYTES
    for at, first in enumerate(samples):
        for last in samples[at + 1 :]:
            assert last.received - first.received <= cap * (last.after - first.before) + slack


def blob(origin: Origin, directory: Path, name: str, cap: str, checksums: tuple[Checksum, ...] = ()) -> Blob:
    made = Blob(DATA, directory / name, HttpLocation(url=f"{origin.url}/{name}"), checksums=checksums)
    made.order = msgspec.structs.replace(made.order, cap=cap)
    return made


@BOTH_WAYS
@pytest.mark.asyncio
async def test_all_files_of_a_job_share_its_cap(
    origin: Origin, tmp_path: Path, checksums: tuple[Checksum, ...]
) -> None:
    """Two files come at the rate of the cap together: never faster in any window, and hardly slower over the run."""
    both = [blob(origin, tmp_path, name, "job", checksums) for name in ("a.bin", "b.bin")]
    async with WorkerPool(QUICK) as pool:
        pool.set_cap("job", FAST)
        async with sampled(pool) as samples:
            await asyncio.gather(*(each.fetch(pool) for each in both))
    for each in both:
        each.require_whole()
    assert_no_window_exceeds(samples, FAST, connections=4)
    moving = [each for each in samples if 0 < each.received < samples[-1].received]
    rate = (moving[-1].received - moving[0].received) / (moving[-1].after - moving[0].before)
    assert FAST * 0.75 < rate < FAST * 1.05


@BOTH_WAYS
@pytest.mark.asyncio
async def test_a_cap_is_set_changed_and_lifted_in_the_middle(
    origin: Origin, tmp_path: Path, checksums: tuple[Checksum, ...]
) -> None:
    """What is under way obeys and is not asked for again; at the low rate it would take half a minute."""
    fetched = blob(origin, tmp_path, "a.bin", "job", checksums)
    async with WorkerPool(QUICK) as pool:
        pool.set_cap("job", FAST)
        fetching = asyncio.create_task(fetched.fetch(pool))
        await until(lambda: pool.received_bytes > 4 * MIB, "the beginning")
        pool.set_cap("job", SLOW)
        async with sampled(pool) as samples:
            before = pool.received_bytes
            await until(lambda: pool.received_bytes > before + SLOW, "some of it at the low rate")
        assert_no_window_exceeds(samples, SLOW, connections=4)
        assert not fetching.done()
        pool.set_cap("job", 0)
        async with asyncio.timeout(20):
            await fetching
    fetched.require_whole()
    assert origin.body_bytes_sent() == len(DATA)


@pytest.mark.asyncio
async def test_another_job_at_the_same_origin_is_not_held_up(origin: Origin, tmp_path: Path) -> None:
    """A capped job has as many connections as its rate is worth; the others are for who comes next."""
    slow, other = blob(origin, tmp_path, "a.bin", "job"), blob(origin, tmp_path, "b.bin", "other")
    async with WorkerPool(msgspec.structs.replace(QUICK, connections=2)) as pool:
        pool.set_cap("job", SLOW)
        fetching = asyncio.create_task(slow.fetch(pool))
        await until(lambda: pool.received_bytes, "the first bytes of the slow one")
        await other.fetch(pool)
        assert not fetching.done()
        pool.set_cap("job", 0)
        await fetching
    slow.require_whole()
    other.require_whole()


@pytest.mark.asyncio
async def test_small_files_have_the_cap_too(origin: Origin, tmp_path: Path) -> None:
    """They can't be sliced: each waits until all of it may come."""
    content = random_bytes(200_000, seed=5)
    orders = small_orders(origin, tmp_path, 12, content)
    results: list[SmallResult] = []
    async with WorkerPool(QUICK) as pool:
        pool.set_cap("job", SLOW)
        async with sampled(pool) as samples:
            await pool.fetch_small(orders, "https", results.extend, cap="job")
    assert len(results) == 12
    assert samples[-1].after - samples[0].before >= (12 * len(content) - LARGEST_SLICE_BYTES) / SLOW * 0.9
    assert all((tmp_path / f"s{number}").read_bytes() == content for number in range(12))


@BOTH_WAYS
@pytest.mark.asyncio
async def test_a_lifted_cap_wakes_who_waits_for_it(
    origin: Origin, tmp_path: Path, checksums: tuple[Checksum, ...]
) -> None:
    """At one byte a second the next slice would come in hours; nothing is asked for again."""
    fetched = blob(origin, tmp_path, "a.bin", "job", checksums)
    observer = CountingObserver()
    async with WorkerPool(QUICK, observer=observer) as pool:
        pool.set_cap("job", 1)
        fetching = asyncio.create_task(fetched.fetch(pool))
        await until(lambda: pool.received_bytes, "the first slice")
        pool.set_cap("job", 0)
        async with asyncio.timeout(20):
            await fetching
    fetched.require_whole()
    assert origin.body_bytes_sent() == len(DATA)
    assert not [name for name in observer.counts if name.startswith("retry")]


@pytest.mark.asyncio
async def test_waiting_for_a_cap_is_no_failure_of_the_origin(origin: Origin, tmp_path: Path) -> None:
    """Small files of which each waits longer than an order may be silent: each is asked for once, none is late."""
    content, rate = random_bytes(150_000, seed=5), 50_000
    orders = small_orders(origin, tmp_path, 2, content)
    observer = CountingObserver()
    results: list[SmallResult] = []
    quiet = msgspec.structs.replace(QUICK, idle_timeout_s=1.2, give_up_after_s=1.0)
    async with WorkerPool(quiet, observer=observer) as pool:
        pool.set_cap("job", rate)
        began = time.monotonic()
        await pool.fetch_small(orders, "https", results.extend, cap="job")
        assert time.monotonic() - began > len(content) / rate * 0.9
    assert len(results) == len(origin.requests) == 2
    assert set(observer.counts) == {"piece_done"}
    assert all(Path(order.target).read_bytes() == content for order in orders)


@pytest.mark.asyncio
async def test_files_of_a_slow_job_are_told_as_they_come(origin: Origin, tmp_path: Path) -> None:
    """A batch has as many of them as come in two seconds, so that it is seen to move."""
    content = random_bytes(100_000, seed=6)
    orders = small_orders(origin, tmp_path, 8, content)
    told: list[int] = []
    async with WorkerPool(msgspec.structs.replace(QUICK, connections=1)) as pool:
        pool.set_cap("job", 200_000)
        fetching = asyncio.create_task(
            pool.fetch_small(orders, "https", lambda done: told.append(len(done)), cap="job")
        )
        await until(lambda: told, "the first of them")
        pool.set_cap("job", 0)
        await fetching
    assert told[0] == 4
    assert sum(told) == 8


def small_orders(origin: Origin, directory: Path, count: int, content: bytes) -> list[SmallOrder]:
    for number in range(count):
        origin.put(f"s{number}", content)
    return [
        SmallOrder(
            blob_id=str(number),
            size_bytes=len(content),
            target=str(directory / f"s{number}"),
            location=HttpLocation(url=f"{origin.url}/s{number}"),
        )
        for number in range(count)
    ]


def test_a_piece_that_has_to_be_slow_is_not_asked_for_twice() -> None:
    """It would only take from what its job may have."""
    shared = SharedRate.create(1)
    cap = Cap(1, shared.bucket(1))
    job: Any = SimpleNamespace(is_capped=False)
    flight: Any = Flight(unit=Unit(length=1), worker=job, origin=job, started=0.0, job=job, work_id=1, order=job)
    assert flight.hedgeable
    job.is_capped = Job.is_capped.fget(SimpleNamespace(cap=cap))  # type: ignore[attr-defined]
    assert flight.hedgeable
    cap.bucket.set(1)
    job.is_capped = Job.is_capped.fget(SimpleNamespace(cap=cap))  # type: ignore[attr-defined]
    assert not flight.hedgeable
    shared.close()


def test_a_number_is_used_again_and_there_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that ended leaves no rate to the next one that gets its number."""
    monkeypatch.setattr(caps, "MOST_CAPS", 1)
    shared = SharedRate.create(1)
    made = Caps(shared)
    made.set("a", 5 * caps.BYTES_PER_CONNECTION)
    with made.use("a") as first, made.use("a") as second:
        assert first is second
        assert first is not None
        assert (first.room, first.bucket.bytes_per_s) == (5, 5 * caps.BYTES_PER_CONNECTION)
        first.in_flight = 9
        assert first.room == 0
        made.set("a", 1)
        first.in_flight = 0
        assert first.room == 1
        with pytest.raises(TransferFailed, match="more than 1 jobs"), made.use("b"):
            pass
    with made.use("b") as other:
        assert other is not None
        assert (other.bucket.bytes_per_s, other.room) == (0, caps.NO_LIMIT)
    with made.use("") as none:
        assert none is None
    shared.close()
