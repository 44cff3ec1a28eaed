"""What is mounted where, read from /proc/self/mountinfo (proc(5)).

`os.path.ismount` is false for a bind mount within one filesystem, and the file's fourth field is a path inside the
*filesystem*, not on this machine: so everything is compared as (device, path inside it).
"""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from cacheagent.errors import StoreError

MOUNTINFO: Final = "/proc/self/mountinfo"
DELETED: Final = "//deleted"
"""What the kernel appends to the path of a directory that was removed."""

_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line. `device`: `major:minor` of the filesystem; `root`: which directory of it is mounted; `target`: where;
    `options`: of this mount alone, not of the filesystem."""

    id: int
    parent: int
    device: str
    root: str
    target: str
    options: frozenset[str]


class CacheDirectory(NamedTuple):
    """Where the cache is: which filesystem, and the directory's own path inside it."""

    device: str
    root: str

    def find_path(self, mount: Mount) -> str | None:
        """What is mounted, relative to the cache directory; None when it is nothing of ours, or was removed."""
        inside = self.root.rstrip("/") + "/"
        if mount.device != self.device or not mount.root.startswith(inside) or mount.root.endswith(DELETED):
            return None
        return mount.root.removeprefix(inside)


def parse(text: bytes) -> list[Mount]:
    """All lines, in their order. Raises ValueError for a line that is none, which no kernel writes."""
    return [_parse_line(line) for line in text.split(b"\n") if line]


def read_mounts() -> list[Mount]:
    """Everything that is mounted in this process's namespace now."""
    with open(MOUNTINFO, "rb") as file:
        return parse(file.read())


def find_top(mounts: Iterable[Mount], target: str) -> Mount | None:
    """What is seen at a place: mounts may lie on top of each other."""
    there = [mount for mount in mounts if mount.target == target]
    covered = {mount.parent for mount in there}
    return next((mount for mount in reversed(there) if mount.id not in covered), None)


def find_cache(root: Path) -> CacheDirectory:
    """Where the cache directory is. Raises StoreError if it is not there."""
    try:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(
            f"the cache directory {root} can't be opened: {error.strerror}",
            hint="is the node's cache directory mounted into this container?",
        ) from error
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            known = dict(line.split(":", 1) for line in file if ":" in line)
        return locate(read_mounts(), int(known["mnt_id"]), os.readlink(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


def locate(mounts: Iterable[Mount], mount_id: int, path: str) -> CacheDirectory:
    """The directory at `path`, which lies on that mount, as a path inside its filesystem."""
    mount = next(mount for mount in mounts if mount.id == mount_id)
    below = os.path.relpath(path, mount.target)
    return CacheDirectory(mount.device, os.path.normpath(os.path.join(mount.root, below)))


@contextmanager
def watching(changed: Callable[[], None]) -> Iterator[None]:
    """Call `changed`, in a thread of its own, after every change of what is mounted, for the length of the block."""
    stop = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        with open(MOUNTINFO, "rb") as file:
            thread = threading.Thread(target=_watch, args=(file.fileno(), stop, changed), name="mountinfo", daemon=True)
            thread.start()
            try:
                yield
            finally:
                os.eventfd_write(stop, 1)
                thread.join()
    finally:
        os.close(stop)


def _watch(fd: int, stop: int, changed: Callable[[], None]) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLERR | select.POLLPRI)  # how the kernel tells of a change; the file needn't be read
    poll.register(stop, select.POLLIN)
    while stop not in (ready for ready, _ in poll.poll()):
        changed()


def _parse_line(line: bytes) -> Mount:
    fields = line.split(b" ")
    try:
        end = fields.index(b"-", 6)  # any number of optional fields, then a dash
        if len(fields) < end + 4:
            raise ValueError("fields are missing")
        return Mount(
            id=int(fields[0]),
            parent=int(fields[1]),
            device=fields[2].decode("ascii"),
            root=_unescape(fields[3]),
            target=_unescape(fields[4]),
            options=frozenset(fields[5].decode("ascii", "replace").split(",")),
        )
    except (ValueError, IndexError) as error:
        raise ValueError(f"not a line of mountinfo: {line[:200]!r}: {error}") from error


def _unescape(field: bytes) -> str:
    """Blank, tab, newline, backslash and # are written as three octal digits; a name need not be text."""
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), field))
