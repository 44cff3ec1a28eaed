"""Which pieces are so late that asking a second time is worth it. Pure; time is an argument (seconds)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, Protocol, TypeVar

from cacheagent.model import PIECE_SIZE_BYTES

LATE_FACTOR: Final = 2.0
QUANTILE: Final = 0.9
"""The expected time is that of the slower ones among the recent pieces: half of all are slower than the median."""
RECENT: Final = 64
FEWEST: Final = 8
"""Below this many finished pieces nothing is known."""
LATE_AT_LEAST_S: Final = 0.5
"""Faster than this a hedge can't win: it needs a connection, a request and a copy of its own. Chosen."""
EXTRA_SHARE: Final = 0.05
"""Bytes asked for twice, as a share of the bytes that arrived."""
LOST_FACTOR: Final = 8.0
LOST_AT_LEAST_S: Final = 5.0
"""What is so late hangs. One piece at a time may go beyond that share, lest the last one of a file wait for a time-out.
Chosen."""


class InFlight(Protocol):
    """What is on its way: since when, how long it is in bytes, and whether it can be asked for a second time."""

    started: float

    @property
    def length(self) -> int: ...

    @property
    def hedgeable(self) -> bool: ...


F = TypeVar("F", bound=InFlight)


class Hedging:
    """The recent paces of one origin's pieces, and what was spent on second requests."""

    def __init__(self) -> None:
        self._paces: deque[float] = deque(maxlen=RECENT)
        self._arrived_bytes = 0
        self._extra_bytes = 0

    def arrived(self, length: int, seconds: float) -> None:
        """A piece is here. Short ones (a file's tail) count as bytes but say little about the pace."""
        self._arrived_bytes += length
        if length >= PIECE_SIZE_BYTES // 2:
            self._paces.append(seconds / length)

    def expected_s(self, length: int) -> float | None:
        """How long a piece of this length takes, None while too little is known."""
        if len(self._paces) < FEWEST:
            return None
        ordered = sorted(self._paces)
        return ordered[int(QUANTILE * (len(ordered) - 1))] * length

    def choose(self, now: float, flights: Iterable[F], *, spare: int) -> list[F]:
        """The latest pieces first, at most `spare` of them, within the share of extra bytes; they count as spent."""
        late = sorted(self._late(now, flights), key=lambda flight: flight.started)
        chosen: list[F] = []
        for flight in islice(late, max(0, spare)):
            owed = flight.length if self._exceeds(now, flight, LOST_FACTOR, LOST_AT_LEAST_S) else 0
            if self._extra_bytes + flight.length > EXTRA_SHARE * self._arrived_bytes + owed:
                break
            self._extra_bytes += flight.length
            chosen.append(flight)
        return chosen

    def _late(self, now: float, flights: Iterable[F]) -> Iterator[F]:
        for flight in flights:
            if flight.hedgeable and self._exceeds(now, flight, LATE_FACTOR, LATE_AT_LEAST_S):
                yield flight

    def _exceeds(self, now: float, flight: InFlight, factor: float, at_least_s: float) -> bool:
        """So many times as long as expected, and so long; not while too little is known."""
        expected_s = self.expected_s(flight.length)
        return expected_s is not None and now - flight.started > max(at_least_s, factor * expected_s)
