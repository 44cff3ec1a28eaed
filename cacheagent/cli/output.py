"""How results look: a table on a terminal, plain lines in a pipe, JSON with `-o json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

import click
import msgspec

from cacheagent.quantity import size_text

Format = Literal["text", "json"]

size = size_text
"""Bytes in output read as they do in the errors of the store."""


def duration(seconds: float) -> str:
    """`0.004 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.3g} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    click.echo(msgspec.json.encode(value).decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; tab-separated lines with a header otherwise, so that `cut` and `awk` work."""
    if not sys.stdout.isatty():
        for line in (columns, *rows):
            click.echo("\t".join(line))
        return
    # Imported late: a pipe does without it.
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
