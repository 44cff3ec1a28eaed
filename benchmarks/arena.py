"""Where and how often is measured, and taking turns with other people on the same machine."""

import contextlib
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec


class Arena(msgspec.Struct, frozen=True, kw_only=True):
    """`workdir`: an empty directory on the disk under test. `scratch`: an empty directory in memory, for servers.

    `lock`: a file to hold (flock) for the length of each run, where several people measure on one machine.
    `quiet_cpus`: a run during which other programs used more CPUs than this is repeated, a few times at most; None
    keeps every run. It must leave room for the kernel's own threads, which write back what some contestants leave them.
    `is_sweeping`: look for each peer's best settings first, instead of taking those that are known already.
    """

    workdir: Path
    scratch: Path
    runs: int
    is_sweeping: bool
    lock: Path | None = None
    quiet_cpus: float | None = None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the machine for one run."""
        if self.lock is None:
            yield
            return
        with self.lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def say(line: str) -> None:
    """Tell the person who waits."""
    print(line, file=sys.stderr, flush=True)
