"""The pieces that this node asks the origin for: a few at a time, the first ones first."""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Final

from cacheagent.peers.rules import Smoothed
from cacheagent.transfer.concurrency import ConnectionLimit

AT_ORIGIN: Final = 2
MOST_AT_ORIGIN: Final = 16
"""Own pieces that a node asks the origin for at once: the next one is asked for before the last one has ended; more
only if more then comes in all, from the others too, as from an origin that gives a connection a part of what a link
carries. Else they would take the link from what the others send. Before the first one is here, it is alone: the others
wait for it. Chosen."""
MOST_OF_FEW: Final = 64
STEP_OF_FEW: Final = 2
"""With few others a node brings much itself, and has time to send it: it goes up to so many by their number, by so many
at once. Chosen: two nodes to whom a connection gives a twentieth of a link took 1.67 times as long as without each
other, and so 1.14 times (`benchmarks/fanout`); with steps of four 0.98 times, but 2 % longer where connections are
thick."""
STEADY_AFTER_S: Final = 2.0
"""Until then more comes each second because all have just begun. Chosen."""
HOLD_S: Final = 2.0
"""After one more brought nothing: what the others send comes unevenly, so that one look says little. Chosen."""
SHORTEST_S: Final = 0.1
"""A rate over less than that says nothing."""
GREEDY: Final = 1.25
"""The origin may bring so many times this node's share of what comes: beyond that no more pieces are tried at once,
since they would take the link from what the others send, whatever comes in all. Chosen."""
RECENT: Final = 4
"""Pieces that say how long the origin takes for one now. Chosen."""


class OwnPieces:
    """`ask`: asks the origin for a piece; False if nobody needs it any more. `others`: how many members send to this
    node. Nothing is asked before `open`."""

    def __init__(self, ask: Callable[[int], bool], others: int) -> None:
        self.at_origin: dict[int, float] = {}
        """And since when."""
        self._came: dict[int, int] = {}
        self._took_s: deque[float] = deque(maxlen=RECENT)
        self._ask = ask
        few = max(1, others)
        self._fair = GREEDY / (1 + others)
        self._brought = 0
        self._from_origin, self._in_all = Smoothed(), Smoothed()
        self._said_at = -math.inf
        self._limit = ConnectionLimit(
            initial=AT_ORIGIN,
            maximum=max(MOST_AT_ORIGIN, MOST_OF_FEW // few),
            step=max(1, STEP_OF_FEW // few),
            hold_s=HOLD_S,
        )
        self._waiting: list[int] = []
        self._instead_of: dict[int, str] = {}
        self.is_open = False
        self.is_held = False
        """What is here already is not sent yet: what waits may wait."""
        self._opened_at = math.inf

    def add(self, pieces: Iterable[int], *, instead_of: str = "") -> None:
        """These too. `instead_of`: the member that should have brought them."""
        for piece in pieces:
            heapq.heappush(self._waiting, piece)
            if instead_of:
                self._instead_of[piece] = instead_of
        self._feed()

    def give_back(self, name: str, *, but: Collection[int]) -> list[int]:
        """What was to be asked for instead of this member, and still waits, but for these: it brings that after all."""
        its = {piece for piece, member in self._instead_of.items() if member == name and piece not in but}
        for piece in its:
            del self._instead_of[piece]
        return self.give(its, len(its))

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
        self._opened_at = time.monotonic()
        waiting, self._waiting = self._waiting, []
        return waiting

    def close(self) -> None:
        """Nothing more is asked."""
        self.is_open = False

    def done(self, pieces: Iterable[int]) -> None:
        """They are here, or nobody needs them: the next ones are asked for."""
        now = time.monotonic()
        for piece in pieces:
            self._came.pop(piece, None)
            if (since := self.at_origin.pop(piece, None)) is not None:
                self._took_s.append(now - since)
        self._feed()

    def came(self, piece: int, length: int) -> int:
        """So much of a piece is here. How much more that is than before."""
        before, self._came[piece] = self._came.get(piece, 0), length
        more = max(0, length - before)
        self._brought += more
        return more

    def inflow(self, bytes_per_s: float) -> None:
        """What came since this was last said, twice a second, from the origin and the other members together."""
        is_full = bool(self._waiting) and len(self.at_origin) >= self._limit.current
        now = time.monotonic()
        lately = self._brought / max(now - self._said_at, SHORTEST_S)
        self._said_at = now
        self._brought = 0
        is_fair = self._from_origin.add(lately) <= self._fair * self._in_all.add(bytes_per_s)
        if now - self._opened_at >= STEADY_AFTER_S:
            self._limit.sample(now, bytes_per_s, saturated=is_full and is_fair)
        self._feed()

    def origin_s(self) -> float:
        """How long the origin takes for a piece: the longest of the last few, and of those that are on their way."""
        now = time.monotonic()
        return max([*self._took_s, *(now - since for since in self.at_origin.values())], default=0.0)

    def wait_s(self) -> float:
        """How long the last of those that wait will, as it looks."""
        return len(self._waiting) * self.origin_s() / self._limit.current

    def _feed(self) -> None:
        most = self._limit.current if self._took_s else 1
        while self.is_open and not self.is_held and self._waiting and len(self.at_origin) < most:
            piece = heapq.heappop(self._waiting)
            if piece not in self.at_origin and self._ask(piece):
                self.at_origin[piece] = time.monotonic()
