"""One file whose own hash is serial (SHA-1, SHA-256): received by several threads, hashed in file order.

Lanes take spans in file order, receive them side by side into their own memory, write them, and then wait for their
turn to hash. So at most one span for each lane is ahead of the hash, and the first piece is on disk as early as
without a hash. There are two turnstiles, one behind the other, because SHA-256 (0.7 CPU-s/GB) and BLAKE3 with its
bookkeeping (0.2) may work on different spans at the same time.

A piece that a journal claims is read back, put through the same hash, and fetched if it turns out to be wrong: the
serial hash then goes on from a copy made before it. A stream that follows writes nothing: it reads what comes from
elsewhere as soon as it is claimed, so that little is left to hash when the last piece is here, and ends at a wrong
claim.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from blake3 import blake3

from cacheagent.checksum import SerialHashes
from cacheagent.errors import ChecksumMismatch
from cacheagent.model import MIB, PIECE_SIZE_BYTES, piece_range
from cacheagent.transfer.disk import Buffer, DirectFile
from cacheagent.transfer.failure import OrderFailed, as_failure, cancelled
from cacheagent.transfer.hashing import PieceSums, SegmentSums
from cacheagent.transfer.orders import Failed, FailureKind, FetchStream, PieceHash, Segment, StreamDone, StreamPiece
from cacheagent.transfer.piece import steps
from cacheagent.transfer.request import describe
from cacheagent.transfer.running import SIGN_EVERY_S, Running
from cacheagent.transfer.tools import BUFFER_BYTES, Tools, open_range, open_target

SPAN_BYTES: Final = 4 * MIB
"""What one lane of several receives at once, or a piece where that is less: it divides a piece, bounds memory, and a
request for it costs little. Chosen, not measured."""


class Span(NamedTuple):
    """A range that one lane works on. `claim`: the BLAKE3 of what should be on disk already, else empty."""

    offset: int
    length: int
    claim: str


class Turnstile:
    """Lets ranges through in file order. The condition is the order's: stopping it wakes everybody."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._position = 0

    def wait(self, offset: int) -> None:
        """Until everything before `offset` has passed. Raises OrderFailed("cancelled") when the order is stopped."""
        with self._running.condition:
            self._running.condition.wait_for(lambda: self._running.stopped or self._position == offset)
            self._running.require_wanted()

    def advance(self, position: int) -> None:
        """The caller, whose turn it was, is through up to `position`."""
        with self._running.condition:
            self._position = position
            self._running.condition.notify_all()


