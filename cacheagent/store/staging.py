"""Bytes on their way: preallocated large blobs with a journal of pieces each, small files with one journal for all."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from blake3 import blake3

from cacheagent.errors import CorruptModel
from cacheagent.model import NO_BLAKE3, SMALL_FILE_BYTES, FileHashes, piece_count
from cacheagent.store.durable import write_all, write_whole
from cacheagent.store.journal import PieceJournal, SmallClaim, encode_small, piece_journal, read_small
from cacheagent.store.layout import Layout, entries, is_hex_name
from cacheagent.store.trash import Trash

BLOCK_BYTES: Final = 4096
"""What filesystems give out; sizes are rounded up to it."""

SEALED: Final = 0o444
"""Mode of a blob whose every byte is verified; partial ones are writable. Recovery tells them apart by it."""


def on_disk(size_bytes: int) -> int:
    """Bytes a file of this size takes."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


class StagedBlob:
    """One large blob on its way. `path` exists with its full size; `claimed`: piece index -> BLAKE3, what an earlier
    try says is there. `append` may be called from any one thread at a time.
    """

    def __init__(self, staging: Staging, blob: str, size_bytes: int, journal: PieceJournal) -> None:
        self._staging = staging
        self._blob = blob
        self._size_bytes = size_bytes
        self._journal = journal
        self.path = Path(staging.layout.staged_data(blob))
        self.claimed = dict(journal.claimed)

    def append(self, index: int, blake3: str) -> None:
        """A piece is on disk: one line in the journal. Raises OSError."""
        self._journal.append(index, blake3)

    def verified(self, hashes: FileHashes) -> None:
        """Every byte is on disk and agrees with its origin; `publish` may now use it. Raises CorruptModel when file or
        hashes are not of the whole blob."""
        self._journal.close()
        size = self.path.stat().st_size
        if size != self._size_bytes or len(hashes.pieces) != piece_count(size):
            raise CorruptModel(
                f"{self.path}: {size} bytes and {len(hashes.pieces)} piece hashes, expected {self._size_bytes} bytes "
                f"and {piece_count(self._size_bytes)}"
            )
        self._staging.proved[self._blob] = hashes

    def discard(self) -> None:
        """Nothing of it is to be kept. A worker that still writes, writes to a file that has no name any more."""
        self._journal.close()
        self._staging.discard(self._blob)
        self._staging.trash.sweep()


