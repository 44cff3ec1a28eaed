"""Jobs that fetch one large file: piece by piece, or as one stream where its checksum must be computed in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from cacheagent.errors import TargetAbandoned, TransferFailed
from cacheagent.model import piece_range
from cacheagent.transfer.base import BlobOrder, Locate, Share
from cacheagent.transfer.blob import Pieces
from cacheagent.transfer.job import Flight, RemoteJob, Setting, Unit
from cacheagent.transfer.orders import (
    Claims,
    Failed,
    FetchPiece,
    FetchStream,
    GoesOn,
    Part,
    PieceDone,
    PieceHash,
    PiecePart,
    Report,
    StreamDone,
    StreamPiece,
)
from cacheagent.transfer.origin import Origin
from cacheagent.transfer.process import WorkerLost
from cacheagent.transfer.retry import is_refusal, refusal_error, worker_error
from cacheagent.transfer.schedule import lanes_of_stream
from cacheagent.transfer.whereabouts import Located, display_name

MOST_REFUSALS = 3
"""Of one unit, each with a fresh location, while others get through. Chosen."""


@dataclass(eq=False, kw_only=True)
class FileUnit(Unit):
    """A piece, or the whole file. `located`: with which location it was asked for last."""

    index: int = -1
    located: Located | None = None


class FileJob(RemoteJob[FileUnit]):
    """What both ways share: the file's location, asked for again (once, whoever noticed) when it has expired."""

    def __init__(
        self, setting: Setting, origin: Origin, located: Located, pieces: Pieces, outcome: asyncio.Future[None]
    ) -> None:
        order = pieces.order
        super().__init__(setting, origin, order.priority, outcome, order.source_kind)
        self.pieces = pieces
        self.blobs = frozenset({order.blob_id})
        self.located = located
        self._locate: Locate | None = None
        self._relocating: asyncio.Task[None] | None = None

    @property
    def order(self) -> BlobOrder:
        """What was asked for."""
        return self.pieces.order

    @property
    def waiting(self) -> int:
        """Nothing while it is not known where the bytes are."""
        return 0 if self._relocating is not None else super().waiting

    def relocate_with(self, locate: Locate) -> None:
        """How to ask again."""
        self._locate = locate

    def name(self, unit: FileUnit) -> str:
        """URL without secrets, or path; the piece where it is one."""
        whole = display_name(self.located.location)
        return whole if unit.index < 0 else f"{whole}, piece {unit.index} of {self.pieces.count}"

    def failed(self, flight: Flight[FileUnit], failed: Failed) -> None:
        """A refusal may mean that the location is too old; everything else is judged as for all."""
        if not is_refusal(failed):
            super().failed(flight, failed)
            return
        unit = flight.unit
        unit.refusals += 1
        now = self._loop.time()
        if unit.refusals > MOST_REFUSALS:
            self.fail(refusal_error(failed, self.name(unit)))
        elif unit.located is not self.located:  # somebody noticed before
            self.put_back(unit)
        elif self.located.may_have_expired(now, self._setting.config.fresh_location_s):
            self._setting.observer.retry(self.source_kind, "expired")
            self._relocate()
            self.put_back(unit)
        else:
            self.fail(refusal_error(failed, self.name(unit)))

    def stop(self) -> None:
        """See Job."""
        if self._relocating is not None:
            self.tasks.add(self._relocating)
        super().stop()

    def got_something(self, origin: Origin, unit: FileUnit) -> None:
        """The origin answered with bytes."""
        self.succeeded(origin)
        if unit.located is not None:
            unit.located.worked = True

    def finish_if_complete(self) -> None:
        """The call goes on to judge the whole."""
        if self.pieces.is_complete and not self.outcome.done():
            self.outcome.set_result(None)

    def _relocate(self) -> None:
        if self._relocating is None:
            self._relocating = self._loop.create_task(self._ask_again())

    async def _ask_again(self) -> None:
        assert self._locate is not None
        try:
            location = await self._locate()
        except Exception as error:
            self.fail(error)
        else:
            self.located = Located(location=location, asked_at=self._loop.time())
        finally:
            self._relocating = None
        self.wake()


