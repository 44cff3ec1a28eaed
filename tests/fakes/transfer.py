"""What tests of the worker pool share: a blob to fetch, an observer that counts, and waiting for conditions."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from cacheagent.location import HttpLocation, Location
from cacheagent.model import PIECE_SIZE_BYTES, Checksum, FileHashes, piece_count, piece_range
from cacheagent.progress import PieceOrigin
from cacheagent.transfer.base import BlobOrder
from cacheagent.transfer.observer import TransferObserver
from cacheagent.transfer.pool import WorkerPool

LONGEST_WAIT_S = 30.0
"""Chosen: nothing here takes longer on the busiest machine, and a test that waits so long has failed."""


def random_bytes(size_bytes: int, seed: int = 1) -> bytes:
    """The same ones at each run."""
    return random.Random(seed).randbytes(size_bytes)


def piece_hashes(data: bytes) -> tuple[str, ...]:
    """BLAKE3 of each piece."""
    ranges = (piece_range(len(data), index) for index in range(piece_count(len(data))))
    return tuple(blake3(data[offset : offset + length]).hexdigest() for offset, length in ranges)


async def until(condition: Callable[[], object], what: str) -> None:
    """Returns when the condition holds; fails with what was waited for."""
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {LONGEST_WAIT_S} s for: {what}"
        await asyncio.sleep(0.005)


class Blob:
    """A file to bring, what was reported of it, and how often its location was asked for."""

    def __init__(
        self,
        data: bytes,
        target: Path,
        location: Location | str,
        *,
        checksums: tuple[Checksum, ...] = (),
        claimed: dict[int, str] | None = None,
        priority: int = 0,
    ) -> None:
        self.data = data
        self.target = target
        self.location: Location = HttpLocation(url=location) if isinstance(location, str) else location
        self.located = 0
        self.reported: list[tuple[int, str, int, PieceOrigin]] = []
        self.order = BlobOrder(
            blob_id=target.name,
            size_bytes=len(data),
            target=str(target),
            source_kind="https",
            claimed=claimed or {},
            checksums=checksums,
            priority=priority,
        )
        if not target.exists():
            with target.open("wb") as file:
                os.truncate(file.fileno(), len(data))

    async def locate(self) -> Location:
        """Where it is."""
        self.located += 1
        return self.location

    def on_piece(self, index: int, digest: str, length: int, origin: PieceOrigin) -> None:
        """Takes notes."""
        self.reported.append((index, digest, length, origin))

    async def fetch(self, pool: WorkerPool) -> FileHashes:
        """By the pool."""
        return await pool.fetch(self.order, self.locate, self.on_piece)

    def indexes(self, origin: PieceOrigin) -> list[int]:
        """Which pieces were reported as that, ascending."""
        return sorted(index for index, _, _, of in self.reported if of == origin)

    def require_whole(self) -> None:
        """Every byte is on disk, every piece was reported once with its right hash, nothing lies beside the target."""
        assert self.target.read_bytes() == self.data
        hashes = piece_hashes(self.data)
        assert sorted(index for index, *_ in self.reported) == list(range(len(hashes)))
        assert all(digest == hashes[index] for index, digest, _, _ in self.reported)
        self.require_no_scratch()

    def require_reported_is_true(self) -> None:
        """After a failure: whatever was reported is on disk, and nothing lies beside the target."""
        content = self.target.read_bytes()
        for index, digest, length, _ in self.reported:
            offset = index * PIECE_SIZE_BYTES
            assert blake3(content[offset : offset + length]).hexdigest() == digest == piece_hashes(self.data)[index]
        assert len(content) == len(self.data)
        self.require_no_scratch()

    def require_no_scratch(self) -> None:
        """No hedge left a file behind."""
        assert [path.name for path in self.target.parent.glob(f"{self.target.name}.*")] == []


class CountingObserver(TransferObserver):
    """Counts what happens, by name."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.bytes_done = 0
        self.pauses: list[float] = []

    def piece_done(self, source_kind: str, size_bytes: int, seconds: float) -> None:
        self.counts["piece_done"] += 1
        self.bytes_done += size_bytes

    def retry(self, source_kind: str, reason: str) -> None:
        self.counts[f"retry {reason}"] += 1

    def throttled(self, source_kind: str, pause_s: float) -> None:
        self.counts["throttled"] += 1
        self.pauses.append(pause_s)

    def hedge(self, source_kind: str, *, won: bool) -> None:
        self.counts["hedge won" if won else "hedge lost"] += 1

    def worker_lost(self) -> None:
        self.counts["worker_lost"] += 1

    def worker_abandoned(self) -> None:
        self.counts["worker_abandoned"] += 1

    def fallback_buffered(self, size_bytes: int) -> None:
        self.counts["fallback_buffered"] += size_bytes
