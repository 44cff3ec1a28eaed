"""Own pieces change hands before the origin is asked for them: who has none left to ask for takes some from those who
have, so that every link is full to the end and nothing is asked for twice.

Who has room asks the homes themselves to *adopt* what they owe it. A home that has not asked the origin for all of that
answers by asking it to adopt some, which it then takes over, as whatever it is asked to adopt by whom it waits for. A
home that knows nothing of it does nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from cacheagent.peers.link import Link
from cacheagent.peers.own import OwnPieces
from cacheagent.peers.zones import Zones

AT_ONCE: Final = 4
"""Pieces that are handed over at once: who has asked for these asks for more. Chosen."""
MOST_OFFERED: Final = 256
"""Of each home's pieces, the last: homes ask for them in their order, so these may be waiting still. As many
as 64 members take at once. Chosen."""
AGAIN_S: Final = 0.5
MOST_AGAIN_S: Final = 8.0
"""Between two questions of which the first brought nothing; twice as long each time, since what waits only becomes
less. Chosen."""


class Handing:
    """Among the members of this node's zone."""

    def __init__(self, zones: Zones, links: Mapping[str, Link], own: OwnPieces) -> None:
        self.offered: set[int] = set()
        """What this node takes over if its home says so, whoever else has been asked meanwhile."""
        self.handed: set[int] = set()
        """Own pieces that others took: an offer that was on its way meanwhile says nothing of them."""
        self._zones = zones
        self._links = links
        self._own = own
        self._asked_at = -math.inf
        self._again_s = AGAIN_S

    def is_due(self) -> bool:
        """This node has nothing left to ask for, and has not just said so."""
        return self._own.is_idle and time.monotonic() - self._asked_at >= self._again_s

    def offer(self, expected: Mapping[Link, Collection[int]]) -> None:
        """To the homes among these members, of which so much is still expected."""
        if self._asked_at > -math.inf:
            self._again_s = min(2 * self._again_s, MOST_AGAIN_S)
        self._asked_at = time.monotonic()
        for link, pieces in expected.items():
            if link.name in self._zones.near:
                owed = sorted(piece for piece in pieces if self._zones.homes[piece] == link.name)[-MOST_OFFERED:]
                if owed:
                    self.offered.update(owed)
                    link.offer(owed)

    def taken(self) -> None:
        """Somebody handed something over: the next question need not wait."""
        self._asked_at, self._again_s = -math.inf, AGAIN_S

    def part_for(self, client: str, pieces: Iterable[int]) -> list[int]:
        """What is handed to a member that offers to take these: its part of what waits, from the end."""
        link = self._links.get(client)
        if link is None or not link.is_up or client not in self._zones.near:
            return []
        mine = {piece for piece in pieces if self._zones.homes[piece] == self._zones.me}
        given = self._own.give(mine, min(AT_ONCE, len(self._own.waiting) // len(self._zones.near)))
        self.handed.update(given)
        return given
