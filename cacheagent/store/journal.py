"""Append-only journals of what has arrived. What they say is a claim: it is hashed again before it is believed, so
nothing here is fsynced, and a line that a crash tore is simply no claim.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from cacheagent.model import NO_BLAKE3, PIECE_SIZE_BYTES, FileHashes, Value, piece_count
from cacheagent.store.durable import write_all

_PIECE: Final = re.compile(rb"(\d{1,9}) ([0-9a-f]{64})")


class PieceJournal:
    """The finished pieces of one blob: a head `<size> <piece size>`, then lines `<index> <blake3>`. A journal of
    another size of blob or piece claims nothing and is begun anew. A piece's last line holds, and claims nothing if it
    has `NO_BLAKE3`. One thread at a time appends.
    """

    def __init__(self, path: str, size_bytes: int) -> None:
        head = _head(size_bytes)
        self.claimed = _read_claims(path, head, piece_count(size_bytes))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags if self.claimed else flags | os.O_TRUNC, 0o644)
        try:
            # A torn last line must not swallow the next one.
            write_all(self._fd, b"\n" if self.claimed else head + b"\n")
        except BaseException:
            self.close()
            raise

    def append(self, index: int, blake3: str) -> None:
        """One more piece is on disk."""
        if self.claimed.get(index) != blake3:
            self.claimed[index] = blake3
            write_all(self._fd, f"{index} {blake3}\n".encode())

    def close(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def piece_journal(size_bytes: int, pieces: tuple[str, ...]) -> bytes:
    """The journal of a blob whose every piece is there."""
    lines = [f"{index} {blake3}\n" for index, blake3 in enumerate(pieces)]
    return _head(size_bytes) + b"\n" + "".join(lines).encode()


class SmallClaim(Value):
    """A small file that arrived and agreed with its origin."""

    blob: str
    size_bytes: int
    hashes: FileHashes


def encode_small(claims: list[SmallClaim]) -> bytes:
    """One line each."""
    return b"".join(msgspec.json.encode(claim) + b"\n" for claim in claims)


def read_small(path: str) -> Iterator[SmallClaim]:
    """What the journal of small files claims, the latest word on each last."""
    for line in _lines(path):
        try:
            yield msgspec.json.decode(line, type=SmallClaim)
        except msgspec.MsgspecError:  # torn
            continue


def _head(size_bytes: int) -> bytes:
    return f"{size_bytes} {PIECE_SIZE_BYTES}".encode()


def _read_claims(path: str, head: bytes, count: int) -> dict[int, str]:
    lines = _lines(path)
    if not lines or lines[0] != head:
        return {}
    pieces = {int(match[1]): match[2].decode() for line in lines[1:] if (match := _PIECE.fullmatch(line))}
    return {index: blake3 for index, blake3 in pieces.items() if index < count and blake3 != NO_BLAKE3}


def _lines(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as journal:
            return journal.read().splitlines()
    except FileNotFoundError:
        return []
