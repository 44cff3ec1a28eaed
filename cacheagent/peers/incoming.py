"""What comes in on the connections of one digest: which file a piece belongs to, and how far it is."""

from __future__ import annotations

from cacheagent.model import piece_count, piece_range
from cacheagent.peers.orders import Keys, Target
from cacheagent.transfer.hashing import PieceSums


class Session:
    """One digest: its files by the numbers of their pieces, and whose seals are good."""

    def __init__(self) -> None:
        self.keys = Keys(session=0, digest="", keys={})
        self._file_of: dict[int, Target] = {}

    def add(self, target: Target) -> None:
        """Its pieces can be written from now on."""
        for index in range(piece_count(target.size_bytes)):
            self._file_of[target.first + index] = target

    def file_of(self, piece: int) -> Target | None:
        """Where a piece goes, None if nowhere."""
        return self._file_of.get(piece)


class Incoming:
    """One piece on its way."""

    def __init__(self, target: Target, number: int) -> None:
        self.target = target
        self.index = number - target.first
        self.offset, self.length = piece_range(target.size_bytes, self.index)
        self.done = 0
        self.sums = self._fresh()
        self._furthest = 0

    def restart(self) -> None:
        """From its first byte."""
        self.done = 0
        self.sums = self._fresh()

    def took(self, view: memoryview) -> int:
        """More of it is on disk. How much of that never was before: the same bytes again are no progress."""
        self.sums.update(view)
        self.done += len(view)
        further = max(0, self.done - self._furthest)
        self._furthest += further
        return further

    def _fresh(self) -> PieceSums:
        return PieceSums(self.index, self.offset, self.target.crcs, self.target.cuts)
