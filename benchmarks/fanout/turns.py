"""Sharing a machine: nobody else computes during a measured run, and setting one up is like anybody else's work."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import msgspec


class Turns(msgspec.Struct, frozen=True, kw_only=True):
    """`lock`: held exclusively (flock) by who measures and shared by who works. `turnstile`: held by whoever waits for
    the lock, so that those who come later do not overtake. Without files nothing is waited for.
    """

    lock: Path | None = None
    turnstile: Path | None = None

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Beside others."""
        with self._holding(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Alone."""
        with self._holding(fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def _holding(self, kind: int) -> Iterator[None]:
        if self.lock is None:
            yield
            return
        with self.lock.open("a") as lock:
            with self.turnstile.open("a") if self.turnstile else contextlib.nullcontext() as turnstile:
                if turnstile:
                    fcntl.flock(turnstile, fcntl.LOCK_EX)
                fcntl.flock(lock, kind)
            yield
