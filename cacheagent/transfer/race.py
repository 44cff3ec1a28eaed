"""A late piece is asked for a second time, and the first answer wins. Only one worker ever writes into the target.

The second writes into a scratch file beside it. When the second wins, the first is cancelled and has *answered* (or is
dead) before the bytes are copied over; the scratch file is gone at the end, whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
from blake3 import blake3

from cacheagent.errors import DiskFault, TargetAbandoned
from cacheagent.threads import in_thread
from cacheagent.transfer.orders import FetchPiece, PieceDone, Report
from cacheagent.transfer.process import Worker, WorkerLost, wait_out

SCRATCH_SUFFIX: Final = ".hedge-"

log = logging.getLogger(__name__)


class Hedge:
    """The second request for one piece. Made while the first is under way; `conclude` or `drop` ends it."""

    def __init__(self, order: FetchPiece, second_id: int, second: Worker, stop_first: Callable[[], None]) -> None:
        self.worker = second
        self.won = False
        self._order = order
        self._stop_first = stop_first
        self._scratch = f"{order.target}{SCRATCH_SUFFIX}{order.index}"
        self._second = msgspec.structs.replace(order, id=second_id, target=self._scratch, write_at=0)
        self._task = asyncio.create_task(self._ask())

    async def conclude(self, first: Report | WorkerLost) -> Report:
        """What came of the piece, given what came of the first request, which is over.

        Raises WorkerLost when both workers died, DiskFault when the copy fails.
        """
        try:
            if isinstance(first, PieceDone):
                return first
            await asyncio.wait((self._task,))
            second = None if self._task.exception() else self._task.result()
            if isinstance(second, PieceDone):
                await in_thread(partial(_copy, self._scratch, self._order, second.piece.blake3))
                self.won = True
                return second
            if isinstance(first, WorkerLost):
                raise first
            return first
        finally:
            await self.drop()

    async def drop(self) -> None:
        """Nobody needs it any more: returns when its worker has answered and the scratch file is gone."""
        self._task.cancel()
        try:
            await wait_out((self._task,))
        finally:
            await in_thread(partial(remove_scratch, self._scratch))

    async def _ask(self) -> Report | None:
        """None where there is no room for it, or its worker failed: a hedge is a favour, not a need."""
        try:
            await in_thread(partial(make_scratch, self._scratch, self._order.length))
            report = await self.worker.ask(self._second)
        except OSError as error:
            log.warning("no scratch file for a late piece: %s: %s", self._scratch, error.strerror)
            return None
        except (WorkerLost, TargetAbandoned):  # who hangs can only write into a file that soon has no name
            return None
        if isinstance(report, PieceDone):
            self._stop_first()
        return report


def remove_scratch_files(target: str) -> None:
    """What an agent that was killed in mid-race left beside a target. Blocks."""
    directory, name = os.path.split(target)
    with contextlib.suppress(FileNotFoundError):
        for entry in os.listdir(directory):
            if entry.startswith(f"{name}{SCRATCH_SUFFIX}"):
                remove_scratch(os.path.join(directory, entry))


def make_scratch(path: str, length: int) -> None:
    """A new file of holes. Raises OSError. Blocks."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.truncate(descriptor, length)
    finally:
        os.close(descriptor)


def remove_scratch(path: str) -> None:
    """Absent is fine. Blocks."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _copy(scratch: str, order: FetchPiece, expected: str) -> None:
    """Prove what lies in the scratch file, then write it to its place in the target."""
    try:
        with open(scratch, "rb") as source:
            data = source.read(order.length)
        if blake3(data).hexdigest() != expected:
            raise DiskFault(f"{scratch}: the disk gives back other bytes than were written")
        descriptor = os.open(order.target, os.O_WRONLY | os.O_CLOEXEC)
        try:
            _write_all(descriptor, data, order.write_at)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DiskFault(f"{order.target}: a piece can't be copied into it: {error.strerror}") from error


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
