"""Work of one call: it gives units to the group when a connection is free, and judges what comes back."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from cacheagent.errors import TargetAbandoned
from cacheagent.transfer.caps import NO_LIMIT, Cap
from cacheagent.transfer.config import TransferConfig
from cacheagent.transfer.observer import TransferObserver
from cacheagent.transfer.orders import Failed, FetchPiece, Report
from cacheagent.transfer.origin import Origin
from cacheagent.transfer.process import Worker, WorkerLost
from cacheagent.transfer.race import Hedge
from cacheagent.transfer.retry import Budget, backoff_s, is_throttle, permanent_error, retry_reason, worker_error


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all jobs of a pool share."""

    config: TransferConfig
    observer: TransferObserver
    random: random.Random = field(default_factory=random.Random)
    _numbers: Iterator[int] = field(default_factory=partial(itertools.count, 1))

    def next_number(self) -> int:
        """For orders and for the order of arrival."""
        return next(self._numbers)


@dataclass(eq=False, kw_only=True)
class Unit:
    """What one worker does in one go. `failures` counts those that may pass, `losses` the workers that died with it."""

    length: int
    slots: int = 1
    failures: int = 0
    refusals: int = 0
    losses: int = 0


U = TypeVar("U", bound=Unit)


@dataclass(eq=False, kw_only=True)
class Flight(Generic[U]):
    """A unit under way. `order` and `hedge` are those of a piece, once it is asked for, once or twice."""

    unit: U
    worker: Worker
    origin: Origin
    started: float
    job: Job[U]
    work_id: int
    order: FetchPiece | None = None
    hedge: Hedge | None = None
    preempted: bool = False

    @property
    def priority(self) -> int:
        """The job's, which may be raised meanwhile."""
        return self.job.priority

    @property
    def lasting(self) -> bool:
        """See Job."""
        return self.job.lasting

    @property
    def length(self) -> int:
        """Bytes."""
        return self.unit.length

    @property
    def hedgeable(self) -> bool:
        """A piece that was asked for once, and is late for no reason of ours."""
        return self.order is not None and self.hedge is None and not self.job.is_capped


class Job(Generic[U]):
    """Base of all work. `outcome` belongs to the call and may be shared by its jobs: the first error ends them all.

    Used on the event loop only. `wake` is set by the group while the job is in its queue.
    """

    lasting = False
    """Whether a unit takes as long as a whole file, so that something urgent can't wait for its end."""
    blobs: frozenset[str] = frozenset()
    """What it brings."""
    cap: Cap | None = None
    """That of what it brings, if any; set before it is in a queue."""

    def __init__(self, setting: Setting, origin: Origin, priority: int, outcome: asyncio.Future[None]) -> None:
        self.origin = origin
        self.priority = priority
        self.arrival = setting.next_number()
        self.outcome = outcome
        self.tasks: set[asyncio.Task[None]] = set()
        self.wake: Callable[[], None] = _nobody_to_wake
        self.abandoned: TargetAbandoned | None = None
        self._setting = setting
        self._loop = asyncio.get_running_loop()
        self._pending: deque[U] = deque()
        self._timers: set[asyncio.TimerHandle] = set()

    @property
    def waiting(self) -> int:
        """How many units could start now."""
        return 0 if self.outcome.done() else len(self._pending)

    @property
    def room(self) -> int:
        """How many connections more its cap lets it use."""
        return NO_LIMIT if self.cap is None else self.cap.room

    @property
    def is_capped(self) -> bool:
        """Whether it has to be slow."""
        return self.cap is not None and self.cap.bucket.bytes_per_s > 0

    @property
    def cap_number(self) -> int:
        """For orders."""
        return 0 if self.cap is None else self.cap.number

    def take(self, connections: int) -> U:
        """The next unit, which uses at most so many connections (at least one)."""
        return self._pending.popleft()

    async def fly(self, flight: Flight[U]) -> Report:
        """Have it done by the flight's worker. Raises WorkerLost, TargetAbandoned."""
        raise NotImplementedError

    def landed(self, flight: Flight[U], report: Report) -> None:
        """Judge the answer: keep it, ask again later, or fail."""
        raise NotImplementedError

    def name(self, unit: U) -> str:
        """For people, without secrets."""
        raise NotImplementedError

    def lost(self, unit: U, error: WorkerLost) -> None:
        """Its worker died: another one gets it, a few times."""
        unit.losses += 1
        final = worker_error(self.name(unit), unit.losses, error)
        if final is not None:
            self.fail(final)
        else:
            self.put_back(unit)

    def fail(self, error: Exception) -> None:
        """End the call with this error, unless it has ended already."""
        if not self.outcome.done():
            self.outcome.set_exception(error)

    def put_back(self, unit: U) -> None:
        """It is next."""
        self._pending.appendleft(unit)
        self.wake()

    def put_back_later(self, unit: U, delay_s: float) -> None:
        """After a pause."""

        def now() -> None:
            self._timers.discard(timer)
            self.put_back(unit)

        timer = self._loop.call_later(delay_s, now)
        self._timers.add(timer)

    def stop(self) -> None:
        """Give no more units and cancel what is under way: when `tasks` have ended, no worker touches it any more, or
        `abandoned` says that one still may.
        """
        self._pending.clear()
        for timer in self._timers:
            timer.cancel()
        for task in tuple(self.tasks):
            task.cancel()


