"""Memory that the pool and its workers share: one ingress cap for all of them, caps of single jobs, and what each
worker has received.

Layout of the memfd, unsigned 64-bit numbers in native order. Line 0 (64 bytes): the cap of everything in bytes/s (0:
none), and the time at which the next byte is free (CLOCK_MONOTONIC, ns). Lines 1 to `MOST_CAPS`: the same for a job
each. Then one line for each worker: bytes received, bytes written through the page cache because the filesystem
refused O_DIRECT.

The bucket is a virtual schedule (GCRA): a reservation of n bytes moves the free time on by n / cap, and the caller
waits until the time it got. So sleepers that oversleep lose nothing, and no worker needs to know of any other.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

_LINE: Final = 64  # a cache line, so that workers' counters don't slow each other down
_PER_LINE: Final = _LINE // 8
_CAP, _FREE_AT = 0, 1
_RECEIVED, _BUFFERED = 0, 1

MOST_CAPS: Final = 1024
"""Jobs with a cap of their own at a time. More than a node has pods."""
BURST_NS: Final = 10_000_000
"""Unused time that may be caught up: 10 ms is 1 % of the second within which the cap holds. Chosen, not measured."""

LOOK_S: Final = 0.2
"""Who waits looks so often whether the cap is another one now. Chosen."""

LARGEST_SLICE_BYTES: Final = 256 * 1024
SMALLEST_SLICE_BYTES: Final = 16 * 1024
"""Reservations are 10 ms of the cap within these bounds: small enough for 3 % of a second, large enough to be cheap."""


class Bucket:
    """One cap. Thread-safe; safe between processes, one of which may die at any point."""

    def __init__(self, line: memoryview, exclusive: Callable[[], AbstractContextManager[None]]) -> None:
        self._numbers = line
        self._exclusive = exclusive

    @property
    def bytes_per_s(self) -> int:
        """0: none."""
        return self._numbers[_CAP]

    def set(self, bytes_per_s: int) -> None:
        """At any time. Later reservations wait as much less as the cap is larger now, and not at all when it is lifted;
        so does whoever waits already, within `LOOK_S`."""
        with self._exclusive():
            before, now = self._numbers[_CAP], time.monotonic_ns()
            debt_ns = max(0, self._numbers[_FREE_AT] - now)
            if bytes_per_s == 0 or before == 0:
                self._numbers[_FREE_AT] = 0
            elif bytes_per_s > before:
                self._numbers[_FREE_AT] = now + debt_ns * before // bytes_per_s
            self._numbers[_CAP] = bytes_per_s

    @property
    def slice_bytes(self) -> int:
        """How much to reserve and receive at once; 0 while there is no cap."""
        cap = self._numbers[_CAP]
        return cap and min(LARGEST_SLICE_BYTES, max(SMALLEST_SLICE_BYTES, cap // 100))

    def reserve(self, length: int) -> float:
        """Seconds to wait before `length` bytes may be received."""
        return self._reserve(length)[0]

    def wait_for(self, length: int, sleep: Callable[[float], None]) -> None:
        """Return when `length` bytes may be received: at the rate that the cap has by then."""
        left_s, rate = self._reserve(length)
        while left_s > 0:
            began, step_s = time.monotonic(), min(left_s, LOOK_S)
            sleep(step_s)
            left_s -= max(step_s, time.monotonic() - began)
            now = self.bytes_per_s
            if now == 0:
                return
            if now > rate:  # a smaller one shortens nothing, also when it is raised again
                left_s, rate = left_s * rate / now, now

    def _reserve(self, length: int) -> tuple[float, int]:
        """Seconds to wait, and the rate that was reckoned with."""
        if self._numbers[_CAP] == 0:
            return 0.0, 0
        with self._exclusive():
            cap = self._numbers[_CAP] or 1 << 62  # it may have been lifted meanwhile
            now = time.monotonic_ns()
            mine = max(self._numbers[_FREE_AT], now - BURST_NS)
            self._numbers[_FREE_AT] = mine + length * 1_000_000_000 // cap
        return max(0, mine - now) / 1e9, cap


class SharedRate:
    """One end of the shared memory. Thread-safe; safe between processes, one of which may die at any point."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._numbers = memoryview(mmap.mmap(fd, os.fstat(fd).st_size)).cast("Q")
        self._lock = threading.Lock()
        self.whole: Final = self.bucket(0)
        """The cap of everything."""

    @classmethod
    def create(cls, workers: int, cap_bytes_per_s: int = 0) -> SharedRate:
        """For the parent: `fd` is inherited by the workers, whose slots are 0 to workers - 1."""
        fd = os.memfd_create("cacheagent-rate")
        os.ftruncate(fd, _LINE * (1 + MOST_CAPS + workers))
        shared = cls(fd)
        shared.whole.set(cap_bytes_per_s)
        return shared

    def close(self) -> None:
        """Let go of the descriptor; the memory goes with the last meter."""
        os.close(self.fd)

    def bucket(self, number: int) -> Bucket:
        """The cap of one job, 1 to `MOST_CAPS`; 0 is that of everything."""
        return Bucket(self._line(number), self._exclusive)

    def received_bytes(self, slot: int) -> int:
        """Since the memory was created: a replaced worker goes on where the last one was."""
        return self._of_worker(slot)[_RECEIVED]

    def buffered_bytes(self, slot: int) -> int:
        """As `received_bytes`."""
        return self._of_worker(slot)[_BUFFERED]

    def meter(self, slot: int) -> Meter:
        """What the worker of this slot counts with."""
        return Meter(self, (self.whole,), self._of_worker(slot), threading.Lock())

    def _of_worker(self, slot: int) -> memoryview:
        return self._line(1 + MOST_CAPS + slot)

    def _line(self, number: int) -> memoryview:
        return self._numbers[_PER_LINE * number : _PER_LINE * (number + 1)]

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Threads by a lock, processes by a record lock, which the kernel takes from whoever dies."""
        with self._lock:
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self.fd, fcntl.LOCK_UN)


class Meter:
    """A worker's own view: every byte it receives goes past here. Thread-safe."""

    def __init__(
        self, shared: SharedRate, buckets: tuple[Bucket, ...], counters: memoryview, lock: threading.Lock
    ) -> None:
        self._shared = shared
        self._buckets = buckets
        self._counters = counters
        self._lock = lock  # other processes never write this line, but several threads do

    def within(self, number: int) -> Meter:
        """The same for the bytes of a job that has a cap of its own."""
        return Meter(self._shared, (self._shared.bucket(number), *self._buckets), self._counters, self._lock)

    @property
    def slice_bytes(self) -> int:
        """How much its caps let come at once; 0 while it has none."""
        return min((step for bucket in self._buckets if (step := bucket.slice_bytes)), default=0)

    def pace(self, view: memoryview, sleep: Callable[[float], None]) -> Iterator[memoryview]:
        """`view` in the slices that the caps allow, each after its waiting time and counted once the caller has filled
        it; all at once where there is no cap.
        """
        step = self.slice_bytes or len(view) or 1  # nothing is paced at once, too
        for at in range(0, len(view), step):
            part = view[at : at + step]
            self.wait_for(len(part), sleep)
            yield part
            self.count_received(len(part))

    def wait_for(self, length: int, sleep: Callable[[float], None]) -> None:
        """Return when `length` bytes may be received. One cap after the other: who waits for its job's own has not
        reserved of everybody's yet."""
        for bucket in self._buckets:
            bucket.wait_for(length, sleep)

    def count_received(self, length: int) -> None:
        """Bytes off the network or a mounted source."""
        self._count(_RECEIVED, length)

    def count_buffered(self, length: int) -> None:
        """Bytes that had to go through the page cache."""
        self._count(_BUFFERED, length)

    def _count(self, which: int, length: int) -> None:
        with self._lock:
            self._counters[which] += length
