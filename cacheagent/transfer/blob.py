"""What is known to be on disk of one blob, and the last judgement on the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from cacheagent.checksum import ALWAYS, CRCS, check_file, find_cuts, fold, needed_crcs
from cacheagent.model import FileHashes, piece_count, piece_range
from cacheagent.progress import PieceOrigin
from cacheagent.transfer.base import BlobOrder, OnPiece
from cacheagent.transfer.orders import CrcAlgorithm, PieceHash
from cacheagent.transfer.rehash import AtRest


class Pieces:
    """The pieces of one blob that are proved, as they come, in any order; or `only` the one that is asked for."""

    def __init__(self, order: BlobOrder, on_piece: OnPiece, *, only: int | None = None) -> None:
        self.order = order
        self.count = piece_count(order.size_bytes)
        self.crcs: tuple[CrcAlgorithm, ...] = needed_crcs(order.checksums)
        self.claimed = {index: blake3 for index, blake3 in order.claimed.items() if 0 <= index < self.count}
        self.on_known: Callable[[PieceHash], None] = _nobody_follows
        """Hears of each content once, when it is proved, after `on_piece`."""
        self._on_piece = on_piece
        self._only = only
        self._known: dict[int, PieceHash] = {}

    @property
    def is_complete(self) -> bool:
        """Every piece that is asked for is on disk."""
        return len(self._known) == (self.count if self._only is None else 1)

    def unclaimed(self) -> list[int]:
        """Indexes of the pieces that must travel."""
        return [index for index in range(self.count) if index not in self.claimed]

    def cuts(self, index: int) -> tuple[int, ...]:
        """Where CRC segments end inside a piece."""
        return find_cuts(self.order.checksums, *piece_range(self.order.size_bytes, index))

    def all_cuts(self) -> tuple[int, ...]:
        """Where CRC segments end inside the whole file, apart from the pieces' own ends."""
        return find_cuts(self.order.checksums, 0, self.order.size_bytes)

    def at_rest(self, on_pieces: Callable[[Sequence[PieceHash]], None]) -> AtRest:
        """What has to be read back before it is believed."""
        return AtRest(
            target=self.order.target,
            size_bytes=self.order.size_bytes,
            indexes=sorted(self.claimed),
            on_pieces=on_pieces,
            priority=self.order.priority,
            crcs=self.crcs,
            cuts=self.all_cuts(),
        )

    def proved(self) -> dict[int, str]:
        """Index to BLAKE3 of everything that is known."""
        return {index: piece.blake3 for index, piece in self._known.items()}

    def add(self, piece: PieceHash, origin: PieceOrigin) -> None:
        """One more; the caller's `on_piece` hears of each content once."""
        before = self._known.get(piece.index)
        self._known[piece.index] = piece
        if before is None or before.blake3 != piece.blake3:
            self._on_piece(piece.index, piece.blake3, piece.length, origin)
            self.on_known(piece)

    def judge(self, name: str, whole: Mapping[str, str]) -> FileHashes:
        """All checksums of the origin against all pieces. `whole`: serial hashes by algorithm. Raises ChecksumMismatch.

        Takes about a millisecond for each GB: the caller runs it in a thread.
        """
        pieces = [self._known[index] for index in range(self.count)]
        agreed = check_file(name, self.order.checksums, pieces, whole)
        composite = {checksum.algorithm for checksum in self.order.checksums if checksum.parts}
        known = {algorithm: value for algorithm, value in whole.items() if algorithm not in composite}
        return FileHashes(
            pieces=tuple(piece.blake3 for piece in pieces),
            whole={**known, ALWAYS: self._crc_of_all(pieces)},
            verified_by=agreed,
        )

    def _crc_of_all(self, pieces: Sequence[PieceHash]) -> str:
        segments = chain.from_iterable(piece.segments for piece in pieces)
        (value,) = fold(segments, ALWAYS, (self.order.size_bytes,))
        return value.to_bytes(CRCS[ALWAYS].size_bytes, "big").hex()


def _nobody_follows(_piece: PieceHash) -> None:
    """Where no hash waits for them."""
