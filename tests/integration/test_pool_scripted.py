"""The pool against workers whose every answer is scripted; each is a real process."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio

from cacheagent.checksum import CRCS
from cacheagent.errors import (
    CacheAgentError,
    ChecksumMismatch,
    DiskFault,
    LocationExpired,
    OriginForbidden,
    OriginNotFound,
    OriginThrottled,
    OriginUnavailable,
    SourceChanged,
    TargetAbandoned,
    TransferFailed,
)
from cacheagent.location import HttpLocation, Location, PathLocation
from cacheagent.model import MIB, PIECE_SIZE_BYTES, Checksum, FileHashes
from cacheagent.transfer import pool as pool_module
from cacheagent.transfer.base import SmallOrder, SmallResult
from cacheagent.transfer.orders import FetchPiece, FetchSmall, FetchStream, GoesOn, Listens, Rehash, StreamDone
from cacheagent.transfer.pool import TransferConfig, WorkerPool
from cacheagent.transfer.whereabouts import HTTP_GROUP
from tests.fakes.scripted_worker import Rule, Script, ScriptedWorker, Work, scripted
from tests.fakes.transfer import Blob, CountingObserver, piece_hashes, random_bytes, until

URL = "http://origin.test/model.bin"
DATA = random_bytes(2 * PIECE_SIZE_BYTES + 12_345)
"""Three pieces, the last a short one."""

QUICK = TransferConfig(
    workers=2, connections=4, backoff_base_s=0.01, backoff_cap_s=0.05, answer_limit_s=5.0, tick_s=0.05
)


@dataclass
class World:
    """A script of workers and a directory."""

    script: Script
    directory: Path
    observer: CountingObserver = field(default_factory=CountingObserver)

    def pool(self, **changes: Any) -> WorkerPool:
        config = msgspec.structs.replace(QUICK, **changes)
        return WorkerPool(config, observer=self.observer, worker_argv=self.script.argv)

    def blob(self, data: bytes = DATA, url: str = URL, **details: Any) -> Blob:
        self.script.files[url.partition("?")[0]] = data
        return Blob(data, self.directory / f"{url.rpartition('/')[2].partition('?')[0]}.part", url, **details)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with scripted({}, tmp_path) as script:
        yield World(script, tmp_path)


def once(play: Callable[[ScriptedWorker, Work], Any], of: type[Work] = FetchPiece, index: int | None = None) -> Rule:
    """The first order of this kind (and piece) is played like this; all others as they should be."""
    played: list[Work] = []

    def rule(worker: ScriptedWorker, order: Work) -> Any:
        if played or not isinstance(order, of) or (index is not None and getattr(order, "index", None) != index):
            return None
        played.append(order)
        return play(worker, order)

    return rule


def always(play: Callable[[ScriptedWorker, Work], Any], of: type[Work] = FetchPiece, index: int | None = None) -> Rule:
    """Every order of this kind (and piece) is played like this."""
    return lambda worker, order: (
        play(worker, order) if isinstance(order, of) and index in {None, getattr(order, "index", None)} else None
    )


def crc(data: bytes, algorithm: str = "crc32") -> str:
    return CRCS[algorithm].update(data, 0).to_bytes(CRCS[algorithm].size_bytes, "big").hex()


def composite(data: bytes, part_size: int) -> Checksum:
    parts = [data[start : start + part_size] for start in range(0, len(data), part_size)]
    sums = b"".join(bytes.fromhex(crc(part)) for part in parts)
    sizes = ((part_size, len(parts) - 1), (len(parts[-1]), 1))
    return Checksum(algorithm="crc32", value=crc(sums), parts=sizes)


# --- the three shapes


@pytest.mark.asyncio
async def test_pieces_are_folded_into_every_checksum_of_the_origin(world: World) -> None:
    """A composite with parts that don't end with pieces, and a whole CRC: both agree, every byte is there."""
    checksums = (composite(DATA, 5 * MIB), Checksum(algorithm="crc64nvme", value=crc(DATA, "crc64nvme")))
    blob = world.blob(checksums=checksums)
    async with world.pool() as pool:
        hashes = await blob.fetch(pool)
    assert hashes == FileHashes(
        pieces=piece_hashes(DATA), whole={"crc64nvme": crc(DATA, "crc64nvme")}, verified_by=("crc32", "crc64nvme")
    )
    blob.require_whole()
    assert blob.located == 1
    assert world.observer.counts == {"piece_done": 3}
    assert world.observer.bytes_done == len(DATA)


@pytest.mark.asyncio
async def test_a_checksum_that_differs_at_the_end_is_raised(world: World) -> None:
    """All bytes came and the checksum of the origin is another one: the caller discards; no secret is named."""
    wrong = Checksum(algorithm="crc32", value="00000000")
    blob = world.blob(url=URL + "?X-Amz-Signature=secret", checksums=(wrong,))
    async with world.pool() as pool:
        with pytest.raises(ChecksumMismatch, match=r"^http://origin.test/model.bin: crc32 is .* origin says 00000000"):
            await blob.fetch(pool)
    assert len(blob.reported) == 3


@pytest.mark.asyncio
async def test_claims_are_proved_and_wrong_ones_travel(world: World) -> None:
    """What the journal claims is re-hashed; right ones are kept, wrong ones and the rest fetched, nonsense ignored."""
    hashes = piece_hashes(DATA)
    blob = world.blob(claimed={0: hashes[0], 1: hashes[1], 99: "ff"}, checksums=(composite(DATA, 5 * MIB),))
    with blob.target.open("r+b") as target:
        target.write(DATA[:PIECE_SIZE_BYTES])
    async with world.pool() as pool:
        result = await blob.fetch(pool)
    assert result.verified_by == ("crc32",)
    blob.require_whole()
    assert blob.indexes("kept") == [0]
    assert blob.indexes("fetched") == [1, 2]
    assert [order.indexes for order in world.script.works(Rehash)] == [(0, 1)]


