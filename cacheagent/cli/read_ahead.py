"""What a command is about to import, asked of the disk ahead of it.

Python reads one small file after the other, and on a cold disk waits for each: together 0.3 s of a pull. Threads that
only open files, and leave the reading to the kernel, are soon ahead of it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

COMMANDS: Final = (
    *("click", "msgspec", "cacheagent/store", "cacheagent/transfer", "cacheagent/cli", "cacheagent"),
    *("awscrt", "cacheagent/source"),
)
S3: Final = (
    *("cacheagent/source/s3", "botocore", "botocore/docs", "botocore/retries"),
    *("urllib3", "urllib3/util", "dateutil", "jmespath"),
)
"""Folders of packages that are imported whole, or nearly, in the order in which they are."""

READERS: Final = 4
"""Disks answer several at a time. Chosen."""


def read_ahead(arguments: Sequence[str]) -> None:
    """Begin, and return at once. What can't be found or opened is for those to report who import it."""
    from_s3 = any(argument.startswith("s3://") for argument in arguments)
    folders = deque(COMMANDS + S3 if from_s3 else COMMANDS)
    for _ in range(READERS):
        threading.Thread(target=_read, args=(folders,), name="read ahead", daemon=True).start()


def _read(folders: deque[str]) -> None:
    while folders:
        with suppress(IndexError, OSError):  # another thread took the last; what is not there is no concern of this one
            package, _, below = folders.popleft().partition("/")
            spec = PathFinder.find_spec(package)
            for location in (spec and spec.submodule_search_locations) or ():
                _read_folder(Path(location) / below / "__pycache__")


def _read_folder(folder: Path) -> None:
    for entry in os.scandir(folder):
        descriptor = os.open(entry.path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        os.close(descriptor)
