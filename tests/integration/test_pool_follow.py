"""Files with a serial hash whose pieces come from elsewhere: hashed as they come, by real workers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from blake3 import blake3

from cacheagent.checksum import CRCS
from cacheagent.errors import ChecksumMismatch, TransferFailed
from cacheagent.model import PIECE_SIZE_BYTES, Checksum, FileHashes, piece_count, piece_range
from cacheagent.transfer.base import PieceSink
from cacheagent.transfer.blob import Pieces
from cacheagent.transfer.concurrency import FixedLimit
from cacheagent.transfer.job import Setting
from cacheagent.transfer.observer import TransferObserver
from cacheagent.transfer.orders import PieceHash, Segment
from cacheagent.transfer.origin import Origin as Remote
from cacheagent.transfer.pool import FOLLOWED_PER_WORKER, TransferConfig, WorkerPool
from cacheagent.transfer.process import Worker
from cacheagent.transfer.remote_file import FollowJob
from cacheagent.transfer.retry import WORKER_TRIES
from cacheagent.transfer.whereabouts import Located
from tests.fakes.origin import Origin
from tests.fakes.transfer import Blob, piece_hashes, random_bytes, until

pytestmark = pytest.mark.asyncio
DATA = random_bytes(4 * PIECE_SIZE_BYTES + 4321, seed=7)
COUNT = piece_count(len(DATA))
SHA256 = Checksum(algorithm="sha256", value=hashlib.sha256(DATA).hexdigest())
QUICK = TransferConfig(workers=2, connections=4, tick_s=0.1)
MOST = FOLLOWED_PER_WORKER * QUICK.workers


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pieces that went through a hash while others were still missing, of whichever file, as they did."""
    found: list[int] = []
    take_part = FollowJob._take_part

    def note(self: FollowJob, flight: object, part: object) -> None:
        found.append(part.piece.index)  # type: ignore[attr-defined]
        take_part(self, flight, part)  # type: ignore[arg-type]

    monkeypatch.setattr(FollowJob, "_take_part", note)
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """Who was asked to follow, one after the other."""
    found: list[Worker] = []
    order_of = FollowJob.order_of

    def note(self: FollowJob, flight: object) -> object:
        found.append(flight.worker)  # type: ignore[attr-defined]
        return order_of(self, flight)  # type: ignore[arg-type]

    monkeypatch.setattr(FollowJob, "order_of", note)
    return found


class Elsewhere:
    """A Share, and the one who brings: what a test puts."""

    def __init__(self, blob: Blob) -> None:
        self.missing: Sequence[int] = ()
        self.is_over = False
        self._blob = blob
        self._sink: PieceSink | None = None

    def begin(self, sink: PieceSink, missing: Sequence[int]) -> None:
        self._sink, self.missing = sink, missing

    def came(self, index: int, length: int) -> None:
        pass

    async def end(self) -> None:
        self.is_over = True

    def put(self, *indexes: int) -> None:
        """Write them, as they are or as the blob's data are now, and say so."""
        assert self._sink is not None
        for index in indexes:
            offset, length = piece_range(len(self._blob.data), index)
            data = self._blob.data[offset : offset + length]
            with self._blob.target.open("r+b") as file:
                file.seek(offset)
                file.write(data)
            crcs = {name: CRCS[name].update(data, 0) for name in ("crc64nvme",)}
            segment = Segment(offset=offset, length=length, crcs=crcs)
            self._sink.put(PieceHash(index=index, length=length, blake3=blake3(data).hexdigest(), segments=(segment,)))


class Call:
    """One file on its way."""

    def __init__(
        self, pool: WorkerPool, origin: Origin, target: Path, *, claimed: dict[int, str] | None = None
    ) -> None:
        self.blob = Blob(DATA, target, f"{origin.url}/{target.name}", checksums=(SHA256,), claimed=claimed)
        self.share = Elsewhere(self.blob)
        self._pool = pool
        self.task = asyncio.create_task(self._fetch())

    async def _fetch(self) -> FileHashes:
        return await self._pool.fetch(self.blob.order, self.blob.locate, self.blob.on_piece, self.share)

    async def begun(self) -> Elsewhere:
        """Once pieces may be put."""
        await until(lambda: self.share.missing, "the file is to be brought")
        return self.share

    async def require_whole(self) -> None:
        """It ended well."""
        hashes = await self.task
        assert hashes.pieces == piece_hashes(DATA)
        assert hashes.whole["sha256"] == SHA256.value
        assert hashes.verified_by == ("sha256",)
        assert self.share.is_over
        self.blob.require_whole()


