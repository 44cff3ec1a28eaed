"""Options that several commands share, and where they get their defaults."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from cacheagent.quantity import Rate

Command = TypeVar("Command", bound=Callable[..., Any])

SOCKET_NAME: Final = "agent.sock"


class _RateType(click.ParamType[int]):
    name = "RATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(Rate.parse(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


RATE: Final = _RateType()
"""`200MB/s`, `10Gbit/s`."""


def default_root() -> Path:
    """`/var/lib/cacheagent` for root, `~/.cache/cacheagent` for anybody else."""
    return Path("/var/lib/cacheagent") if os.geteuid() == 0 else Path.home() / ".cache" / "cacheagent"


def where_options(command: Command) -> Command:
    """`--root`, `--socket` and `-o`: which cache, which agent, which form."""
    root = click.option(
        "--root",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="CACHEAGENT_ROOT",
        help="Cache directory, on the NVMe. [default: /var/lib/cacheagent as root, else ~/.cache/cacheagent]",
    )
    socket = click.option(
        "--socket",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="CACHEAGENT_SOCKET",
        help="The agent's socket. [default: ROOT/agent.sock]",
    )
    output = click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Tables and bars for people, JSON for machines.",
    )
    return root(socket(output(command)))


def root_and_socket(root: Path | None, socket: Path | None) -> tuple[Path, Path]:
    """What was asked for, or the defaults."""
    chosen = root or default_root()
    return chosen, socket or chosen / SOCKET_NAME
