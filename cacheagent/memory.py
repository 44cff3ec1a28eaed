"""How much memory there is, and how much of a file is in it. Blocking, all of it quick."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final, NamedTuple

CACHESTAT: Final = 451
"""cachestat(2), since Linux 6.5, has this number on every architecture; Python and most C libraries don't know it."""
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
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
    """How much of an open file is in the page cache; None where the kernel can't say. The last page counts as whole."""
    whole = (ctypes.c_uint64 * 2)(0, 0)  # struct cachestat_range: offset, length (0: to the end)
    found = (ctypes.c_uint64 * 5)()  # struct cachestat: cached, dirty, writeback, evicted, recently evicted
    if _LIBC.syscall(CACHESTAT, ctypes.c_uint(fd), ctypes.byref(whole), ctypes.byref(found), ctypes.c_uint(0)) != 0:
        return None
    return int(found[0]) * PAGE_BYTES


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None
