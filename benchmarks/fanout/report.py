"""Results as people read them: bars, a row for each cell, a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.fanout.cell import Run, Variant
from benchmarks.fanout.figures import Summary, figures, summarize
from benchmarks.fanout.results import Runs
from benchmarks.outcome import Outcome, Table

TITLE = "a cold fleet behind shaped links, on one machine"
COLORS: dict[Variant, str] = {"direct": "tab:gray", "aria2": "tab:orange", "peers": "tab:green"}
COLUMNS = (
    "variant",
    "nodes",
    "MB",
    "link, MB/s",
    "origin, links",
    "runs",
    "median node, s",
    "slowest, s",
    "links' limit, s",
    "median / limit",
    "origin, S",
    "CPU-s/GB in and out",
    "CPUs busy",
    "PSS, MB",
)


def outcome_of(runs: Runs) -> Outcome:
    """Every bar and every cell."""
    summaries = summarize(runs.runs)
    return Outcome(
        name="fanout",
        title=TITLE,
        machine=runs.machine,
        workload=workload(runs.runs),
        figures=tuple(figures(summaries)),
        tables=(Table(title="Cells", columns=COLUMNS, rows=tuple(map(_row, summaries))),),
        note="One agent a network namespace, all told at once; times are to verified and published on a node.",
    )


def workload(runs: Sequence[Run]) -> str:
    """What was moved."""
    sizes = sorted({run.cell.size_bytes for run in runs})
    pieces = sorted({run.cell.piece_bytes for run in runs})
    return (
        f"a checkpoint of 8 shards, {' or '.join(f'{size / 1e6:.0f}' for size in sizes)} MB, in pieces of "
        f"{' or '.join(f'{piece / 2**20:g}' for piece in pieces)} MiB instead of 16: both are scaled down"
    )


def plot(summaries: Sequence[Summary], path: Path) -> None:
    """Time over what the links permit, and copies that the origin sent, by the number of nodes; nothing,
    where every run was disturbed."""
    drawn = {variant: cells for variant in COLORS if (cells := _line(summaries, variant))}
    if not drawn:
        return
    figure, (times, copies) = plt.subplots(1, 2, figsize=(12, 4.5))
    for variant, cells in drawn.items():
        color = COLORS[variant]
        nodes = [each.cell.nodes for each in cells]
        times.plot(nodes, [each.links for each in cells], "o-", color=color, label=f"{variant}, median node")
        worst = [each.worst_s / each.cell.limit_s for each in cells]
        times.plot(nodes, worst, "v:", color=color, alpha=0.5, label=f"{variant}, slowest of all runs")
        copies.plot(nodes, [each.origin_copies for each in cells], "o-", color=color, label=variant)
    for axes, title in ((times, "time / max(S/link, S/origin)"), (copies, "copies that the origin sent")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlabel("nodes")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(summaries: Sequence[Summary], variant: Variant) -> list[Summary]:
    """Where nobody is disturbed and the nodes' links are the limit: for each number of nodes the first, which is of S3
    and of the fastest links."""
    cells: dict[int, Summary] = {}
    for each in summaries:
        is_plain = each.cell.disturbed is None and each.cell.is_bound_by_links and not each.cell.is_tree
        if each.cell.variant == variant and is_plain:
            cells.setdefault(each.cell.nodes, each)
    return [cells[nodes] for nodes in sorted(cells)]


def _row(each: Summary) -> tuple[str, ...]:
    cell, thin = each.cell, each.cell.connection_bytes_per_s
    name = cell.variant if cell.variant == "aria2" else f"{cell.variant}, {cell.source}"
    if cell.disturbed is not None:
        name = f"{name}, one {cell.scenario}"
    name = f"{name}, {cell.tcp}{cell.tree}"
    return (
        name,
        str(cell.nodes),
        f"{cell.size_bytes / 1e6:.0f}",
        f"{cell.rate_bytes_per_s / 1e6:g}",
        f"{cell.origin_links:g}" + (f" of {thin / 1e6:g} MB/s a connection" if thin else ""),
        f"{each.runs}" + (f" ({each.failures} failed)" if each.failures else ""),
        f"{each.median_s:.2f}",
        f"{each.worst_s:.2f}",
        f"{cell.limit_s:.2f}",
        f"{each.links:.3f}",
        f"{each.origin_copies:.3f}",
        f"{each.cpu_s_per_gb:.2f}",
        f"{each.machine_cpu:.0%}",
        f"{each.pss_bytes / 1e6:.0f}",
    )
