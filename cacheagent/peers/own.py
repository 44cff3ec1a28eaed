"""The pieces that this node asks the origin for: a few at a time, the first ones first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable
from typing import Final

AT_ORIGIN: Final = 2
"""Own pieces that a node asks the origin for at once: the next one is asked for before the last one has ended. More
would take its link from what the others send. Chosen."""


class OwnPieces:
    """`ask`: asks the origin for a piece; False if nobody needs it any more. Nothing is asked before `open`."""

    def __init__(self, ask: Callable[[int], bool]) -> None:
        self.at_origin: set[int] = set()
        self._ask = ask
        self._waiting: list[int] = []
        self.is_open = False

    def add(self, pieces: Iterable[int]) -> None:
        """These too."""
        for piece in pieces:
            heapq.heappush(self._waiting, piece)
        self._feed()

    @property
    def waiting(self) -> Collection[int]:
        """What the origin has not been asked for yet."""
        return self._waiting

    @property
    def is_idle(self) -> bool:
        """The origin is asked, and has been asked for all."""
        return self.is_open and not self._waiting

    def give(self, among: Collection[int], most: int) -> list[int]:
        """Somebody else asks for these: the last of those that wait, at most so many."""
        given = sorted(piece for piece in self._waiting if piece in among)[-most:] if most else []
        self._waiting = sorted(set(self._waiting).difference(given))  # which is a heap
        return given

    def open(self) -> list[int]:
        """From now on the origin is asked. What was waiting is given back: others may have it."""
        self.is_open = True
        waiting, self._waiting = self._waiting, []
        return waiting

    def close(self) -> None:
        """Nothing more is asked."""
        self.is_open = False

    def done(self, pieces: Iterable[int]) -> None:
        """They are here, or nobody needs them: the next ones are asked for."""
        self.at_origin.difference_update(pieces)
        self._feed()

    def _feed(self) -> None:
        while self.is_open and self._waiting and len(self.at_origin) < AT_ORIGIN:
            piece = heapq.heappop(self._waiting)
            if piece not in self.at_origin and self._ask(piece):
                self.at_origin.add(piece)