@pytest.mark.asyncio
async def test_a_serial_hash_is_streamed_by_one_worker(world: World) -> None:
    """One order for the file, with all connections as lanes; its hash and the folded CRC are both judged."""
    sha = Checksum(algorithm="sha256", value=hashlib.sha256(DATA).hexdigest())
    blob = world.blob(checksums=(sha, composite(DATA, 5 * MIB)))
    async with world.pool() as pool:
        hashes = await blob.fetch(pool)
    assert hashes.verified_by == ("sha256", "crc32")
    assert hashes.whole == {"sha256": sha.value, "crc64nvme": crc(DATA, "crc64nvme")}
    blob.require_whole()
    assert [order.lanes for order in world.script.works(FetchStream)] == [4]
    assert world.script.works(FetchPiece) == []


@pytest.mark.asyncio
async def test_a_composite_serial_hash_is_not_taken_for_the_files_own(world: World) -> None:
    """S3's SHA-256 over parts proves the file and is not recorded as its SHA-256."""
    parts = [DATA[: 20 * MIB], DATA[20 * MIB :]]
    value = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    checksum = Checksum(algorithm="sha256", value=value, parts=tuple((len(part), 1) for part in parts))
    blob = world.blob(checksums=(checksum,))
    async with world.pool() as pool:
        hashes = await blob.fetch(pool)
    assert hashes.verified_by == ("sha256",)
    assert "sha256" not in hashes.whole


@pytest.mark.asyncio
async def test_a_stream_that_breaks_off_goes_on_from_what_is_proved(world: World) -> None:
    """The second order claims what the first one brought; nothing is reported twice, nothing fetched twice."""

    async def break_off(worker: ScriptedWorker, order: Work) -> None:
        assert isinstance(order, FetchStream)
        worker.deliver_part(order, 0)
        worker.deliver_part(order, 1)
        await worker.fail(order, "reset")

    sha = Checksum(algorithm="sha256", value=hashlib.sha256(DATA).hexdigest())
    blob = world.blob(checksums=(sha,))
    world.script.rules.append(once(break_off, of=FetchStream))
    async with world.pool() as pool:
        hashes = await blob.fetch(pool)
    assert hashes.verified_by == ("sha256",)
    blob.require_whole()
    assert [sorted(order.claimed) for order in world.script.works(FetchStream)] == [[], [0, 1]]
    assert world.observer.counts["piece_done"] == 3
    assert world.observer.counts["retry reset"] == 1


@pytest.mark.asyncio
async def test_a_stream_that_ends_early_without_a_word_is_not_believed(world: World) -> None:
    """A worker that says done while pieces are missing fails the fetch instead of hanging it."""

    async def lie(worker: ScriptedWorker, order: Work) -> None:
        worker.answer(StreamDone(id=order.id, whole={}, verified_by=()))

    blob = world.blob(checksums=(Checksum(algorithm="sha256", value="00"),))
    world.script.rules.append(always(lie, of=FetchStream))
    async with world.pool() as pool:
        with pytest.raises(TransferFailed, match="says it is done, and pieces are missing"):
            await blob.fetch(pool)


def small_files(world: World, count: int) -> tuple[list[SmallOrder], dict[str, bytes]]:
    contents = {f"s{number}": b"%d" % number * number for number in range(count)}
    for name, content in contents.items():
        world.script.files[f"http://origin.test/{name}"] = content
    orders = [
        SmallOrder(
            blob_id=name,
            size_bytes=len(content),
            target=str(world.directory / name),
            location=HttpLocation(url=f"http://origin.test/{name}"),
        )
        for name, content in contents.items()
    ]
    return orders, contents


@pytest.mark.asyncio
async def test_small_files_travel_in_batches(world: World) -> None:
    """Every file is on disk, every result handed over once, an empty file has no pieces; few are spread over all."""
    orders, contents = small_files(world, 100)
    results: list[SmallResult] = []
    async with world.pool() as pool:
        await pool.fetch_small(orders, "https", results.extend)
        await pool.fetch_small([], "https", results.extend)
    assert {result.blob_id: result.hashes.pieces for result in results} == {
        name: piece_hashes(content) for name, content in contents.items()
    }
    assert all((world.directory / name).read_bytes() == content for name, content in contents.items())
    sizes = [len(order.items) for order in world.script.works(FetchSmall)]
    assert sum(sizes) == 100
    assert max(sizes) == 25


@pytest.mark.asyncio
async def test_what_a_batch_finished_before_it_failed_is_kept(world: World) -> None:
    """Only the rest is asked for again."""

    async def fail_at_third(worker: ScriptedWorker, order: Work) -> None:
        assert isinstance(order, FetchSmall)
        await worker.fail(order, "reset", files=tuple(worker.write_small(order, 3)))

    orders, contents = small_files(world, 8)
    world.script.rules.append(once(fail_at_third, of=FetchSmall))
    results: list[SmallResult] = []
    async with world.pool(connections=1) as pool:
        await pool.fetch_small(orders, "https", results.extend)
    assert [len(order.items) for order in world.script.works(FetchSmall)] == [8, 5]
    assert sorted(result.blob_id for result in results) == sorted(contents)


@pytest.mark.asyncio
async def test_refused_small_files_are_forbidden_when_fresh_and_expired_when_old(world: World) -> None:
    """The caller can ask for all locations again; a fresh one that is refused is meant."""

    async def refuse(worker: ScriptedWorker, order: Work) -> None:
        assert isinstance(order, FetchSmall)
        done = tuple(worker.write_small(order, 2))
        await worker.fail(order, "status", "answered 403 Forbidden", status=403, files=done)

    orders, _ = small_files(world, 8)
    world.script.rules.append(always(refuse, of=FetchSmall))
    for fresh_s, error in ((60.0, OriginForbidden), (0.0, LocationExpired)):
        results: list[SmallResult] = []
        async with world.pool(connections=1, fresh_location_s=fresh_s) as pool:
            with pytest.raises(error, match=r"^http://origin.test/s\d+ and 5 small files more: answered 403"):
                await pool.fetch_small(orders, "https", results.extend)
        assert [result.blob_id for result in results] == ["s0", "s1"]


@pytest.mark.asyncio
async def test_pieces_at_rest_are_hashed_on_demand(world: World) -> None:
    """For scrubbing: what is really there, in orders of bounded size; an unreadable disk is named."""
    blob = world.blob()
    blob.target.write_bytes(DATA)
    async with world.pool() as pool:
        assert await pool.rehash(str(blob.target), len(DATA), [2, 0]) == {
            0: piece_hashes(DATA)[0],
            2: piece_hashes(DATA)[2],
        }
        assert await pool.rehash(str(blob.target), len(DATA), []) == {}
        world.script.rules.append(
            always(lambda worker, order: worker.fail(order, "disk-fault", "Input/output error"), of=Rehash)
        )
        with pytest.raises(DiskFault, match=r"model.bin.part: Input/output error"):
            await pool.rehash(str(blob.target), len(DATA), [1])


