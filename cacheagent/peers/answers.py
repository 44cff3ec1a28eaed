"""What the other members have when a download begins, as far as they have said so. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

COLD: Final = 2
"""So many members that have nothing, and none that has anything, tell that nobody else is ahead. Chosen."""


class Answers:
    """Of members by name; no answer is one too, when it is known that there will be none."""

    def __init__(self) -> None:
        self._heard: set[str] = set()
        self._cold = 0
        self._is_late = False

    def heard(self, name: str, *, has_some: bool, is_cold: bool) -> None:
        """`is_cold`: it is there, and has nothing. Neither: it is not there."""
        self._heard.add(name)
        self._is_late |= has_some
        self._cold += is_cold and not has_some

    def suffice(self, names: Iterable[str]) -> bool:
        """Whether nothing more is to be learned of these."""
        return self._heard.issuperset(names) or (self._cold >= COLD and not self._is_late)
