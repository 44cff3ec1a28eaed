"""The one door to files in directories that others write to: opened by paths in which nothing is a symbolic link.

Whoever may write to a mounted tree can put a link in the place of a file or a directory at any instant, also between a
check and the open that relies on it. So a path is resolved and judged first, and then opened exactly as it is written:
the kernel refuses a link anywhere in it (openat2(2), Linux 5.6), or each part is opened by itself where it can't.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

OPENAT2: Final = 437
"""The same number on every architecture; Python and the C libraries don't know the call."""
_RESOLVE: Final = 0x02 | 0x04 | 0x08  # RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH: of "/", no ".."
_UNAVAILABLE: Final = frozenset((errno.ENOSYS, errno.EPERM))
"""An old kernel; a container whose seccomp profile doesn't know the call."""
_PART: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


class LinkInTheWay(OSError):
    """A part of the path is a symbolic link."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ELOOP, "a symbolic link stands where a file or a directory was", path)


def open_plainly(path: str, flags: int) -> int:
    """A descriptor of what is at `path`: absolute, without `..`, as `os.path.realpath` gives it.

    A fifo in its place doesn't block. Raises LinkInTheWay, and OSError as the kernel gives it.
    """
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path!r} is not a resolved path")
    top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _open_beneath(top, path, flags | os.O_CLOEXEC | (0 if flags & os.O_PATH else os.O_NONBLOCK))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise LinkInTheWay(path) from error
        raise
    finally:
        os.close(top)


@contextmanager
def opened_plainly(path: str, flags: int) -> Iterator[int]:
    """The same, closed at the end of the block."""
    fd = open_plainly(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def look_at(path: str) -> os.stat_result:
    """What is at `path`, without opening it; it may be a link itself."""
    parent, name = os.path.split(path)
    with opened_plainly(parent, os.O_PATH | os.O_DIRECTORY) as fd:
        return os.stat(name or ".", dir_fd=fd, follow_symlinks=False)


def _open_beneath(top: int, path: str, flags: int) -> int:
    try:
        return _openat2(top, path.lstrip("/") or ".", flags)
    except OSError as error:
        if error.errno not in _UNAVAILABLE:
            raise
    return _open_in_steps(top, path, flags)


def _openat2(top: int, path: str, flags: int) -> int:
    how = (ctypes.c_uint64 * 3)(flags, 0, _RESOLVE)  # struct open_how: flags, mode, resolve
    name, size = ctypes.c_char_p(os.fsencode(path)), ctypes.c_size_t(ctypes.sizeof(how))
    while True:
        fd = int(_LIBC.syscall(ctypes.c_long(OPENAT2), ctypes.c_int(top), name, ctypes.byref(how), size))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number != errno.EINTR:  # as Python's own calls, which go on after a signal
            raise OSError(number, os.strerror(number), path)


def _open_in_steps(top: int, path: str, flags: int) -> int:
    *directories, name = [part for part in path.split("/") if part] or ["."]
    fd = os.dup(top)
    try:
        for part in directories:
            fd, outer = _open_part(fd, part, _PART), fd
            os.close(outer)
        return _open_part(fd, name, flags | os.O_NOFOLLOW)
    finally:
        os.close(fd)


def _open_part(directory: int, part: str, flags: int) -> int:
    try:
        return os.open(part, flags, dir_fd=directory)
    except NotADirectoryError:  # what O_DIRECTORY answers for a link
        if stat.S_ISLNK(os.stat(part, dir_fd=directory, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), part) from None
        raise