class Staging:
    """What is under `staging/`. Blobs in `proved` were verified in this process; others are claims at best."""

    def __init__(self, layout: Layout, trash: Trash) -> None:
        self.layout = layout
        self.proved: dict[str, FileHashes] = {}
        self.trash = trash
        self._allocated: dict[str, int] = {}
        self._small: dict[str, SmallClaim] = {}
        self._small_journal = threading.Lock()

    def scan(self) -> None:
        """Learn what an earlier process left, the oldest first; what claims nothing is removed."""
        found: list[tuple[float, str, int]] = []
        for entry in entries(self.layout.staging):
            if is_hex_name(entry.name):
                try:
                    data = os.stat(self.layout.staged_data(entry.name))
                    found.append((data.st_mtime, entry.name, data.st_blocks * 512))
                except FileNotFoundError:
                    self.discard(entry.name)
        self._allocated = {blob: allocated for _, blob, allocated in sorted(found)}
        self._adopt_small()

    def stage(self, blob: str, size_bytes: int) -> StagedBlob:
        """Preallocate the blob or take up what is there. Raises OSError."""
        os.makedirs(self.layout.staged(blob), exist_ok=True)
        path = self.layout.staged_data(blob)
        if os.path.exists(path):
            os.chmod(path, 0o644)  # it was sealed if a publish was undone or its version evicted
            if os.stat(path).st_size != size_bytes:
                self.discard(blob)
                return self.stage(blob, size_bytes)
        is_new = not os.path.exists(path)
        try:
            _preallocate(path, size_bytes)
            journal = PieceJournal(self.layout.staged_journal(blob), size_bytes)
        except OSError:
            if is_new:  # what a full disk could not take must not go on taking room
                self._withdraw(blob)
            raise
        self._allocated[blob] = on_disk(size_bytes)
        return StagedBlob(self, blob, size_bytes, journal)

    def small_done(self, results: Sequence[tuple[str, int, FileHashes]]) -> None:
        """Small files (blob, size, hashes) are on disk and agree with their origin."""
        claims = [SmallClaim(blob=blob, size_bytes=size, hashes=hashes) for blob, size, hashes in results]
        self._claim_small(claims)
        self.proved.update({claim.blob: claim.hashes for claim in claims})

    def prove_small(self, blobs: Iterable[str]) -> set[str]:
        """Read claimed small files back; those that are what the journal says are verified, others removed."""
        claims = [self._small[blob] for blob in blobs if blob in self._small]
        for claim in claims:
            if claim.blob not in self.proved and self._is_right(claim):
                self.proved[claim.blob] = claim.hashes
            elif claim.blob not in self.proved:
                self.discard(claim.blob)
        return {claim.blob for claim in claims if claim.blob in self.proved}

    def place(self, blob: str) -> str:
        """Where its bytes are."""
        return self.layout.staged_small(blob) if blob in self._small else self.layout.staged_data(blob)

    def allocated(self, blob: str) -> int:
        """Bytes of disk that it holds already."""
        return self._allocated.get(blob, 0)

    def blobs(self) -> list[str]:
        """Everything on its way, the oldest first."""
        return list(self._allocated)

    def left(self, blobs: Iterable[str]) -> None:
        """Their bytes have moved to `blobs/`: remove what stays behind."""
        for blob in blobs:
            self.proved.pop(blob, None)
            self._allocated.pop(blob, None)
            if self._small.pop(blob, None) is None:
                _remove(self.layout.staged_journal(blob))
                _remove_directory(self.layout.staged(blob))
        with self._small_journal:
            if not self._small:
                _remove(self.layout.small_journal)

    def take_back(self, blob: str, size_bytes: int, hashes: FileHashes) -> None:
        """A published blob whose last version goes, and which is wanted, is on its way again: verified, and for the
        next process a claim of its whole self. The claim comes first, so that dying in between loses nothing."""
        if size_bytes < SMALL_FILE_BYTES:
            self._claim_small([SmallClaim(blob=blob, size_bytes=size_bytes, hashes=hashes)])
            os.rename(self.layout.blob(blob), self.layout.staged_small(blob))
        else:
            os.makedirs(self.layout.staged(blob), exist_ok=True)
            _write(self.layout.staged_journal(blob), piece_journal(size_bytes, hashes.pieces), os.O_TRUNC)
            os.rename(self.layout.blob(blob), self.layout.staged_data(blob))
            self._allocated[blob] = on_disk(size_bytes)
        self.proved[blob] = hashes

    def doubt(self, blob: str, pieces: Mapping[int, str]) -> bool:
        """See `Store.doubt`."""
        known = self.proved.get(blob)
        doubted = [index for index, blake3 in pieces.items() if known is not None and known.pieces[index] == blake3]
        if doubted:
            journal = PieceJournal(self.layout.staged_journal(blob), os.stat(self.layout.staged_data(blob)).st_size)
            try:
                for index in doubted:
                    journal.append(index, NO_BLAKE3)
            finally:
                journal.close()
            del self.proved[blob]
        return bool(doubted)

    def discard(self, blob: str) -> None:
        """Forget it and give its room back. Absent is fine."""
        self.proved.pop(blob, None)
        self._allocated.pop(blob, None)
        if self._small.pop(blob, None) is not None:
            _remove(self.layout.staged_small(blob))
        if os.path.exists(self.layout.staged(blob)):
            with self.trash.bin() as bin_:
                bin_.take(self.layout.staged(blob))

    def _withdraw(self, blob: str) -> None:
        with suppress(OSError):  # of a disk that takes nothing: the first failure is the one to tell of
            _remove(self.layout.staged_data(blob))
            _remove(self.layout.staged_journal(blob))
            _remove_directory(self.layout.staged(blob))

    def _adopt_small(self) -> None:
        there = {entry.name: entry.stat().st_size for entry in entries(self.layout.small) if is_hex_name(entry.name)}
        claims = {claim.blob: claim for claim in read_small(self.layout.small_journal)}
        self._small = {blob: claim for blob, claim in claims.items() if there.get(blob) == claim.size_bytes}
        for blob in there.keys() - self._small.keys():
            _remove(self.layout.staged_small(blob))
        for claim in self._small.values():
            self._allocated[claim.blob] = on_disk(claim.size_bytes)
        if claims:
            write_whole(self.layout.small_journal, encode_small(list(self._small.values())))

    def _claim_small(self, claims: list[SmallClaim]) -> None:
        with self._small_journal:
            _write(self.layout.small_journal, encode_small(claims), os.O_APPEND)
            for claim in claims:
                self._allocated[claim.blob] = on_disk(claim.size_bytes)
                self._small[claim.blob] = claim

    def _is_right(self, claim: SmallClaim) -> bool:
        try:
            with open(self.layout.staged_small(claim.blob), "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return False
        pieces = (blake3(content).hexdigest(),) if content else ()
        return len(content) == claim.size_bytes and pieces == claim.hashes.pieces


def is_sealed(path: str, size_bytes: int) -> bool:
    """Whether a publish found every byte of this file verified."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return stat.S_IMODE(found.st_mode) == SEALED and found.st_size == size_bytes


def _preallocate(path: str, size_bytes: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if size_bytes:
            os.posix_fallocate(fd, 0, size_bytes)
    finally:
        os.close(fd)


def _write(path: str, content: bytes, how: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o644)
    try:
        write_all(fd, content)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _remove_directory(path: str) -> None:
    with suppress(FileNotFoundError):
        os.rmdir(path)
