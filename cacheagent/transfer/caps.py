"""Caps of single jobs: how fast what one of them brings may come from origins, over all of its files and workers.

A cap lies in the memory that the workers share, so a change takes effect in the middle of whatever is under way. Each
job has one from its beginning, whether it limits anything or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cacheagent.errors import TransferFailed
from cacheagent.transfer.rate import MOST_CAPS, Bucket, SharedRate

BYTES_PER_CONNECTION: Final = 2 * 1024 * 1024
"""A capped job has one connection for so many bytes a second: more would only be kept from others at the same origin,
each with a piece that takes minutes. Chosen: 8 s for a piece."""
NO_LIMIT: Final = 1 << 30
"""Connections."""


class Cap:
    """What all calls of one job share while any of them runs. `in_flight`: connections that they use."""

    def __init__(self, number: int, bucket: Bucket) -> None:
        self.number = number
        self.bucket = bucket
        self.users = 0
        self.in_flight = 0

    @property
    def room(self) -> int:
        """How many connections more it may use; always one, so that a slow job goes on."""
        if not (rate := self.bucket.bytes_per_s):
            return NO_LIMIT
        return max(0, max(1, rate // BYTES_PER_CONNECTION) - self.in_flight)


class Caps:
    """By name. Used on the event loop only."""

    def __init__(self, shared: SharedRate) -> None:
        self._shared = shared
        self._rates: dict[str, int] = {}
        self._open: dict[str, Cap] = {}
        self._free = list(range(MOST_CAPS, 0, -1))

    def set(self, name: str, bytes_per_s: int) -> None:
        """From now on; 0: none. Holds for what is under way and for what comes."""
        if bytes_per_s:
            self._rates[name] = bytes_per_s
        else:
            self._rates.pop(name, None)
        if (cap := self._open.get(name)) is not None:
            cap.bucket.set(bytes_per_s)

    @contextmanager
    def use(self, name: str) -> Iterator[Cap | None]:
        """The cap of that name for the length of a call; the empty name has none. Raises TransferFailed."""
        if not name:
            yield None
            return
        cap = self._open.get(name) or self._make(name)
        cap.users += 1
        try:
            yield cap
        finally:
            cap.users -= 1
            if cap.users == 0:
                del self._open[name]
                cap.bucket.set(0)  # the next job with this number inherits nothing
                self._free.append(cap.number)

    def _make(self, name: str) -> Cap:
        if not self._free:
            raise TransferFailed(f"more than {MOST_CAPS} jobs at a time", hint="it is tried again when some have ended")
        number = self._free.pop()
        cap = self._open[name] = Cap(number, self._shared.bucket(number))
        cap.bucket.set(self._rates.get(name, 0))
        return cap
