"""The pool with its real workers against an origin that misbehaves. Every test looks at the bytes on disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from cacheagent.errors import (
    ChecksumMismatch,
    OriginForbidden,
    OriginNotFound,
    OriginUnavailable,
    OriginWrong,
    SourceChanged,
    TargetAbandoned,
    TransferFailed,
)
from cacheagent.location import HttpLocation, PathLocation
from cacheagent.model import MIB, PIECE_SIZE_BYTES, Checksum
from cacheagent.transfer.base import SmallOrder, SmallResult
from cacheagent.transfer.pool import TransferConfig, WorkerPool
from tests.fakes.content import Content
from tests.fakes.faults import Drip, NoLength, Replace, Reset, Stall, Status, Truncate, WrongBytes
from tests.fakes.fusefs import DiskFaults, FaultyDisk
from tests.fakes.origin import Origin
from tests.fakes.transfer import Blob, CountingObserver, piece_hashes, random_bytes, until

DATA = random_bytes(4 * PIECE_SIZE_BYTES + 4_567, seed=2)
"""Five pieces, the last one short and not a whole number of pages."""
SHA256 = Checksum(algorithm="sha256", value=hashlib.sha256(DATA).hexdigest())
PATH = "model/a.bin"

QUICK = TransferConfig(
    workers=2,
    connections=3,
    idle_timeout_s=2.0,
    give_up_after_s=60.0,
    backoff_base_s=0.05,
    backoff_cap_s=0.2,
    answer_limit_s=2.0,
    tick_s=0.1,
)
BOTH_WAYS = pytest.mark.parametrize("checksums", [(), (SHA256,)], ids=["pieces", "stream"])


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({PATH: DATA}) as server:
        yield server


@pytest.fixture
def slow_origin() -> Iterator[Origin]:
    """Slow enough that something can happen meanwhile: two seconds for the file."""
    with Origin({PATH: DATA}, bytes_per_s=len(DATA) / 2) as server:
        yield server


@pytest.fixture
def observer() -> CountingObserver:
    return CountingObserver()


def new_pool(observer: CountingObserver, **changes: Any) -> WorkerPool:
    return WorkerPool(msgspec.structs.replace(QUICK, **changes), observer=observer)


def new_blob(origin: Origin, directory: Path, **details: Any) -> Blob:
    location = HttpLocation(url=f"{origin.url}/{PATH}?secret=1", etag=origin.files[PATH].etag)
    return Blob(DATA, directory / "target", location, **details)


def worker_pids(pool: WorkerPool) -> list[int]:
    return [worker.pid for group in pool._groups.values() for worker in group.workers]


@BOTH_WAYS
@pytest.mark.asyncio
async def test_a_healthy_origin_is_asked_for_every_byte_once(
    origin: Origin, observer: CountingObserver, tmp_path: Path, checksums: tuple[Checksum, ...]
) -> None:
    """The control of all tests here."""
    blob = new_blob(origin, tmp_path, checksums=checksums)
    async with new_pool(observer) as pool:
        hashes = await blob.fetch(pool)
    blob.require_whole()
    assert hashes.pieces == piece_hashes(DATA)
    assert hashes.verified_by == tuple(checksum.algorithm for checksum in checksums)
    assert origin.body_bytes_sent() == len(DATA)
    assert origin.peak_connections <= 3
    assert observer.bytes_done == len(DATA)


@BOTH_WAYS
@pytest.mark.asyncio
async def test_workers_that_are_killed_lose_only_what_is_under_way(
    slow_origin: Origin, observer: CountingObserver, tmp_path: Path, checksums: tuple[Checksum, ...]
) -> None:
    """Killed at any moment, several times: all bytes come, and little travels twice."""
    blob = new_blob(slow_origin, tmp_path, checksums=checksums)
    async with new_pool(observer) as pool:
        fetching = asyncio.create_task(blob.fetch(pool))
        for kills in (1, 2):
            sent = slow_origin.body_bytes_sent()
            await until(partial(lambda sent: slow_origin.body_bytes_sent() > sent + 10 * MIB, sent), "some progress")
            busy = [worker.pid for worker in pool._groups["http"].workers if worker.used_threads]
            os.kill(random.choice(busy), signal.SIGKILL)
            await until(partial(lambda kills: observer.counts["worker_lost"] == kills, kills), "its end")
        hashes = await fetching
    blob.require_whole()
    assert hashes.pieces == piece_hashes(DATA)
    refetched = slow_origin.body_bytes_sent() - len(DATA)
    assert refetched <= 2 * QUICK.connections * PIECE_SIZE_BYTES


@BOTH_WAYS
@pytest.mark.asyncio
async def test_a_reset_in_mid_piece_is_made_good(
    origin: Origin, observer: CountingObserver, tmp_path: Path, checksums: tuple[Checksum, ...]
) -> None:
    """RST after half of it, and a clean close before the end: both are asked for again, in a stream by its worker."""
    origin.inject(Reset(after_bytes=8 * MIB), path=PATH, nth=2)
    origin.inject(Truncate(after_bytes=3 * MIB), path=PATH, nth=3)
    blob = new_blob(origin, tmp_path, checksums=checksums)
    async with new_pool(observer) as pool:
        await blob.fetch(pool)
    blob.require_whole()
    assert observer.counts["retry reset"] >= (0 if checksums else 1)  # a hedge may have been faster for the other


@pytest.mark.asyncio
async def test_an_endpoint_that_is_gone_for_a_while_is_survived(
    slow_origin: Origin, observer: CountingObserver, tmp_path: Path
) -> None:
    """Connections are reset and refused for longer than any single back-off; what had come is not asked for again."""
    blob = new_blob(slow_origin, tmp_path)
    async with new_pool(observer) as pool:
        fetching = asyncio.create_task(blob.fetch(pool))
        await until(lambda: len(blob.reported) >= 1, "the first piece")
        with slow_origin.gone():
            had = set(blob.indexes("fetched"))
            await until(lambda: observer.counts["retry connect"] >= 5, "several probes")
            assert not fetching.done()
        await fetching
    blob.require_whole()
    ranges = [request.headers["range"] for request in slow_origin.requests_for(PATH) if request.status == 206]
    for index in had:
        assert sum(each.startswith(f"bytes={index * PIECE_SIZE_BYTES}-") for each in ranges) == 1


@BOTH_WAYS
@pytest.mark.asyncio
async def test_an_endpoint_that_stays_away_is_an_error_that_says_so(
    origin: Origin, observer: CountingObserver, tmp_path: Path, checksums: tuple[Checksum, ...]
) -> None:
    """Last cause, tries and duration; then the same call succeeds once it is back."""
    blob = new_blob(origin, tmp_path, checksums=checksums)
    async with new_pool(observer, give_up_after_s=1.0) as pool:
        with (
            origin.gone(),
            pytest.raises(
                OriginUnavailable,
                match=r"^http://127.0.0.1:\d+/model/a.bin.*[Rr]efused.*gave up after \d+ failed tries in \d+ s",
            ) as caught,
        ):
            await blob.fetch(pool)
        assert "secret" not in str(caught.value)
        assert blob.reported == []
        blob.require_reported_is_true()
        await blob.fetch(pool)
    blob.require_whole()


@BOTH_WAYS
@pytest.mark.asyncio
async def test_a_dripping_and_a_silent_connection_are_given_up(
    origin: Origin, observer: CountingObserver, tmp_path: Path, checksums: tuple[Checksum, ...]
) -> None:
    """Bytes that come too slowly for ever, and none at all: both end by the idle limit and are asked for elsewhere."""
    origin.inject(Drip(bytes_per_s=2000, after_bytes=MIB), path=PATH, nth=1)
    origin.inject(Stall(after_bytes=5 * MIB), path=PATH, nth=2)
    blob = new_blob(origin, tmp_path, checksums=checksums)
    async with new_pool(observer, idle_timeout_s=1.0) as pool:
        await blob.fetch(pool)
    blob.require_whole()
    assert observer.counts["retry timeout"] >= (0 if checksums else 1)  # a stream's worker asks again by itself
    assert observer.counts["worker_lost"] == 0


@pytest.mark.asyncio
async def test_retry_after_is_obeyed_by_everybody(origin: Origin, observer: CountingObserver, tmp_path: Path) -> None:
    """After the 429 has arrived, no request is made for as long as it said."""
    origin.inject(Status(429, retry_after="1"), path=PATH, nth=3)
    blob = new_blob(origin, tmp_path)
    async with new_pool(observer, connections=2) as pool:
        await blob.fetch(pool)
    blob.require_whole()
    assert observer.pauses == [1.0]
    requests = origin.requests_for(PATH)
    throttled = next(number for number, request in enumerate(requests) if request.status == 429)
    after = [request.started_s for request in requests[throttled + 2 :]]  # one may have been on its way
    assert after
    assert min(after) - requests[throttled].started_s >= 1.0


@BOTH_WAYS
@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.asyncio
async def test_server_errors_pass(
    origin: Origin, observer: CountingObserver, tmp_path: Path, checksums: tuple[Checksum, ...], status: int
) -> None:
    """Two in a row, then it works."""
    origin.inject(Status(status), path=PATH, times=2)
    blob = new_blob(origin, tmp_path, checksums=checksums)
    async with new_pool(observer) as pool:
        await blob.fetch(pool)
    blob.require_whole()
    assert observer.counts["throttled" if status == 503 else "retry server-error"] >= (1 if checksums else 2)


@BOTH_WAYS
@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        (Status(404), OriginNotFound, "404"),
        (Status(403), OriginForbidden, "403"),
        (Status(410), OriginNotFound, "410"),
        (Replace(Content(b"x" * len(DATA))), SourceChanged, "412|changed|ETag"),
        (NoLength(), OriginWrong, "Content-Length"),
    ],
)
@pytest.mark.asyncio
async def test_an_origin_that_is_wrong_ends_the_fetch(
    origin: Origin,
    observer: CountingObserver,
    tmp_path: Path,
    checksums: tuple[Checksum, ...],
    fault: Any,
    error: type[Exception],
    sentence: str,
) -> None:
    """From the first request on; nothing false is reported, nobody writes any more; healed, the next try succeeds."""
    origin.inject(fault, path=PATH, times=None)
    blob = new_blob(origin, tmp_path, checksums=checksums)
    async with new_pool(observer, connections=1) as pool:
        with pytest.raises(error, match=sentence) as caught:
            await blob.fetch(pool)
        assert "secret" not in str(caught.value)
        blob.require_reported_is_true()
        assert pool.connections_in_use == 0
        origin.heal()
        origin.put(PATH, DATA)
        await blob.fetch(pool)
    blob.require_whole()


@BOTH_WAYS
@pytest.mark.asyncio
async def test_an_object_that_is_replaced_in_mid_transfer_is_never_mixed(
    slow_origin: Origin, observer: CountingObserver, tmp_path: Path, checksums: tuple[Checksum, ...]
) -> None:
    """The next range says 412: SourceChanged, and no piece of the new object was reported."""
    blob = new_blob(slow_origin, tmp_path, checksums=checksums)
    async with new_pool(observer, connections=2) as pool:
        fetching = asyncio.create_task(blob.fetch(pool))
        await until(lambda: slow_origin.body_bytes_sent() > MIB, "the first bytes")
        slow_origin.put(PATH, random_bytes(len(DATA), seed=3))
        if checksums:  # the stream's requests are of 4 MiB, so the next one comes soon; or all is asked for already
            with pytest.raises(SourceChanged, match=r"^http://127.0.0.1:\d+/model/a.bin"):
                await fetching
        else:
            with pytest.raises(SourceChanged, match=r"^http://127.0.0.1:\d+/model/a.bin, piece \d of 5"):
                await fetching
    hashes = piece_hashes(DATA)
    assert all(hashes[index] == digest for index, digest, _, _ in blob.reported)


@pytest.mark.parametrize("algorithm", ["sha256", "crc64nvme"])
@pytest.mark.asyncio
async def test_wrong_bytes_of_the_right_length_are_found_at_the_end(
    origin: Origin, observer: CountingObserver, tmp_path: Path, algorithm: Any
) -> None:
    """One inverted byte, in a stream and in a folded piece."""
    async with new_pool(observer) as pool:
        good = new_blob(origin, tmp_path)
        crc = (await good.fetch(pool)).whole["crc64nvme"]
        checksum = SHA256 if algorithm == "sha256" else Checksum(algorithm="crc64nvme", value=crc)
        origin.inject(WrongBytes(at=MIB + 1), path=PATH, nth=2)
        blob = new_blob(origin, tmp_path, checksums=(checksum,))
        with pytest.raises(ChecksumMismatch, match=rf"model/a.bin: {algorithm} is .* the origin says {checksum.value}"):
            await blob.fetch(pool)
        again = new_blob(origin, tmp_path, checksums=(checksum,))
        assert (await again.fetch(pool)).verified_by == (algorithm,)
        again.require_whole()


@pytest.mark.asyncio
async def test_a_late_piece_is_fetched_twice_and_the_first_answer_wins(
    origin: Origin, observer: CountingObserver, tmp_path: Path
) -> None:
    """A connection that stalls after 1 MiB: the second one's bytes are copied over, the scratch file is gone."""
    origin.inject(Stall(after_bytes=MIB), path=PATH, nth=2)
    blob = new_blob(origin, tmp_path)
    async with new_pool(observer, idle_timeout_s=60.0) as pool:
        for _ in range(64):
            pool._origin(origin.url).hedging.arrived(PIECE_SIZE_BYTES, 0.05)
        hashes = await blob.fetch(pool)
    assert hashes.pieces == piece_hashes(DATA)
    blob.require_whole()
    assert observer.counts["hedge won"] == 1


