"""Who else wants a digest: asked when a download starts, and again while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cacheagent.member import Member

__all__ = ["Member", "Membership", "StaticMembership"]


class Membership(Protocol):
    """Used on the event loop; answers at once from what is known."""

    def members(self, digest: str) -> tuple[Member, ...]:
        """All nodes that want the digest, this one included, in any order. Empty, or this node alone: no peers."""


class StaticMembership:
    """A list that somebody wrote down: the same for every digest."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)

    def members(self, digest: str) -> tuple[Member, ...]:
        """See Membership."""
        return self._members
