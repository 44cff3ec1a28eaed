"""How far one model is: counts what arrives, knows the rate, tells whoever listens, not too often."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from cacheagent.errors import CacheAgentError
from cacheagent.model import Manifest
from cacheagent.progress import JobStatus, Phase, PieceOrigin

RATE_WINDOW_S: Final = 10.0
"""Long enough that 16 MiB pieces make a steady figure on a slow link. Chosen, not measured."""
FEWEST_PARTS: Final = 100
"""There is no estimate before one of so many parts has come. Chosen."""
EVENT_INTERVAL_S: Final = 0.2
"""Five lines a second are what an eye follows. Chosen."""
URGENT: Final = 1_000_000
"""What a waiting pod adds to a job's place among transfers: more than any priority that people write. It evicts nothing
more than the model's own priority may."""


class Tracker:
    """The live state of one job; used from the event loop only."""

    def __init__(
        self,
        name: str,
        uri: str,
        priority: int,
        on_event: Callable[[JobStatus], None],
        *,
        cap: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.priority = priority
        self.urgent = False
        self.cap = cap
        """The name under which all of it is ordered, so that it can be slowed down."""
        self.limit_bytes_per_s = 0
        self._name, self._uri = name, uri
        self._on_event = on_event
        self._now = now
        self._started = now()
        self._ended: float | None = None
        self._phase: Phase = "queued"
        self._manifest: Manifest | None = None
        self._linked = self._kept = self._fetched = 0
        self._from_peers = 0
        self._arrivals: deque[tuple[float, int]] = deque()
        self._last_event = -EVENT_INTERVAL_S
        self._path = ""
        self._error: CacheAgentError | None = None
        self.steps: list[tuple[str, float]] = []
        """Each step and when it began, in seconds since the epoch. Finer than the phases that people see."""

    @property
    def transfer_priority(self) -> int:
        """Its place among transfers."""
        return self.priority + (URGENT if self.urgent else 0)

    def enter(self, phase: Phase) -> None:
        """The job is in its next phase."""
        self._phase = phase
        self.step(phase)
        self._emit()

    def step(self, name: str) -> None:
        """A step begins that is no phase of its own."""
        self.steps.append((name, time.time()))

    def resolved(self, manifest: Manifest) -> None:
        """It is known what the model is."""
        self._manifest = manifest
        self._emit()

    def linked(self, size_bytes: int) -> None:
        """Bytes that this node had, or that another job brought."""
        self._linked += size_bytes
        self._emit_sometimes()

    def piece(self, size_bytes: int, origin: PieceOrigin) -> None:
        """One piece of a large file more is here."""
        if origin == "kept":
            self.kept(size_bytes)
            return
        self._from_peers += size_bytes if origin == "peer" else 0
        self.fetched(size_bytes)

    def kept(self, size_bytes: int) -> None:
        """Bytes of an interrupted job that were proved again."""
        self._kept += size_bytes
        self._emit_sometimes()

    def fetched(self, size_bytes: int) -> None:
        """Bytes that travelled just now."""
        self._fetched += size_bytes
        self._arrivals.append((self._now(), size_bytes))
        self._emit_sometimes()

    def ready(self, path: str, manifest: Manifest) -> None:
        """The model is published."""
        self._path, self._manifest, self._ended = path, manifest, self._now()
        self.enter("ready")

    def failed(self, error: CacheAgentError) -> None:
        """The job ended without the model."""
        self._error, self._ended = error, self._now()
        self.enter("failed")

    def status(self) -> JobStatus:
        """The state at this moment."""
        now = self._ended if self._ended is not None else self._now()
        rate = self._rate(now)
        total = self._manifest.size_bytes if self._manifest else 0
        left = total - self._linked - self._kept - self._fetched
        return JobStatus(
            name=self._name,
            uri=self._uri,
            phase=self._phase,
            digest=self._manifest.digest if self._manifest else "",
            revision=self._manifest.revision if self._manifest else "",
            files_total=len(self._manifest.files) if self._manifest else 0,
            bytes_total=total,
            bytes_linked=self._linked,
            bytes_kept=self._kept,
            bytes_fetched=self._fetched,
            bytes_from_peers=self._from_peers,
            rate_bytes_per_s=rate,
            limit_bytes_per_s=self.limit_bytes_per_s,
            eta_s=left / rate if rate > 0 and self._phase == "fetching" and self._has_begun(total) else -1.0,
            elapsed_s=now - self._started,
            message=self._error.message if self._error else "",
            error=self._error.code if self._error else "",
            hint=self._error.hint if self._error else "",
            path=self._path,
        )

    def _has_begun(self, total: int) -> bool:
        """The first files are small, and would make an estimate of days."""
        return self._fetched * FEWEST_PARTS >= total

    def _rate(self, now: float) -> float:
        """Bytes a second over the window while it runs, over the whole job when it has ended."""
        if self._ended is not None:
            return self._fetched / max(now - self._started, 1e-6)
        while self._arrivals and self._arrivals[0][0] < now - RATE_WINDOW_S:
            self._arrivals.popleft()
        span = min(RATE_WINDOW_S, now - self._started)
        return sum(size for _, size in self._arrivals) / span if span > 0 else 0.0

    def _emit_sometimes(self) -> None:
        if self._now() - self._last_event >= EVENT_INTERVAL_S:
            self._emit()

    def _emit(self) -> None:
        self._last_event = self._now()
        self._on_event(self.status())
