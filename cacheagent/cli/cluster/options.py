"""Options that the cluster's commands share, and the one way to its API server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from cacheagent.quantity import Duration

if TYPE_CHECKING:
    from cacheagent.kube.client import KubeClient

Command = TypeVar("Command", bound=Callable[..., Any])
T = TypeVar("T")


class _DurationType(click.ParamType[float]):
    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(Duration.parse(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION: Final = _DurationType()
"""`30s`, `5m`, `1h30m`."""


def cluster_options(command: Command) -> Command:
    """`--kubeconfig`, `--context` and `-o`: which cluster, which form."""
    kubeconfig = click.option(
        "--kubeconfig",
        type=click.Path(dir_okay=False, path_type=Path),
        help="[default: $KUBECONFIG, ~/.kube/config, or the pod's own account]",
    )
    context = click.option("--context", default="", metavar="NAME", help="The kubeconfig's context.")
    output = click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Tables for people, JSON for machines.",
    )
    return kubeconfig(context(output(command)))


def with_cluster(kubeconfig: Path | None, context: str, work: Callable[[KubeClient], Awaitable[T]]) -> T:
    """Do something with the API server. Raises KubeError, ConfigError."""
    # Imported late: the HTTP client takes a third of a second.
    from cacheagent.kube import client

    async def run() -> T:
        async with client.open_client(kubeconfig, context) as api:
            return await work(api)

    return asyncio.run(run())
