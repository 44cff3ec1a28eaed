"""Reading ranges of a file on a mounted source filesystem (NFS, Lustre, GPFS, or just a directory).

The same three calls as `HttpBody`: open, receive, finish. A file whose size or mtime is not the listed one, before or
after its bytes were read, has changed: nothing that was read is then believed. A read can't be interrupted; a hung
server leaves the thread in it, and the parent gives the whole worker up.

The path was resolved when the file was located, and is opened as it was then: no link that took a place in it since is
followed. Every descriptor is judged by itself, by size and mtime alone: some FUSE file systems make up inode numbers
anew for each look.
"""

from __future__ import annotations

import os
import stat
from typing import Final, Self

from cacheagent.location import PathLocation
from cacheagent.nolinks import LinkInTheWay, open_plainly
from cacheagent.transfer.disk import DirectFile
from cacheagent.transfer.failure import OrderFailed, source_failure
from cacheagent.transfer.rate import Meter
from cacheagent.transfer.running import Running

STEP_BYTES: Final = 4 * 1024 * 1024
"""Read by one call: file servers like large reads. Chosen."""


class MountedRange:
    """One range of one file, read in order."""

    step_bytes = STEP_BYTES

    def __init__(self, location: PathLocation, running: Running, meter: Meter) -> None:
        self._location = location
        self._running = running
        self._meter = meter
        self._at = 0
        self._file = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def open(self, offset: int, length: int, file_size: int) -> None:
        """Raises OrderFailed("changed") where the file isn't the listed one."""
        self._at = offset
        if file_size != self._location.size_bytes:
            found = self._location.size_bytes
            raise OrderFailed("changed", f"{self._location.path}: has {found} bytes now, not {file_size}")
        self._require_unchanged()

    def receive(self, view: memoryview) -> None:
        """Exactly the next `len(view)` bytes; `view` has room up to the next page. Raises OrderFailed."""
        self._running.require_wanted()
        for part in self._meter.pace(view, self._running.sleep):
            self._read(part)

    def finish(self) -> None:
        """Raises OrderFailed("changed") where the file was written to meanwhile."""
        self._require_unchanged()

    def _open(self) -> DirectFile:
        try:
            return DirectFile(self._location.path, opener=self._open_listed)
        except OSError as error:
            raise source_failure(error, self._location.path) from error

    def _open_listed(self, path: str, flags: int) -> int:
        try:
            fd = open_plainly(path, flags)
        except LinkInTheWay as error:
            raise OrderFailed("changed", f"{path}: {error.strerror}") from error
        try:
            self._require_listed(os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _read(self, part: memoryview) -> None:
        try:
            self._file.read(part, len(part), self._at)
        except EOFError as error:
            raise OrderFailed("changed", f"{error}: the file became shorter") from error
        except OSError as error:
            raise source_failure(error, self._location.path) from error
        self._at += len(part)
        self._running.sign()

    def _require_unchanged(self) -> None:
        try:
            found = self._file.stat()
        except OSError as error:
            raise source_failure(error, self._location.path) from error
        self._require_listed(found)

    def _require_listed(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise OrderFailed("changed", f"{self._location.path}: is no longer a file")
        if (found.st_size, found.st_mtime_ns) != (self._location.size_bytes, self._location.mtime_ns):
            raise OrderFailed(
                "changed",
                f"{self._location.path}: size {found.st_size}, mtime {found.st_mtime_ns} ns; was listed with size "
                f"{self._location.size_bytes}, mtime {self._location.mtime_ns} ns",
            )
