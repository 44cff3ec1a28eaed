"""What is seen of a running fleet from outside: counters of the links, memory, CPU time by process, the machine."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from benchmarks.cgroup import Cgroup
from benchmarks.fanout.network import NAMESPACES, Network

INTERVAL_S = 0.25
MEMORY_EVERY = 16
"""Memory of a hundred processes takes the kernel a while to add up: every 4 s."""
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class Traffic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes on the wire, headers included, as the node sees it."""

    received: int = 0
    sent: int = 0

    def since(self, before: Traffic) -> Traffic:
        """What came after an earlier look."""
        return Traffic(received=self.received - before.received, sent=self.sent - before.sent)


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """All links at one moment, by the name of the port; seconds after the start."""

    at_s: float
    traffic: Mapping[str, Traffic]


class Watcher:
    """Looks at the hub's counters four times a second, and at memory now and then, from a thread inside the hub."""

    def __init__(self, network: Network, groups: Sequence[Cgroup]) -> None:
        self._hub = network.hub
        self._groups = groups
        self._start_s = time.monotonic()
        self._looks: list[Look] = []
        self._peak_pss: Counter[int] = Counter()
        self._stopping = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._watch, name="watcher")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def seen(self) -> tuple[tuple[Look, ...], tuple[int, ...]]:
        """After the end: all looks, and the most memory (PSS) of each group, in bytes."""
        if self._failure:
            raise self._failure
        return tuple(self._looks), tuple(self._peak_pss[number] for number in range(len(self._groups)))

    def _watch(self) -> None:
        try:
            enter(self._hub)
        except OSError as error:
            self._failure = error
            return
        self._looks.append(self._look())
        while not self._stopping.wait(INTERVAL_S):
            self._looks.append(self._look())
            if len(self._looks) % MEMORY_EVERY == 0:
                for number, group in enumerate(self._groups):
                    self._peak_pss[number] = max(self._peak_pss[number], sum(map(_pss_bytes, group.pids())))
        self._looks.append(self._look())

    def _look(self) -> Look:
        return Look(
            at_s=time.monotonic() - self._start_s, traffic=parse_counters(Path("/proc/thread-self/net/dev").read_text())
        )


def parse_counters(text: str) -> dict[str, Traffic]:
    """`/proc/net/dev` of the hub. A port of the hub receives what its node sends."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        found[name.strip()] = Traffic(received=int(fields[8]), sent=int(fields[0]))
    return found


def busy_s() -> float:
    """CPU seconds that anybody has used on this machine, the kernel included."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / CLOCK_TICKS


def cpu_by_program(groups: Sequence[Cgroup]) -> dict[str, float]:
    """CPU seconds of the processes that live, by the module or program that they run."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for group in groups:
        for pid in group.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                seconds[program(words)] += (int(fields[11]) + int(fields[12])) / CLOCK_TICKS
    return seconds


def program(words: Sequence[str]) -> str:
    """`python -P -m a.b` is `a.b`; anything else the name of its first word that is a program of ours, or the first."""
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    scripts = [Path(word).name for word in words[:3] if word and not word.startswith("-")]
    return next((name for name in scripts if not name.startswith("python")), scripts[0] if scripts else "")


def _pss_bytes(pid: int) -> int:
    # A process may end between being listed and being read: it then has none.
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def enter(namespace: str) -> None:
    """Put this thread, and only this one, into a network namespace."""
    descriptor = os.open(NAMESPACES / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _LIBC.setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"the network namespace {namespace} can't be entered")
    finally:
        os.close(descriptor)
