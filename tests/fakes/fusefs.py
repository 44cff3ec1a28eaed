"""A disk that fails or hangs on purpose: a directory seen through FUSE, with faults that the test switches.

    with FaultyDisk(backing, mountpoint) as disk:
        disk.inject(DiskFaults(write_errno=errno.EIO, after_writes=3))
        ...
        disk.heal()

What is behind it stays reachable in `backing`, past all faults: a test looks there at what is really on disk, or
changes a file there while it is read. The file system is a process of its own (`fusefs_process`). A direct read that
hangs in it can't be killed, as on a network mount that has stopped, and ends with `heal()` or with the disk; a process
in a read through the page cache can be.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import msgspec

from cacheagent.demo.child import running_child, wait_until_ready
from cacheagent.model import Value

READY_TIMEOUT_S = 30.0
WAIT_TIMEOUT_S = 60.0
REPOSITORY = Path(__file__).parents[2]


class DiskFaults(Value):
    """What is wrong with the disk, in files whose path below it matches the pattern `paths`.

    Writes fail with `write_errno` after `after_writes` more have worked, and only those that reach past `past_byte`.
    Reads likewise with `read_errno`. `hang_reads`: reads wait until this is taken back. `read_delay_s` a read call,
    `read_bytes_per_s` for all together (0: no limit). `touch_at_read`: just before the n-th read the file's mtime
    moves on. `refuse_o_direct`: EINVAL, as some file systems do. `read_only`: EROFS for everything that changes.
    """

    paths: str = "*"
    write_errno: int = 0
    after_writes: int = 0
    past_byte: int = -1
    read_errno: int = 0
    after_reads: int = 0
    fsync_errno: int = 0
    fallocate_errno: int = 0
    hang_reads: bool = False
    read_delay_s: float = 0.0
    read_bytes_per_s: float = 0.0
    touch_at_read: int = 0
    refuse_o_direct: bool = False
    read_only: bool = False


class DiskState(Value):
    """What has happened since the faults were last changed, in files that they match."""

    reads: int = 0
    writes: int = 0
    failed: int = 0
    hanging: int = 0


class FaultyDisk:
    """`mountpoint` shows what is in `backing`, as far as the faults allow. Both are made if missing."""

    def __init__(self, backing: Path, mountpoint: Path) -> None:
        self.backing = backing
        self.mountpoint = mountpoint
        self._socket_name = f"\0faulty-disk-{uuid.uuid4().hex}"
        self._stack = ExitStack()

    def inject(self, faults: DiskFaults) -> None:
        """Have these faults from now on, instead of those before; calls that hung in those go on."""
        self._ask(msgspec.json.encode(faults))

    def heal(self) -> None:
        """Have no faults any more."""
        self.inject(DiskFaults())

    def state(self) -> DiskState:
        """What has happened so far."""
        return msgspec.json.decode(self._ask(b"null"), type=DiskState)

    def wait_until(self, holds: Callable[[DiskState], bool]) -> None:
        """Return once the state is as wanted."""
        deadline = time.monotonic() + WAIT_TIMEOUT_S
        while not holds(state := self.state()):
            assert time.monotonic() < deadline, f"did not happen within {WAIT_TIMEOUT_S} s: {state}"
            time.sleep(0.01)

    def __enter__(self) -> Self:
        self.backing.mkdir(parents=True, exist_ok=True)
        self.mountpoint.mkdir(parents=True, exist_ok=True)
        log_path = self.backing.with_name(f"{self.backing.name}.fuse.log")
        environment = {"PYTHONPATH": str(REPOSITORY), "FUSE_LIBRARY_NAME": "fuse3"}
        process = [sys.executable, "-m", "tests.fakes.fusefs_process"]
        command = [*process, str(self.backing), str(self.mountpoint), self._socket_name[1:]]
        with ExitStack() as stack:
            stack.callback(self._unmount)
            child = stack.enter_context(running_child(command, log_path=log_path, environment=environment))
            wait_until_ready(
                child,
                lambda: os.path.ismount(self.mountpoint),
                name="the FUSE file system",
                log_path=log_path,
                timeout_s=READY_TIMEOUT_S,
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _unmount(self) -> None:
        """Take away what a process that was killed has left behind."""
        deadline = time.monotonic() + WAIT_TIMEOUT_S
        while _is_mounted(self.mountpoint):
            subprocess.run(["fusermount3", "-uz", self.mountpoint], check=False, capture_output=True)
            assert time.monotonic() < deadline, f"{self.mountpoint} is still mounted"
            time.sleep(0.01)

    def _ask(self, message: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(WAIT_TIMEOUT_S)
            connection.connect(self._socket_name)
            connection.sendall(message)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(4096), b""))


def find_obstacle() -> str | None:
    """Why FUSE can't be used here; None where it seems that it can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse can't be opened"
    if not shutil.which("fusermount3") or not ctypes.util.find_library("fuse3"):
        return "no libfuse: apt-get install fuse3 libfuse3-3"
    return None


def _is_mounted(path: Path) -> bool:
    # Not os.path.ismount: a mount whose process is gone answers it with an error that it takes for False.
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())
