"""A speed limit that all connections of a server share."""

from __future__ import annotations

import threading
import time

SLICES_PER_S = 100
"""How smooth the rate is. Chosen."""


class Pace:
    """Says how far a sender may go, and waits until it may. The limit may be changed at any time; None is unlimited."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self.bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def next_stop(self, position: int, stop: int) -> int:
        """Where the next slice ends; returns when it may be sent."""
        if self.bytes_per_s is None:
            return stop
        upto = min(stop, position + max(1, int(self.bytes_per_s / SLICES_PER_S)))
        with self._lock:
            start_s = max(time.monotonic(), self._free_at_s)
            self._free_at_s = start_s + (upto - position) / self.bytes_per_s
        time.sleep(max(0.0, start_s - time.monotonic()))
        return upto
