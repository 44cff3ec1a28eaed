"""How fast each member brings what it owes, beside the others and beside what this node gets by itself."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from statistics import median
from typing import Final

from cacheagent.peers.link import Link
from cacheagent.peers.placement import Placement
from cacheagent.peers.rules import FACTOR, PATIENCE_S, Home, find_slow

SHORTEST_S: Final = 0.5
"""A rate over less than that says nothing."""


class Pace:
    """`mine`: pieces whose home is this node."""

    def __init__(self, me: str, links: Mapping[str, Link], placement: Placement, mine: Collection[int]) -> None:
        self.started = time.monotonic()
        self._me = me
        self._links = links
        self._placement = placement
        self._mine = mine

    def slow(self, now: float) -> list[Link]:
        """Who is to be relieved."""
        homes = [self._home(link, now) for link in self._links.values() if link.delivered or link.expected]
        mine = self._myself(now)
        if not mine.owed and all(home.rate < mine.rate / 4 for home in homes if home.owed):
            homes.append(mine)  # before that, what it gets from the origin leaves the others less of its own link
        return [self._links[name] for name in find_slow(homes) if name != self._me]

    def is_good(self, link: Link) -> bool:
        """It is there and not much slower than the others."""
        now = time.monotonic()
        rests = [self._home(other, now).rest_s for other in self._links.values() if other is not link]
        usual = median(rests) if rests else 0.0
        return link.is_up and self._home(link, now).rest_s <= max(PATIENCE_S, FACTOR * usual)

    def _home(self, link: Link, now: float) -> Home:
        owed = sum(map(self._placement.length, link.expected))
        return Home(link.name, link.delivered, owed, link.rate(), now - max(link.relieved_at, self.started))

    def _myself(self, now: float) -> Home:
        """This node as a home: what it has of its own pieces."""
        length, here = self._placement.length, self._placement.here
        done = sum(length(piece) for piece in self._mine if piece in here)
        owed = sum(length(piece) for piece in self._mine if piece not in here)
        return Home(self._me, done, owed, done / max(now - self.started, SHORTEST_S), now - self.started)
