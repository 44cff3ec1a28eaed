"""Keeps what the configuration names in the cache: starts what is missing, by priority, and tries again what failed."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from cacheagent.api.schema import Wanted, WarmState
from cacheagent.errors import NoRoom
from cacheagent.flights import INTEREST_S, Flights, source_key
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec

KEEPER: Final = "keeper"
"""As whom this wants jobs: those of a model that is no longer wanted end, unless somebody asked for it, too."""

WARM_AT_ONCE: Final = 4
"""Models fetched at a time without being asked for. One fills a link already; four keep a slow origin from holding up
the others. Chosen, not measured."""

LOOK_AGAIN_S: Final = 5.0
"""How often it is looked whether something is missing, if nothing happens. Chosen: far below `INTEREST_S`."""

FIRST_RETRY_S: Final = 5.0
LONGEST_RETRY_S: Final = 600.0
"""A failed model is tried again after 5, 10, 20 … seconds, at most 10 minutes, each up to half longer by chance, so
that a thousand nodes don't come back in step. Chosen. The same holds for one that was evicted: models that don't fit
together would otherwise evict each other without end. Whatever stays here for the longest pause begins anew."""


LONGEST_RETRY_FOR_A_POD_S: Final = 60.0
"""While a pod waits, a failed model is tried again at least this often: what somebody mends is to be seen soon.
Chosen."""


@dataclass
class _Attempts:
    """What happened to one model since somebody last changed the configuration. `demanded_until`: pods wait for it."""

    demanded_until: float = -math.inf
    under_way: bool = False
    ready_since: float | None = None
    failures: int = 0
    retry_at: float = 0.0


class Warming:
    """What should be here, and what is done about it. One event loop.

    A model that is no longer wanted is not fetched any more; what is on disk of it stays until its room is needed.
    `keep` is told which versions are here that would be fetched again.
    """

    def __init__(
        self,
        flights: Flights,
        specs: Sequence[ModelSpec],
        *,
        keep: Callable[[set[str]], None] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._flights = flights
        self._keep = keep
        self._now = now
        self._jitter = jitter
        self._wake = asyncio.Event()
        self._specs: tuple[ModelSpec, ...] = ()
        self._attempts: dict[ModelSpec, _Attempts] = {}
        self.want(specs)

    def want(self, specs: Sequence[ModelSpec], *, afresh: bool = True) -> None:
        """From now on these. `afresh`: whatever failed is tried again at once; else only what is new or changed."""
        self._specs = tuple(sorted(specs, key=lambda spec: -spec.priority))
        past = self._attempts
        if gone := past.keys() - set(self._specs):
            still = {source_key(spec) for spec in self._specs}
            for spec in gone:
                if source_key(spec) not in still:  # else it is the same download for other reasons
                    self._flights.let_go(spec, KEEPER)
        self._attempts = {spec: past.get(spec, _Attempts()) for spec in self._specs}
        if afresh:
            for attempts in self._attempts.values():
                attempts.ready_since, attempts.failures, attempts.retry_at = None, 0, 0.0
        self._wake.set()

    def demand(self, spec: ModelSpec) -> float:
        """A pod waits for one of these models: it goes before others, whatever `keep_warm` says, for as long as
        somebody has asked within `INTEREST_S`. Returns in how many seconds it is tried again, after a failure."""
        attempts = self._attempts.get(spec)
        if attempts is None:
            return 0.0
        if attempts.demanded_until < self._now():
            attempts.retry_at = min(attempts.retry_at, self._now() + LONGEST_RETRY_FOR_A_POD_S)
        attempts.demanded_until = self._now() + INTEREST_S
        self._wake.set()
        return max(0.0, attempts.retry_at - self._now())

    def retry_in_s(self, spec: ModelSpec) -> float:
        """In how many seconds one of these models is tried again, after a failure."""
        attempts = self._attempts.get(spec)
        return max(0.0, attempts.retry_at - self._now()) if attempts is not None else 0.0

    def room_was_made(self) -> None:
        """What did not fit is tried again at once."""
        for spec, attempts in self._attempts.items():
            job = self._flights.job(spec)
            if job is not None and job.error == NoRoom.code:
                attempts.retry_at = 0.0
        self._wake.set()

    def heard(self, status: JobStatus) -> None:
        """A job has news; one that ended makes room for the next."""
        if status.finished:
            self._wake.set()

    async def run(self) -> None:
        """Look, act, wait; until cancelled."""
        while True:
            self._wake.clear()
            self.step()
            try:
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def step(self) -> None:
        """Start what is missing and may start now; renew the interest in what runs."""
        self._flights.drop_unwanted()
        running, here = 0, set[str]()
        for spec in self._specs:
            attempts = self._attempts[spec]
            if (record := self._flights.find(spec)) is not None:
                self._note_ready(attempts)
                if spec.keep_warm:
                    here.add(record.digest)
                continue
            demanded = attempts.demanded_until > self._now()
            if not _runs(self._flights.job(spec)):
                if attempts.under_way or attempts.ready_since is not None:
                    self._note_absence(attempts)
                may_start = demanded or (spec.keep_warm and running < WARM_AT_ONCE)
                if not may_start or attempts.retry_at > self._now():
                    continue
            elif not spec.keep_warm and not demanded:
                continue  # somebody asked for it, and it lives by their interest
            self._flights.start(spec, wanted_s=INTEREST_S, urgent=demanded, by=KEEPER)
            attempts.under_way = True
            running += 1
        self._keep(here)

    def wanted(self) -> tuple[Wanted, ...]:
        """The state of every configured model, the most important first."""
        return tuple(self._wanted(spec) for spec in self._specs)

    def _note_ready(self, attempts: _Attempts) -> None:
        attempts.under_way = False
        if attempts.ready_since is None:
            attempts.ready_since = self._now()
        elif self._now() - attempts.ready_since > LONGEST_RETRY_S:
            attempts.failures = 0

    def _note_absence(self, attempts: _Attempts) -> None:
        """Its job failed, or it was evicted."""
        longest = LONGEST_RETRY_FOR_A_POD_S if attempts.demanded_until > self._now() else LONGEST_RETRY_S
        pause = min(FIRST_RETRY_S * 2**attempts.failures, longest)
        attempts.under_way, attempts.ready_since = False, None
        attempts.failures += 1
        attempts.retry_at = self._now() + pause * (1 + self._jitter() / 2)

    def _wanted(self, spec: ModelSpec) -> Wanted:
        record, job = self._flights.find(spec), self._flights.job(spec)
        pause_s = max(0.0, self._attempts[spec].retry_at - self._now())
        wanted = Wanted(
            name=spec.name,
            uri=spec.source.uri,
            priority=spec.priority,
            state="ready" if record is not None else _state(spec, job),
            digest=record.digest if record is not None else "",
        )
        if wanted.state == "failed" and job is not None:
            return replace(wanted, error=job.error, message=job.message, hint=job.hint, retry_in_s=pause_s)
        if wanted.state == "waiting":
            reason = "it was evicted; a moment is left before it is fetched again" if pause_s else "others go first"
            return replace(wanted, message=reason, retry_in_s=pause_s)
        return wanted


def _runs(job: JobStatus | None) -> bool:
    return job is not None and not job.finished


def _state(spec: ModelSpec, job: JobStatus | None) -> WarmState:
    if _runs(job):
        return "working"
    if job is not None and job.phase == "failed":
        return "failed"
    return "waiting" if spec.keep_warm else "on-demand"
