"""Keeps what the configuration names in the cache: starts what is missing, by priority, and tries again what failed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from cacheagent.api.schema import Wanted, WarmState
from cacheagent.flights import INTEREST_S, Flights
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec

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


@dataclass
class _Attempts:
    """What happened to one model since somebody last changed the configuration."""

    under_way: bool = False
    ready_since: float | None = None
    failures: int = 0
    retry_at: float = 0.0


class Warming:
    """What should be here, and what is done about it. One event loop.

    It only starts jobs and lets them be: a model that leaves the configuration is no longer fetched again, and what is
    on disk stays until its room is needed. `keep` is told which versions are here that would be fetched again.
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

    def want(self, specs: Sequence[ModelSpec]) -> None:
        """From now on these; whatever failed is tried again at once."""
        self._specs = tuple(sorted(specs, key=lambda spec: -spec.priority))
        self._attempts = {
            spec: _Attempts(under_way=(past := self._attempts.get(spec)) is not None and past.under_way)
            for spec in self._specs
        }
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
            if not _runs(self._flights.job(spec)):
                if attempts.under_way or attempts.ready_since is not None:
                    self._note_absence(attempts)
                if not spec.keep_warm or attempts.retry_at > self._now() or running >= WARM_AT_ONCE:
                    continue
            elif not spec.keep_warm:
                continue  # somebody asked for it, and it lives by their interest
            self._flights.start(spec, wanted_s=INTEREST_S)
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
        pause = min(FIRST_RETRY_S * 2**attempts.failures, LONGEST_RETRY_S)
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
