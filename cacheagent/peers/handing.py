"""Own pieces change hands before the origin is asked for them: who has none left to ask for takes some from those who
have, so that every link is full to the end and nothing is asked for twice.

Who has room asks the homes themselves to *adopt* what they owe it. A home that has not asked the origin for all of that
answers by asking it to adopt some, which it then takes over, as whatever it is asked to adopt by whom it waits for. A
home that knows nothing of it does nothing. A slow home is asked in the same way, for what this node would bring in its
place, before that is taken from it: what it still waits for is then not asked for twice.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from cacheagent.peers.link import Link
from cacheagent.peers.own import OwnPieces
from cacheagent.peers.zones import Zones

AT_ONCE: Final = 4
"""Pieces that are handed over at once: who has asked for these asks for more. Chosen."""
WORTH_S: Final = 3.0
"""Where fewer pieces wait than there are members, one is handed over if the last would wait for so long: it takes a hop
more. Chosen."""
HOMES_AT_ONCE: Final = 2
"""Homes that are asked at once, those that owe the most first: all of them would hand over something, and who took that
would be the last to have it. Chosen."""
MOST_OFFERED: Final = 256
"""Of each home's pieces, the last: homes ask for them in their order, so these may be waiting still. As many
as 64 members take at once. Chosen."""
AGAIN_S: Final = 0.5
MOST_AGAIN_S: Final = 8.0
"""Between two questions of which the first brought nothing, once all homes were asked; twice as long each time, since
what waits only becomes less. Chosen."""


class Handing:
    """Among the members of this node's zone."""

    def __init__(self, zones: Zones, links: Mapping[str, Link], own: OwnPieces) -> None:
        self.handed: set[int] = set()
        """Own pieces that others took: an offer that was on its way meanwhile says nothing of them."""
        self._zones = zones
        self._links = links
        self._own = own
        self._asked_at = -math.inf
        self._again_s = AGAIN_S
        self._asked: Counter[str] = Counter()
        """How often each home was asked and handed nothing over."""
        self._pleas: dict[int, float] = {}
        """What a slow home is asked for, and since when."""

    def is_due(self) -> bool:
        """This node has nothing left to ask for, and has not just said so."""
        return self._own.is_idle and time.monotonic() - self._asked_at >= self._again_s

    def offer(self, expected: Mapping[Link, Collection[int]]) -> None:
        """To the homes among these members, of which so much is still expected."""
        self._asked_at = time.monotonic()
        owed = {link: self._owed(link.name, pieces) for link, pieces in expected.items()}
        homes = [link for link, pieces in owed.items() if pieces]
        homes.sort(key=lambda link: (self._asked[link.name], -len(owed[link])))
        if homes and self._asked[homes[0].name] > 0:
            self._again_s = min(2 * self._again_s, MOST_AGAIN_S)
            self._asked.clear()
        for link in homes[:HOMES_AT_ONCE]:
            self._asked[link.name] += 1
            link.offer(owed[link][-MOST_OFFERED:])

    def _owed(self, name: str, pieces: Collection[int]) -> list[int]:
        if name not in self._zones.near:
            return []
        return sorted(piece for piece in pieces if self._zones.homes[piece] == name)

    def taken(self, home: str) -> None:
        """It handed something over: the next question need not wait."""
        self._asked_at, self._again_s = -math.inf, AGAIN_S
        self._asked[home] = 0

    def plead(self, piece: int) -> None:
        """Its home is slow: it is asked for this until it hands it over, or patience ends."""
        self._pleas.setdefault(piece, time.monotonic())

    def pleas(self, holder_of: Callable[[int], Link | None], patience_s: float) -> list[tuple[Link, int]]:
        """Ask again for what its home still owes. What has been asked for in vain for so long, and is no more, and who
        is to bring it."""
        since = time.monotonic() - patience_s
        asked: defaultdict[Link, list[int]] = defaultdict(list)
        in_vain: list[tuple[Link, int]] = []
        for piece, at in tuple(self._pleas.items()):
            holder = holder_of(piece)
            if holder is not None and holder.name == self._zones.homes[piece] and at > since:
                asked[holder].append(piece)
                continue
            del self._pleas[piece]
            if holder is not None:
                in_vain.append((holder, piece))
        for link, pieces in asked.items():
            link.offer(pieces)
        return in_vain

    def part_for(self, client: str, pieces: Iterable[int]) -> list[int]:
        """What is handed to a member that offers to take these: its part of what waits, from the end."""
        link = self._links.get(client)
        if self._own.is_held or link is None or not link.is_up or client not in self._zones.near:
            return []
        mine = {piece for piece in pieces if self._zones.homes[piece] == self._zones.me}
        given = self._own.give(mine, part(len(self._own.waiting), len(self._zones.near), self._own.wait_s()))
        self.handed.update(given)
        return given


def part(waiting: int, members: int, wait_s: float) -> int:
    """How many pieces of those that wait, the last one for so long, a home hands over at once. It keeps one."""
    few = 1 if waiting > 1 and wait_s >= WORTH_S else 0
    return min(AT_ONCE, max(few, waiting // members))
