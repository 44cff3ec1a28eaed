"""One process owns a cache directory: the lock on its VERSION file, and what that file must say."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import Final, Self

from cacheagent.errors import StoreBusy, UnknownLayout
from cacheagent.store.durable import sync_directory, write_all
from cacheagent.store.layout import LAYOUT_VERSION, Layout

CONTENT: Final = f"cacheagent layout {LAYOUT_VERSION}\n".encode()
_MAY_BE_THERE: Final = ("lost+found", ".VERSION", "node.key", ".node.key")
"""Beginnings of names that don't speak against an empty directory: a new filesystem's own, another first start's, a key
that was made before it."""


class Owner:
    """The lock, held until `release` or the end of the process, however it ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def take(cls, layout: Layout) -> Self:
        """Make or adopt the directory. Raises StoreBusy, UnknownLayout (nothing was touched), OSError."""
        if not os.path.exists(layout.version):
            _mark_as_ours(layout)
        fd = os.open(layout.version, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _check_version(os.read(fd, 4096), layout)
        except BlockingIOError:
            holder = _holder(fd)
            os.close(fd)
            raise StoreBusy(
                f"{layout.root} is in use by {holder}",
                hint="one agent owns a cache directory; stop that one, or choose another directory",
            ) from None
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    def release(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _mark_as_ours(layout: Layout) -> None:
    """VERSION comes first, whole, and is never replaced: two first starts at once agree on one file to lock."""
    os.makedirs(layout.root, mode=0o755, exist_ok=True)
    strangers = [name for name in os.listdir(layout.root) if not name.startswith((*_MAY_BE_THERE, "VERSION"))]
    if strangers:
        raise UnknownLayout(
            f"{layout.root} has no VERSION file but holds {len(strangers)} other thing(s), such as "
            f"{min(strangers)!r}: it is no cache directory; nothing was touched",
            hint="name a new or empty directory",
        )
    temporary = f"{layout.root}/.VERSION.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, CONTENT)
        os.fsync(fd)
    finally:
        os.close(fd)
    with suppress(FileExistsError):  # somebody else was first, with a file of their own
        os.link(temporary, layout.version)
    os.unlink(temporary)
    sync_directory(layout.root)


def _check_version(content: bytes, layout: Layout) -> None:
    if content != CONTENT:
        raise UnknownLayout(
            f"{layout.version} says {content[:100].decode(errors='replace').strip()!r}, expected "
            f"{CONTENT.decode().strip()!r}; nothing was touched",
            hint="use the release of cacheagent that wrote it, or another directory",
        )


def _holder(fd: int) -> str:
    """`process 4711`, from /proc/locks; a lock of another pid namespace has no number that we could tell."""
    inode = str(os.fstat(fd).st_ino)
    with open("/proc/locks", encoding="utf-8") as locks:
        for line in locks:
            # 1: FLOCK  ADVISORY  WRITE 4711 fe:00:131 0 EOF
            fields = line.split()
            if "FLOCK" in fields and fields[-3].rpartition(":")[2] == inode and fields[-4] not in {"0", "-1"}:
                return f"process {fields[-4]}"
    return "another process"
