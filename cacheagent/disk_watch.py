"""Whether the cache's filesystem still takes writes, found out by writing."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from cacheagent.threads import in_thread

EVERY_S: Final = 5.0
HUNG_AFTER_S: Final = 30.0
"""A write of one block that takes longer means that the disk hangs. Chosen: above the worst pauses of a busy NVMe."""


class DiskWatch:
    """Writes one block now and then and remembers how it went, so that a probe never waits for a disk that hangs."""

    def __init__(self, directory: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._now = now
        self._answered_at = now()
        self._wrong = ""

    def check(self) -> str:
        """What is wrong with the disk, or an empty string. Returns at once."""
        silent_s = self._now() - self._answered_at
        if silent_s > HUNG_AFTER_S:
            return f"{self._directory}: no write has ended for {silent_s:.0f} s"
        return self._wrong

    async def run(self) -> None:
        """Try again and again, until cancelled."""
        while True:
            await self.probe()
            await asyncio.sleep(EVERY_S)

    async def probe(self) -> None:
        """Try once."""
        try:
            await in_thread(partial(_write_block, self._directory))
        except OSError as error:
            self._wrong = f"{self._directory} can't be written: {error.strerror or error}"
        else:
            self._wrong = ""
        self._answered_at = self._now()


def _write_block(directory: Path) -> None:
    """Into a file without a name, which leaves nothing behind whatever happens."""
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(b"\0" * 4096)
        file.flush()
        os.fdatasync(file.fileno())
