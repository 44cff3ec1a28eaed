"""Files read and written past the page cache (O_DIRECT), from page-aligned memory.

Weights that pass through the page cache cost four times the CPU and push out what the node's pods have there. Where a
filesystem refuses O_DIRECT, the same calls go through the page cache, start their write-back at once and drop what
is clean; the bytes are counted so that a metric can tell. The same holds for the tail of a file that doesn't end on
a page: its last bytes are one small plain write, so that a target never changes its size.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from typing import Final, Self

ALIGNMENT: Final = 4096
"""Of offset, length and memory under O_DIRECT: the logical block size of every disk we know is this or a divisor."""


class Buffer:
    """Page-aligned memory of one thread, made at its first use."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._view = memoryview(b"")

    def view(self, length: int) -> memoryview:
        """At least `length` bytes, whole pages, writable. What earlier views held is lost when it grows."""
        if len(self._view) < length:
            self._memory = mmap.mmap(-1, aligned_up(length))
            self._view = memoryview(self._memory)
        return self._view


def aligned_up(length: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-length // ALIGNMENT) * ALIGNMENT


class DirectFile:
    """One existing file, open for reading or for both. Not thread-safe: each thread opens its own. Methods raise
    OSError as the kernel gave it; a file that ends early raises EOFError. `opener` is called for each descriptor, of
    which there may be two.
    """

    def __init__(
        self,
        path: str,
        *,
        writable: bool = False,
        on_buffered: Callable[[int], None] | None = None,
        opener: Callable[[str, int], int] | None = None,
    ) -> None:
        self._path = path
        self._opener = opener or os.open
        self._flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        self._on_buffered = on_buffered
        self._plain = -1
        self._buffered: list[tuple[int, int]] = []
        self._direct = self._open_direct()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def is_direct(self) -> bool:
        """False once the filesystem has refused O_DIRECT."""
        return self._direct >= 0

    def stat(self) -> os.stat_result:
        """Of the open file, whatever its name points to now."""
        return os.fstat(self._direct if self.is_direct else self._open_plain())

    def write(self, data: memoryview, offset: int) -> None:
        """All of `data`, which begins at aligned memory, at `offset`."""
        done = self._write_direct(data, offset) if self.is_direct and offset % ALIGNMENT == 0 else 0
        if done < len(data):
            self._write_plain(data[done:], offset + done)

    def read(self, buffer: memoryview, length: int, offset: int) -> memoryview:
        """Exactly `length` bytes at `offset`, into the front of `buffer` (aligned memory; with room up to the next page
        the tail of a file needs no second read).
        """
        done = self._read_direct(buffer, length, offset) if self.is_direct and offset % ALIGNMENT == 0 else 0
        if done < length:
            self._read_plain(buffer[done:length], offset + done)
        return buffer[:length]

    def close(self) -> None:
        """May be called twice."""
        for fd in (self._direct, self._plain):
            if fd >= 0:
                self._drop_cached(fd)
                os.close(fd)
        self._direct = self._plain = -1

    def _open_direct(self) -> int:
        try:
            return self._opener(self._path, self._flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return -1

    def _open_plain(self) -> int:
        if self._plain < 0:
            self._plain = self._opener(self._path, self._flags)
        return self._plain

    def _refused(self, error: OSError) -> None:
        """Some filesystems take the flag and refuse the first call."""
        if error.errno != errno.EINVAL:
            raise error
        os.close(self._direct)
        self._direct = -1

    def _write_direct(self, data: memoryview, offset: int) -> int:
        whole = len(data) // ALIGNMENT * ALIGNMENT
        done = 0
        try:
            while done < whole:
                done += os.pwrite(self._direct, data[done:whole], offset + done)
        except OSError as error:
            self._refused(error)
        return done

    def _write_plain(self, data: memoryview, offset: int) -> None:
        fd = self._open_plain()
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], offset + done)
        self._went_through_cache(fd, offset, len(data))

    def _read_direct(self, buffer: memoryview, length: int, offset: int) -> int:
        wanted = min(aligned_up(length), len(buffer) // ALIGNMENT * ALIGNMENT)
        done = 0
        try:
            while done < min(length, wanted) and done % ALIGNMENT == 0:
                got = os.preadv(self._direct, [buffer[done:wanted]], offset + done)
                if got == 0:
                    break
                done += got
        except OSError as error:
            self._refused(error)
        return done

    def _read_plain(self, buffer: memoryview, offset: int) -> None:
        fd = self._open_plain()
        done = 0
        while done < len(buffer):
            got = os.preadv(fd, [buffer[done:]], offset + done)
            if got == 0:
                raise EOFError(f"{self._path} ends at {offset + done}, wanted {offset + len(buffer)}")
            done += got
        self._went_through_cache(fd, offset, len(buffer))

    def _went_through_cache(self, fd: int, offset: int, length: int) -> None:
        """Start the write-back now (DONTNEED does); what is still dirty is dropped at the end."""
        if self.is_direct:
            return  # the tail of a file
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
        self._buffered.append((offset, length))
        if self._on_buffered is not None:
            self._on_buffered(length)

    def _drop_cached(self, fd: int) -> None:
        for offset, length in self._buffered if fd == self._plain else ():
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
