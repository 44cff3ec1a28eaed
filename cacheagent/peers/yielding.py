"""Serving steps back while others on this node read from the same disk: a pod that loads its weights goes first.

The rule is pure, time and counters are arguments; `DiskCounters` reads the kernel's. Who reads is not known, only how
much this process did: what the agent itself reads besides (a scrub, weights for the page cache) counts as others' too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

OTHERS_BYTES_PER_S: Final = 32 * 1024 * 1024
"""Less than that is no pod that waits for its weights. Chosen."""
BUSY: Final = 0.9
"""Of the time in which the disk had something to do: below it, whoever reads waits for something else. Chosen."""
FLOOR_BYTES_PER_S: Final = 16 * 1024 * 1024
"""To all peers together, however long others read: nobody who waits for pieces of this node starves. Chosen."""
BACK: Final = 0.5
FORTH: Final = 1.25
"""At each look: out of the way within a few, and back within some seconds. Chosen."""
LOOK_S: Final = 0.5

SECTOR_BYTES: Final = 512
"""The unit of Documentation/block/stat.rst, whatever the disk's own sectors are."""


class Use(NamedTuple):
    """Since some beginning: bytes read from the disk by all and by this process, and seconds in which it was busy."""

    read_bytes: int
    own_bytes: int
    busy_s: float


class Yielding:
    """`cap_bytes_per_s`: what the administrator allows at most; 0: no limit."""

    def __init__(self, cap_bytes_per_s: int = 0) -> None:
        self.times = 0
        """How often it was begun."""
        self._cap = cap_bytes_per_s
        self._limit = 0.0
        """0 while nobody is in the way."""
        self._enough = 0.0
        """What was read for peers before the first step back: a limit above it limits nothing."""
        self._last: tuple[Use, float] | None = None

    def look(self, use: Use, now: float) -> int:
        """What peers may be sent from now on, in bytes/s; 0: no limit."""
        last, self._last = self._last, (use, now)
        if last is None or now <= last[1]:
            return self._capped()
        passed_s = now - last[1]
        own = (use.own_bytes - last[0].own_bytes) / passed_s
        others = (use.read_bytes - last[0].read_bytes) / passed_s - own
        busy = (use.busy_s - last[0].busy_s) / passed_s
        if others >= OTHERS_BYTES_PER_S and busy >= BUSY:
            if self._limit or own > FLOOR_BYTES_PER_S:
                self._step_back(own)
        elif self._limit:
            self._limit *= FORTH
            if self._limit > self._enough:
                self._limit = 0.0
        return self._capped()

    def _step_back(self, own: float) -> None:
        if not self._limit:
            self._enough = own
            self.times += 1
        self._limit = max(FLOOR_BYTES_PER_S, (self._limit or own) * BACK)

    def _capped(self) -> int:
        return int(min(self._limit or self._cap, self._cap or self._limit))


class DiskCounters:
    """Of the disk below a directory. `sys`, `io`: where the kernel tells them."""

    def __init__(self, directory: Path, *, sys: Path = Path("/sys"), io: Path = Path("/proc/self/io")) -> None:
        device = directory.stat().st_dev
        self._stat = sys / f"dev/block/{os.major(device)}:{os.minor(device)}/stat"
        self._io = io

    def read(self) -> Use | None:
        """None where there is no such disk: file systems of several (btrfs, ZFS), in memory, or laid over others."""
        try:
            numbers = self._stat.read_text().split()
            own = dict(line.split(": ") for line in self._io.read_text().splitlines())
        except OSError:
            return None
        return Use(int(numbers[2]) * SECTOR_BYTES, int(own["read_bytes"]), int(numbers[9]) / 1000)
