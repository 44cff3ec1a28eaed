"""`cacheagent agent`: the long-running process of a node."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The configuration file (docs/configuration.md).",
)
def agent(config: Path) -> None:
    """Keep the configured models on this node, and serve the local API, health and metrics.

    SIGHUP reads the configuration again; SIGTERM stops within 5 seconds and keeps partial downloads.

    \b
    Example:
      cacheagent agent --config models.yaml
    """
    # Imported late: only this command needs the server.
    from cacheagent.agent import run

    raise SystemExit(run(config))