class RemoteJob(Job[U]):
    """Work for an origin: failures that may pass are tried again within a budget of time and share."""

    def __init__(
        self, setting: Setting, origin: Origin, priority: int, outcome: asyncio.Future[None], source_kind: str
    ) -> None:
        super().__init__(setting, origin, priority, outcome)
        self.source_kind = source_kind
        self._budget = Budget(setting.config.give_up_after_s, self._loop.time())

    def succeeded(self, origin: Origin) -> None:
        """The origin gave something of use."""
        origin.succeeded(self._loop.time())
        self._budget.succeeded()

    def goes_on(self, flight: Flight[U]) -> None:
        """Bytes come for it, or it waits for its cap: in neither time did the origin give nothing. With a cap nobody
        knows which of them, and it counts for this job alone."""
        now = self._loop.time()
        self._budget.goes_on(now)
        if not self.is_capped:
            flight.origin.progress_at = now

    def failed(self, flight: Flight[U], failed: Failed) -> None:
        """Ask again, now or later, or fail."""
        if failed.kind == "cancelled":
            if flight.preempted:
                self.put_back(flight.unit)
                return
            failed = _overdue(failed, self._loop.time() - flight.started)
        unit, now = flight.unit, self._loop.time()
        unit.failures += 1
        error: Exception | None = permanent_error(failed, self.name(unit), unit.failures)
        if error is None:
            self._pause(flight.origin, failed, now)
            error = self._budget.final_error(failed, self.name(unit), now, flight.origin.progress_at)
        if error is not None:
            self.fail(error)
            return
        self._setting.observer.retry(self.source_kind, retry_reason(failed))
        config = self._setting.config
        delay_s = backoff_s(unit.failures, config.backoff_base_s, config.backoff_cap_s, self._setting.random)
        self.put_back_later(unit, delay_s)

    def _pause(self, origin: Origin, failed: Failed, now: float) -> None:
        pause_s = origin.failed(now, failed)
        if is_throttle(failed):
            self._setting.observer.throttled(self.source_kind, pause_s)
        if pause_s:
            self._loop.call_later(pause_s, self.wake)


def first_abandoned(jobs: Sequence[Job[Unit]]) -> TargetAbandoned | None:
    """After `stop`: what says that a target may still be written to."""
    return next((job.abandoned for job in jobs if job.abandoned is not None), None)


def _overdue(failed: Failed, seconds: float) -> Failed:
    return Failed(
        id=failed.id, kind="timeout", message=f"the worker gave no sign of life and was stopped after {seconds:.0f} s"
    )


def _nobody_to_wake() -> None:
    """Before a job is in a queue and after it has left it."""
