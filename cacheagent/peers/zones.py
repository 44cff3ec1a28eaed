"""On whose behalf a node asks beyond its zone and its cohort, and whom: so that each piece comes into each once. Pure.

A piece's home asks the origin, or, in a cohort that has one above it, a member of that: the piece's home there, or who
brings it into this node's zone there. In every other zone of the cohort, one member asks the home, and the others of
the zone ask that one.
Who is asked in place of another never leads back (`docs/design.md`): inside a zone a node asks only who is before it in
the piece's rank, or, as the first, the second; these two may ask each other, and then both take the piece over. Beyond
its zone it asks only members of the home's zone, or of zones whose first is before its own zone's first. A cohort asks
the one above it, and never one below.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from cacheagent.member import Member
from cacheagent.peers.homes import assign_homes, assign_zone_homes, rank


class Zones:
    """As the members were said to be when the exchange began, for one node, `me`. Who says no zone is in one with the
    others that say none. `above`: members of the cohort above; nobody: the origin is."""

    def __init__(self, members: Iterable[Member], me: str, digest: str, above: Iterable[Member] = ()) -> None:
        self.me = me
        self.homes: tuple[str, ...] = ()
        """Of each piece, among all."""
        self.mine: tuple[int, ...] = ()
        """Pieces whose home this node is."""
        self.sources: tuple[str, ...] = ()
        """Of each piece, in this zone: the home, or who takes it from there."""
        self._digest = digest
        self._zone_of = {member.name: member.zone for member in members}
        self._zone_of.setdefault(me, "")
        self.names = tuple(sorted(self._zone_of))
        """Of this cohort."""
        self._above = {member.name: member.zone for member in above}
        self.above = frozenset(self._above)
        self._beside = frozenset(name for name, zone in self._above.items() if zone == self._zone_of[me])
        """Of the cohort above, those in this node's zone."""
        self._homes_above: tuple[str, ...] = ()
        self._feeders: tuple[str, ...] = ()
        self.near = frozenset(name for name, zone in self._zone_of.items() if zone == self._zone_of[me])

    def assign(self, pieces: int) -> None:
        """Find the homes of so many. Up to half a second; for a thread."""
        homes = assign_homes(self.names, self._digest, pieces)
        self.sources = assign_zone_homes(homes, self.near, self._digest)
        if self._above:
            beside = self._beside
            homes_above = assign_homes(self._above, self._digest, pieces)
            self._feeders = assign_zone_homes(homes_above, beside, self._digest) if beside else homes_above
            self._homes_above = homes_above
        self.mine = tuple(piece for piece, home in enumerate(homes) if home == self.me)
        self.homes = homes

    def first(self, piece: int, names: Iterable[str]) -> str:
        """Of members that all have it: one of this zone, and the first in rank."""
        some = list(names)
        return rank([name for name in some if name in self.near] or some, self._digest, piece)[0]

    def is_brought(self, piece: int) -> bool:
        """Whether this node brings it into its zone from another, or into its cohort from the one above."""
        return self.sources[piece] == self.me and (self.homes[piece] != self.me or bool(self._above))

    def is_first_asked(self, name: str, piece: int) -> bool:
        """Whether it has the piece for this node anyway, in nobody's place."""
        return name == self.homes[piece] or (bool(self._feeders) and name == self._feeders[piece])

    def crosses(self, name: str) -> bool:
        """Whether what a member sends comes from another zone."""
        return self._zone_of.get(name, self._above.get(name)) != self._zone_of[self.me]

    def next_near(self, piece: int, is_able: Callable[[str], bool]) -> str:
        """Who of its zone brings a piece now: the first in its rank, this node where nobody is able."""
        able = [name for name in self.near if is_able(name)]
        return rank(able, self._digest, piece)[0] if able else self.me

    def second_near(self, piece: int) -> str:
        """Who comes after this node where it is the first of its zone in the piece's rank, but for the one that brings
        it; else empty."""
        order = rank([name for name in self.near if name != self.sources[piece]], self._digest, piece)
        return order[1] if order[0] == self.me and len(order) > 1 else ""

    def before_me(self, piece: int, names: Collection[str]) -> str:
        """The first in the piece's rank among these, if it is of this zone and before this node; else empty."""
        order = rank([name for name in self.near if name in names or name == self.me], self._digest, piece)
        return order[0] if order[0] != self.me else ""

    def next_far(self, piece: int, is_able: Callable[[str], bool]) -> str:
        """Whom this node asks beyond its zone, on its behalf; empty: the origin. The home, then others of the home's
        zone, then who is before this zone's first; then the cohort above."""
        home = self.homes[piece]
        if home in self.near:
            return self._next_above(piece, is_able)
        if is_able(home):
            return home
        order = rank(self.names, self._digest, piece)
        before = order[: next(place for place, name in enumerate(order) if name in self.near)]
        heirs = [name for name in order if self._zone_of[name] == self._zone_of[home]] + before
        return next((name for name in heirs if is_able(name)), "") or self._next_above(piece, is_able)

    def _next_above(self, piece: int, is_able: Callable[[str], bool]) -> str:
        """Whom of the cohort above, if there is one: in the order in which its own members ask each other, those of
        this zone first."""
        if not self._above:
            return ""
        if is_able(self._feeders[piece]):
            return self._feeders[piece]
        home = self._homes_above[piece]
        order = rank(self._above, self._digest, piece)
        beside = [name for name in order if name in self._beside]
        homes_zone = [name for name in order if self._above[name] == self._above[home]]
        return next((name for name in (*beside, home, *homes_zone, *order) if is_able(name)), "")
