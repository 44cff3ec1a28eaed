"""What the server process has of one digest, and who waits for more of it. Shared by its threads."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import accumulate
from typing import Final, NamedTuple

from cacheagent.model import PIECE_SIZE_BYTES, piece_count
from cacheagent.peers import protocol
from cacheagent.peers.keys import NodeKey, is_signed
from cacheagent.peers.orders import Have, Serve


class Seal(NamedTuple):
    """Who vouches for a piece."""

    blake3: bytes
    signature: bytes
    signer: str


class Place(NamedTuple):
    """Where a piece lies: file, offset and length in bytes."""

    path: str
    offset: int
    length: int


class Shelf:
    """One digest. `condition` guards everything and is notified of what changes for a subscriber."""

    def __init__(self, order: Serve, name: str, key: NodeKey) -> None:
        self.digest: Final = order.digest
        self.condition: Final = threading.Condition()
        self.arrived: list[int] = []
        """Pieces of which something is here, in the order in which they came: only grows."""
        self.is_told = False
        """The agent has said all that was here when it began to serve this."""
        self.is_closed = False
        self.wanted: Final[Counter[int]] = Counter()
        """By how many subscribers a piece still is."""
        self._name = name
        self._key = key
        self._sizes = order.sizes
        self._firsts = [0, *accumulate(piece_count(size) for size in order.sizes)]
        self._files = [file for file, size in enumerate(order.sizes) for _ in range(piece_count(size))]
        self._here: dict[int, int] = {}
        self._hashes: dict[int, Seal | bytes] = {}
        self._own_seals: dict[int, Seal] = {}
        self.order = order
        self.update(order)

    @property
    def pieces(self) -> int:
        """How many there are."""
        return self._firsts[-1]

    @property
    def is_complete(self) -> bool:
        """Every piece is here and proved."""
        return len(self._hashes) == self.pieces

    def update(self, order: Serve) -> None:
        """What the agent says anew: members, places, or that all is here."""
        with self.condition:
            self.order = order
            self.is_told = self.is_told or not order.goes_on
            for number in range(len(order.hashes) // protocol.HASH_BYTES):
                at, piece = number * protocol.HASH_BYTES, order.first + number
                self._hashes[piece] = order.hashes[at : at + protocol.HASH_BYTES]
                self._come(piece, self.length(piece))
            for seal in order.seals:
                self._hashes[seal.piece] = Seal(seal.blake3, seal.signature, seal.signer)
            self.condition.notify_all()

    def stage(self, file: int, path: str) -> None:
        """A file's pieces come there."""
        with self.condition:
            self.order = self.order.with_path(file, path)

    def part(self, piece: int, length: int) -> None:
        """So much of it is on disk."""
        with self.condition:
            self._come(piece, length)
            self._wake(piece)

    def have(self, order: Have) -> None:
        """It is proved."""
        with self.condition:
            seal = Seal(order.blake3, order.signature, order.signer) if order.signer else order.blake3
            self._hashes[order.piece] = seal
            self._come(order.piece, self.length(order.piece))
            self._wake(order.piece)

    def lose(self, pieces: list[int]) -> None:
        """They are here no more."""
        with self.condition:
            for piece in pieces:
                self._here.pop(piece, None)
                self._hashes.pop(piece, None)

    def close(self) -> None:
        """It is served no more."""
        with self.condition:
            self.is_closed = True
            self.condition.notify_all()

    def available(self, piece: int) -> int:
        """Bytes of it that can be sent. With the condition held."""
        return self._here.get(piece, 0)

    def proved(self) -> list[int]:
        """Pieces that are here. With the condition held."""
        return list(self._hashes)

    def seal(self, piece: int, client: str = "") -> Seal | None:
        """Who vouches for it, to a client; None while nobody does. With the condition held: this node signs when it is
        first asked, 50 us. It does so too where who vouched is no member any more, or has another key, or is of the
        cohort above while the client is of one below: nobody would believe that."""
        found = self._hashes.get(piece)
        if found is None or (isinstance(found, Seal) and self._knows(client, piece, found)):
            return found
        blake3 = found.blake3 if isinstance(found, Seal) else found
        own = self._own_seals.get(piece)
        if own is None or own.blake3 != blake3:
            signature = self._key.sign(protocol.seal_to_sign(self.digest, piece, self.length(piece), blake3))
            own = self._own_seals[piece] = Seal(blake3, signature, self._name)
        return own

    def _knows(self, client: str, piece: int, seal: Seal) -> bool:
        """Whether it believes who vouches."""
        if client in self.order.below and seal.signer in self.order.above:
            return False
        signed = protocol.seal_to_sign(self.digest, piece, self.length(piece), seal.blake3)
        return is_signed(signed, seal.signature, self.order.members.get(seal.signer, ()))

    def length(self, piece: int) -> int:
        """Bytes of a piece."""
        return self.place(piece).length

    def place(self, piece: int) -> Place:
        """Where it lies now."""
        file = self._files[piece]
        offset = (piece - self._firsts[file]) * PIECE_SIZE_BYTES
        return Place(self.order.paths[file], offset, min(PIECE_SIZE_BYTES, self._sizes[file] - offset))

    def _wake(self, piece: int) -> None:
        """Whoever waits for it. Most pieces come from others, who give them to everybody: nobody waits for those here,
        and to wake up each subscriber for each of them is a good part of what sending costs."""
        if self.wanted[piece] > 0:
            self.condition.notify_all()

    def _come(self, piece: int, length: int) -> None:
        before = self._here.get(piece, 0)
        if length > before:
            self._here[piece] = length
            if before == 0:
                self.arrived.append(piece)
