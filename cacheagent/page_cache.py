"""Reads models into the page cache ahead of the engine that has just mounted them: in the order of their files, one
model at a time, only where the memory is there, and with a look afterwards whether the pages really are.

Off unless a model, a volume or a pod asks for it. The pages belong to whoever touches them first, which is this
process: the container must have no memory limit, or they count against it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from cacheagent.memory import PAGE_BYTES, Memory, read_memory, resident_bytes
from cacheagent.quantity import size_text
from cacheagent.store import Record, Store
from cacheagent.threads import in_thread

LOG: Final = logging.getLogger(__name__)

READ_BYTES: Final = 4 * 2**20
CHUNK_BYTES: Final = 64 * 2**20
"""What one visit to a thread reads, and so how long an order to stop may wait: 0.1 s on a slow disk. Chosen."""
RESULTS: Final = ("read", "resident", "no-memory", "failed")
ENOUGH: Final = 0.99
"""A model of which so much is resident is not read again."""


class PageCache:
    """One event loop. `min_memory_bytes`, `keep_available`: see `config.PageCacheSettings`."""

    def __init__(
        self,
        store: Store,
        *,
        min_memory_bytes: int,
        keep_available: float,
        memory: Callable[[], Memory] = read_memory,
    ) -> None:
        self._store = store
        self._min_memory_bytes = min_memory_bytes
        self._keep_available = keep_available
        self._memory = memory
        self._waiting: asyncio.Queue[Record] = asyncio.Queue()
        self._read: dict[str, Record] = {}
        self.results: Counter[str] = Counter()
        """How reading ended: one of RESULTS (`resident`: it was there)."""
        self.bytes_read = 0

    def ask(self, record: Record) -> None:
        """A version was mounted and is to be read. Returns at once."""
        self._waiting.put_nowait(record)

    async def run(self) -> None:
        """Until cancelled, which ends a read within a moment."""
        while True:
            record = await self._waiting.get()
            try:
                result = await self._warm(record)
            except OSError as error:
                LOG.warning("a model can't be read into memory: %s", error, extra={"model": record.name})
                result = "failed"
            self.results[result] += 1

    async def residency(self) -> dict[str, float]:
        """The part of each model that was read which is in memory now, by name; none where the kernel can't say."""
        found = {}
        for name, record in list(self._read.items()):
            try:
                resident = await in_thread(partial(_resident, self._files(record)))
            except OSError:  # it was evicted
                self._read.pop(name, None)
                continue
            if resident is not None and record.size_bytes:
                found[name] = min(1.0, resident / record.size_bytes)
        return found

    async def _warm(self, record: Record) -> str:
        files = self._files(record)
        before = await in_thread(partial(_resident, files)) or 0
        if before >= ENOUGH * record.size_bytes:
            self._read[record.name] = record
            return "resident"
        if reason := self._refusal(max(0, record.size_bytes - before)):
            LOG.info("a model is not read into memory: %s", reason, extra={"model": record.name})
            return "no-memory"
        began = asyncio.get_running_loop().time()
        self._read[record.name] = record
        for path in files:
            if not await self._read_file(path):
                LOG.info("a model is read into memory in part: memory got short", extra={"model": record.name})
                return "no-memory"
        seconds = asyncio.get_running_loop().time() - began
        after = await in_thread(partial(_resident, files))
        LOG.info(
            "a model was read into memory",
            extra={
                "model": record.name,
                "digest": record.digest,
                "bytes": record.size_bytes,
                "resident_bytes": -1 if after is None else min(after, record.size_bytes),
                "seconds": round(seconds, 2),
            },
        )
        return "read"

    async def _read_file(self, path: Path) -> bool:
        """False when memory got short meanwhile."""
        with _opened(path) as fd:
            size = os.fstat(fd).st_size
            for offset in range(0, size, CHUNK_BYTES):
                memory = self._memory()
                if memory.available_bytes < self._keep_available * memory.total_bytes:
                    return False
                self.bytes_read += await in_thread(partial(_read_chunk, fd, offset, min(size, offset + CHUNK_BYTES)))
        return True

    def _refusal(self, needed_bytes: int) -> str:
        """Why not, a sentence; empty when it may be read."""
        memory = self._memory()
        if memory.total_bytes < self._min_memory_bytes:
            least = size_text(self._min_memory_bytes)
            return f"this node has {size_text(memory.total_bytes)} of memory, less than {least} (page_cache.min_memory)"
        usable = memory.available_bytes - self._keep_available * memory.total_bytes
        if needed_bytes > usable:
            return f"it needs {size_text(needed_bytes)} and {size_text(max(0, usable))} of memory may be used"
        return ""

    def _files(self, record: Record) -> list[Path]:
        """In the order of the manifest, which is that of their names: how engines read shards."""
        top = self._store.path(record.digest) / "files"
        return [top / file.path for file in record.manifest.files if file.size_bytes]


def _read_chunk(fd: int, offset: int, end: int) -> int:
    """Into a buffer that nobody looks at: the pages are what is wanted."""
    buffer = bytearray(min(READ_BYTES, end - offset))
    done = offset
    while done < end:
        count = os.preadv(fd, [memoryview(buffer)[: end - done]], done)
        if count == 0:
            break
        done += count
    return done - offset


def _resident(files: list[Path]) -> int | None:
    """Bytes in the page cache; a file's last page counts as far as the file goes."""
    total = 0
    for path in files:
        with _opened(path) as fd:
            found = resident_bytes(fd)
            if found is None:
                return None
            size = os.fstat(fd).st_size
            total += size if found >= -(-size // PAGE_BYTES) * PAGE_BYTES else min(found, size)
    return total


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
