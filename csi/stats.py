"""How large a mounted volume is, for the kubelet's metrics."""

from __future__ import annotations

import os
from typing import NamedTuple

from cacheagent.errors import NotCached
from csi.mountinfo import find_top, read_mounts


class Usage(NamedTuple):
    """`bytes` and `files`: of the model itself. `free_*`: of its disk, which all volumes of a node share."""

    bytes: int
    files: int
    free_bytes: int
    free_files: int


def measure(path: str) -> Usage:
    """What is mounted at `path`. Raises NotCached if nothing is. Reads every directory: for a thread."""
    if not os.path.isabs(path) or find_top(read_mounts(), os.path.realpath(path)) is None:
        raise NotCached(f"no volume is mounted at {path[:300]!r}")
    sizes = [
        os.lstat(os.path.join(directory, name)).st_size
        for directory, _, names in os.walk(path, onerror=_raise)
        for name in names
    ]
    disk = os.statvfs(path)
    return Usage(sum(sizes), len(sizes), disk.f_bavail * disk.f_frsize, disk.f_favail)


def _raise(error: OSError) -> None:
    raise error