class PieceJob(FileJob):
    """Every piece is an order of its own, by whichever worker is free. `follower`: who puts them through the file's
    serial hash meanwhile, if anybody does."""

    follower: FollowJob | None = None
    _share: Share | None = None

    def want(self, indexes: Sequence[int]) -> None:
        """These have to travel."""
        for index in indexes:
            _, length = piece_range(self.order.size_bytes, index)
            self._pending.append(FileUnit(length=length, index=index))
        self.wake()

    def prove(self, pieces: Sequence[PieceHash]) -> None:
        """What was claimed and is now read back: right, or it has to travel."""
        wrong: list[int] = []
        for piece in pieces:
            if self.pieces.claimed.get(piece.index) == piece.blake3:
                self.pieces.add(piece, "kept")
            else:
                wrong.append(piece.index)
        self.want(wrong)
        self.finish_if_complete()

    def share_with(self, share: Share) -> None:
        """Somebody wants to hear of what comes on the way."""
        self._share = share

    def put(self, piece: PieceHash) -> None:
        """See PieceSink."""
        try:
            self.pieces.add(piece, "peer")
        except Exception as error:  # of the caller's on_piece: its answer, not the peer's
            self.fail(error)
        self.finish_if_complete()

    def finish_if_complete(self) -> None:
        """While the hash follows, it is the hash that ends it."""
        if self.follower is None or not self.follower.has_begun:
            super().finish_if_complete()

    async def fly(self, flight: Flight[FileUnit]) -> Report:
        """See Job. Late pieces are asked for twice."""
        unit = flight.unit
        unit.located = self.located
        offset, length = piece_range(self.order.size_bytes, unit.index)
        flight.order = FetchPiece(
            id=flight.work_id,
            location=self.located.location,
            index=unit.index,
            offset=offset,
            length=length,
            target=self.order.target,
            write_at=offset,
            file_size=self.order.size_bytes,
            crcs=self.pieces.crcs,
            cuts=self.pieces.cuts(unit.index),
            cap=self.cap_number,
            parts=self._share is not None,
        )
        share, index = self._share, unit.index

        def on_part(part: Part) -> None:
            if isinstance(part, GoesOn):
                self.goes_on(flight)
            elif share is not None and isinstance(part, PiecePart):
                share.came(index, part.length)

        first: Report | WorkerLost
        try:
            first = await flight.worker.ask(flight.order, on_part)
        except WorkerLost as error:
            first = error
        except BaseException:
            if flight.hedge is not None:
                await flight.hedge.drop()
            raise
        if flight.hedge is not None:
            report = await flight.hedge.conclude(first)
            self._setting.observer.hedge(self.source_kind, won=flight.hedge.won)
            return report
        if isinstance(first, WorkerLost):
            raise first
        return first

    def landed(self, flight: Flight[FileUnit], report: Report) -> None:
        """See Job."""
        if isinstance(report, Failed):
            self.failed(flight, report)
            return
        assert isinstance(report, PieceDone), report
        self.got_something(flight.origin, flight.unit)
        flight.origin.hedging.arrived(report.piece.length, report.seconds)
        self._setting.observer.piece_done(self.source_kind, report.piece.length, report.seconds)
        self.pieces.add(report.piece, "fetched")
        self.finish_if_complete()


