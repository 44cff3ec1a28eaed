"""The process of a `FaultyDisk`: a pass-through FUSE file system that obeys a control socket."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import mfusepy
import msgspec

from tests.fakes.fusefs import DiskFaults, DiskState

_STAT_FIELDS = (
    "st_atime_ns",
    "st_ctime_ns",
    "st_mtime_ns",
    "st_gid",
    "st_ino",
    "st_mode",
    "st_nlink",
    "st_size",
    "st_uid",
    "st_blocks",
)
_STATFS_FIELDS = (
    "f_bavail",
    "f_bfree",
    "f_blocks",
    "f_bsize",
    "f_favail",
    "f_ffree",
    "f_files",
    "f_flag",
    "f_frsize",
    "f_namemax",
)


class Faults:
    """The faults of now and what they have done. Thread-safe: FUSE calls from many threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pace = threading.Lock()
        self._now = DiskFaults()
        self._reads = self._writes = self._failed = self._hanging = 0

    def change(self, faults: DiskFaults) -> None:
        with self._changed:
            self._now = faults
            self._reads = self._writes = self._failed = 0
            self._changed.notify_all()

    def state(self) -> DiskState:
        with self._changed:
            return DiskState(reads=self._reads, writes=self._writes, failed=self._failed, hanging=self._hanging)

    def check_open(self, path: str, flags: int) -> None:
        if self._of(path).refuse_o_direct and flags & os.O_DIRECT:
            self._fail(errno.EINVAL)
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            self.check_change(path)

    def check_change(self, path: str) -> None:
        if self._of(path).read_only:
            self._fail(errno.EROFS)

    def check_fsync(self, path: str) -> None:
        self._fail(self._of(path).fsync_errno)

    def check_fallocate(self, path: str) -> None:
        self.check_change(path)
        self._fail(self._of(path).fallocate_errno)

    def check_write(self, path: str, end: int) -> None:
        self.check_change(path)
        faults = self._of(path)
        with self._changed:
            self._writes += faults == self._now
            due = self._writes > faults.after_writes and end > faults.past_byte
        self._fail(faults.write_errno if due else 0)

    def before_read(self, path: str, size: int) -> bool:
        """Wait as long as the faults say; True when the file's mtime must move on now."""
        faults = self._of(path)
        with self._changed:
            self._reads += faults == self._now
            number = self._reads
            with self._counted_as_hanging(faults):
                self._changed.wait_for(lambda: not self._of(path).hang_reads)
        time.sleep(faults.read_delay_s)
        if faults.read_bytes_per_s:
            with self._pace:
                time.sleep(size / faults.read_bytes_per_s)
        self._fail(faults.read_errno if number > faults.after_reads else 0)
        return 0 < faults.touch_at_read == number

    @contextlib.contextmanager
    def _counted_as_hanging(self, faults: DiskFaults) -> Iterator[None]:
        self._hanging += faults.hang_reads
        try:
            yield
        finally:
            self._hanging -= faults.hang_reads

    def _of(self, path: str) -> DiskFaults:
        faults = self._now
        return faults if fnmatchcase(path.lstrip("/"), faults.paths) else DiskFaults(paths="")

    def _fail(self, number: int) -> None:
        if number:
            with self._changed:
                self._failed += 1
            raise OSError(number, os.strerror(number))


