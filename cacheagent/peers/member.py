"""Who else wants a digest: asked when a download starts, and again while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cacheagent.cohorts import COHORT, Circle, circle_of
from cacheagent.member import Member

__all__ = ["Circle", "Member", "Membership", "StaticMembership"]


class Membership(Protocol):
    """Used on the event loop; answers at once from what is known."""

    def circle(self, digest: str) -> Circle:
        """Those that want the digest and that this node has to do with. Nobody near, or this node alone: no peers."""


class StaticMembership:
    """A list that somebody wrote down: the same for every digest, and for each its own tree of cohorts. `me`: this
    node's name. `cohort`: members of one at most."""

    def __init__(self, members: Sequence[Member], me: str, cohort: int = COHORT) -> None:
        self._members = tuple(members)
        self._me = me
        self._cohort = cohort
        self._circles: dict[str, Circle] = {}

    def circle(self, digest: str) -> Circle:
        """See Membership."""
        if digest not in self._circles:
            self._circles[digest] = circle_of(self._members, self._me, size=self._cohort, salt=digest)
        return self._circles[digest]