class StreamJob(FileJob):
    """One order for the whole file, on one worker; what is proved when it breaks off is claimed by the next one."""

    lasting = True

    def __init__(
        self, setting: Setting, origin: Origin, located: Located, pieces: Pieces, outcome: asyncio.Future[None]
    ) -> None:
        super().__init__(setting, origin, located, pieces, outcome)
        self.whole: dict[str, str] = {}
        self._pending.append(FileUnit(length=self.order.size_bytes))
        origin.streams += 1

    def take(self, connections: int) -> FileUnit:
        """See Job: the file gets its share of the connections, for as long as it lasts."""
        unit = super().take(connections)
        unit.slots = lanes_of_stream(self.origin.limit.current, self.origin.streams, connections)
        return unit

    async def fly(self, flight: Flight[FileUnit]) -> Report:
        """See Job."""
        flight.unit.located = self.located
        order = self.order_of(flight)

        def on_part(part: Part) -> None:
            if isinstance(part, GoesOn):
                self.goes_on(flight)
                return
            assert isinstance(part, StreamPiece), part
            try:
                self._take_part(flight, part)
            except Exception as error:  # of the caller's on_piece: its answer, not the socket's
                self.fail(error)

        return await flight.worker.ask(order, on_part)

    def order_of(self, flight: Flight[FileUnit]) -> FetchStream:
        """What the worker is told."""
        return FetchStream(
            id=flight.work_id,
            location=self.located.location,
            file_size=self.order.size_bytes,
            target=self.order.target,
            lanes=flight.unit.slots,
            checksums=self.order.checksums,
            claimed=self.pieces.claimed | self.pieces.proved(),
            crcs=self.pieces.crcs,
            cuts=self.pieces.all_cuts(),
            cap=self.cap_number,
        )

    def landed(self, flight: Flight[FileUnit], report: Report) -> None:
        """See Job."""
        if isinstance(report, Failed):
            self.failed(flight, report)
            return
        assert isinstance(report, StreamDone), report
        self.got_something(flight.origin, flight.unit)
        for reason in report.resumed:
            self._setting.observer.retry(self.source_kind, reason)
        self.whole = dict(report.whole)
        self.finish_if_complete()
        self.fail(TransferFailed(f"{self.name(flight.unit)}: the worker says it is done, and pieces are missing"))

    def stop(self) -> None:
        """See Job."""
        self.origin.streams -= 1
        super().stop()

    def _take_part(self, flight: Flight[FileUnit], part: StreamPiece) -> None:
        if part.fetched:
            self.got_something(flight.origin, flight.unit)
            self._setting.observer.piece_done(self.source_kind, part.piece.length, 0.0)
        self.pieces.add(part.piece, "fetched" if part.fetched else "kept")


class FollowJob(StreamJob):
    """A stream that brings nothing: what comes from elsewhere goes through the file's serial hash as it is proved. It
    has a thread of one worker, which only reads, and no connection; `origin`: whatever counts those.

    It is a favour. If anything goes wrong but the hash itself, or another one has its place when the file is complete,
    the call ends without `whole`, and a stream reads the file.
    """

    _flight: Flight[FileUnit] | None = None
    _is_given_up = False

    @property
    def has_begun(self) -> bool:
        """A worker has it, or will have it in a moment."""
        return not self._pending and not self._is_given_up

    def take(self, connections: int) -> FileUnit:
        """See Job. One thread, however many connections are free."""
        return FileJob.take(self, connections)

    def order_of(self, flight: Flight[FileUnit]) -> FetchStream:
        """Only what is proved: what a journal claims, somebody else may find wrong and write anew."""
        self._flight = flight
        self.pieces.on_known = self._tell
        return msgspec.structs.replace(super().order_of(flight), claimed=self.pieces.proved(), follows=True)

    async def fly(self, flight: Flight[FileUnit]) -> Report:
        """See Job. A worker that hangs does not write."""
        try:
            return await super().fly(flight)
        except TargetAbandoned as error:
            return Failed(id=flight.work_id, kind="timeout", message=error.message)

    def failed(self, flight: Flight[FileUnit], failed: Failed) -> None:
        """See RemoteJob."""
        if failed.kind == "mismatch":
            super().failed(flight, failed)
        elif flight.preempted:
            self.put_back(flight.unit)
        else:
            self._give_up()

    def lost(self, unit: FileUnit, error: WorkerLost) -> None:
        """See Job."""
        unit.losses += 1
        if worker_error(self.name(unit), unit.losses, error) is None:
            self.put_back(unit)
        else:
            self._give_up()

    def put_back(self, unit: FileUnit) -> None:
        """See Job."""
        super().put_back(unit)
        if not self.has_begun:
            self.finish_if_complete()

    def _give_up(self) -> None:
        self._is_given_up = True
        self.finish_if_complete()

    def _tell(self, piece: PieceHash) -> None:
        assert self._flight is not None
        self._flight.worker.send(Claims(id=self._flight.work_id, pieces={piece.index: piece.blake3}))
