"""The job that reads pieces at rest back and hashes them: what a journal claims, what a scrub doubts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cacheagent.errors import CacheAgentError
from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.transfer.job import Flight, Job, Setting, Unit
from cacheagent.transfer.orders import CrcAlgorithm, Failed, PieceHash, Rehash, RehashDone, Report
from cacheagent.transfer.origin import Origin
from cacheagent.transfer.retry import permanent_error
from cacheagent.transfer.schedule import REHASH_PIECES, chunks


@dataclass(frozen=True, kw_only=True)
class AtRest:
    """Pieces of a file on our own disk, what to compute over them, and who hears what they really are."""

    target: str
    size_bytes: int
    indexes: Sequence[int]
    on_pieces: Callable[[Sequence[PieceHash]], None]
    priority: int = 0
    crcs: tuple[CrcAlgorithm, ...] = ()
    cuts: tuple[int, ...] = ()


@dataclass(eq=False, kw_only=True)
class RestUnit(Unit):
    """Some pieces, read by one worker."""

    indexes: tuple[int, ...]


class RehashJob(Job[RestUnit]):
    """`disk` stands for our own disk where other jobs have an origin."""

    def __init__(self, setting: Setting, disk: Origin, file: AtRest, outcome: asyncio.Future[None]) -> None:
        super().__init__(setting, disk, file.priority, outcome)
        self._file = file
        self._pending.extend(
            RestUnit(length=PIECE_SIZE_BYTES * len(indexes), indexes=indexes)
            for indexes in chunks(file.indexes, REHASH_PIECES)
        )

    def name(self, unit: RestUnit) -> str:
        """The file at rest."""
        return self._file.target

    async def fly(self, flight: Flight[RestUnit]) -> Report:
        """See Job."""
        first, last = flight.unit.indexes[0], flight.unit.indexes[-1]
        inside = range(first * PIECE_SIZE_BYTES, (last + 1) * PIECE_SIZE_BYTES)
        return await flight.worker.ask(
            Rehash(
                id=flight.work_id,
                target=self._file.target,
                file_size=self._file.size_bytes,
                indexes=flight.unit.indexes,
                crcs=self._file.crcs,
                cuts=tuple(cut for cut in self._file.cuts if cut in inside),
            )
        )

    def landed(self, flight: Flight[RestUnit], report: Report) -> None:
        """See Job. A disk is not asked a second time."""
        if isinstance(report, Failed):
            if report.kind == "cancelled" and flight.preempted:
                self.put_back(flight.unit)
                return
            error = permanent_error(report, self.name(flight.unit), flight.unit.failures)
            self.fail(error or CacheAgentError(f"{self.name(flight.unit)}: {report.message}"))
            return
        assert isinstance(report, RehashDone), report
        self._file.on_pieces(report.pieces)
