"""Which home is so slow that part of what it owes is better asked of somebody else. Pure; seconds and bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Final, NamedTuple

PATIENCE_S: Final = 3.0
"""Nobody is called slow sooner, and nobody who needs no longer for the rest. Chosen."""
SLOW_SHARE: Final = 0.5
"""Of what the others have delivered."""
LAG_S: Final = 2.0
"""And by so long behind them: shares differ by chance while they are small. Chosen."""
OUT_AFTER_S: Final = 5.0
"""A home that could not be reached since the beginning is not counted on any more. Chosen."""


class Home(NamedTuple):
    """One home as a subscriber sees it. `age_s`: since it was first asked, or was last relieved of something."""

    name: str
    delivered: int
    owed: int
    rate: float
    age_s: float


def find_slow(homes: Sequence[Home]) -> list[str]:
    """Names of homes that have delivered less than half of what the others have, or nothing lately while the others
    have, and that would need long for the rest."""
    slow = []
    for home in homes:
        others = [other for other in homes if other.name != home.name]
        if not home.owed or not others or home.age_s < PATIENCE_S or _rest_s(home) < PATIENCE_S:
            continue
        usual = median(other.delivered for other in others)
        pace = median(other.rate for other in others)
        behind = home.delivered < SLOW_SHARE * usual and usual - home.delivered > LAG_S * max(pace, home.rate)
        silent = home.rate <= 0 and sum(other.rate > 0 or not other.owed for other in others) > len(others) / 2
        if behind or silent:
            slow.append(home.name)
    return slow


def tail(pieces: Sequence[int], begun: set[int]) -> list[int]:
    """The half that is taken from a slow home: what it would send last, and nothing that it has begun if there is
    another choice. At least one."""
    ordered = sorted(pieces, key=lambda piece: (piece not in begun, piece))
    return ordered[len(ordered) // 2 :]


def _rest_s(home: Home) -> float:
    return home.owed / home.rate if home.rate > 0 else math.inf
