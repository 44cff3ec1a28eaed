"""How fast each member brings what it owes, beside the others and beside what this node gets by itself.

Members of this node's zone are judged beside each other by what came lately, those of other zones apart, and so are
those of the cohort above: each of them owes this node less, and a piece now and then.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Final, NamedTuple

from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers.link import RATE_WINDOW_S, Link
from cacheagent.peers.placement import Placement
from cacheagent.peers.rules import FAR_BYTES, LAST_S, PATIENCE_S, Flow, Home, Smoothed, find_slow, is_busy, stretch
from cacheagent.peers.zones import Zones
from cacheagent.transfer.piece import PART_BYTES

SHORTEST_S: Final = 0.5
"""A rate over less than that says nothing."""
LATE_PIECES: Final = 3
"""Who owes so many more than another one has more to send than that: not slow, but the last to be done. Chosen."""
HOPS: Final = 3
"""Another one has to get it first: not worth it for what comes before a piece has come so many times from one to the
next. Chosen."""
FED: Final = 0.6
"""Whose link is full to this part of the most that ever came, by what other members send, does not need the origin to
fill it. Rates are of some parts, one now and then: a larger part is missed every other time. Chosen."""
FED_BY: Final = 7
"""If they are at least so many: its own pieces are then an eighth of it, or less. With two nodes they are half.
Chosen."""


class Last(NamedTuple):
    """When a member of another zone last brought something: what it had brought then, and they all by the mean."""

    delivered: int
    usual: float
    at: float


class Pace:
    """`zones`: with the homes, or before there are any."""

    def __init__(self, zones: Zones, links: Mapping[str, Link], placement: Placement) -> None:
        self.started = self._judged_from = time.monotonic()
        self._me = zones.me
        self._placement = placement
        self._links = links
        self._near = [link for name, link in links.items() if name in zones.near]
        self._above = [link for name, link in links.items() if name in zones.above]
        self._far = [link for name, link in links.items() if name not in zones.near | zones.above]
        self._zone_size = len(zones.near)
        self._own = zones.mine
        self._brought = [piece for piece, source in enumerate(zones.sources) if source == zones.me]
        self._shares = Counter(zones.sources)
        self._last: dict[str, Last] = {}
        self._flow = Flow()
        self._inflow = Smoothed()
        self._most_inflow = 0.0
        self._own_since = math.inf

    def stood_still(self, now: float, for_s: float) -> None:
        """This node did, for so long, until now: that says nothing of the others."""
        self.started += for_s
        self._judged_from = now
        self._last.clear()

    def slow(self, now: float) -> list[Link]:
        """Who is to be relieved."""
        if self._own_since == math.inf and self._placement.here.issuperset(self._own):
            self._own_since = now
        near = self._homes(now, [link for link in self._near if link.delivered or link.expected])
        homes = self._with_me(near, self._myself(self._brought, now), now)
        found = find_slow(homes, factor=self._factor(), times=self._stretch())
        return [
            self._links[name] for name in [*found, *self._slow_far(now), *self._slow_above(now)] if name != self._me
        ]

    def is_fed(self, inflow: float) -> bool:
        """What other members send fills this node's link without the origin. `inflow`: bytes a second that came since
        this was last asked, twice a second, from all."""
        self._most_inflow = max(self._most_inflow, self._inflow.add(inflow))
        return len(self._near) >= FED_BY and 0 < FED * self._most_inflow <= self._rate()

    def late(self, behind: Collection[str]) -> Iterator[tuple[Link, float, set[str]]]:
        """Homes of this zone that owe more than others do, who owes the most first; in how many seconds they bring all
        of that, as it looks; and those others, but for who is `behind`: it takes less than others of what it is sent,
        and so would have the piece late. Before they have brought half, who is ahead may be the last in the end."""
        if not self._flow.most:
            return
        there = [link for link in self._near if link.is_up]
        helpers = [link for link in there if link.delivered and link.name not in behind]
        hop_s = PIECE_SIZE_BYTES * len(self._near) / self._flow.most
        for link in sorted(there, key=lambda link: len(link.expected), reverse=True):
            owed, rate = len(link.expected), self.rate(link)
            rest_s = owed * PIECE_SIZE_BYTES / rate if rate > 0 else math.inf
            if rest_s < HOPS * hop_s or 2 * owed > self._shares[link.name]:
                continue
            if ahead := {other.name for other in helpers if len(other.expected) <= owed - LATE_PIECES}:
                yield link, rest_s, ahead

    def is_good(self, link: Link) -> bool:
        """It is there and not much slower than the others."""
        now = time.monotonic()
        if link in self._far or link in self._above:
            return link.is_up and link.name not in (*self._slow_far(now), *self._slow_above(now))
        itself, *others = self._homes(now, [link, *(other for other in self._near if other is not link)])
        usual = median(other.rest_s for other in others) if others else 0.0
        return link.is_up and itself.rest_s <= max(self.patience_s(), self._factor() * usual)

    def patience_s(self) -> float:
        """How long nobody is called slow."""
        return PATIENCE_S * self._stretch()

    def rate(self, link: Link) -> float:
        """Bytes a second, over a time in which something should have come."""
        return link.rate(self._window_s())

    def _window_s(self) -> float:
        return RATE_WINDOW_S * self._stretch()

    def _stretch(self) -> float:
        """The more members share the link, the less often one of them brings a part."""
        most = self._flow.most
        return stretch(self._placement.origin_s(), PART_BYTES * len(self._near) / most if most else 0.0)

    def _factor(self) -> float:
        return self._flow.factor(self._rate())

    def _rate(self) -> float:
        return sum(link.rate() for link in self._links.values())

    def _slow_far(self, now: float) -> list[str]:
        far = [self._far_home(link, self._far, now) for link in self._far if link.delivered or link.expected]
        if not far:
            return []
        me = self._myself(self._own, now)
        part = self._zone_size  # of its own pieces, a member of another zone gets one in so many
        return find_slow(
            self._with_me(far, me._replace(delivered=me.delivered // part, rate=me.rate / part), now), is_far=True
        )

    def _slow_above(self, now: float) -> list[str]:
        """Without this node: its own pieces come from them."""
        asked = [link for link in self._above if link.delivered or link.expected]
        return find_slow([self._far_home(link, asked, now) for link in asked], is_far=True)

    def _far_home(self, link: Link, group: list[Link], now: float) -> Home:
        """By all that it has brought, as long as it goes on. `group`: those that it is compared with."""
        others = [other for other in group if other is not link]
        usual = sum(other.delivered for other in others) / max(1, len(others))
        last = self._last.get(link.name)
        if last is None or last.delivered != link.delivered:
            last = self._last[link.name] = Last(link.delivered, usual, now)
        if is_busy([bool(other.expected) for other in others]):
            is_quiet = usual - last.usual > FAR_BYTES
        else:
            is_quiet = now - last.at > min(PATIENCE_S * self._zone_size, LAST_S) * self._stretch()
        whole = max(1, link.delivered) / max(now - self.started, SHORTEST_S)
        return self._home(link, now, 0.0 if is_quiet else whole)

    def _homes(self, now: float, links: Iterable[Link]) -> list[Home]:
        """By what came lately."""
        window_s = self._window_s()
        return [self._home(link, now, link.rate(window_s)) for link in links]

    def _home(self, link: Link, now: float, rate: float) -> Home:
        return Home(link.name, link.delivered, link.owed, rate, now - max(link.relieved_at, self._judged_from))

    def _with_me(self, homes: list[Home], me: Home, now: float) -> list[Home]:
        """This node too, once it has its own, and the others had time to fill its link: before that, what it gets from
        the origin leaves them less of it, and so it was in the seconds that their rates are of."""
        is_settled = not me.owed and now - self._own_since >= RATE_WINDOW_S
        is_ahead = is_settled and all(home.rate < me.rate / 4 for home in homes if home.owed)
        return [*homes, me] if is_ahead else homes

    def _myself(self, mine: Sequence[int], now: float) -> Home:
        """This node as a home: what it has of its own pieces."""
        length, here = self._placement.length, self._placement.here
        done = sum(length(piece) for piece in mine if piece in here)
        owed = sum(length(piece) for piece in mine if piece not in here)
        return Home(self._me, done, owed, done / max(now - self.started, SHORTEST_S), now - self.started)
