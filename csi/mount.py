"""The one door to mounting: nothing else in this program mounts, unmounts, makes or removes a target directory.

A mount is read-only before anybody can see it. Binding first and remounting after is not the same: a remount inside
this container never reaches the host, whose pods would be given a writable cache.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

LOG: Final = logging.getLogger(__name__)

SCRATCH: Final = Path("/mnt")
"""Any directory of the container's own image; used for a moment by old kernels only, never written to."""

# System call numbers, the same on all architectures since 5.1 (asm-generic/unistd.h).
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_AT_EMPTY_PATH = 0x1000
_MOVE_EMPTY_PATHS = 0x04 | 0x40  # MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
# mount(2) and umount2(2), linux/mount.h
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_PRIVATE = 32, 4096, 1 << 18
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_ATTRIBUTES: Final = struct.pack("=QQQQ", 1 | 2 | 4 | 8, 0, _MS_PRIVATE, 0)
"""struct mount_attr: to set (MOUNT_ATTR_RDONLY, _NOSUID, _NODEV, _NOEXEC), to clear, propagation, user namespace."""

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TARGET_MODE: Final = 0o750

BUSY_TRIES: Final = 10
BUSY_PAUSE_S: Final = 0.2
"""How often and after what pause a busy mount is tried again before it is detached lazily. Chosen: who is busy there is
a reader that is just ending."""

_libc = ctypes.CDLL(None, use_errno=True)
_scratch_in_use = threading.Lock()


@contextmanager
def opened_beneath(directory: Path, parts: Sequence[str]) -> Iterator[int]:
    """A descriptor of the directory at `parts` below `directory`, reached without following a symbolic link anywhere
    below it. Raises OSError: ELOOP or ENOTDIR for a link, ENOENT."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            if part in {"", ".", ".."} or "/" in part:
                raise OSError(errno.EINVAL, "not the name of a directory", part)
            inner = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def make_target(parent: int, name: str) -> None:
    """Make the directory to mount on; one that is there is fine."""
    with suppress(FileExistsError):
        os.mkdir(name, _TARGET_MODE, dir_fd=parent)


def remove_target(parent: int, name: str) -> None:
    """Remove the directory, which is empty once nothing is mounted on it; one that is gone is fine. Never what is in
    it: that could be a mount that silently stayed. Raises OSError."""
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)


def attach(source: int, parent: int, name: str) -> None:
    """Mount the directory `source` (a descriptor) read-only on the directory `name` in `parent`. Raises OSError."""
    target = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        try:
            _attach_clone(source, target)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            LOG.info("this kernel is older than 5.12: mounting by way of a private place")
            _attach_by_remount(source, target)
    finally:
        os.close(target)


def detach(parent: int, name: str) -> None:
    """Take away what is mounted there. Raises OSError: EINVAL when nothing is."""
    place = f"/proc/self/fd/{parent}/{name}"
    for _ in range(BUSY_TRIES):
        try:
            return _umount(place, _UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        time.sleep(BUSY_PAUSE_S)
    LOG.warning(
        "a mount stays busy; it is taken away from its place, and ends when its last user does", extra={"target": name}
    )
    return _umount(place, _UMOUNT_NOFOLLOW | _MNT_DETACH)


def _attach_clone(source: int, target: int) -> None:
    """A detached copy of the mount gets its attributes, and only then a place."""
    tree = _syscall(_OPEN_TREE, source, b"", _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH)
    try:
        _syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, _ATTRIBUTES, len(_ATTRIBUTES))
        _syscall(_MOVE_MOUNT, tree, b"", target, b"", _MOVE_EMPTY_PATHS)
    finally:
        os.close(tree)


def _attach_by_remount(source: int, target: int) -> None:
    """The same for kernels before 5.12: bind and remount where nobody else looks, then bind *that*, attributes and all.

    The private place lies on a mount that is private itself: a container's own root may be shared with the host."""
    place = str(SCRATCH)
    read_only = _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    with _scratch_in_use, _bound(place, place), _bound(f"/proc/self/fd/{source}", place):
        _mount(None, place, read_only)
        _mount(place, f"/proc/self/fd/{target}", _MS_BIND)


@contextmanager
def _bound(source: str, place: str) -> Iterator[None]:
    _mount(source, place, _MS_BIND)
    try:
        _mount(None, place, _MS_PRIVATE)
        yield
    finally:
        _umount(place, _MNT_DETACH)


def _mount(source: str | None, target: str, flags: int) -> None:
    encoded = None if source is None else os.fsencode(source)
    if _libc.mount(encoded, os.fsencode(target), None, ctypes.c_ulong(flags), None) != 0:
        raise _os_error(target)


def _umount(place: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(place), flags) != 0:
        raise _os_error(place)


def _syscall(number: int, *arguments: object) -> int:
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    answer = int(_libc.syscall(ctypes.c_long(number), *wide))
    if answer < 0:
        raise _os_error("")
    return answer


def _os_error(place: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), place or None)
