"""A control group (version 2) per process tree: exact CPU time of every child, however short its life."""

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec


class CpuTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """CPU seconds used by a group since it was made."""

    user_s: float
    system_s: float

    @property
    def total_s(self) -> float:
        """User and system together, in seconds."""
        return self.user_s + self.system_s


class Cgroup:
    """One group under the version 2 hierarchy. No controller is needed: the kernel keeps `cpu.stat` for every group."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entering(self, argv: Sequence[str]) -> list[str]:
        """The command, made to enter the group before it becomes the program: no child of its can be missed."""
        return ["/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self._path), *argv]

    def adopt(self, pid: int) -> None:
        """Move a running process into the group; the CPU time that it used before is not counted."""
        (self._path / "cgroup.procs").write_text(str(pid))

    def cpu_time(self) -> CpuTime:
        """CPU time of all members, past and present."""
        fields = dict(line.split() for line in (self._path / "cpu.stat").read_text().splitlines())
        return CpuTime(user_s=int(fields["user_usec"]) / 1e6, system_s=int(fields["system_usec"]) / 1e6)

    def pids(self) -> list[int]:
        """The members that live now."""
        return [int(pid) for pid in (self._path / "cgroup.procs").read_text().split()]

    def kill(self) -> None:
        """Kill every member with SIGKILL; returns before they are gone."""
        (self._path / "cgroup.kill").write_text("1")

    def is_populated(self) -> bool:
        """Whether any member still runs."""
        return "populated 1" in (self._path / "cgroup.events").read_text()

    def remove(self) -> None:
        """Remove the empty group."""
        self._path.rmdir()


def find_hierarchy() -> Path:
    """Where the version 2 hierarchy is mounted.

    Raises RuntimeError when there is none: without it the CPU time of short-lived children would be guessed.
    """
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise RuntimeError("no cgroup version 2 hierarchy is mounted; the benchmarks need one to count CPU time")


@contextlib.contextmanager
def new_cgroup(label: str) -> Iterator[Cgroup]:
    """A group that is gone, with everything that still runs in it, when the block ends."""
    path = find_hierarchy() / f"bench-{label}-{uuid.uuid4().hex[:8]}"
    path.mkdir()
    group = Cgroup(path)
    try:
        yield group
    finally:
        _end(group)


def _end(group: Cgroup) -> None:
    group.kill()
    deadline = time.monotonic() + 30
    while group.is_populated():
        if time.monotonic() > deadline:
            raise RuntimeError("processes of a benchmark survived SIGKILL for 30 s")
        time.sleep(0.01)
    group.remove()
