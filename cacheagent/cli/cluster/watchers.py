"""A warm-up as a person watches it: a line, a live table, events."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from cacheagent.cli.output import duration, size
from cacheagent.cli.watching import Words
from cacheagent.kube.ops.nodes import NodeState
from cacheagent.kube.ops.progress import Progress

if TYPE_CHECKING:
    from rich.table import Table

LINE_INTERVAL_S: Final = 15.0
"""Between two lines of which nothing but figures differ: agents report no more often. Chosen."""
MOST_ROWS: Final = 12
"""Nodes in the live table, those furthest behind; a fleet does not fit a terminal."""
MOST_TOLD: Final = 50
"""Nodes in a JSON event; the last one has all that are missing."""


def describe(progress: Progress) -> str:
    """One line that says where a warm-up is."""
    begin = f"{progress.model}: "
    if not progress.nodes:
        return f"{begin}no cache node matches yet"
    if not progress.resolved:
        return f"{begin}its source is being listed{_slowest(progress)}"
    text = f"{begin}{progress.ready}/{len(progress.nodes)} nodes ready"
    if progress.missing:
        text += f", {size(progress.bytes_done)} of {size(progress.bytes_total)}"
    if progress.rate_bytes_per_s:
        text += f", {size(progress.rate_bytes_per_s)}/s"
    if progress.missing and progress.max_origin_rate:
        text += f" (at most {size(progress.max_origin_rate)}/s from the origin)"
    if progress.left_s >= 0:
        text += f", about {duration(round(progress.left_s))} left"
    return text + _slowest(progress)


def _slowest(progress: Progress) -> str:
    if not progress.missing:
        return ""
    first = progress.missing[0]
    return f"; {first.node}: {first.why}"


def node_json(node: NodeState) -> dict[str, Any]:
    """One node in an event."""
    return {
        "node": node.node,
        "state": node.state,
        "bytes_done": node.bytes_done,
        "size_bytes": node.size_bytes,
        "rate_bytes_per_s": node.rate_bytes_per_s,
        "max_origin_bytes_per_s": node.max_origin_bytes_per_s,
        "code": node.code,
        "why": node.why,
    }


def progress_json(progress: Progress) -> dict[str, Any]:
    """The figures of an event."""
    return {
        "model": progress.model,
        "warmup": progress.warmup,
        "digest": progress.digest,
        "nodes": len(progress.nodes),
        "ready": progress.ready,
        "wanted": progress.wanted,
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
        "rate_bytes_per_s": progress.rate_bytes_per_s,
        "max_origin_bytes_per_s": progress.max_origin_rate,
        "left_s": round(progress.left_s, 1),
    }


class _LiveTable:
    def __init__(self) -> None:
        # Imported late: a pipe does without it.
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True, highlight=False), auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, progress: Progress, /) -> None:
        self._live.update(_table(progress), refresh=True)


def _table(progress: Progress) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, title=Text(describe_short(progress)))
    table.title_justify = "left"
    for column in ("NODE", "STATE", "DONE", "RATE", "LEFT", "WHY"):
        table.add_column(column, overflow="fold" if column == "WHY" else "ellipsis")
    for node in progress.nodes[:MOST_ROWS]:
        part = f"{node.bytes_done / node.size_bytes:.0%}" if node.size_bytes else "-"
        rate = f"{size(node.rate_bytes_per_s)}/s" if node.rate_bytes_per_s else "-"
        left = duration(round(node.left_s)) if node.left_s >= 0 else "-"
        table.add_row(node.node, node.state, part, rate, left, Text(node.why))
    if len(progress.nodes) > MOST_ROWS:
        table.add_row(f"and {len(progress.nodes) - MOST_ROWS} more", "", "", "", "", "")
    return table


def describe_short(progress: Progress) -> str:
    """Without the slowest node, which stands below."""
    return describe(progress).partition(";")[0]


def _event(progress: Progress) -> dict[str, Any]:
    missing = [node_json(node) for node in progress.missing[:MOST_TOLD]]
    return {"event": "progress", **progress_json(progress), "missing": missing}


WARMUP: Final[Words[Progress]] = Words(
    line=describe,
    mark=lambda progress: (progress.digest, [(node.node, node.state, node.code) for node in progress.nodes]),
    interval_s=LINE_INTERVAL_S,
    event=_event,
    live=_LiveTable,
)
