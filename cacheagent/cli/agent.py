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
@click.option("--node", default="", metavar="NAME", help="The Kubernetes node that this is: follow its ModelCacheNode.")
@click.option(
    "--peer-host",
    default="",
    metavar="HOST",
    help="Where other nodes' agents reach this one (with --node); default: what peers.listen says.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="How to reach the cluster, outside of a pod.",
)
def agent(config: Path, node: str, peer_host: str, kubeconfig: Path | None) -> None:
    """Keep the configured models on this node, and serve the local API, health and metrics.

    With --node, the models that the controller assigns to that Kubernetes node come in addition.

    SIGHUP reads the configuration again; SIGTERM stops within 5 seconds and keeps partial downloads.

    \b
    Example:
      cacheagent agent --config models.yaml
      cacheagent agent --config agent.yaml --node gpu-17
    """
    # Imported late: only this command needs the server.
    from cacheagent.agent import run

    raise SystemExit(run(config, node, kubeconfig, peer_host))
