"""One piece by one worker or, when it is late, by two. Only one of them ever writes into the target.

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
from typing import Final, TypeVar

import msgspec
from blake3 import blake3

from cacheagent.errors import DiskFault, TargetAbandoned
from cacheagent.threads import in_thread
from cacheagent.transfer.job import Flight, Unit
from cacheagent.transfer.orders import FetchPiece, PieceDone, Report
from cacheagent.transfer.process import Worker, wait_out

SCRATCH_SUFFIX: Final = ".hedge-"

log = logging.getLogger(__name__)

U = TypeVar("U", bound=Unit)
Answer = asyncio.Task[Report]


async def fetch_racing(
    flight: Flight[U], order: FetchPiece, second_id: Callable[[], int]
) -> tuple[Report, bool | None]:
    """The first good answer, or the first worker's where there is none; and whether the second won, None without one.

    Raises WorkerLost; TargetAbandoned when the first worker can't be kept from writing; DiskFault. Cancelling waits for
    both workers.
    """
    first: Answer = asyncio.ensure_future(flight.worker.ask(order))
    try:
        await asyncio.wait((first, flight.second), return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            return first.result(), None
        second_order = msgspec.structs.replace(
            order, id=second_id(), target=f"{order.target}{SCRATCH_SUFFIX}{order.index}", write_at=0
        )
        return await _race(flight.worker, first, order, flight.second.result(), second_order)
    finally:
        await _stop(first)


async def _race(
    first_worker: Worker, first: Answer, order: FetchPiece, second_worker: Worker, second_order: FetchPiece
) -> tuple[Report, bool]:
    if not await in_thread(partial(_make_scratch, second_order.target, order.length)):
        await asyncio.wait((first,))
        return first.result(), False
    try:
        second: Answer = asyncio.ensure_future(second_worker.ask(second_order))
        try:
            if await _first_success(first, second) is not second:
                return first.result(), False
            first_worker.cancel(order.id)
            await asyncio.wait((first,))
            if _succeeded(first):
                return first.result(), False
            _raise_if_abandoned(first)
            report = second.result()
            assert isinstance(report, PieceDone)
            await in_thread(partial(_copy, second_order.target, order, report.piece.blake3))
            return report, True
        finally:
            with contextlib.suppress(TargetAbandoned):  # it can only write into a file that has no name any more
                await _stop(second)
    finally:
        await in_thread(partial(_remove, second_order.target))


async def _first_success(first: Answer, second: Answer) -> Answer:
    """Whoever has the piece first; `first` when neither has."""
    running = {first, second}
    while running:
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for answer in done:
            if _succeeded(answer):
                return answer
    return first


def _succeeded(answer: Answer) -> bool:
    return not answer.cancelled() and answer.exception() is None and isinstance(answer.result(), PieceDone)


async def _stop(answer: Answer) -> None:
    """Returns when the worker touches its file no more; raises TargetAbandoned if it still may."""
    if not answer.done():
        answer.cancel()
        await wait_out((answer,))
    _raise_if_abandoned(answer)


def _raise_if_abandoned(answer: Answer) -> None:
    if not answer.cancelled() and isinstance(error := answer.exception(), TargetAbandoned):
        raise error


def _make_scratch(path: str, length: int) -> bool:
    """False where there is no room for it: a hedge is a favour, not a need."""
    try:
        _remove(path)  # of an agent that was killed
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(descriptor, length)
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("no scratch file for a hedge: %s: %s", path, error.strerror)
        return False
    return True


def _remove(path: str) -> None:
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
