"""One worker process: what it was asked, what it answers, and what becomes of its orders when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cacheagent.errors import TargetAbandoned, TransferFailed
from cacheagent.transfer.child import Child
from cacheagent.transfer.orders import (
    Cancel,
    FetchPiece,
    FetchSmall,
    FetchStream,
    Part,
    Rehash,
    Report,
)
from cacheagent.transfer.rate import SharedRate

log = logging.getLogger(__name__)

Work = FetchPiece | FetchSmall | FetchStream | Rehash
OnPart = Callable[[Part], None]
"""Hears what comes before the final report."""


class WorkerLost(TransferFailed):
    """The worker is dead, so nothing of its order is written any more. Inside this package only: it is retried."""


@dataclass(kw_only=True)
class Asked:
    """An order that has no final report yet."""

    work: Work
    answer: asyncio.Future[Report]
    on_part: OnPart | None
    asked_at: float
    cancelling: asyncio.TimerHandle | None = None
    failure: TransferFailed | None = None
    """Why there will be no answer."""


class Counters:
    """What one slot of the shared memory has counted since it was last looked at."""

    def __init__(self, shared: SharedRate, slot: int) -> None:
        self._shared = shared
        self._slot = slot
        self._seen = self._totals()

    def advance(self) -> tuple[int, int]:
        """Bytes received, and bytes written through the page cache."""
        before, self._seen = self._seen, self._totals()
        return self._seen[0] - before[0], self._seen[1] - before[1]

    def _totals(self) -> tuple[int, int]:
        return self._shared.received_bytes(self._slot), self._shared.buffered_bytes(self._slot)


@dataclass(kw_only=True)
class Launch:
    """How to start a worker."""

    argv: Sequence[str]
    slot: int
    shared: SharedRate
    threads: int
    idle_timeout_s: float
    answer_limit_s: float


class Worker(Child[Report]):
    """A process that carries out orders. Used on the event loop only; starting it takes milliseconds.

    `on_end(worker)` is called once, when it takes no more orders: it died, or was given up (`is_stuck`). What it was
    asked has then failed, with WorkerLost or TargetAbandoned.
    """

    def __init__(self, launch: Launch, on_end: Callable[[Worker], None]) -> None:
        self.slot = launch.slot
        self.counters = Counters(launch.shared, launch.slot)
        self.threads = launch.threads
        self.used_threads = 0
        self.is_up = False
        """It has said something: its start, a tenth of a second or more, is over."""
        self.alive_at = asyncio.get_running_loop().time()
        self._tell_of_end = on_end
        self._answer_limit_s = launch.answer_limit_s
        self._asked: dict[int, Asked] = {}
        arguments = (
            *("--shared-fd", str(launch.shared.fd)),
            *("--slot", str(launch.slot)),
            *("--threads", str(launch.threads)),
            *("--idle-timeout-s", str(launch.idle_timeout_s)),
        )
        super().__init__(
            [*launch.argv, *arguments],
            (launch.shared.fd,),
            Report,
            name="transfer worker",
            on_report=self._take,
            on_end=self._give_back,
        )

    @property
    def free_threads(self) -> int:
        """How many more orders it could start at once."""
        return self.threads - self.used_threads

    @property
    def asked(self) -> Sequence[Asked]:
        """What it has not answered yet."""
        return tuple(self._asked.values())

    async def ask(self, work: Work, on_part: OnPart | None = None) -> Report:
        """Give an order and wait for its final report.

        Raises WorkerLost when the worker died, TargetAbandoned when it hangs and can't be ended. Cancelling sends
        Cancel and returns only when the order is answered or the worker is dead (then CancelledError) or given up
        (then TargetAbandoned).
        """
        if self.is_ending:
            await self.ended.wait()  # nothing was sent; how it ended is what the asker will want to know
            raise WorkerLost(f"transfer worker {self.pid} ended ({self.how_it_ended})")
        now = self._loop.time()
        asked = Asked(work=work, answer=self._loop.create_future(), on_part=on_part, asked_at=now)
        self._asked[work.id] = asked
        self.send(work)
        try:
            return await asked.answer
        except asyncio.CancelledError:
            await self._cancel_and_wait(asked)
            raise

    async def _cancel_and_wait(self, asked: Asked) -> None:
        """Raises CancelledError or TargetAbandoned, or returns. Cancelling a task cancels the future that it awaits,
        so the answer to Cancel goes into a new one.
        """
        try:
            if asked.work.id in self._asked:
                asked.answer = self._loop.create_future()
                self.cancel(asked.work.id)
                await wait_out((asked.answer,))
        finally:
            if isinstance(asked.failure, TargetAbandoned):
                raise asked.failure

    def cancel(self, work_id: int) -> None:
        """Ask it to stop an order; a worker that does not answer soon is killed."""
        asked = self._asked.get(work_id)
        if asked is None or asked.cancelling is not None or self.is_ending:
            return
        self.send(Cancel(id=work_id))
        asked.cancelling = self._loop.call_later(self._answer_limit_s, self._not_answered, work_id)

    def _take(self, report: Report) -> None:
        self.is_up = True
        asked = self._asked.get(report.id)
        if asked is None or not _waits(asked.work):
            self.alive_at = self._loop.time()
        if asked is None:
            return
        if isinstance(report, Part):
            asked.asked_at = self._loop.time()
            if asked.on_part is not None:
                asked.on_part(report)
            return
        del self._asked[report.id]
        if asked.cancelling is not None:
            asked.cancelling.cancel()
        if not asked.answer.done():  # else whoever waited was cancelled a moment ago
            asked.answer.set_result(report)

    def _not_answered(self, work_id: int) -> None:
        if work_id in self._asked:
            log.warning("transfer worker %d did not answer a cancel: it is killed", self.pid)
            self.kill()

    def _give_back(self) -> None:
        """Nothing will be answered any more."""
        error: TransferFailed = WorkerLost(f"transfer worker {self.pid} ended ({self.how_it_ended})")
        if self.is_stuck:
            error = TargetAbandoned(
                f"transfer worker {self.pid} hangs in the kernel and may still write",
                hint="look for a file server or disk that stopped answering: dmesg, ps state D",
            )
        asked, self._asked = self._asked, {}
        for each in asked.values():
            each.failure = error
            if each.cancelling is not None:
                each.cancelling.cancel()
            if not each.answer.done():
                each.answer.set_exception(error)
                each.answer.exception()  # whoever was cancelled looks at `failure` instead
        self._tell_of_end(self)


def _waits(work: Work) -> bool:
    """Whether it says that it goes on while it waits for others: that says nothing of what else its worker does."""
    return isinstance(work, FetchStream) and work.follows


async def wait_out(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Wait until all have ended, also when the caller is cancelled meanwhile; that is delivered afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while left := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(left)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