@pytest.mark.asyncio
async def test_small_files_survive_resets_and_killed_workers(observer: CountingObserver, tmp_path: Path) -> None:
    """Two hundred files, a reset every now and then, one worker killed: each is there, once."""
    contents = {f"data/{number}.txt": random_bytes(20_000 + number, seed=number) for number in range(200)}
    with Origin(contents, bytes_per_s=4_000_000) as origin:
        for nth in (7, 60, 130):
            origin.inject(Reset(after_bytes=500), nth=nth)
        orders = [
            SmallOrder(
                blob_id=path,
                size_bytes=len(content),
                target=str(tmp_path / path.replace("/", "-")),
                location=HttpLocation(url=f"{origin.url}/{path}"),
                checksums=(Checksum(algorithm="sha256", value=hashlib.sha256(content).hexdigest()),),
            )
            for path, content in contents.items()
        ]
        results: list[SmallResult] = []
        async with new_pool(observer) as pool:
            fetching = asyncio.create_task(pool.fetch_small(orders, "https", results.extend))
            await until(lambda: len(origin.requests) > 20, "some requests")
            os.kill(worker_pids(pool)[0], signal.SIGKILL)
            await fetching
    assert sorted(result.blob_id for result in results) == sorted(contents)
    for result in results:
        assert result.hashes.pieces == piece_hashes(contents[result.blob_id])
        assert result.hashes.verified_by == ("sha256",)
        assert (tmp_path / result.blob_id.replace("/", "-")).read_bytes() == contents[result.blob_id]
    assert observer.counts["worker_lost"] == 1


