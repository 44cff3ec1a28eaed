"""A model to be served: one file of random bytes, with the BLAKE3 of its pieces, as a verified one has."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from blake3 import blake3

from cacheagent.model import PIECE_SIZE_BYTES, piece_count, piece_range
from cacheagent.peers.orders import Serve

DIGEST = "sha256:" + "5e" * 32


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """`hashes`: raw, of all pieces, in order."""

    path: Path
    size_bytes: int
    hashes: bytes

    @property
    def pieces(self) -> int:
        """How many it has."""
        return piece_count(self.size_bytes)

    def length(self, pieces: int) -> int:
        """Bytes of so many, from the first on."""
        return min(self.size_bytes, pieces * PIECE_SIZE_BYTES)

    def to_serve(self, members: dict[str, tuple[bytes, ...]]) -> Serve:
        """The order that a server gets when a node has it all."""
        return Serve(
            digest=DIGEST,
            members=members,
            homes=(),
            sizes=(self.size_bytes,),
            paths=(str(self.path),),
            hashes=self.hashes,
        )

    def read(self) -> None:
        """All of it is in the page cache then."""
        with self.path.open("rb", buffering=0) as file:
            while file.read(PIECE_SIZE_BYTES):
                pass

    def forget(self) -> None:
        """Nothing of it is in the page cache then."""
        with self.path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_model(path: Path, size_bytes: int) -> Model:
    """On disk. Every piece is another one."""
    block = bytearray(os.urandom(PIECE_SIZE_BYTES))
    hashes = bytearray()
    with path.open("wb", buffering=0) as file:
        for index in range(piece_count(size_bytes)):
            block[:8] = index.to_bytes(8)
            piece = block[: piece_range(size_bytes, index)[1]]
            file.write(piece)
            hashes += blake3(piece).digest()
        os.fsync(file.fileno())
    return Model(path=path, size_bytes=size_bytes, hashes=bytes(hashes))
