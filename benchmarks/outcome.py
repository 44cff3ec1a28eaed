"""What a scenario found: figures against their bars, and everything they were computed from."""

from __future__ import annotations

import msgspec

from benchmarks.contest import Entry
from benchmarks.limits import Limits
from benchmarks.machine import Machine


class Figure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number and its bar. `value` is None where it could not be measured; `how` says what it is computed from."""

    title: str
    value: float | None
    bar: float
    is_upper_bound: bool
    unit: str
    how: str

    @property
    def is_met(self) -> bool | None:
        """Whether the bar is reached; None without a value."""
        if self.value is None:
            return None
        return self.value <= self.bar if self.is_upper_bound else self.value >= self.bar


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """More of what was found, for people. The first column is text, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One scenario, measured on one machine. `note` says what a reader must know beside the numbers."""

    name: str
    title: str
    machine: Machine
    workload: str
    figures: tuple[Figure, ...]
    entries: tuple[Entry, ...] = ()
    limits: Limits | None = None
    tables: tuple[Table, ...] = ()
    note: str = ""

    def entry(self, name: str) -> Entry | None:
        """One contestant that finished all its runs."""
        return next((entry for entry in self.entries if entry.name == name and not entry.failure), None)
