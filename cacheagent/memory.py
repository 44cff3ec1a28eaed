"""How much memory there is, and how much of a file is in it. Blocking, all of it quick."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Final, NamedTuple

CACHESTAT: Final = 451
"""cachestat(2), since Linux 6.5, has this number on every architecture; Python and most C libraries don't know it."""
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
WINDOW_BYTES: Final = 2**30
"""Mapped at a time to be looked at: a quarter of a MiB of answers. Chosen."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_LIMITS: Final = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Of our own cgroup, as a container sees it: version 2, version 1."""


class Memory(NamedTuple):
    """Bytes: of the node (or of what our cgroup may have, if that is less), and how many of them could be had now."""

    total_bytes: int
    available_bytes: int


def read_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Memory:
    """The numbers now."""
    figures = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    total, available = (int(figures[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    for limit_name, usage_name in _LIMITS:
        limit, usage = _number(cgroup / limit_name), _number(cgroup / usage_name)
        if limit is not None and usage is not None and limit < total:
            total, available = limit, min(available, max(0, limit - usage))
    return Memory(total, available)


def resident_bytes(fd: int) -> int | None:
    """How much of an open file is in the page cache; None where nobody can say. The last page counts as whole."""
    found = _cachestat(fd)
    return found if found is not None else _mincore(fd)


def _cachestat(fd: int) -> int | None:
    """None for old kernels, and in containers whose seccomp profile doesn't know the call yet (containerd 1.6's)."""
    whole = (ctypes.c_uint64 * 2)(0, 0)  # struct cachestat_range: offset, length (0: to the end)
    found = (ctypes.c_uint64 * 5)()  # struct cachestat: cached, dirty, writeback, evicted, recently evicted
    if _LIBC.syscall(CACHESTAT, ctypes.c_uint(fd), ctypes.byref(whole), ctypes.byref(found), ctypes.c_uint(0)) != 0:
        return None
    return int(found[0]) * PAGE_BYTES


def _mincore(fd: int) -> int | None:
    """The same from mincore(2), which tells the truth only to the owner of the file (others hear that all is there)."""
    status = os.fstat(fd)
    if os.geteuid() not in {0, status.st_uid}:
        return None
    pages = 0
    for offset in range(0, status.st_size, WINDOW_BYTES):
        length = min(WINDOW_BYTES, status.st_size - offset)
        address = _LIBC.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
        if address == _MAP_FAILED:
            return None
        seen = (ctypes.c_ubyte * -(-length // PAGE_BYTES))()
        failed = _LIBC.mincore(address, length, seen)
        _LIBC.munmap(address, length)
        if failed:
            return None
        pages += bytes(seen).count(1)
    return pages * PAGE_BYTES


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None