@pytest.mark.asyncio
async def test_an_empty_file_needs_no_worker(world: World) -> None:
    """It has no pieces, and its checksum is judged all the same."""
    right = Checksum(algorithm="crc32", value="00000000")
    async with world.pool() as pool:
        hashes = await world.blob(b"", checksums=(right,)).fetch(pool)
        assert hashes == FileHashes(pieces=(), verified_by=("crc32",))
        with pytest.raises(ChecksumMismatch, match="crc32 is 00000000, the origin says 00000001"):
            await world.blob(b"", checksums=(Checksum(algorithm="crc32", value="00000001"),)).fetch(pool)
    assert world.script.orders == []


# --- failures of the origin


@pytest.mark.parametrize(
    ("failure", "error", "sentence"),
    [
        ({"kind": "status", "status": 404, "message": "answered 404"}, OriginNotFound, "piece 1 of 3: answered 404"),
        ({"kind": "status", "status": 412, "message": "answered 412"}, SourceChanged, "answered 412"),
        ({"kind": "changed", "message": "another ETag"}, SourceChanged, "another ETag"),
        ({"kind": "status", "status": 403, "message": "answered 403"}, OriginForbidden, "answered 403"),
        ({"kind": "disk-full", "message": "No space left on device"}, DiskFault, "No space left on device"),
    ],
)
@pytest.mark.asyncio
async def test_final_answers_end_the_fetch_at_once(
    world: World, failure: dict[str, Any], error: type[CacheAgentError], sentence: str
) -> None:
    """The first such answer is raised, no worker writes any more, and the next try (the control) succeeds."""

    async def play(worker: ScriptedWorker, order: Work) -> None:
        await asyncio.sleep(0)  # the other pieces are under way
        await worker.fail(order, **failure)

    held = always(lambda worker, order: worker.hold_until_cancelled(order), index=0)
    world.script.rules += [always(play, index=1), held]
    blob = world.blob()
    async with world.pool() as pool:
        with pytest.raises(error, match=sentence) as caught:
            await blob.fetch(pool)
        assert caught.value.hint
        first = next(order.id for order in world.script.works(FetchPiece) if order.index == 0)
        assert first in world.script.cancels, "piece 0 was cancelled, and has answered before the error came"
        blob.require_reported_is_true()
        world.script.rules.clear()
        again = world.blob()
        await again.fetch(pool)
        again.require_whole()


@pytest.mark.parametrize(
    "failure",
    [
        {"kind": "reset"},
        {"kind": "timeout"},
        {"kind": "connect"},
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 503},
        {"kind": "protocol"},
    ],
)
@pytest.mark.asyncio
async def test_what_may_pass_is_tried_again(world: World, failure: dict[str, Any]) -> None:
    """Each piece fails once and comes on the second try."""
    world.script.rules.append(
        lambda worker, order: worker.fail(order, **failure) if world.script.times(order) == 1 else None
    )
    blob = world.blob()
    async with world.pool() as pool:
        await blob.fetch(pool)
    blob.require_whole()
    assert len(world.script.works(FetchPiece)) == 6
    assert sum(count for name, count in world.observer.counts.items() if name.startswith("retry")) == 3


@pytest.mark.asyncio
async def test_an_origin_that_gives_nothing_is_given_up_with_the_last_cause(world: World) -> None:
    """After the time without progress; probing one request at a time, not all at once."""
    world.script.rules.append(always(lambda worker, order: worker.fail(order, "connect", "Connection refused")))
    blob = world.blob()
    async with world.pool(give_up_after_s=0.6) as pool:
        with pytest.raises(
            OriginUnavailable, match=r"Connection refused; gave up after \d+ failed tries in \d+ s \(nothing came for"
        ):
            await blob.fetch(pool)
    assert blob.reported == []
    blob.require_reported_is_true()


@pytest.mark.asyncio
async def test_an_outage_shorter_than_the_budget_is_survived(world: World) -> None:
    """The origin is gone for a while; when it is back, the fetch ends as if nothing had been."""
    back_at = asyncio.get_running_loop().time() + 1.0

    def rule(worker: ScriptedWorker, order: Work) -> Any:
        gone = asyncio.get_running_loop().time() < back_at
        return worker.fail(order, "connect") if gone else None

    world.script.rules.append(rule)
    blob = world.blob()
    async with world.pool(give_up_after_s=60.0) as pool:
        await blob.fetch(pool)
    blob.require_whole()
    assert world.observer.counts["retry connect"] >= 3


@pytest.mark.asyncio
async def test_retry_after_holds_for_the_whole_origin(world: World) -> None:
    """After the 429 nobody asks that origin again before the time is over; another origin is not held up."""
    loop = asyncio.get_running_loop()
    asked: list[tuple[float, str]] = []

    def rule(worker: ScriptedWorker, order: Work) -> Any:
        assert isinstance(order, FetchPiece)
        assert isinstance(order.location, HttpLocation)
        asked.append((loop.time(), order.location.url))
        if len(asked) == 1:
            return worker.fail(order, "status", "answered 429", status=429, retry_after_s=1.0)
        return None

    world.script.rules.append(rule)
    blob, other = world.blob(), world.blob(url="http://elsewhere.test/other.bin")
    async with world.pool(connections=1) as pool:
        fetching = asyncio.create_task(blob.fetch(pool))
        await until(lambda: world.observer.counts["throttled"], "the 429")
        await other.fetch(pool)
        assert not fetching.done(), "the throttled origin is still left alone"
        await fetching
    first, *later = [when for when, url in asked if url == URL]
    assert all(when - first >= 0.95 for when in later)
    assert world.observer.pauses == [1.0]
    blob.require_whole()
    other.require_whole()


@pytest.mark.asyncio
async def test_an_origin_that_throttles_to_the_end_is_named_so(world: World) -> None:
    """The error says 429, how often and how long."""
    world.script.rules.append(always(lambda worker, order: worker.fail(order, "status", "answered 429", status=429)))
    async with world.pool(give_up_after_s=0.3) as pool:
        with pytest.raises(OriginThrottled, match=r"piece \d of 3: answered 429; gave up after \d+ failed tries"):
            await world.blob().fetch(pool)


