"""Who vouches for the pieces that came from other nodes: on disk, so that after a restart this node does not pass them
on as its own word.

A file for each digest, a line for each piece, which the receiver process writes before it tells of the piece: whatever
this node counts as here has its line, also if the agent or the receiver is killed at any moment. Nothing of it is
fsynced: a node that loses power may lose lines whose pieces it keeps, and vouches for those itself. `cacheagent.store`
knows nothing of it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

from cacheagent.peers.orders import Have
from cacheagent.store.durable import write_all
from cacheagent.store.layout import Layout, digest_of, entries

LOG: Final = logging.getLogger(__name__)

KEEP_S: Final = 30 * 86400.0
"""For a digest that is not here any more, or not yet. Chosen."""

Line = tuple[int, bytes, str, bytes]
"""Piece, BLAKE3, signer, signature."""

_decode: Final = msgspec.json.Decoder(Line).decode


class Vouchers:
    """All calls block for as long as a small file takes."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def read(self, digest: str) -> dict[int, Have]:
        """By piece; what was said last holds."""
        found: dict[int, Have] = {}
        with _logged("who vouches for pieces can't be read"), open(self._layout.seals_of(digest), "rb") as file:
            for line in file.read().splitlines():
                with suppress(msgspec.MsgspecError):  # a crash cut it
                    piece, blake3, signer, signature = _decode(line)
                    found[piece] = Have(digest=digest, piece=piece, blake3=blake3, signer=signer, signature=signature)
        return found

    def path(self, digest: str) -> str:
        """Where `keep` adds to."""
        return self._layout.seals_of(digest)

    def forget(self, digest: str) -> None:
        """It is not here any more, or its bytes speak for themselves."""
        with _logged("who vouches for pieces can't be forgotten"):
            os.unlink(self._layout.seals_of(digest))

    def tidy(self, is_here: Callable[[str], bool]) -> None:
        """Remove what is of no use any more."""
        with _logged("files of seals can't be tidied"):
            for entry in entries(self._layout.seals):
                digest = digest_of(entry.name)
                if digest is None or (not is_here(digest) and entry.stat().st_mtime < time.time() - KEEP_S):
                    os.unlink(entry.path)


def keep(path: str, seal: Have) -> None:
    """A piece came with it. One line at the end of the file, whoever else adds to it. Raises OSError."""
    line: Line = (seal.piece, seal.blake3, seal.signer, seal.signature)
    try:
        file = _open(path)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        file = _open(path)
    try:
        write_all(file, b"\n" + msgspec.json.encode(line))
    finally:
        os.close(file)


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """What is not there is not there. A disk that fails does not end a download: this node then vouches itself."""
    try:
        yield
    except FileNotFoundError:
        return
    except OSError as error:
        LOG.warning("%s: %s", what, error)
