"""What one of many nodes may take from an origin that all of them share. Pure; bytes a second."""

from __future__ import annotations

from typing import Final

UNKNOWN: Final = 64
"""For so many a node counts before anybody has said how many others there are: they begin without a word too. A little
is better than too much at the origin, and than nothing. Chosen."""


def share(budget: int, members: int) -> int:
    """A node's part; 0 where there is no budget. All parts together are never more than it, as long as there is a byte
    a second for each. `members`: 0 if that is not known."""
    return budget and max(1, budget // (members or UNKNOWN))