# --- locations


@pytest.mark.asyncio
async def test_an_expired_location_is_asked_for_again_once(world: World) -> None:
    """It worked, then all pieces in flight are refused: one new location serves them all."""
    data = random_bytes(4 * PIECE_SIZE_BYTES)
    blob = world.blob(data)
    locations = [HttpLocation(url=f"{URL}?sig={number}") for number in range(3)]

    async def refuse(worker: ScriptedWorker, order: Work) -> None:
        await until(lambda: blob.reported, "the first piece: the location works")
        await worker.fail(order, "status", "answered 403", status=403)

    def rule(worker: ScriptedWorker, order: Work) -> Any:
        assert isinstance(order, FetchPiece)
        return refuse(worker, order) if order.location == locations[0] and order.index > 0 else None

    async def locate() -> HttpLocation:
        blob.located += 1
        await asyncio.sleep(0.02)  # all refusals arrive meanwhile
        return locations[blob.located - 1]

    world.script.rules.append(rule)
    async with world.pool(connections=3) as pool:
        await pool.fetch(blob.order, locate, blob.on_piece)
    assert blob.located == 2
    blob.require_whole()
    asked = {order.location.url for order in world.script.works(FetchPiece)}
    assert asked == {f"{URL}?sig=0", f"{URL}?sig=1"}


@pytest.mark.asyncio
async def test_a_fresh_location_that_is_refused_is_forbidden(world: World) -> None:
    """Also the second one: asking again for ever would hide that permission was withdrawn."""
    worked: list[int] = []

    def rule(worker: ScriptedWorker, order: Work) -> Any:
        assert isinstance(order, FetchPiece)
        if not worked:
            worked.append(order.index)
            return None
        return worker.fail(order, "status", "answered 403 AccessDenied", status=403)

    world.script.rules.append(rule)
    blob = world.blob()
    async with world.pool(connections=1) as pool:
        with pytest.raises(OriginForbidden, match="answered 403 AccessDenied"):
            await blob.fetch(pool)
    assert blob.located == 2
    blob.require_reported_is_true()


@pytest.mark.asyncio
async def test_a_piece_that_is_always_refused_ends_the_fetch_although_others_get_through(world: World) -> None:
    """New locations that work for everything else don't keep it going for ever."""
    data = random_bytes(8 * PIECE_SIZE_BYTES)
    world.script.rules.append(
        always(lambda worker, order: worker.fail(order, "status", "answered 403", status=403), index=0)
    )
    blob = world.blob(data)
    async with world.pool(connections=2) as pool:
        with pytest.raises(OriginForbidden, match="piece 0 of 8: answered 403"):
            await blob.fetch(pool)
    assert 1 <= blob.located <= 4
    blob.require_reported_is_true()


@pytest.mark.asyncio
async def test_an_error_of_locate_is_the_fetchs(world: World) -> None:
    """At the start and later."""
    blob = world.blob()

    async def gone() -> HttpLocation:
        blob.located += 1
        if blob.located in {1, 3}:
            raise OriginNotFound("deleted")
        return HttpLocation(url=URL)

    world.script.rules.append(always(lambda worker, order: worker.fail(order, "status", "answered 403", status=403)))
    async with world.pool(fresh_location_s=-1.0) as pool:
        for _ in range(2):
            with pytest.raises(OriginNotFound, match="deleted"):
                await pool.fetch(blob.order, gone, blob.on_piece)
    assert blob.located == 3


# --- workers that fail


@pytest.mark.asyncio
async def test_the_orders_of_a_dead_worker_go_to_others(world: World) -> None:
    """One is killed in mid-order; all bytes come, a new worker stands in its place."""
    world.script.rules.append(once(lambda worker, order: worker.die(order)))
    blob = world.blob()
    async with world.pool() as pool:
        await blob.fetch(pool)
        await until(lambda: pool.running_workers == 2, "the new worker")
    blob.require_whole()
    assert world.observer.counts["worker_lost"] == 1
    assert len(world.script.workers) == 3


@pytest.mark.asyncio
async def test_an_order_that_ends_every_worker_fails(world: World) -> None:
    """After three; the others' pieces are on disk; and the pool serves the next call."""
    world.script.rules.append(always(lambda worker, order: worker.die(order), index=1))
    blob = world.blob()
    async with world.pool() as pool:
        with pytest.raises(
            TransferFailed, match=r"piece 1 of 3: 3 transfer workers ended .* transfer worker \d+ ended \(signal 9\)"
        ):
            await blob.fetch(pool)
        blob.require_reported_is_true()
        world.script.rules.clear()
        again = world.blob()
        await again.fetch(pool)
        again.require_whole()


@pytest.mark.asyncio
async def test_a_worker_that_can_not_start_is_an_error_not_a_hang(world: World) -> None:
    """A broken installation is told to whoever asks."""
    async with WorkerPool(QUICK, worker_argv=("/bin/false",)) as pool:
        with pytest.raises(TransferFailed, match=r"3 transfer workers ended .* \(exit code 1\)"):
            await world.blob().fetch(pool)


@pytest.mark.asyncio
async def test_a_worker_that_talks_nonsense_is_ended(world: World) -> None:
    """Its orders go to another one."""

    async def babble(worker: ScriptedWorker, order: Work) -> None:
        worker.send_raw(b"\x00\x00\x00\x02\xc1\xc1")

    world.script.rules.append(once(babble))
    blob = world.blob()
    async with world.pool() as pool:
        await blob.fetch(pool)
    blob.require_whole()
    await until(lambda: not psutil.pid_exists(world.script.orders[0][0].pid), "its end")


@pytest.mark.asyncio
async def test_a_stopped_worker_is_noticed_killed_and_replaced(world: World) -> None:
    """SIGSTOP is how a hang looks: no bytes, no reports, no answer to Cancel. Another worker brings the piece."""

    async def freeze(worker: ScriptedWorker, order: Work) -> None:
        os.kill(worker.pid, signal.SIGSTOP)

    world.script.rules.append(once(freeze))
    blob = world.blob()
    async with world.pool(idle_timeout_s=0.7, answer_limit_s=0.2) as pool:
        await blob.fetch(pool)
    blob.require_whole()
    assert world.observer.counts["worker_lost"] == 1