class Stream:
    """One FetchStream. Each of `order.lanes` threads calls `work`; the last one out reports, exactly once."""

    def __init__(self, order: FetchStream, running: Running, tools: Tools) -> None:
        self._order = order
        self._running = running
        self._tools = tools
        self._lock = threading.Lock()
        self._step_bytes = min(SPAN_BYTES if order.lanes > 1 else BUFFER_BYTES, PIECE_SIZE_BYTES)
        self._claimed = dict(order.claimed)
        """Grows while it follows, under the order's condition."""
        self._next = 0
        self._inside = 0
        self._over = False
        self._failure: OrderFailed | None = None
        self._serial = SerialHashes(order.checksums, order.file_size)
        self._serial_turn = Turnstile(running)
        self._piece_turn = Turnstile(running)
        self._blake3 = blake3()
        self._segments: list[Segment] = []
        self._resumed: list[FailureKind] = []

    def work(self, buffer: Buffer) -> StreamDone | Failed | None:
        """One lane's life. The last lane out returns the order's report; the others return None."""
        with self._lock:
            if self._over:
                return None
            self._inside += 1
        try:
            self._run_lane(buffer)
        except Exception as error:
            self._fail(error)
        with self._lock:
            self._inside -= 1
            if self._inside:
                return None
            self._over = True
        try:
            return self._result()
        except Exception as error:
            return as_failure(error, stopped=self._running.stopped).report(self._order.id)

    def claim(self, pieces: Mapping[int, str]) -> None:
        """These are on disk now. From another thread."""
        with self._running.condition:
            self._claimed.update(pieces)
            self._running.condition.notify_all()

    def _run_lane(self, buffer: Buffer) -> None:
        memory = buffer.view(self._step_bytes)
        with open_target(self._order.target, self._tools, writable=not self._order.follows) as target:
            while (span := self._take()) is not None:
                if span.claim and self._prove(span, target, memory):
                    continue
                if self._order.follows:
                    raise OrderFailed("disk-fault", f"{self._order.target}: the disk has lost what was proved")
                self._fetch(span, target, memory)

    def _take(self) -> Span | None:
        """The next range that nobody has; None when there is none, or no use in one."""
        if self._order.follows:
            self._await_claim()
        with self._lock:
            offset = self._next
            if offset >= self._order.file_size or self._running.stopped:
                return None
            index, inside = divmod(offset, PIECE_SIZE_BYTES)
            claim = self._claimed.get(index, "") if inside == 0 else ""
            length = piece_range(self._order.file_size, index)[1] if claim else self._unclaimed_bytes(offset)
            self._next += length
            return Span(offset, length, claim)

    def _await_claim(self) -> None:
        """Until the next piece is claimed. The one lane goes from piece to piece, so nobody moves on meanwhile."""
        index = self._next // PIECE_SIZE_BYTES
        while not self._running.stopped and self._next < self._order.file_size and index not in self._claimed:
            with self._running.condition:
                self._running.condition.wait_for(lambda: self._running.stopped or index in self._claimed, SIGN_EVERY_S)
            self._running.sign()

    def _unclaimed_bytes(self, offset: int) -> int:
        """One span; with a single lane everything up to the next claimed piece, so that one request serves it."""
        if self._order.lanes > 1:
            return min(self._step_bytes, self._order.file_size - offset)
        claimed = (index * PIECE_SIZE_BYTES for index in self._claimed)
        return min((start for start in claimed if start > offset), default=self._order.file_size) - offset

    def _fetch(self, span: Span, target: DirectFile, memory: memoryview) -> None:
        """A connection that breaks is replaced here, unless it breaks twice at the same place: who resumes a failed
        stream has to read and hash everything before that place again.
        """
        reached, broken_at = span.offset, -1
        while True:
            try:
                for end in self._receive(Span(reached, span.offset + span.length - reached, ""), target, memory):
                    reached = end
                return
            except OrderFailed as failure:
                if failure.kind not in {"reset", "timeout"} or reached == broken_at or self._running.stopped:
                    raise
                broken_at = reached
                with self._lock:
                    self._resumed.append(failure.kind)

    def _receive(self, span: Span, target: DirectFile, memory: memoryview) -> Iterator[int]:
        """One request; yields how far the file is received, written and hashed."""
        with open_range(self._order.location, self._running, self._tools) as source:
            source.open(span.offset, span.length, self._order.file_size)
            for done, length in steps(span.length, self._step_bytes):
                view = memory[:length]
                source.receive(view)
                target.write(view, span.offset + done)
                self._absorb(view, span.offset + done)
                yield span.offset + done + length
            source.finish()

    def _absorb(self, view: memoryview, offset: int) -> None:
        """Through all hashes. The CRCs fold, so they need no turn."""
        end = offset + len(view)
        sums = SegmentSums(offset, self._order.crcs, self._order.cuts)
        sums.update(view)
        self._serial_turn.wait(offset)
        self._serial.update(view)
        self._serial_turn.advance(end)
        self._piece_turn.wait(offset)
        self._blake3.update(view)
        self._segments += sums.segments()
        if end % PIECE_SIZE_BYTES == 0 or end == self._order.file_size:
            self._end_piece(end)
        self._piece_turn.advance(end)

    def _end_piece(self, end: int) -> None:
        index = (end - 1) // PIECE_SIZE_BYTES
        length = piece_range(self._order.file_size, index)[1]
        piece = PieceHash(index=index, length=length, blake3=self._blake3.hexdigest(), segments=tuple(self._segments))
        self._blake3, self._segments = blake3(), []
        self._tools.report(StreamPiece(id=self._order.id, piece=piece, fetched=True))

    def _prove(self, span: Span, target: DirectFile, memory: memoryview) -> bool:
        """Read a claimed piece back, in its turn. False, with all as it was before, when the claim is wrong."""
        sums = PieceSums(span.offset // PIECE_SIZE_BYTES, span.offset, self._order.crcs, self._order.cuts)
        before: SerialHashes | None = None
        for done, length in steps(span.length, self._step_bytes):
            self._running.require_wanted()
            self._running.sign()
            view = target.read(memory, length, span.offset + done)
            sums.update(view)
            if before is None:
                self._serial_turn.wait(span.offset)
                before = self._serial.copy()
            self._serial.update(view)
        piece = sums.result()
        if piece.blake3 != span.claim:
            assert before is not None
            self._serial = before
            return False
        self._serial_turn.advance(span.offset + span.length)
        self._piece_turn.wait(span.offset)
        self._tools.report(StreamPiece(id=self._order.id, piece=piece, fetched=False))
        self._piece_turn.advance(span.offset + span.length)
        return True

    def _fail(self, error: Exception) -> None:
        """The first failure counts: those of the other lanes follow from being stopped."""
        with self._lock:
            if self._failure is None:
                self._failure = as_failure(error, stopped=self._running.stopped)
        self._running.stop()

    def _result(self) -> StreamDone | Failed:
        if self._failure is not None or self._running.stopped:
            return (self._failure or cancelled()).report(self._order.id)
        try:
            agreed = self._serial.check(describe(self._order.location))
        except ChecksumMismatch as error:
            return OrderFailed("mismatch", error.message).report(self._order.id)
        whole, resumed = self._serial.digests(), tuple(self._resumed)
        return StreamDone(id=self._order.id, whole=whole, verified_by=agreed, resumed=resumed)