class PassThrough(mfusepy.Operations):  # type: ignore[misc]  # mfusepy has no types
    """Every call goes to the file of the same path below `backing`."""

    use_ns = True

    def __init__(self, backing: str, faults: Faults) -> None:
        self._backing = backing
        self._faults = faults

    def init_with_config(self, conn_info: Any, config: Any) -> None:
        # Nothing is remembered by the kernel: a change of the backing file is seen at once.
        config.attr_timeout = config.entry_timeout = config.negative_timeout = 0
        config.use_ino = 1
        config.hard_remove = 1  # a deleted file that is still open leaves no .fuse_hidden behind

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        facts = os.lstat(self._real(path)) if fh is None else os.fstat(fh)
        return {name.removesuffix("_ns"): getattr(facts, name) for name in _STAT_FIELDS}

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        names = [".", "..", *os.listdir(self._real(path))]
        return [(name, {"st_ino": os.lstat(f"{self._real(path)}/{name}").st_ino}, 0) for name in names]

    def readlink(self, path: str) -> str:
        return os.readlink(self._real(path))

    def statfs(self, path: str) -> dict[str, int]:
        facts = os.statvfs(self._real(path))
        return {name: getattr(facts, name) for name in _STATFS_FIELDS}

    def open(self, path: str, flags: int) -> int:
        self._faults.check_open(path, flags)
        return os.open(self._real(path), flags & ~os.O_DIRECT)

    def create(self, path: str, mode: int, flags: int) -> int:
        self._faults.check_open(path, flags | os.O_CREAT)
        return os.open(self._real(path), flags & ~os.O_DIRECT | os.O_CREAT, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if self._faults.before_read(path, size):
            facts = os.fstat(fh)
            os.utime(self._real(path), ns=(facts.st_atime_ns, facts.st_mtime_ns + 1_000_000_000))
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._faults.check_write(path, offset + len(data))
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._faults.check_change(path)
        os.truncate(self._real(path) if fh is None else fh, length)
        return 0

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
        self._faults.check_fallocate(path)
        if mode:
            raise OSError(errno.EOPNOTSUPP, "only plain allocation is passed on")
        os.posix_fallocate(fh, offset, size)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._faults.check_fsync(path)
        os.fsync(fh)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._faults.check_fsync(path)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def unlink(self, path: str) -> int:
        self._faults.check_change(path)
        os.unlink(self._real(path))
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._faults.check_change(path)
        os.mkdir(self._real(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        self._faults.check_change(path)
        os.rmdir(self._real(path))
        return 0

    def rename(self, old: str, new: str) -> int:
        self._faults.check_change(new)
        os.rename(self._real(old), self._real(new))
        return 0

    def link(self, target: str, source: str) -> int:
        self._faults.check_change(target)
        os.link(self._real(source), self._real(target))
        return 0

    def symlink(self, target: str, source: str) -> int:
        self._faults.check_change(target)
        os.symlink(source, self._real(target))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        self._faults.check_change(path)
        os.chmod(self._real(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        self._faults.check_change(path)
        os.chown(self._real(path), uid, gid, follow_symlinks=False)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        self._faults.check_change(path)
        now_ns = time.time_ns()
        os.utime(self._real(path), ns=times or (now_ns, now_ns), follow_symlinks=False)
        return 0

    def _real(self, path: str) -> str:
        return self._backing + path


def obey(listener: socket.socket, faults: Faults) -> None:
    """Answer one message a connection: new faults, or `null`, with the state."""
    while True:
        connection, _ = listener.accept()
        with connection:
            message = msgspec.json.decode(b"".join(iter(lambda: connection.recv(4096), b"")), type=DiskFaults | None)  # noqa: B023
            if message is not None:
                faults.change(message)
            connection.sendall(msgspec.json.encode(faults.state()))


def leave_when_told(mountpoint: str) -> None:
    """Unmount and end at SIGTERM, whatever hangs: the kernel answers that with an error then."""
    # Not by libfuse's own handler, which waits for calls, nor by its `auto_unmount`, which sometimes looks too early.
    signal.sigwait({signal.SIGTERM})
    subprocess.run(["fusermount3", "-uz", mountpoint], check=False)
    os._exit(0)


def main() -> None:
    backing, mountpoint, socket_name = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in all threads, so that the one that waits gets it
    threading.Thread(target=leave_when_told, args=(mountpoint,), daemon=True).start()
    faults = Faults()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0{socket_name}")
    listener.listen()
    threading.Thread(target=obey, args=(listener, faults), daemon=True).start()
    mfusepy.FUSE(
        PassThrough(str(Path(backing).resolve()), faults),
        mountpoint,
        foreground=True,
        max_threads=64,  # each read that hangs keeps one
        fsname="faulty-disk",
    )


if __name__ == "__main__":
    main()
