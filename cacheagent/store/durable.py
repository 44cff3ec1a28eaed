"""Small files that are there whole or not at all, and the calls that make files survive a power cut."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from cacheagent.errors import DiskFault

FSYNCS_AT_MOST: Final = 32
"""More files than this are made durable by one syncfs(2). Each fsync is a commit of the filesystem's journal, about a
millisecond on NVMe, while a syncfs also waits for what others wrote to the disk. Chosen."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def write_whole(path: str, content: bytes, *, mtime: float | None = None, mode: int | None = None) -> None:
    """Replace a file so that a crash leaves the old or the new one: temporary beside it, fsync, rename, fsync of the
    directory. The temporary has a leading dot; `open` removes what a crash left of it."""
    directory, name = os.path.split(path)
    temporary = f"{directory}/.{name}.tmp"
    fd = open_temporary(temporary)
    try:
        try:
            write_all(fd, content)
            if mode is not None:
                os.fchmod(fd, mode)
            if mtime is not None:
                os.utime(fd, (mtime, mtime))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(directory)


def open_temporary(path: str) -> int:
    """A new file to write to. One that a crash left may be read-only already, and then only root could open it."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def write_all(fd: int, content: bytes | memoryview) -> None:
    """The kernel may take less than it is given."""
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def sync_directory(path: str) -> None:
    """Make names that were added, moved or removed here survive."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_all(paths: Sequence[str], root: str) -> None:
    """Make the bytes and names of files and directories below `root` survive."""
    if len(paths) > FSYNCS_AT_MOST:
        _sync_filesystem(root)
        return
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _sync_filesystem(root: str) -> None:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _LIBC.syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), root)
    finally:
        os.close(fd)


@contextmanager
def disk_faults(what: str) -> Iterator[None]:
    """What the kernel refused, as an error that names the step and the file."""
    try:
        yield
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        raise DiskFault(
            f"{what}: {error.strerror or error}{where}", hint="look at the disk: dmesg, df, and mount options"
        ) from error
