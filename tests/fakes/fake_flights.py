"""Flights without a store or a transport: jobs start and end when a test says so."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable

import msgspec

from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec


class FakeFlights:
    """Has the methods of `Flights` that start and look; `finish` and `fail` are the world."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.wanted_s: dict[str, float] = {}
        self.here: set[str] = set()
        self.urgent: set[str] = set()
        self.let_gone: set[str] = set()
        self.statuses: dict[str, JobStatus] = {}
        self.start_of: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.dropped = 0
        self.listener: Callable[[JobStatus], None] = lambda _: None

    def find(self, spec: ModelSpec) -> object | None:
        return _Record(digest=f"sha256:{spec.name}") if spec.name in self.here else None

    def start(
        self,
        spec: ModelSpec,
        *,
        priority: int | None = None,
        refresh: bool = False,
        wanted_s: float = math.inf,
        urgent: bool = False,
        by: str = "",
    ) -> None:
        if urgent:
            self.urgent.add(spec.name)
        if self.running(spec.name):
            self.wanted_s[spec.name] = wanted_s
            return
        self.started.append(spec.name)
        self.wanted_s[spec.name] = wanted_s
        self.start_of[spec.name].set()
        self.statuses[spec.name] = JobStatus(name=spec.name, uri=spec.source.uri, phase="fetching")

    def job(self, spec: ModelSpec) -> JobStatus | None:
        return self.statuses.get(spec.name)

    def let_go(self, spec: ModelSpec, by: str) -> None:
        self.let_gone.add(spec.name)

    def drop_unwanted(self) -> None:
        self.dropped += 1

    def running(self, name: str) -> bool:
        """Whether a job of that name is under way."""
        return name in self.statuses and not self.statuses[name].finished

    def finish(self, name: str) -> None:
        """The model is here."""
        self.here.add(name)
        self._end(msgspec.structs.replace(self.statuses[name], phase="ready"))

    def fail(self, name: str, error: str = "origin-unavailable") -> None:
        """The job ended without it."""
        self._end(
            msgspec.structs.replace(
                self.statuses[name], phase="failed", error=error, message=f"{name}: no answer", hint="look there"
            )
        )

    def _end(self, status: JobStatus) -> None:
        self.statuses[status.name] = status
        self.listener(status)


class _Record(msgspec.Struct, frozen=True):
    digest: str