@pytest.mark.asyncio
async def test_an_order_that_a_living_worker_forgets_is_asked_for_again(world: World) -> None:
    """It is cancelled when it is overdue, answered so, and counted as a time-out."""
    world.script.rules.append(once(lambda worker, order: worker.hold_until_cancelled(order)))
    blob = world.blob()
    async with world.pool(idle_timeout_s=0.7) as pool:
        await blob.fetch(pool)
    blob.require_whole()
    assert world.observer.counts["retry timeout"] == 1
    assert world.observer.counts["worker_lost"] == 0


@pytest.mark.asyncio
async def test_an_order_that_goes_on_slowly_is_left_alone(world: World) -> None:
    """However long it takes, what it has brought is not thrown away; and an origin that gives bytes is not given up
    because no piece is whole. (One that says nothing for so long is taken for hung: see above.)"""

    async def slowly(worker: ScriptedWorker, order: Work) -> None:
        began = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < began + 0.9:
            worker.answer(GoesOn(id=order.id))
            await asyncio.sleep(0.02)
        if world.script.times(order) == 1 and getattr(order, "index", 0) == 2:
            await worker.fail(order, "reset")
        else:
            await worker.deliver(order)

    world.script.rules.append(always(slowly))
    blob = world.blob()
    async with world.pool(idle_timeout_s=0.2, give_up_after_s=0.5) as pool:
        await blob.fetch(pool)
    blob.require_whole()
    assert world.script.cancels == []
    assert world.observer.counts["retry reset"] == 1
    assert world.observer.counts["retry timeout"] == 0


@pytest.mark.asyncio
async def test_a_priority_that_is_raised_before_a_job_is_there_holds_for_it(world: World) -> None:
    """While it is asked where the bytes are, and between two jobs of one call."""
    asking, answer = asyncio.Event(), asyncio.Event()
    hold = asyncio.Event()

    async def held(worker: ScriptedWorker, order: Work) -> None:
        await hold.wait()
        await worker.deliver(order)

    world.script.rules.append(always(held))
    blob = world.blob(claimed={0: piece_hashes(DATA)[0]})

    async def locate() -> Location:
        asking.set()
        await answer.wait()
        return blob.location

    async with world.pool() as pool:
        fetching = asyncio.create_task(pool.fetch(blob.order, locate, blob.on_piece))
        await asking.wait()
        pool.raise_priority([blob.order.blob_id, "another"], 70)
        pool.raise_priority([blob.order.blob_id], 60)
        answer.set()
        await until(lambda: "http" in pool._groups and len(pool._groups["http"]._queue) == 2, "both jobs are there")
        assert [job.priority for job in pool._groups["http"]._queue] == [70, 70]
        hold.set()
        world.script.rules.clear()
        await fetching
        assert pool._urgency == {}
    blob.require_whole()


@pytest.mark.asyncio
async def test_cancelling_waits_until_every_order_is_answered(world: World) -> None:
    """The target is not written to any more when CancelledError arrives; the pool goes on for others."""
    answered: list[int] = []

    async def slow_to_stop(worker: ScriptedWorker, order: Work) -> None:
        await worker.until_cancelled(order)
        await asyncio.sleep(0.2)
        assert isinstance(order, FetchPiece)
        worker.write_piece(order)  # it was in the middle of a write
        answered.append(order.id)
        await worker.fail(order, "cancelled")

    world.script.rules.append(always(slow_to_stop))
    blob = world.blob()
    async with world.pool() as pool:
        fetching = asyncio.create_task(blob.fetch(pool))
        await until(lambda: len(world.script.orders) == 3, "all pieces under way")
        fetching.cancel()
        await asyncio.sleep(0.05)
        fetching.cancel()  # whoever is impatient waits all the same
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert len(answered) == 3
        assert blob.reported == []
        world.script.rules.clear()
        again = world.blob()
        await again.fetch(pool)
    again.require_whole()


@pytest.mark.asyncio
async def test_cancelling_ends_a_worker_that_does_not_answer(world: World) -> None:
    """It is dead when CancelledError arrives, so nobody writes to the target; nothing is abandoned."""
    world.script.rules.append(always(lambda worker, order: worker.never_answer(order)))
    blob = world.blob()
    async with world.pool(answer_limit_s=0.2) as pool:
        fetching = asyncio.create_task(blob.fetch(pool))
        await until(lambda: len(world.script.orders) == 3, "all pieces under way")
        pids = {worker.pid for worker, _ in world.script.orders}
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await fetching
        assert caught.value.__cause__ is None
        assert not any(psutil.pid_exists(pid) for pid in pids)
    assert world.observer.counts["worker_abandoned"] == 0