@pytest.mark.asyncio
async def test_a_killed_agents_workers_die_with_it(slow_origin: Origin, tmp_path: Path) -> None:
    """kill -9 of the process that holds the pool: its workers are gone within moments, whatever they were doing."""
    program = textwrap.dedent(
        f"""
        import asyncio, sys
        from pathlib import Path
        from cacheagent.transfer.pool import WorkerPool
        from tests.fakes.transfer import Blob

        async def main():
            async with WorkerPool() as pool:
                blob = Blob(b"\\0" * {len(DATA)}, Path({str(tmp_path / "target")!r}), "{slow_origin.url}/{PATH}")
                fetching = asyncio.create_task(blob.fetch(pool))
                print(*(worker.pid for group in pool._groups.values() for worker in group.workers), flush=True)
                await fetching

        asyncio.run(main())
        """
    )
    parent = subprocess.Popen(  # noqa: ASYNC220 - takes milliseconds, and nothing else runs
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        await until(lambda: slow_origin.body_bytes_sent() > MIB, "bytes on their way")
        assert pids
        assert all(psutil.pid_exists(pid) for pid in pids)
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()
    await until(lambda: not any(_is_running(pid) for pid in pids), "the end of the workers")


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- mounted file systems


def located(path: Path) -> PathLocation:
    facts = path.stat()
    return PathLocation(path=str(path), size_bytes=facts.st_size, mtime_ns=facts.st_mtime_ns)


@BOTH_WAYS
@pytest.mark.asyncio
async def test_a_mounted_file_is_read_like_any_other(
    observer: CountingObserver, tmp_path: Path, checksums: tuple[Checksum, ...]
) -> None:
    """Pieces or stream; and a file that changed since it was listed is refused."""
    source = tmp_path / "source"
    source.write_bytes(DATA)
    blob = Blob(DATA, tmp_path / "target", located(source), checksums=checksums)
    async with new_pool(observer) as pool:
        hashes = await blob.fetch(pool)
        blob.require_whole()
        assert hashes.pieces == piece_hashes(DATA)
        os.utime(source, ns=(1, 1))
        changed = Blob(DATA, tmp_path / "changed", blob.location, checksums=checksums)
        with pytest.raises(SourceChanged, match=r"source.*mtime 1 ns"):
            await changed.fetch(pool)
        assert changed.reported == []


@pytest.mark.fuse
@pytest.mark.usefixtures("fuse")
@pytest.mark.asyncio
async def test_a_mount_that_hangs_costs_its_own_workers_only(
    faulty_disk: FaultyDisk, origin: Origin, observer: CountingObserver, tmp_path: Path
) -> None:
    """Reads that not even SIGKILL ends: the target is abandoned, others go on; once healed the mount works again."""
    (faulty_disk.backing / "model").write_bytes(DATA)
    source = faulty_disk.mountpoint / "model"
    hung = Blob(DATA, tmp_path / "hung", located(source))
    web = new_blob(origin, tmp_path)
    async with new_pool(observer, idle_timeout_s=1.0, answer_limit_s=0.5, give_up_after_s=5.0) as pool:
        faulty_disk.inject(DiskFaults(hang_reads=True))
        hanging = asyncio.create_task(hung.fetch(pool))
        await asyncio.to_thread(faulty_disk.wait_until, lambda state: state.hanging > 0)
        await web.fetch(pool)
        web.require_whole()
        with pytest.raises(TargetAbandoned, match="hangs in the kernel and may still write"):
            await hanging
        assert hung.reported == []
        assert observer.counts["worker_abandoned"] >= 1
        faulty_disk.heal()
        again = Blob(DATA, tmp_path / "again", located(source))
        await again.fetch(pool)
    again.require_whole()


@pytest.mark.fuse
@pytest.mark.usefixtures("fuse")
@pytest.mark.asyncio
async def test_closing_does_not_wait_for_a_mount_that_hangs(
    faulty_disk: FaultyDisk, observer: CountingObserver, tmp_path: Path
) -> None:
    """Close returns although workers can't be ended; they end when the mount lets them."""
    (faulty_disk.backing / "model").write_bytes(DATA)
    hung = Blob(DATA, tmp_path / "hung", located(faulty_disk.mountpoint / "model"))
    async with new_pool(observer) as pool:
        faulty_disk.inject(DiskFaults(hang_reads=True))
        hanging = asyncio.create_task(hung.fetch(pool))
        await asyncio.to_thread(faulty_disk.wait_until, lambda state: state.hanging > 0)
        pids = worker_pids(pool)
        started = time.monotonic()
        await pool.close()
        assert time.monotonic() - started < 30, "a hung mount would hang for ever"
        with pytest.raises(TransferFailed):
            await hanging
        stuck = [pid for pid in pids if psutil.pid_exists(pid)]
        assert stuck, "in the kernel"
        faulty_disk.heal()
        for pid in stuck:
            assert (await asyncio.to_thread(os.waitpid, pid, 0))[0] == pid
