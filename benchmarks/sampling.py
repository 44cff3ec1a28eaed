"""What a process tree and its connections look like while it runs, ten times a second, from `/proc`."""

import contextlib
import os
import threading
import time
from pathlib import Path

import msgspec

from benchmarks.cgroup import Cgroup

INTERVAL_S = 0.1
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
ESTABLISHED = "01"


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One moment, in seconds after the start.

    `written_bytes`: handed to the disk by the processes that live (`/proc/PID/io`). `received_bytes`: arrived at the
    network interface since the start. `unread_bytes`: of those, still in the kernel, not read by the program.
    `pss_bytes`: proportional memory of the tree. `socket_bytes`: kernel memory of all TCP sockets on the machine.
    """

    at_s: float
    written_bytes: int
    received_bytes: int
    unread_bytes: int
    connections: int
    pss_bytes: int
    socket_bytes: int


class Sampler:
    """Watches a group from a thread of ours: its CPU time is not the contestant's."""

    def __init__(self, group: Cgroup, *, interface: str, port: int) -> None:
        self._group = group
        self._interface = interface
        self._port = port
        self._start_s = time.monotonic()
        self._received_before = _received_bytes(interface)
        self._samples: list[Sample] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler")
        self._thread.start()

    def stop(self) -> tuple[Sample, ...]:
        """End the thread; everything that was seen."""
        self._stopping.set()
        self._thread.join()
        return tuple(self._samples)

    def _watch(self) -> None:
        while not self._stopping.wait(INTERVAL_S):
            self._samples.append(self._look())

    def _look(self) -> Sample:
        # Time and both network figures first: they are compared with each other, and reading memory takes milliseconds.
        at_s = time.monotonic() - self._start_s
        received_bytes = _received_bytes(self._interface) - self._received_before
        connections, unread_bytes = _connections(self._port)
        pids = self._group.pids()
        return Sample(
            at_s=round(at_s, 4),
            written_bytes=sum(_field(pid, "io", "write_bytes:") for pid in pids),
            received_bytes=received_bytes,
            unread_bytes=unread_bytes,
            connections=connections,
            pss_bytes=sum(_field(pid, "smaps_rollup", "Pss:") for pid in pids) * 1024,
            socket_bytes=socket_bytes(),
        )


def socket_bytes() -> int:
    """Kernel memory of all TCP sockets, in bytes."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            return int(line.split()[-1]) * PAGE_BYTES
    return 0


def _received_bytes(interface: str) -> int:
    return int(Path(f"/sys/class/net/{interface}/statistics/rx_bytes").read_text())


def _connections(port: int) -> tuple[int, int]:
    """How many connections to that port are established, and how many bytes wait in them to be read."""
    count, unread = 0, 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, state, queues, *_ = line.split()
        if state == ESTABLISHED and int(remote.partition(":")[2], 16) == port:
            count += 1
            unread += int(queues.partition(":")[2], 16)
    return count, unread


def _field(pid: int, name: str, field: str) -> int:
    # A process may end between being listed and being read: it then counts nothing.
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1])
    return 0
