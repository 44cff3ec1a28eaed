"""A warm-up as a person watches it: a live table on a terminal, a line now and then in a pipe, JSON events for
machines."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import click

from cacheagent.cli.output import Format, duration, print_json, size
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


class Watcher(Protocol):
    """Shows one warm-up, from the first state to the last."""

    def show(self, progress: Progress) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def watcher(output: Format) -> Watcher:
    """What fits where the output goes. Progress is on standard error, so that standard output holds only the result;
    JSON events are the result."""
    if output == "json":
        return _JsonLines()
    return _LiveTable() if sys.stderr.isatty() else _Lines()


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


class _Quiet:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _JsonLines(_Quiet):
    def __init__(self) -> None:
        self._last: Progress | None = None

    def show(self, progress: Progress) -> None:
        if progress != self._last:
            self._last = progress
            missing = [node_json(node) for node in progress.missing[:MOST_TOLD]]
            print_json({"event": "progress", **progress_json(progress), "missing": missing})


class _Lines(_Quiet):
    def __init__(self) -> None:
        self._state: object = None
        self._line = ""
        self._at = 0.0

    def show(self, progress: Progress) -> None:
        state = (progress.digest, [(node.node, node.state, node.code) for node in progress.nodes])
        line, now = describe(progress), time.monotonic()
        if state != self._state or (line != self._line and now - self._at >= LINE_INTERVAL_S):
            self._state, self._line, self._at = state, line, now
            click.echo(line, err=True)


class _LiveTable(_Quiet):
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

    def show(self, progress: Progress) -> None:
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