async def test_a_file_is_hashed_while_its_last_piece_is_still_missing(
    origin: Origin, tmp_path: Path, hashed: list[int]
) -> None:
    """In file order, whatever order they come in; nothing is asked of the origin."""
    async with WorkerPool(QUICK) as pool:
        call = Call(pool, origin, tmp_path / "a")
        share = await call.begun()
        share.put(3, 1, 0)
        await until(lambda: hashed == [0, 1], "what is here in a row goes through the hash")
        share.put(2)
        await until(lambda: hashed == [0, 1, 2, 3], "and what follows it")
        assert not call.task.done()
        share.put(4)
        await call.require_whole()
        assert hashed == list(range(COUNT))
    assert origin.requests == []


async def test_a_file_whose_turn_has_not_come_is_hashed_when_it_is_complete(
    origin: Origin, tmp_path: Path, hashed: list[int]
) -> None:
    """Workers hash as many files as they may as they come, whose pieces are late: one more does not wait for them."""
    async with WorkerPool(QUICK) as pool:
        late = [Call(pool, origin, tmp_path / f"late-{number}") for number in range(MOST)]
        shares = [await call.begun() for call in late]
        for share in shares:
            share.put(0)
        await until(lambda: hashed == [0] * MOST, "all of them have begun")
        more = Call(pool, origin, tmp_path / "one-more")
        (await more.begun()).put(*range(COUNT))
        await more.require_whole()
        assert hashed == [0] * MOST
        for share in shares:
            share.put(*range(1, COUNT))
        for call in late:
            await call.require_whole()
        assert len(hashed) == MOST * COUNT
        again = Call(pool, origin, tmp_path / "again")
        (await again.begun()).put(0)
        await until(lambda: len(hashed) == MOST * COUNT + 1, "there is room for one more")
        again.share.put(*range(1, COUNT))
        await again.require_whole()
        assert pool.connections_in_use == 0
    assert origin.requests == []


async def test_what_a_journal_claims_is_hashed_once_it_is_proved(
    origin: Origin, tmp_path: Path, hashed: list[int]
) -> None:
    """One claim is wrong: that piece comes from elsewhere, or from the origin where it is wanted of it."""
    origin.put("a", DATA)
    (tmp_path / "a").write_bytes(DATA[: 2 * PIECE_SIZE_BYTES - 1].ljust(len(DATA), b"\0"))
    async with WorkerPool(QUICK) as pool:
        call = Call(pool, origin, tmp_path / "a", claimed=dict(enumerate(piece_hashes(DATA)[:2])))
        share = await call.begun()
        assert list(share.missing) == [2, 3, 4]
        await until(lambda: len(call.blob.reported) == 2, "one is proved, and one has come from the origin")
        assert call.blob.indexes("kept") == [0]
        assert call.blob.indexes("fetched") == [1]
        await until(lambda: hashed == [0, 1], "both go through the hash")
        share.put(2, 3, 4)
        await call.require_whole()


async def test_a_file_that_is_not_what_the_origin_says_fails(origin: Origin, tmp_path: Path, hashed: list[int]) -> None:
    """Each piece is what it was said to be, and the whole is not: the next try, with right ones, is the control."""
    async with WorkerPool(QUICK) as pool:
        call = Call(pool, origin, tmp_path / "a")
        share = await call.begun()
        share.put(0, 1)
        call.blob.data = bytes([DATA[0] ^ 1]) * len(DATA)
        share.put(2, 3, 4)
        with pytest.raises(ChecksumMismatch, match="sha256"):
            await call.task
        assert share.is_over
        assert hashed == list(range(COUNT))
        control = Call(pool, origin, tmp_path / "b")
        (await control.begun()).put(*range(COUNT))
        await control.require_whole()


