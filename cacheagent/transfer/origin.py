"""What is known of one origin, and how many more requests it may get now. No I/O; time is an argument (seconds)."""

from __future__ import annotations

import random
from typing import Final

from cacheagent.transfer.concurrency import ConnectionLimit, FixedLimit
from cacheagent.transfer.config import TransferConfig
from cacheagent.transfer.hedge import Hedging
from cacheagent.transfer.orders import Failed
from cacheagent.transfer.retry import backoff_s, is_throttle

DOWN_AFTER: Final = 3
"""At least so many failures in a row, and as many as it has connections, count as an origin that is down. Chosen."""


class Origin:
    """One server, or one mounted file system: its connections, pauses and health, over all calls that use it.
    `brings`: what it is asked for counts as received; not so our own disk's."""

    def __init__(
        self, limit: ConnectionLimit, config: TransferConfig, random_source: random.Random, *, brings: bool = True
    ) -> None:
        self.brings: Final = brings
        self.limit = limit
        self.hedging = Hedging()
        self.in_flight = 0
        self.streams = 0
        self.progress_at = float("-inf")
        self.paused_until = float("-inf")
        self._failures_in_row = 0
        self._probes = 0
        self._config = config
        self._random = random_source

    @property
    def is_down(self) -> bool:
        """Everything failed lately: one request at a time finds out whether it is back."""
        return self._failures_in_row >= max(DOWN_AFTER, self.limit.current)

    def capacity(self, now: float) -> int:
        """How many more connections may be used now."""
        if now < self.paused_until:
            return 0
        return max(0, (1 if self.is_down else self.limit.current) - self.in_flight)

    def succeeded(self, now: float) -> None:
        """It gave something."""
        self.progress_at = now
        self._failures_in_row = self._probes = 0

    def failed(self, now: float, failed: Failed) -> float:
        """A failure that may pass. Returns for how many seconds the origin is left alone from now on (0: it is not)."""
        self._failures_in_row += 1
        pause_s = 0.0
        if failed.retry_after_s >= 0:
            pause_s = min(failed.retry_after_s, self._config.retry_after_cap_s)
        elif self.is_down:
            self._probes += 1
            pause_s = backoff_s(self._probes, self._config.backoff_base_s, self._config.backoff_cap_s, self._random)
        if is_throttle(failed):
            self.limit.throttled(now)
        elif failed.kind == "timeout":
            self.limit.timed_out(now)
        self.paused_until = max(self.paused_until, now + pause_s)
        return pause_s


def make_limit(config: TransferConfig) -> ConnectionLimit:
    """Adaptive, or what the configuration fixes."""
    if config.connections:
        return FixedLimit(config.connections)
    return ConnectionLimit(initial=config.initial_connections, maximum=config.max_connections)
