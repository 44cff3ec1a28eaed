"""What is computed of the bytes while they are in a buffer: CRCs by segment, BLAKE3 by piece."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from blake3 import blake3

from cacheagent.checksum import CRCS
from cacheagent.transfer.orders import PieceHash, Segment


class SegmentSums:
    """CRCs of consecutive bytes from `offset` on, a new segment at each cut. The caller feeds them in order.

    `cuts` ascend; those of a whole file (10,000 parts) may be given for each of its ranges.
    """

    def __init__(self, offset: int, crcs: Iterable[str], cuts: Sequence[int] = ()) -> None:
        self._crcs = [(name, CRCS[name].update) for name in crcs]
        self._cuts = cuts
        self._cut = bisect_right(cuts, offset)
        self._start = self._at = offset
        self._values = dict.fromkeys((name for name, _ in self._crcs), 0)
        self._done: list[Segment] = []

    def update(self, data: memoryview) -> None:
        """The next bytes. Releases the GIL while it computes."""
        while self._cut < len(self._cuts) and self._at + len(data) >= self._cuts[self._cut]:
            before = self._cuts[self._cut] - self._at
            self._add(data[:before])
            data = data[before:]
            self._end_segment()
            self._cut += 1
        self._add(data)

    def segments(self) -> tuple[Segment, ...]:
        """All so far; call it once, at the end."""
        if self._at > self._start:
            self._end_segment()
        return tuple(self._done)

    def _add(self, data: memoryview) -> None:
        for name, update in self._crcs:
            self._values[name] = update(data, self._values[name])
        self._at += len(data)

    def _end_segment(self) -> None:
        self._done.append(Segment(offset=self._start, length=self._at - self._start, crcs=dict(self._values)))
        self._start = self._at
        self._values = dict.fromkeys(self._values, 0)


class PieceSums:
    """Everything that a piece's report says about its bytes, which come in order."""

    def __init__(self, index: int, offset: int, crcs: Iterable[str], cuts: Sequence[int]) -> None:
        self._index = index
        self._length = 0
        self._blake3 = blake3()
        self._segments = SegmentSums(offset, crcs, cuts)

    def update(self, data: memoryview) -> None:
        """The next bytes. Releases the GIL while it computes."""
        self._segments.update(data)
        self._blake3.update(data)
        self._length += len(data)

    def result(self) -> PieceHash:
        """The piece; call it once, at the end."""
        return PieceHash(
            index=self._index,
            length=self._length,
            blake3=self._blake3.hexdigest(),
            segments=self._segments.segments(),
        )
