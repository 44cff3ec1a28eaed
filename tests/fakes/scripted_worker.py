"""Workers whose every answer a test decides; each is a real process that can be killed or stopped.

    async with scripted({"http://o/a": data}, tmp_path) as script:
        script.rules.append(lambda worker, order: worker.fail(order, "reset") if script.times(order) == 1 else None)
        async with WorkerPool(config, worker_argv=script.argv) as pool: ...

A rule is asked for every order, in the order of the list; the first that returns an awaitable plays it. Otherwise the
order is carried out as it should be, from `files` (by URL or path). A Cancel is answered at once unless a rule is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from blake3 import blake3

from cacheagent.checksum import CRCS, SerialHashes
from cacheagent.location import HttpLocation, PathLocation
from cacheagent.model import piece_count, piece_range
from cacheagent.transfer.orders import (
    Cancel,
    Claims,
    Failed,
    FailureKind,
    FetchPiece,
    FetchSmall,
    FetchStream,
    Order,
    Part,
    PieceDone,
    PieceHash,
    Rehash,
    RehashDone,
    Report,
    Segment,
    SmallDone,
    SmallFile,
    StreamDone,
    StreamPiece,
)
from cacheagent.transfer.wire import FrameReader, frame

RELAY = Path(__file__).with_name("relay_worker.py")

Work = FetchPiece | FetchSmall | FetchStream | Rehash
Rule = Callable[["ScriptedWorker", Work], Awaitable[None] | None]


class ScriptedWorker:
    """One relay process and what it was told."""

    def __init__(self, script: Script, pid: int, number: int, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.number = number
        self.orders: list[Work] = []
        self._script = script
        self._writer = writer
        self._cancels: dict[int, asyncio.Event] = {}
        self._answered: set[int] = set()

    def answer(self, report: Report) -> None:
        """Send a report; a final one only once."""
        if not isinstance(report, Part):
            if report.id in self._answered:
                return
            self._answered.add(report.id)
        self._writer.write(frame(report))

    def send_raw(self, data: bytes) -> None:
        """Bytes that need not be a frame."""
        self._writer.write(data)

    async def fail(self, order: Work, kind: FailureKind, message: str = "", **details: Any) -> None:
        """Answer with a failure."""
        self.answer(Failed(id=order.id, kind=kind, message=message or f"scripted {kind}", **details))

    async def until_cancelled(self, order: Work) -> None:
        """Wait for the pool's Cancel."""
        await self._cancel_of(order.id).wait()

    async def hold_until_cancelled(self, order: Work) -> None:
        """Do nothing until then, and say so."""
        await self.until_cancelled(order)
        await self.fail(order, "cancelled")

    async def never_answer(self, order: Work) -> None:
        """Not even a Cancel."""
        await asyncio.Event().wait()

    def kill(self) -> None:
        """As the kernel does when memory runs out."""
        os.kill(self.pid, signal.SIGKILL)

    async def die(self, order: Work) -> None:
        """End without an answer."""
        self.kill()

    async def deliver(self, order: Work) -> None:
        """Carry it out as it should be."""
        match order:
            case FetchPiece():
                self.answer(PieceDone(id=order.id, piece=self.write_piece(order), seconds=0.01, first_byte_s=0.001))
            case Rehash():
                pieces = tuple(_hash_at_rest(order.target, order, index) for index in order.indexes)
                self.answer(RehashDone(id=order.id, pieces=pieces))
            case FetchSmall():
                self.answer(SmallDone(id=order.id, files=tuple(self.write_small(order, len(order.items)))))
            case FetchStream():
                self._deliver_stream(order)

    def write_piece(self, order: FetchPiece) -> PieceHash:
        """Put the right bytes where the order says."""
        content = self._script.content(order.location)[order.offset : order.offset + order.length]
        with open(order.target, "r+b") as target:
            target.seek(order.write_at)
            target.write(content)
        return hash_piece(content, order.index, order.offset, order)

    def write_small(self, order: FetchSmall, count: int) -> list[SmallFile]:
        """The first `count` files of a batch."""
        files = []
        for item in order.items[:count]:
            content = self._script.content(item.location)
            Path(item.target).write_bytes(content)
            files.append(SmallFile(blob_id=item.blob_id, blake3=blake3(content).hexdigest()))
        return files

    def deliver_part(self, order: FetchStream, index: int) -> bytes:
        """One piece of a stream, claimed or fetched. Returns its bytes."""
        offset, length = piece_range(order.file_size, index)
        content = self._script.content(order.location)[offset : offset + length]
        piece = hash_piece(content, index, offset, order)
        at_rest = _hash_at_rest(order.target, order, index)
        kept = order.claimed.get(index) == at_rest.blake3 == piece.blake3
        if not kept:
            with open(order.target, "r+b") as target:
                target.seek(offset)
                target.write(content)
        self.answer(StreamPiece(id=order.id, piece=piece, fetched=not kept))
        return content

    def _deliver_stream(self, order: FetchStream) -> None:
        hashes = SerialHashes(order.checksums, order.file_size)
        for index in range(piece_count(order.file_size)):
            hashes.update(memoryview(self.deliver_part(order, index)))
        self.answer(StreamDone(id=order.id, whole=hashes.digests(), verified_by=hashes.check("scripted")))

    def _cancel_of(self, order_id: int) -> asyncio.Event:
        return self._cancels.setdefault(order_id, asyncio.Event())

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Until the process ends."""
        frames: FrameReader[Order] = FrameReader(Order)
        playing: dict[int, asyncio.Task[None]] = {}
        try:
            while data := await reader.read(65536):
                for order in frames.feed(data):
                    if isinstance(order, Cancel):
                        self._script.cancels.append(order.id)
                        self._cancel_of(order.id).set()
                    else:
                        assert not isinstance(order, Claims), "what follows a share is tested with real workers"
                        self.orders.append(order)
                        self._script.note(self, order)
                        playing[order.id] = asyncio.create_task(self._play(order))
        except ConnectionError:
            pass
        finally:
            for task in playing.values():
                task.cancel()
            await asyncio.gather(*playing.values(), return_exceptions=True)

    async def _play(self, order: Work) -> None:
        for rule in self._script.rules:
            played = rule(self, order)
            if played is not None:
                await played
                return
        await self.deliver(order)


class Script:
    """What the workers of one pool do, and what they were asked."""

    def __init__(self, files: Mapping[str, bytes], control: Path) -> None:
        self.files = dict(files)
        self.rules: list[Rule] = []
        self.workers: list[ScriptedWorker] = []
        self.orders: list[tuple[ScriptedWorker, Work]] = []
        self.cancels: list[int] = []
        self.argv = (sys.executable, "-I", "-S", str(RELAY), str(control))
        self._asked: Counter[object] = Counter()
        self._changed = asyncio.Condition()

    def times(self, order: Work) -> int:
        """How often the same thing has been asked for, this time included."""
        return self._asked[_subject(order)]

    def works(self, of: type[Work]) -> list[Any]:
        """All orders of one kind, in the order in which they came."""
        return [order for _, order in self.orders if isinstance(order, of)]

    def content(self, location: HttpLocation | PathLocation) -> bytes:
        """What is at a location (a URL's query does not matter)."""
        key = location.url.partition("?")[0] if isinstance(location, HttpLocation) else location.path
        return self.files[key]

    def note(self, worker: ScriptedWorker, order: Work) -> None:
        self.orders.append((worker, order))
        self._asked[_subject(order)] += 1

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        worker = ScriptedWorker(self, int(await reader.readline()), len(self.workers), writer)
        self.workers.append(worker)
        try:
            await worker.serve(reader)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def scripted(files: Mapping[str, bytes], directory: Path) -> AsyncIterator[Script]:
    """Start the pool inside, with `worker_argv=script.argv`."""
    control = directory / "control.sock"
    script = Script(files, control)
    serving: set[asyncio.Task[None]] = set()

    def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(script.accept(reader, writer))
        serving.add(task)

    server = await asyncio.start_unix_server(on_connect, control)
    try:
        yield script
    finally:
        server.close()
        await server.wait_closed()
        for task in serving:
            task.cancel()
        for outcome in await asyncio.gather(*serving, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


def hash_piece(content: bytes, index: int, offset: int, order: FetchPiece | FetchStream | Rehash) -> PieceHash:
    """BLAKE3 and CRC segments, cut as the order says."""
    bounds = [offset, *(cut for cut in order.cuts if offset < cut < offset + len(content)), offset + len(content)]
    segments = tuple(
        Segment(
            offset=start,
            length=end - start,
            crcs={name: CRCS[name].update(content[start - offset : end - offset], 0) for name in order.crcs},
        )
        for start, end in pairwise(bounds)
    )
    return PieceHash(index=index, length=len(content), blake3=blake3(content).hexdigest(), segments=segments)


def _hash_at_rest(target: str, order: FetchStream | Rehash, index: int) -> PieceHash:
    offset, length = piece_range(order.file_size, index)
    with open(target, "rb") as file:
        file.seek(offset)
        return hash_piece(file.read(length), index, offset, order)


def _subject(order: Work) -> object:
    """What an order is about, whoever asks and how often."""
    match order:
        case FetchPiece():
            return ("piece", order.target, order.index)
        case FetchStream():
            return ("stream", order.target)
        case Rehash():
            return ("rehash", order.target, order.indexes)
        case FetchSmall():
            return ("small", order.items[0].blob_id)