async def test_a_call_that_is_cancelled_leaves_nothing_behind(
    origin: Origin, tmp_path: Path, hashed: list[int]
) -> None:
    """While its hash waits for a piece: whoever follows is stopped, and there is room for the next ones."""
    async with WorkerPool(QUICK) as pool:
        calls = [Call(pool, origin, tmp_path / f"{number}") for number in range(MOST)]
        for call in calls:
            (await call.begun()).put(0)
        await until(lambda: hashed == [0] * MOST, "all of them have begun")
        for call in calls:
            call.task.cancel()
        outcomes = await asyncio.gather(*(call.task for call in calls), return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        again = Call(pool, origin, tmp_path / "c")
        share = await again.begun()
        share.put(0)
        await until(lambda: hashed == [0] * (MOST + 1), "the next one is followed")
        share.put(*range(1, COUNT))
        await again.require_whole()


async def test_a_worker_that_dies_takes_no_file_with_it(
    origin: Origin, tmp_path: Path, hashed: list[int], asked: list[Worker]
) -> None:
    """Another one begins the hash again with what is here."""
    async with WorkerPool(QUICK) as pool:
        call = Call(pool, origin, tmp_path / "a")
        share = await call.begun()
        share.put(0, 1)
        await until(lambda: hashed == [0, 1], "they are hashed")
        os.kill(asked[0].pid, signal.SIGKILL)
        await until(lambda: hashed == [0, 1, 0, 1], "and once more by another worker")
        assert asked[1] is not asked[0]
        share.put(2, 3, 4)
        await call.require_whole()


async def test_whatever_goes_wrong_with_following_the_file_comes(
    origin: Origin, tmp_path: Path, hashed: list[int], asked: list[Worker]
) -> None:
    """Workers die under it until it is given up: the file is read when it is complete."""
    async with WorkerPool(QUICK) as pool:
        call = Call(pool, origin, tmp_path / "a")
        share = await call.begun()
        share.put(0)
        for tries in range(1, WORKER_TRIES + 1):
            await until(partial(_is_long, hashed, tries), "somebody follows")
            os.kill(asked[-1].pid, signal.SIGKILL)
            await asked[-1].ended.wait()
        share.put(1, 2, 3, 4)
        await call.require_whole()
        assert len(asked) == WORKER_TRIES
        assert hashed == [0] * WORKER_TRIES
    assert origin.requests == []


async def test_what_the_disk_has_lost_is_fetched_in_the_end(origin: Origin, tmp_path: Path, hashed: list[int]) -> None:
    """Who follows finds out and ends; what else comes is not lost for that."""
    origin.put("a", DATA)
    async with WorkerPool(QUICK) as pool:
        call = Call(pool, origin, tmp_path / "a")
        share = await call.begun()
        share.put(1)
        with (tmp_path / "a").open("r+b") as file:
            file.seek(PIECE_SIZE_BYTES)
            file.write(bytes(1000))
        share.put(0)
        await until(lambda: hashed == [0], "the first one is hashed")
        share.put(2, 3, 4)
        await call.require_whole()
    assert hashed == [0]
    assert len(origin.requests_for("a")) == 1
    assert origin.body_bytes_sent("a") == PIECE_SIZE_BYTES


async def test_a_complete_file_does_not_wait_for_its_turn_again(origin: Origin, tmp_path: Path) -> None:
    """Something urgent has taken its place: it is given to whoever reads whole files. An incomplete one waits."""
    for have in (COUNT, COUNT - 1):
        blob = Blob(DATA, tmp_path / f"{have}", f"{origin.url}/a", checksums=(SHA256,))
        pieces = Pieces(blob.order, blob.on_piece)
        for index, digest in list(enumerate(piece_hashes(DATA)))[:have]:
            _, length = piece_range(len(DATA), index)
            pieces.add(PieceHash(index=index, length=length, blake3=digest), "peer")
        outcome = asyncio.get_running_loop().create_future()
        places = Remote(FixedLimit(1), QUICK, random.Random(1), brings=False)
        located = Located(location=await blob.locate(), asked_at=0.0)
        job = FollowJob(Setting(config=QUICK, observer=TransferObserver()), places, located, pieces, outcome)
        before, unit, after = job.has_begun, job.take(1), job.has_begun
        assert (before, after, outcome.done()) == (False, True, False)
        job.put_back(unit)
        assert outcome.done() is (have == COUNT)
        assert job.whole == {}


async def test_closing_the_pool_ends_who_waits(origin: Origin, tmp_path: Path, hashed: list[int]) -> None:
    """Within the seconds that closing may take."""
    pool = WorkerPool(QUICK)
    await pool.__aenter__()
    call = Call(pool, origin, tmp_path / "a")
    (await call.begun()).put(0)
    await until(lambda: hashed == [0], "it is followed")
    await pool.close()
    with pytest.raises(TransferFailed, match="closed"):
        await call.task


def _is_long(found: list[int], length: int) -> bool:
    return len(found) == length
