"""What processes and servers say of themselves: memory and CPU from `/proc`, counters in Prometheus' text format."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_LINE: Final = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Reading(NamedTuple):
    """One line of metrics."""

    name: str
    labels: dict[str, str]
    value: float


def parse_metrics(text: str) -> Iterator[Reading]:
    """Lines that are no comments."""
    for line in text.splitlines():
        if found := _LINE.match(line):
            yield Reading(found["name"], dict(_LABEL.findall(found["labels"] or "")), float(found["value"]))


def sums(readings: Iterable[Reading], name: str, *labels: str) -> Counter[str]:
    """The values of one metric, summed up by these labels, joined by spaces."""
    found: Counter[str] = Counter()
    for reading in readings:
        if reading.name == name:
            found[" ".join(part for label in labels if (part := reading.labels.get(label, "")))] += reading.value  # type: ignore[assignment] # a Counter of floats
    return found


def pss_bytes(pid: int) -> int:
    """Proportional memory of one process at this moment."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def peak_rss_bytes(pid: int) -> int:
    """The most that a process ever had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_s(pid: int) -> float:
    """CPU time of one process since its start, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S
