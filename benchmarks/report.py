"""Results as people read them: a JSON file per scenario, one table over all of them, plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import msgspec

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.contest import GB, Entry
from benchmarks.machine import Machine
from benchmarks.outcome import Figure, Outcome, Table

MARKS = {True: "yes", False: "**no**", None: "not measured"}


def keep(outcome: Outcome, results: Path) -> None:
    """Write the raw figures of one scenario."""
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{outcome.name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=1))


def read_outcomes(results: Path, names: Sequence[str]) -> list[Outcome]:
    """The results that are there, in that order, from whatever session they are."""
    files = [results / f"{name}.json" for name in names]
    return [msgspec.json.decode(file.read_bytes(), type=Outcome) for file in files if file.exists()]


def write_report(outcomes: Sequence[Outcome], results: Path) -> Path:
    """Table and plots over all outcomes; the table's path."""
    table = results / "README.md"
    table.write_text("\n".join(_render(outcomes)) + "\n")
    if ranked := [outcome for outcome in outcomes if outcome.entries]:
        _plot_rates(ranked, results / "rates.png")
    for outcome in outcomes:
        if any(run.samples for entry in outcome.entries for run in entry.runs):
            _plot_progress(outcome, results / f"{outcome.name}.png")
    return table


def _render(outcomes: Sequence[Outcome]) -> Iterable[str]:
    yield "# Results"
    yield ""
    yield "Written by the benchmarks from the JSON files beside it; [how it is measured](../README.md)."
    yield ""
    yield "| scenario | figure | value | bar | met |"
    yield "|---|---|---|---|---|"
    for outcome in outcomes:
        yield from (f"| {outcome.title} | {_figure_cells(figure)} |" for figure in outcome.figures)
    for outcome in outcomes:
        yield from _render_outcome(outcome)


def _figure_cells(figure: Figure) -> str:
    value = "" if figure.value is None else f"{figure.value:.3g} {figure.unit}"
    bound = "≤" if figure.is_upper_bound else "≥"
    return f"{figure.title} | {value} | {bound} {figure.bar:g} {figure.unit} | {MARKS[figure.is_met]}"


def _render_outcome(outcome: Outcome) -> Iterable[str]:
    yield ""
    yield f"## {outcome.title}"
    yield ""
    yield f"{outcome.workload}; {_machine_line(outcome.machine)}. {outcome.note}".rstrip()
    if outcome.limits:
        limits = outcome.limits
        yield (
            f"Limits: received to nowhere {limits.receive_bytes_per_s / GB:.2f} GB/s "
            f"at {limits.receive_cpu_s_per_gb:.2f} CPU-s/GB; direct writes {limits.disk_bytes_per_s / GB:.2f} GB/s."
        )
    if outcome.entries:
        yield ""
        yield "| | GB/s durable (range) | CPU-s/GB | server CPU-s/GB | PSS + sockets, MB | others' CPUs | runs |"
        yield "|---|---|---|---|---|---|---|"
        yield from map(_entry_line, outcome.entries)
    for table in outcome.tables:
        yield from _render_table(table)
    yield ""
    yield from (f"* {figure.title}: {figure.how}." for figure in outcome.figures)


def _render_table(table: Table) -> Iterable[str]:
    yield ""
    yield f"{table.title}:"
    yield ""
    yield f"| {' | '.join(table.columns)} |"
    yield "|---" + "|--:" * (len(table.columns) - 1) + "|"
    yield from (f"| {' | '.join(row)} |" for row in table.rows)


def _entry_line(entry: Entry) -> str:
    settings = " ".join(f"{name}={value}" for name, value in entry.settings.items())
    label = f"{entry.name} {entry.version} {settings}".strip()
    if entry.failure:
        return f"| {label} | failed: {entry.failure[:200]} | | | | | {len(entry.runs)} |".replace("\n", " ")
    rates = sorted(entry.size_bytes / run.wall_s / GB for run in entry.runs)
    size_gb = entry.size_bytes / GB
    noise = entry.median("other_cpu_s") / entry.median("wall_s")
    return (
        f"| {label} | {entry.rate_bytes_per_s / GB:.2f} ({rates[0]:.2f}-{rates[-1]:.2f}) | {entry.cpu_s_per_gb:.2f} "
        f"| {entry.median('server_cpu_s') / size_gb:.2f} "
        f"| {entry.median('peak_pss_bytes') / 1e6:.0f} + {entry.median('peak_socket_bytes') / 1e6:.0f} "
        f"| {noise:.2f} | {len(entry.runs)} |"
    )


def _machine_line(machine: Machine) -> str:
    return (
        f"{machine.cpus} x {machine.cpu}, {machine.memory_bytes / 2**30:.0f} GiB, Linux {machine.kernel}, "
        f"{machine.filesystem}, Python {machine.python}, {machine.measured_at}"
    )


def _plot_rates(outcomes: Sequence[Outcome], path: Path) -> None:
    figure, (rates, costs) = plt.subplots(1, 2, figsize=(13, 1 + 0.32 * sum(len(o.entries) + 1 for o in outcomes)))
    labels, position = [], 0.0
    for outcome in outcomes:
        for entry in outcome.entries:
            if entry.failure:
                continue
            color = "tab:green" if entry.name == "cacheagent" else "tab:gray"
            rates.barh(position, entry.rate_bytes_per_s / GB, color=color)
            costs.barh(position, entry.cpu_s_per_gb, color=color)
            labels.append((position, f"{outcome.name}: {entry.name}"))
            position -= 1
        position -= 0.7
    costs.set_xscale("log")  # small files cost ten times as much a GB as shards
    for axes, title in ((rates, "GB/s, durable"), (costs, "CPU-seconds per GB")):
        axes.set_yticks([place for place, _ in labels], [label for _, label in labels] if axes is rates else [])
        axes.set_title(title)
        axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def _plot_progress(outcome: Outcome, path: Path) -> None:
    figure, (written, rate) = plt.subplots(2, 1, figsize=(10, 7), sharex=True)
    for entry in outcome.entries:
        for run in entry.runs:
            seconds = [sample.at_s for sample in run.samples]
            totals = [sample.written_bytes / GB for sample in run.samples]
            arrived = [(sample.received_bytes - sample.unread_bytes) / GB for sample in run.samples]
            written.plot(seconds, totals, label=f"{entry.name}, written")
            written.plot(seconds, arrived, "--", label=f"{entry.name}, read from the network")
            window = 10
            rates = [
                (late - early) / (until - since)
                for early, late, since, until in zip(arrived, arrived[window:], seconds, seconds[window:], strict=False)
            ]
            rate.plot(seconds[window:], rates, label=entry.name)
    written.set_ylabel("GB")
    rate.set_ylabel("GB/s read, over one second")
    rate.set_xlabel("seconds after the start")
    rate.set_ylim(bottom=0)
    written.set_title(outcome.title)
    written.legend()
    _save(figure, path)


def _save(figure: mpl.figure.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