@pytest.mark.parametrize("by", ["cancel", "overdue"])
@pytest.mark.asyncio
async def test_a_target_that_a_worker_may_still_write_to_is_abandoned(
    world: World, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that not even SIGKILL ends: the error says so, also as the cause of a cancellation; others serve on."""
    monkeypatch.setattr(subprocess.Popen, "send_signal", lambda self, number: None)  # as in state D
    world.script.rules.append(once(lambda worker, order: worker.never_answer(order)))
    blob = world.blob()
    idle_s = 0.7 if by == "overdue" else 30.0
    async with world.pool(workers=1, answer_limit_s=0.1, idle_timeout_s=idle_s) as pool:
        fetching = asyncio.create_task(blob.fetch(pool))
        await until(lambda: len(world.script.orders) == 3, "all pieces under way")
        error: BaseException | None
        if by == "cancel":
            fetching.cancel()
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await fetching
            error = cancelled.value.__cause__
        else:
            with pytest.raises(TargetAbandoned) as caught:
                await fetching
            error = caught.value
        assert isinstance(error, TargetAbandoned)
        assert "hangs in the kernel and may still write" in error.message
        assert world.observer.counts["worker_abandoned"] == 1
        again = world.blob(url="http://origin.test/again.bin")
        await again.fetch(pool)
        again.require_whole()


@pytest.mark.asyncio
async def test_a_mount_that_hangs_takes_only_its_own_workers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two mounted file systems and a web server: three groups of workers; only those of the hung mount are ended."""
    mounts = "1 1 0:1 / / rw - ext4 a rw\n2 1 0:2 / /mnt/hung rw - nfs b rw\n3 1 0:3 / /mnt/good rw - nfs c rw\n"
    monkeypatch.setattr(pool_module, "read_mountinfo", lambda: mounts)
    hung, good = (PathLocation(path=f"/mnt/{name}/m", size_bytes=len(DATA), mtime_ns=1) for name in ("hung", "good"))
    world.script.files |= {hung.path: DATA, good.path: DATA}

    def rule(worker: ScriptedWorker, order: Work) -> Any:
        return worker.never_answer(order) if getattr(order, "location", None) == hung else None

    world.script.rules.append(rule)
    blobs = [world.blob(), Blob(DATA, world.directory / "good", good)]
    stuck = Blob(DATA, world.directory / "hung", hung)
    async with world.pool(idle_timeout_s=0.7, answer_limit_s=0.1, give_up_after_s=0.0) as pool:
        hanging = asyncio.create_task(stuck.fetch(pool))
        await until(lambda: world.script.orders, "the hung mount is read")
        await asyncio.gather(*(blob.fetch(pool) for blob in blobs))
        with pytest.raises(TransferFailed):
            await hanging
    for blob in blobs:
        blob.require_whole()
    pids: dict[str, set[int]] = {}
    for worker, order in world.script.orders:
        assert isinstance(order, FetchPiece)
        pids.setdefault(order.target, set()).add(worker.pid)
    of_web, of_good, of_hung = (pids[blob.order.target] for blob in (*blobs, stuck))
    assert not of_hung & (of_good | of_web)
    assert not of_good & of_web
    assert len(of_good) == len(of_web) == 2, "their workers lived to the end"


@pytest.mark.parametrize(("cpus", "ahead"), [(1, 1), (2, 1), (3, 2), (4, 3), (8, 3)])
@pytest.mark.asyncio
async def test_before_there_is_work_one_cpu_is_left_free(
    world: World, monkeypatch: pytest.MonkeyPatch, cpus: int, ahead: int
) -> None:
    """Workers that start beside the search for what to fetch take its CPU; with the first order, all are there."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    async with world.pool(workers=3) as pool:
        assert pool.running_workers == ahead
        blob = world.blob()
        await blob.fetch(pool)
        blob.require_whole()
        assert pool.running_workers == 3


@pytest.mark.parametrize("listening", [(1,), (0, 1)], ids=["one of two", "the control: both"])
@pytest.mark.asyncio
async def test_a_worker_that_is_still_starting_gets_nothing_while_another_one_can_take_it(
    world: World, listening: tuple[int, ...]
) -> None:
    """What it had would come late, and be asked for a second time."""
    async with world.pool() as pool:
        await world.blob(data=b"short", url="http://origin.test/short.bin").fetch(pool)  # both have started after that
        await until(lambda: len(world.script.workers) == 2, "two workers")
        group = pool._group(HTTP_GROUP)
        for worker in group.workers:
            worker.is_up = False
        for number in listening:
            next(each for each in world.script.workers if each.pid == group.workers[number].pid).answer(Listens())
        await until(lambda: sum(each.is_up for each in group.workers) == len(listening), "what they say is heard")
        blob = world.blob()
        await blob.fetch(pool)
    blob.require_whole()
    asked = {worker.pid for worker, order in world.script.orders if getattr(order, "file_size", 0) == len(DATA)}
    assert len(asked) == len(listening)


@pytest.mark.asyncio
async def test_the_workers_of_an_idle_mount_leave_and_come_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold memory for nothing; those for HTTP stay. Leaving is no loss."""
    monkeypatch.setattr(pool_module, "IDLE_MOUNT_S", 0.1)
    path = PathLocation(path=str(world.directory / "source"), size_bytes=len(DATA), mtime_ns=1)
    world.script.files[path.path] = DATA
    async with world.pool() as pool:
        await world.blob().fetch(pool)
        for number in range(2):
            blob = Blob(DATA, world.directory / f"target{number}", path)
            await blob.fetch(pool)
            blob.require_whole()
            assert pool.running_workers == 4
            await until(lambda: pool.running_workers == 2, "the mount's workers have left")
        await until(lambda: sum(psutil.pid_exists(worker.pid) for worker in world.script.workers) == 2, "their end")
    assert len(world.script.workers) == 6
    assert world.observer.counts["worker_lost"] == 0


@pytest.mark.asyncio
async def test_small_files_of_a_stuck_worker_lose_their_names(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hangs may still write into them: the next try makes new files under those names."""

    async def half(worker: ScriptedWorker, order: Work) -> None:
        assert isinstance(order, FetchSmall)
        worker.write_small(order, 2)
        await worker.never_answer(order)

    orders, contents = small_files(world, 4)
    world.script.rules.append(once(half, of=FetchSmall))
    results: list[SmallResult] = []
    async with world.pool(connections=1, answer_limit_s=0.1) as pool:
        fetching = asyncio.create_task(pool.fetch_small(orders, "https", results.extend))
        await until((world.directory / "s1").exists, "two files")
        with monkeypatch.context() as patched:
            patched.setattr(subprocess.Popen, "send_signal", lambda self, number: None)
            fetching.cancel()
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await fetching
        assert isinstance(cancelled.value.__cause__, TargetAbandoned)
        assert not any((world.directory / name).exists() for name in contents)
        await pool.fetch_small(orders, "https", results.extend)
    assert all((world.directory / name).read_bytes() == content for name, content in contents.items())


@pytest.mark.asyncio
async def test_what_a_killed_agent_left_of_a_race_is_removed(world: World) -> None:
    """A scratch file beside the target goes at the next fetch; what is not ours stays."""
    blob = world.blob()
    stray, other = (Path(f"{blob.target}{suffix}") for suffix in (".hedge-7", ".journal"))
    stray.write_bytes(b"half")
    other.write_bytes(b"claims")
    async with world.pool() as pool:
        await blob.fetch(pool)
    assert not stray.exists()
    assert other.read_bytes() == b"claims"


# --- hedging


def season(pool: WorkerPool, url: str = "http://origin.test") -> None:
    """As if many pieces had come from there, each in a hundredth of a second."""
    for _ in range(64):
        pool._origin(url).hedging.arrived(PIECE_SIZE_BYTES, 0.01)


def is_hedge(order: Work) -> bool:
    return isinstance(order, FetchPiece) and ".hedge-" in order.target


@pytest.mark.asyncio
async def test_a_hedge_that_wins_is_copied_after_the_first_has_answered(world: World) -> None:
    """The first, cancelled, still scribbles over its range before it answers: the copy comes after it."""
    events: list[str] = []

    async def scribble(worker: ScriptedWorker, order: Work) -> None:
        assert isinstance(order, FetchPiece)
        await worker.until_cancelled(order)
        await asyncio.sleep(0.3)
        with open(order.target, "r+b") as target:
            target.seek(order.offset)
            target.write(b"\xff" * order.length)
        events.append("first answered")
        await worker.fail(order, "cancelled")

    world.script.rules.append(once(scribble, index=1))
    blob = world.blob(checksums=(Checksum(algorithm="crc32", value=crc(DATA)),))
    async with world.pool() as pool:
        season(pool)
        hashes = await blob.fetch(pool)
    assert events == ["first answered"]
    assert hashes.verified_by == ("crc32",)
    blob.require_whole()
    (hedge,) = [order for order in world.script.works(FetchPiece) if is_hedge(order)]
    assert hedge.target == f"{blob.target}.hedge-1"
    assert (hedge.offset, hedge.write_at) == (PIECE_SIZE_BYTES, 0)
    first, second = (worker for worker, order in world.script.orders if getattr(order, "index", 0) == 1)
    assert first is not second
    assert world.observer.counts["hedge won"] == 1


@pytest.mark.asyncio
async def test_a_hedge_that_loses_is_cancelled_and_removed(world: World) -> None:
    """The first comes in the end; the second is cancelled, its scratch file is gone, its bytes are nowhere."""
    hedged = asyncio.Event()

    async def late(worker: ScriptedWorker, order: Work) -> None:
        await hedged.wait()
        await worker.deliver(order)

    async def second(worker: ScriptedWorker, order: Work) -> None:
        hedged.set()
        await worker.hold_until_cancelled(order)

    world.script.rules += [
        lambda worker, order: second(worker, order) if is_hedge(order) else None,
        once(late, index=1),
    ]
    blob = world.blob()
    async with world.pool() as pool:
        season(pool)
        await blob.fetch(pool)
    blob.require_whole()
    assert world.observer.counts["hedge lost"] == 1
    assert len(world.script.cancels) == 1


@pytest.mark.asyncio
async def test_both_may_fail_and_the_piece_is_tried_again(world: World) -> None:
    """The first's failure is the one that counts; nothing of the hedge is left."""

    def rule(worker: ScriptedWorker, order: Work) -> Any:
        if is_hedge(order):
            return worker.fail(order, "reset")
        if getattr(order, "index", 0) == 1 and world.script.times(order) == 1:
            return late_failure(worker, order)
        return None

    async def late_failure(worker: ScriptedWorker, order: Work) -> None:
        await until(lambda: any(is_hedge(order) for _, order in world.script.orders), "the hedge")
        await worker.fail(order, "timeout")

    world.script.rules.append(rule)
    blob = world.blob()
    async with world.pool() as pool:
        season(pool)
        await blob.fetch(pool)
    blob.require_whole()
    assert world.observer.counts["hedge lost"] == 1
    assert world.observer.counts["retry timeout"] == 1


@pytest.mark.asyncio
async def test_a_first_worker_that_hangs_is_dead_before_the_hedge_is_copied(world: World) -> None:
    """It does not answer its Cancel: it is killed, and only then is the target written by us."""
    world.script.rules.append(once(lambda worker, order: worker.never_answer(order), index=1))
    blob = world.blob()
    async with world.pool(answer_limit_s=0.2) as pool:
        season(pool)
        await blob.fetch(pool)
        first = next(worker for worker, order in world.script.orders if getattr(order, "index", 0) == 1)
        assert not psutil.pid_exists(first.pid)
    blob.require_whole()
    assert world.observer.counts["hedge won"] == 1


@pytest.mark.asyncio
async def test_a_first_worker_that_can_not_be_ended_keeps_the_hedge_from_the_target(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a winning hedge may write where somebody else still might: the target is abandoned."""
    monkeypatch.setattr(subprocess.Popen, "send_signal", lambda self, number: None)
    world.script.rules.append(once(lambda worker, order: worker.never_answer(order), index=1))
    blob = world.blob()
    async with world.pool(answer_limit_s=0.1) as pool:
        season(pool)
        with pytest.raises(TargetAbandoned, match="may still write"):
            await blob.fetch(pool)
    assert 1 not in blob.indexes("fetched")
    blob.require_reported_is_true()


@pytest.mark.asyncio
async def test_cancelling_in_mid_race_stops_both(world: World) -> None:
    """Both workers have answered and the scratch file is gone when CancelledError arrives."""
    world.script.rules.append(always(lambda worker, order: worker.hold_until_cancelled(order), index=1))
    blob = world.blob()
    async with world.pool() as pool:
        season(pool)
        fetching = asyncio.create_task(blob.fetch(pool))
        await until(lambda: any(is_hedge(order) for _, order in world.script.orders), "the hedge")
        assert (world.directory / f"{blob.target.name}.hedge-1").exists()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert pool.connections_in_use == 0
    assert len(world.script.cancels) == 2
    blob.require_reported_is_true()


@pytest.mark.asyncio
async def test_a_hedge_whose_worker_dies_costs_nothing(world: World) -> None:
    """The first is waited for."""
    died = asyncio.Event()

    async def die(worker: ScriptedWorker, order: Work) -> None:
        worker.kill()
        died.set()

    async def late(worker: ScriptedWorker, order: Work) -> None:
        await died.wait()
        await worker.deliver(order)

    world.script.rules += [lambda worker, order: die(worker, order) if is_hedge(order) else None, once(late, index=1)]
    blob = world.blob()
    async with world.pool() as pool:
        season(pool)
        await blob.fetch(pool)
    blob.require_whole()


# --- order, limits, end


@pytest.mark.asyncio
async def test_a_waiting_pod_overtakes_background_work(world: World) -> None:
    """With one connection: after the piece under way come all pieces of the urgent file, then the rest."""
    gate = asyncio.Event()

    async def wait(worker: ScriptedWorker, order: Work) -> None:
        await gate.wait()
        await worker.deliver(order)

    world.script.rules.append(once(wait))
    background = world.blob(url="http://origin.test/background")
    urgent = world.blob(url="http://origin.test/urgent", priority=100)
    async with world.pool(connections=1) as pool:
        first = asyncio.create_task(background.fetch(pool))
        await until(lambda: world.script.orders, "the background's first piece")
        second = asyncio.create_task(urgent.fetch(pool))
        await until(lambda: len(pool._groups["http"]._queue) == 2, "the urgent one waits its turn")
        gate.set()
        await asyncio.gather(first, second)
    asked = [(Path(order.target).name, order.index) for order in world.script.works(FetchPiece)]
    assert asked == [
        ("background.part", 0),
        *(("urgent.part", index) for index in range(3)),
        *(("background.part", index) for index in (1, 2)),
    ]


@pytest.mark.asyncio
async def test_a_stream_in_the_way_of_something_urgent_is_taken_back_and_goes_on_later(world: World) -> None:
    """It would last a whole file: it is cancelled, the urgent file comes, and the stream claims what it had."""

    async def half(worker: ScriptedWorker, order: Work) -> None:
        assert isinstance(order, FetchStream)
        worker.deliver_part(order, 0)
        await worker.hold_until_cancelled(order)

    world.script.rules.append(once(half, of=FetchStream))
    sha = Checksum(algorithm="sha256", value=hashlib.sha256(DATA).hexdigest())
    background = world.blob(url="http://origin.test/background", checksums=(sha,))
    urgent = world.blob(url="http://origin.test/urgent", priority=100)
    async with world.pool(connections=2) as pool:
        first = asyncio.create_task(background.fetch(pool))
        await until(lambda: background.reported, "the stream's first piece")
        await urgent.fetch(pool)
        await first
    urgent.require_whole()
    background.require_whole()
    assert [sorted(order.claimed) for order in world.script.works(FetchStream)] == [[], [0]]
    assert not [name for name in world.observer.counts if name.startswith("retry")]


@pytest.mark.asyncio
async def test_a_raised_priority_counts_for_what_waits_and_for_what_is_under_way(world: World) -> None:
    """Background work that somebody now waits for overtakes, and is not taken back for something less urgent."""
    gate = asyncio.Event()

    async def wait(worker: ScriptedWorker, order: Work) -> None:
        assert isinstance(order, FetchStream)
        worker.deliver_part(order, 0)
        await gate.wait()
        await worker.deliver(order)

    world.script.rules.append(once(wait, of=FetchStream))
    sha = Checksum(algorithm="sha256", value=hashlib.sha256(DATA).hexdigest())
    stream = world.blob(url="http://origin.test/stream", checksums=(sha,))
    others = [world.blob(url=f"http://origin.test/{name}", priority=50) for name in ("first", "raised")]
    async with world.pool(connections=1) as pool:
        fetching = [asyncio.create_task(stream.fetch(pool))]
        await until(lambda: stream.reported, "the stream is under way")
        pool.raise_priority([stream.order.blob_id], 100)
        fetching += [asyncio.create_task(blob.fetch(pool)) for blob in others]
        group = pool._groups["http"]
        await until(lambda: len(group._queue) == 3, "all are known")
        pool.raise_priority([others[1].order.blob_id], 60)
        ticked_at = group._ticked_at
        await until(lambda: group._ticked_at > ticked_at + 0.1, "it was looked at who is in the way")
        assert world.script.cancels == []
        gate.set()
        await asyncio.gather(*fetching)
    names = [Path(order.target).name for order in world.script.works(FetchPiece)]
    assert names == ["raised.part"] * 3 + ["first.part"] * 3
    for blob in (stream, *others):
        blob.require_whole()


@pytest.mark.asyncio
async def test_never_more_requests_than_connections(world: World) -> None:
    """Over all files of one origin together; another origin has its own."""
    running: dict[str, int] = {}
    most: dict[str, int] = {}

    async def watched(worker: ScriptedWorker, order: Work) -> None:
        assert isinstance(order, FetchPiece)
        assert isinstance(order.location, HttpLocation)
        host = order.location.url.split("/")[2]
        running[host] = running.get(host, 0) + 1
        most[host] = max(most.get(host, 0), running[host])
        await asyncio.sleep(0.02)
        running[host] -= 1
        await worker.deliver(order)

    world.script.rules.append(always(watched))
    urls = [f"http://{host}/{host}-{name}" for host in ("one.test", "two.test") for name in "ab"]
    blobs = [world.blob(url=url) for url in urls]
    async with world.pool(connections=3) as pool:
        await asyncio.gather(*(blob.fetch(pool) for blob in blobs))
        assert pool.connections_in_use == 0
    assert most == {"one.test": 3, "two.test": 3}
    for blob in blobs:
        blob.require_whole()


@pytest.mark.parametrize("checksums", [(), (Checksum(algorithm="sha256", value=hashlib.sha256(DATA).hexdigest()),)])
@pytest.mark.asyncio
async def test_an_error_of_on_piece_ends_the_fetch(world: World, checksums: tuple[Checksum, ...]) -> None:
    """A journal that can't be written is told to whoever asked; pieces or stream."""

    def full(*_: object) -> None:
        raise DiskFault("journal: No space left on device")

    blob = world.blob(checksums=checksums)
    async with world.pool() as pool:
        with pytest.raises(DiskFault, match="journal: No space left"):
            await pool.fetch(blob.order, blob.locate, full)
        await blob.fetch(pool)
    blob.require_whole()


@pytest.mark.asyncio
async def test_closing_ends_calls_and_workers(world: World) -> None:
    """Whatever they do: one listens, one is stopped. Calls fail with a sentence; closing again does nothing."""
    world.script.rules.append(always(lambda worker, order: worker.never_answer(order)))
    blob = world.blob()
    pool = world.pool()
    async with pool:
        fetching = asyncio.create_task(blob.fetch(pool))
        await until(lambda: len(world.script.orders) == 3, "all pieces under way")
        pids = [worker.pid for worker in world.script.workers]
        os.kill(pids[0], signal.SIGSTOP)
        await pool.close()
        with pytest.raises(TransferFailed, match="the worker pool is closed"):
            await fetching
        await pool.close()
        with pytest.raises(TransferFailed, match="the worker pool is closed"):
            await blob.fetch(pool)
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    blob.require_reported_is_true()
