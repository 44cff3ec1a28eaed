"""Bytes at rest that turned out wrong: restoring what is recorded, and keeping what can't be restored for a person."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Final

import msgspec
from blake3 import blake3

from cacheagent.errors import ChecksumMismatch, NotCached
from cacheagent.model import piece_range
from cacheagent.store.durable import write_all, write_whole
from cacheagent.store.index import Blob
from cacheagent.store.layout import entries
from cacheagent.store.staging import SEALED, on_disk
from cacheagent.store.state import State

_COPY_BYTES: Final = 16 * 2**20


def repair_piece(state: State, blob: str, index: int, data: bytes) -> None:
    """Write a piece over the same range of the same inode, so that whoever has it open or mapped sees it whole again.
    Only recorded bytes can be restored: raises ChecksumMismatch for any others, NotCached, OSError."""
    known = get_blob(state, blob)
    offset, length = piece_range(known.size_bytes, index)
    found = blake3(data).hexdigest()
    if len(data) != length or found != known.hashes.pieces[index]:
        raise ChecksumMismatch(
            f"piece {index} of blob {blob}: {len(data)} bytes with BLAKE3 {found}, expected {length} with "
            f"{known.hashes.pieces[index]}; nothing was written",
            hint="the origin gave other bytes than it once did; the model must be fetched anew",
        )
    fd = _open_sealed(state.layout.blob(blob))
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def quarantine(state: State, blob: str, now: float) -> str | None:
    """Keep a copy for the operator and return its path; None when it is larger than all that may be kept, or the floor
    leaves no room. The oldest copies go first. Raises NotCached, OSError."""
    size = on_disk(get_blob(state, blob).size_bytes)
    kept = sorted(entries(state.layout.quarantine), key=lambda entry: entry.name)
    allowed = state.policy.quarantine_bytes - size
    disk = os.statvfs(state.layout.root)
    if allowed < 0 or disk.f_bavail * disk.f_frsize - size < state.policy.floor_bytes:
        return None
    total = sum(on_disk(entry.stat().st_size) for entry in kept)
    while kept and total > allowed:
        oldest = kept.pop(0)
        total -= on_disk(oldest.stat().st_size)
        os.unlink(oldest.path)
    target = f"{state.layout.quarantine}/{int(now):012d}-{blob}"
    with open(state.layout.blob(blob), "rb") as source, open(target, "wb") as copy:
        shutil.copyfileobj(source, copy, _COPY_BYTES)
    return target


def read_scrubbed(state: State) -> dict[str, float]:
    """Blob to seconds since the epoch; losing it means that everything is read once more."""
    try:
        with open(state.layout.scrubbed, "rb") as file:
            return msgspec.json.decode(file.read(), type=dict[str, float])
    except (FileNotFoundError, msgspec.MsgspecError, ValueError):
        return {}


def write_scrubbed(state: State, read_at: Mapping[str, float]) -> None:
    """Replace the notes."""
    write_whole(state.layout.scrubbed, msgspec.json.encode(dict(read_at)) + b"\n")


def get_blob(state: State, blob: str) -> Blob:
    """A published blob. Raises NotCached."""
    known = state.index.blobs.get(blob)
    if known is None:
        raise NotCached(f"blob {blob} is not in this cache", hint="its version was evicted meanwhile")
    return known


def _open_sealed(path: str) -> int:
    """For writing. The owner of a read-only file may lift that; it is lowered again before the first byte is written,
    so that a crash leaves no writable blob."""
    os.chmod(path, 0o644)
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    finally:
        os.chmod(path, SEALED)
