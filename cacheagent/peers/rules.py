"""When a home is so slow that part of what it owes is better asked of somebody else, and when nothing comes at all.
Pure; seconds and bytes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import median_high, median_low
from typing import Final, NamedTuple

from cacheagent.model import PIECE_SIZE_BYTES

PATIENCE_S: Final = 3.0
"""Nobody is called slow sooner, and nobody who needs no longer for the rest. Chosen."""
FACTOR: Final = 2.0
"""Slow is who needs so many times what the others need. Chosen."""
FULL_FACTOR: Final = 4.0
FULL: Final = 0.8
"""While all homes together bring this part of the most that they ever have, this node's link or the origin is what
holds them up, and they take from each other what one of them lacks: then it takes so much more to be slow. Chosen."""
LAG_S: Final = 2.0
"""And is by so long behind them: shares differ by chance while they are small. Chosen."""
LAST_BYTES: Final = 2 * PIECE_SIZE_BYTES
LAST_S: Final = 10.0
"""Its last two pieces are on their way, and would begin anew elsewhere: only a home that needs so long for them loses
them. Chosen."""
STARVED: Final = 1 / 3
"""If more than this part of all homes is slow at once, it is this node that is. Chosen."""
FAR_BYTES: Final = 6 * PIECE_SIZE_BYTES
"""What comes from another zone comes in whole pieces, one now and then: who is behind by less is not called slow while
most others still owe something, and who brought nothing while they brought so much each has stopped. Chosen."""
OUT_AFTER_S: Final = 5.0
"""A home that could not be reached since the beginning, or has not let this node in, is not counted on any more. One
that says nothing yet is: its process may be starting, or this node's own. Chosen."""
ORIGIN_S: Final = 2.0
"""For a piece. Where the origin takes longer, who took a piece over would wait as long. Chosen."""
PART_S: Final = 0.5
"""For a part of a piece from each home. Where it takes longer, a home that brings none for a while is no exception.
Chosen."""
MOST_STRETCH: Final = 10.0
"""Where these times are longer, patience, lags and the time that rates are of are as many times longer, at most so
many. Chosen."""
NO_PROGRESS_S: Final = 15.0
PROGRESS_BYTES: Final = 256 * 1024
"""Less than this in `NO_PROGRESS_S`, from all together: what is missing is asked of the origin. What drips keeps no
download waiting. Chosen."""

SMOOTH: Final = 6
"""Half seconds, whose inflows are one by the mean: what comes is told of a part at a time. Chosen."""


class Smoothed:
    """A rate that is told twice a second, by the mean of the last ones; later ones count for more."""

    def __init__(self) -> None:
        self.rate = 0.0

    def add(self, rate: float) -> float:
        """The mean with this one."""
        self.rate += (rate - self.rate) / SMOOTH
        return self.rate


class Home(NamedTuple):
    """One home as a subscriber sees it. `rate`: lately; `age_s`: since it was first asked, or was last relieved of
    something."""

    name: str
    delivered: int
    owed: int
    rate: float
    age_s: float

    @property
    def rest_s(self) -> float:
        """How long it needs for what it owes, at its rate."""
        if not self.owed:
            return 0.0
        return self.owed / self.rate if self.rate > 0 else math.inf


class Flow:
    """What all homes together bring, beside the most that they ever have."""

    def __init__(self) -> None:
        self.most = 0.0
        """Bytes a second."""

    def factor(self, rate: float) -> float:
        """How many times slower than the others a home must be to be called slow, while they all bring so much."""
        self.most = max(self.most, rate)
        return FULL_FACTOR if rate > 0 and rate >= FULL * self.most else FACTOR


class Movement:
    """Whether anything comes. `now`: of any clock."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._bytes = 0

    def came(self, now: float, size_bytes: int) -> None:
        """Bytes that were wanted, and that had not come before."""
        self._bytes += size_bytes
        if self._bytes >= PROGRESS_BYTES:
            self.restart(now)

    def restart(self, now: float) -> None:
        """A piece is whole, or something is done about those that don't come."""
        self._since, self._bytes = now, 0

    def is_stalled(self, now: float, patience: int = 1) -> bool:
        """Too little, for too long, or so many times longer."""
        return now - self._since > NO_PROGRESS_S * patience


def stretch(origin_s: float, part_s: float) -> float:
    """How many times longer homes are waited for, where the origin takes so long for a piece, and homes for a part."""
    return min(max(1.0, origin_s / ORIGIN_S, part_s / PART_S), MOST_STRETCH)


def find_slow(homes: Sequence[Home], *, is_far: bool = False, factor: float = FACTOR, times: float = 1.0) -> list[str]:
    """Names of homes that have delivered less than half of what most of the others have, are seconds behind, and need
    more than twice as long as most of the others for the rest, also of those that stopped while the others go on.
    `is_far`: they are in other zones. `factor`: instead of twice and half. `times`: see `stretch`."""
    slow = [
        home.name
        for home in homes
        if _is_slow(home, [other for other in homes if other is not home], is_far=is_far, factor=factor, times=times)
    ]
    return slow if len(slow) <= max(1, STARVED * len(homes)) else []


def tail(pieces: Sequence[int], begun: Collection[int]) -> list[int]:
    """The half that is taken from a slow home: what it would send last, and nothing that it has begun if there is
    another choice. At least one."""
    ordered = sorted(pieces, key=lambda piece: (piece not in begun, piece))
    return ordered[len(ordered) // 2 :]


def is_busy(owing: Sequence[bool]) -> bool:
    """Most of them still owe something."""
    return sum(owing) > len(owing) / 2


def _is_slow(home: Home, others: Sequence[Home], *, is_far: bool, factor: float, times: float) -> bool:
    if not others or min(home.age_s, home.rest_s) < PATIENCE_S * times:
        return False
    if home.rate > 0 and home.owed <= LAST_BYTES and home.rest_s < LAST_S * times:
        return False
    if home.rest_s < factor * median_high(other.rest_s for other in others):
        return False
    if home.rate <= 0:
        return sum(other.rate > 0 or not other.owed for other in others) > len(others) / 2
    usual = median_low(other.delivered for other in others)
    pace = max(home.rate, *(other.rate for other in others if other.owed), 0.0)
    lag = max(LAG_S * times * pace, FAR_BYTES if is_far and is_busy([other.owed > 0 for other in others]) else 0.0)
    return home.delivered * factor < usual and usual - home.delivered > lag
