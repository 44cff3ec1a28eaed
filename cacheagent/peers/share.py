"""One large file of an exchange, between the job that brings it and the exchange that knows who has its pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from cacheagent.errors import TargetAbandoned
from cacheagent.model import piece_count, piece_range
from cacheagent.peers.orders import Arrived
from cacheagent.transfer.base import PieceSink


class Keeper(Protocol):
    """The exchange. It counts the pieces of all files."""

    @property
    def others(self) -> int:
        """How many other members there are."""

    def begin(self, share: BlobShare, missing: Iterable[int]) -> None:
        """These must come, from somewhere."""

    def came(self, piece: int, length: int) -> None:
        """So much of a piece came from the origin."""

    async def end(self, share: BlobShare) -> None:
        """Nobody brings anything of it any more. Raises TargetAbandoned."""

    def have(self, piece: int, blake3: str, *, is_own: bool) -> None:
        """A piece is on disk and proved."""

    def sender_of(self, piece: int, blake3: str) -> str:
        """Who vouched that a piece is this."""

    def is_doubted(self, piece: int, blake3: str) -> bool:
        """Whether it was somebody who has lied since."""

    def lose(self, pieces: range) -> None:
        """Something in these is wrong."""

    def is_first_check(self) -> bool:
        """True once."""

    def accuse(self, name: str, what: str) -> None:
        """It vouched for bytes that the origin does not have."""


class BlobShare:
    """Implements `cacheagent.sharing.BlobShare`. `abandoned`: somebody who hangs may still write into the file."""

    def __init__(self, keeper: Keeper, first: int, size_bytes: int) -> None:
        self.pieces = range(first, first + piece_count(size_bytes))
        self.abandoned: TargetAbandoned | None = None
        self._keeper = keeper
        self._first = first
        self._size_bytes = size_bytes
        self._sink: PieceSink | None = None

    # --- for the job

    def begin(self, sink: PieceSink, missing: Sequence[int]) -> None:
        """See `transfer.base.Share`."""
        self._sink = sink
        self._keeper.begin(self, [self._first + index for index in missing])

    def came(self, index: int, length: int) -> None:
        """See `transfer.base.Share`."""
        self._keeper.came(self._first + index, length)

    async def end(self) -> None:
        """See `transfer.base.Share`."""
        self._sink = None
        await self._keeper.end(self)

    def have(self, index: int, blake3: str, *, is_own: bool) -> None:
        """See `sharing.BlobShare`."""
        self._keeper.have(self._first + index, blake3, is_own=is_own)

    def sender_of(self, index: int, blake3: str) -> str:
        """Who vouched that a piece is this; empty for the origin."""
        return self._keeper.sender_of(self._first + index, blake3)

    def is_doubted(self, index: int, blake3: str) -> bool:
        """See `sharing.BlobShare`."""
        return self._keeper.is_doubted(self._first + index, blake3)

    def lose(self) -> None:
        """Nothing of it is given to others any more."""
        self._keeper.lose(self.pieces)

    @property
    def others(self) -> int:
        """See `sharing.BlobShare`."""
        return self._keeper.others

    def is_first_check(self) -> bool:
        """See `sharing.BlobShare`."""
        return self._keeper.is_first_check()

    def accuse(self, name: str, what: str) -> None:
        """It vouched for bytes that the origin does not have."""
        self._keeper.accuse(name, what)

    # --- for the exchange

    def want(self, piece: int) -> None:
        """Of the origin."""
        if self._sink is not None:
            self._sink.want([piece - self._first])

    def put(self, report: Arrived) -> None:
        """From a member."""
        if self._sink is not None:
            self._sink.put(report.piece)

    def abandon(self, error: TargetAbandoned) -> None:
        """Nobody may write to the file any more, and the job ends with this."""
        self.abandoned = error
        if self._sink is not None:
            self._sink.fail(error)

    def length(self, piece: int) -> int:
        """Bytes."""
        return piece_range(self._size_bytes, piece - self._first)[1]
