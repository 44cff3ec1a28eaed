"""The bars, and how each figure is computed from the runs: pure functions over medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec

from benchmarks import engine
from benchmarks.contest import Entry
from benchmarks.limits import Limits
from benchmarks.outcome import Figure
from benchmarks.sampling import Sample

PIECE_BYTES = 16 << 20
Entries = dict[str, Entry]


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the table: `compute` gets the finished contestants by name, and the limits; None: not to be had."""

    title: str
    bar: float
    unit: str
    how: str
    compute: Callable[[Entries, Limits | None], float | None]
    is_upper_bound: bool = False

    def judge(self, entries: Sequence[Entry], limits: Limits | None) -> Figure:
        """The figure of these runs."""
        finished = {entry.name: entry for entry in entries if not entry.failure}
        return Figure(
            title=self.title,
            value=self.compute(finished, limits) if engine.NAME in finished else None,
            bar=self.bar,
            is_upper_bound=self.is_upper_bound,
            unit=self.unit,
            how=self.how,
        )


def against(peer: str, bar: float) -> Bar:
    """Durable rate against one peer's."""

    def compute(entries: Entries, _: Limits | None) -> float | None:
        return entries[engine.NAME].rate_bytes_per_s / entries[peer].rate_bytes_per_s if peer in entries else None

    return Bar(
        title=f"rate against {peer}", bar=bar, unit="x", how="medians of wall time with the final sync", compute=compute
    )


def against_best_peer(bar: float) -> Bar:
    """Durable rate against the fastest peer's."""

    def compute(entries: Entries, _: Limits | None) -> float | None:
        peers = [entry.rate_bytes_per_s for name, entry in entries.items() if name != engine.NAME]
        return entries[engine.NAME].rate_bytes_per_s / max(peers) if peers else None

    return Bar(
        title="rate against the best peer",
        bar=bar,
        unit="x",
        how="medians of wall time with the final sync",
        compute=compute,
    )


def of_limit(bar: float) -> Bar:
    """Durable rate against what server and disk give to anybody."""

    def compute(entries: Entries, limits: Limits | None) -> float | None:
        return entries[engine.NAME].rate_bytes_per_s / limits.bytes_per_s if limits else None

    return Bar(
        title="rate against min(server, disk)",
        bar=bar,
        unit="x",
        how="durable rate by the slower of receive-to-nowhere and fio's direct writes, both at their best",
        compute=compute,
    )


def cpu(bar: float) -> Bar:
    """CPU seconds per GB."""
    return Bar(
        title="CPU-seconds per GB",
        bar=bar,
        unit="CPU-s/GB",
        how="median of the whole process tree, by its control group",
        compute=lambda entries, _: entries[engine.NAME].cpu_s_per_gb,
        is_upper_bound=True,
    )


def cpu_against(peer: str, bar: float) -> Bar:
    """CPU seconds per GB against one peer's."""

    def compute(entries: Entries, _: Limits | None) -> float | None:
        return entries[engine.NAME].cpu_s_per_gb / entries[peer].cpu_s_per_gb if peer in entries else None

    return Bar(title=f"CPU against {peer}", bar=bar, unit="x", how="medians", compute=compute, is_upper_bound=True)


def memory(bar_bytes: float) -> Bar:
    """Peak proportional memory of the tree; kernel socket memory stands beside it in the table."""
    return Bar(
        title="peak memory (PSS) of the tree",
        bar=bar_bytes / 1e6,
        unit="MB",
        how="largest sum of Pss over the tree in any sample of any run",
        compute=lambda entries, _: max(run.peak_pss_bytes for run in entries[engine.NAME].runs) / 1e6,
        is_upper_bound=True,
    )


def connections(bar: float) -> Bar:
    """How many connections were really open: memory at 140 connections is only that if there were 140."""
    return Bar(
        title="connections seen",
        bar=bar,
        unit="",
        how="most established connections in any sample",
        compute=lambda entries, _: max(run.peak_connections for run in entries[engine.NAME].runs),
    )


def first_piece(bar_s: float) -> Bar:
    """When the first piece was on disk."""

    def compute(entries: Entries, _: Limits | None) -> float | None:
        times = [
            next((sample.at_s for sample in run.samples if sample.written_bytes >= PIECE_BYTES), float("inf"))
            for run in entries[engine.NAME].runs
        ]
        return statistics.median(times)

    return Bar(
        title="first piece on disk",
        bar=bar_s,
        unit="s",
        how="first sample (10 a second) with 16 MiB written, from the start of the program",
        compute=compute,
        is_upper_bound=True,
    )


def flat_to_the_end(bar: float) -> Bar:
    """The last quarter's rate against the whole's."""

    def compute(entries: Entries, _: Limits | None) -> float | None:
        return statistics.median(_last_quarter(run.samples) for run in entries[engine.NAME].runs)

    return Bar(
        title="rate of the last quarter against the first three",
        bar=bar,
        unit="x",
        how="bytes written, 75-98 % of the bytes against 2-75 %; the plot shows it all",
        compute=compute,
    )


def read_within(cap_bytes_per_s: float, bar: float) -> Bar:
    """Bytes that the program read, over any second, against its cap."""
    return _cap_bar("bytes read over any second against the cap", cap_bytes_per_s, bar, _bytes_read)


def wire_within(cap_bytes_per_s: float, bar: float) -> Bar:
    """Bytes that arrived, over any second, against the cap."""
    return _cap_bar("bytes on the wire over any second against the cap", cap_bytes_per_s, bar, _bytes_arrived)


def _cap_bar(title: str, cap_bytes_per_s: float, bar: float, count: Callable[[Sample], int]) -> Bar:
    def compute(entries: Entries, _: Limits | None) -> float | None:
        runs = entries[engine.NAME].runs
        return max(worst_deviation(run.samples, cap_bytes_per_s, count) for run in runs) * 100

    return Bar(
        title=title,
        bar=bar * 100,
        unit="% off",
        how="largest deviation, up or down, of any window of one second between 5 % and 95 % of the transfer",
        compute=compute,
        is_upper_bound=True,
    )


def worst_deviation(samples: Sequence[Sample], cap_bytes_per_s: float, count: Callable[[Sample], int]) -> float:
    """The largest |rate / cap - 1| over windows of one second (10 samples) in the middle 90 % of the bytes."""
    total = count(samples[-1])
    middle = [sample for sample in samples if 0.05 * total <= count(sample) <= 0.95 * total]
    window = 10
    pairs = zip(middle, middle[window:], strict=False)
    rates = [(count(late) - count(early)) / (late.at_s - early.at_s) for early, late in pairs]
    return max((abs(rate / cap_bytes_per_s - 1) for rate in rates), default=float("inf"))


def _bytes_read(sample: Sample) -> int:
    return sample.received_bytes - sample.unread_bytes


def _bytes_arrived(sample: Sample) -> int:
    return sample.received_bytes


def _last_quarter(samples: Sequence[Sample]) -> float:
    total = max(sample.written_bytes for sample in samples)
    times = [
        next(sample.at_s for sample in samples if sample.written_bytes >= part * total) for part in (0.02, 0.75, 0.98)
    ]
    early, late = (until - since for since, until in pairwise(times))
    return (0.98 - 0.75) / late / ((0.75 - 0.02) / early)
