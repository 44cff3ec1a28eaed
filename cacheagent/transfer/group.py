"""Workers that serve the same kind of origin, and the loop that hands work to them.

HTTP has one group; every mounted file system has its own, so that a mount that hangs takes only its own workers.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from cacheagent.errors import TargetAbandoned
from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.transfer.job import Flight, Job, Setting
from cacheagent.transfer.orders import FetchPiece, FetchSmall, Rehash
from cacheagent.transfer.origin import Origin
from cacheagent.transfer.process import Work, Worker, WorkerLost, wait_out
from cacheagent.transfer.race import Hedge
from cacheagent.transfer.schedule import Queue, find_victims, is_overdue

log = logging.getLogger(__name__)

StartWorker = Callable[[Callable[[Worker], None]], Worker]
AnyJob = Job[Any]
AnyFlight = Flight[Any]


class WorkerGroup:
    """Used on the event loop only. Workers are started when there is work, and replaced when they are lost.

    `idle_limit_s`: they leave after so long without any; None: they stay.
    """

    def __init__(self, setting: Setting, start_worker: StartWorker, idle_limit_s: float | None) -> None:
        self.workers: list[Worker] = []
        self._setting = setting
        self._start_worker = start_worker
        self._idle_limit_s = idle_limit_s
        self._size = setting.config.worker_count()
        self._loop = asyncio.get_running_loop()
        self._queue: Queue[AnyJob] = Queue()
        self._flights: set[AnyFlight] = set()
        self._ticked_at = 0.0
        self._ticking: asyncio.TimerHandle | None = None
        self._is_ticking = False
        self._closed = False
        self._stuck: list[Worker] = []

    def start_workers(self, *, ahead: bool = False) -> None:
        """Fill up to the group's size. Starting does not wait: orders queue in the socket until the worker listens.

        `ahead` of any work, one CPU is left to who finds out meanwhile what there is to do: a worker's start takes a
        tenth of a second of one. Those that are missing start with the first order.
        """
        size = min(self._size, max(1, len(os.sched_getaffinity(0)) - 1)) if ahead else self._size
        while not self._closed and sum(not worker.is_ending for worker in self.workers) < size:
            try:
                worker = self._start_worker(self._on_worker_end)
            except OSError:  # no memory or no process to spare: those that run go on, and the next tick tries again
                log.exception("a transfer worker can't be started")
                return
            self.workers.append(worker)

    def add(self, job: AnyJob) -> None:
        """The job is asked for units from now on, in its turn."""
        job.wake = self.pump
        self._queue.add(job)
        if not self._is_ticking and not self._closed:
            self._is_ticking = True
            self._ticked_at = self._loop.time()
            self._tick_later(self._setting.config.tick_s, self._tick)
        self.pump()

    def raise_priority(self, blobs: Collection[str], priority: int) -> None:
        """Jobs that bring any of these blobs count at least this much from now on."""
        for job in self._queue:
            if job.priority < priority and not job.blobs.isdisjoint(blobs):
                self._queue.remove(job)
                job.priority = priority
                self._queue.add(job)
        self.pump()

    async def remove(self, jobs: Sequence[AnyJob]) -> None:
        """Take them out, stop what is under way, and wait for that (a cancellation comes after it)."""
        for job in jobs:
            self._queue.remove(job)
            job.stop()
        await wait_out([task for job in jobs for task in job.tasks])

    def pump(self) -> None:
        """Start whatever can be started."""
        now = self._loop.time()
        full: set[Origin] = set()
        for job in self._queue:
            while job.origin not in full and job.waiting and job.room:
                connections = job.origin.capacity(now)
                if connections == 0:
                    full.add(job.origin)
                    break
                worker = self._freest()
                if worker is None:
                    return
                self._launch(job, worker, now, min(connections, job.room, worker.free_threads))

    def forget_stuck(self) -> None:
        """At the very end: let go of workers that could not be ended."""
        for worker in self._stuck:
            worker.forget()

    def close(self) -> Sequence[Worker]:
        """Start nothing more. Returns the workers, which the pool ends."""
        self._closed = True
        if self._ticking is not None:
            self._ticking.cancel()
        return tuple(self.workers)

    def _freest(self, avoid: Worker | None = None) -> Worker | None:
        """What is given to a worker that is still starting waits for that, and would be taken for late."""
        self.start_workers()
        able = [worker for worker in self.workers if worker.free_threads > 0 and not worker.is_ending]
        return max(able, key=lambda worker: (worker.is_up, worker is not avoid, worker.free_threads), default=None)

    def _launch(self, job: AnyJob, worker: Worker, now: float, connections: int) -> None:
        unit = job.take(connections)
        flight: AnyFlight = Flight(
            unit=unit,
            worker=worker,
            origin=job.origin,
            started=now,
            job=job,
            work_id=self._setting.next_number(),
        )
        _occupy(flight.origin, worker, unit.slots)
        _count(job, unit.slots)
        self._flights.add(flight)
        task = self._loop.create_task(self._fly(job, flight), name=f"transfer of {job.name(unit)}")
        job.tasks.add(task)
        task.add_done_callback(job.tasks.discard)
        task.add_done_callback(partial(self._after, flight))

    async def _fly(self, job: AnyJob, flight: AnyFlight) -> None:
        try:
            job.landed(flight, await job.fly(flight))
        except WorkerLost as error:
            job.lost(flight.unit, error)
        except TargetAbandoned as error:
            job.abandoned = error
            job.fail(error)
        except Exception as error:  # whatever a caller's on_piece raises is the caller's answer
            job.fail(error)
        finally:
            self._after(flight)

    def _after(self, flight: AnyFlight, _: object = None) -> None:
        """Called by the flight itself, and as its task's callback for those that were cancelled before they began."""
        if flight not in self._flights:
            return
        self._flights.discard(flight)
        _release(flight.origin, flight.worker, flight.unit.slots)
        _count(flight.job, -flight.unit.slots)
        if flight.hedge is not None:
            _release(flight.origin, flight.hedge.worker, 1)
        self.pump()

    def _on_worker_end(self, worker: Worker) -> None:
        self.workers.remove(worker)
        if worker.is_stuck:
            self._stuck.append(worker)
        if self._closed:
            return
        if worker.is_stuck:
            self._setting.observer.worker_abandoned()
        elif not worker.is_leaving:
            log.warning("transfer worker %d ended; another one takes its place", worker.pid)
            self._setting.observer.worker_lost()
        self._loop.call_soon(self.pump)

    def _tick(self) -> None:
        now = self._loop.time()
        self._measure(now)
        if not self._queue and not self._flights:
            self._is_ticking = False
            if self._idle_limit_s is not None:
                self._tick_later(self._idle_limit_s, self._retire)
            return
        self._tick_later(self._setting.config.tick_s, self._tick)
        self._stop_overdue(now)
        self._make_way(now)
        self.pump()
        self._hedge(now)

    def _tick_later(self, delay_s: float, what: Callable[[], None]) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        self._ticking = self._loop.call_later(delay_s, what)

    def _retire(self) -> None:
        """Nothing was asked for a while: the workers leave, and new ones start when there is work again."""
        for worker in self.workers:
            worker.hang_up()

    def _measure(self, now: float) -> None:
        received, buffered = 0, 0
        for worker in self.workers:
            fresh, fresh_buffered = worker.counters.advance()
            received += fresh
            buffered += fresh_buffered
            if fresh:
                worker.alive_at = now
        if buffered:
            self._setting.observer.fallback_buffered(buffered)
        goodput = received / max(now - self._ticked_at, 1e-3)
        self._ticked_at = now
        origins = {flight.origin for flight in self._flights if flight.origin.brings}
        connections = sum(origin.in_flight for origin in origins)
        for origin in origins:
            share = goodput * origin.in_flight / connections
            origin.limit.sample(now, share, saturated=origin.in_flight >= origin.limit.current)

    def _stop_overdue(self, now: float) -> None:
        idle_timeout_s = self._setting.config.idle_timeout_s
        for worker in self.workers:
            for asked in worker.asked:
                if asked.cancelling is not None:
                    continue
                length = _length(asked.work)
                if is_overdue(now, asked.asked_at, worker.alive_at, length, idle_timeout_s):
                    log.warning("transfer worker %d shows no sign of life: its order is cancelled", worker.pid)
                    worker.cancel(asked.work.id)

    def _make_way(self, now: float) -> None:
        """Something urgent does not wait for something that is not urgent and lasts: the first that waits at an origin
        takes connections there, or threads from everybody.
        """
        seen: set[Origin] = set()
        for job in self._queue:
            origin = job.origin
            if not (job.waiting and job.room) or origin in seen or origin.is_down or now < origin.paused_until:
                continue
            seen.add(origin)
            full = origin.capacity(now) == 0
            running = [each for each in self._flights if not each.preempted and (each.origin is origin or not full)]
            if full or self._freest() is None:
                for flight in find_victims(now, job.priority, min(job.waiting, origin.limit.current), running):
                    flight.preempted = True
                    flight.worker.cancel(flight.work_id)

    def _hedge(self, now: float) -> None:
        for origin in {flight.origin for flight in self._flights}:
            flights = [flight for flight in self._flights if flight.origin is origin]
            for flight in origin.hedging.choose(now, flights, spare=origin.capacity(now)):
                worker = self._freest(avoid=flight.worker)
                if worker is None or flight.order is None:
                    return
                _occupy(origin, worker, 1)
                stop_first = partial(flight.worker.cancel, flight.work_id)
                flight.hedge = Hedge(flight.order, self._setting.next_number(), worker, stop_first)


def _occupy(origin: Origin, worker: Worker, connections: int) -> None:
    origin.in_flight += connections
    worker.used_threads += connections


def _release(origin: Origin, worker: Worker, connections: int) -> None:
    origin.in_flight -= connections
    worker.used_threads -= connections


def _count(job: AnyJob, connections: int) -> None:
    if job.cap is not None:
        job.cap.in_flight += connections


def _length(work: Work) -> int:
    """Bytes that an order moves before its next sign of life."""
    if isinstance(work, FetchPiece):
        return work.length
    if isinstance(work, FetchSmall):
        return sum(item.size_bytes for item in work.items)
    if isinstance(work, Rehash):
        return PIECE_SIZE_BYTES * len(work.indexes)
    return PIECE_SIZE_BYTES
