"""`cacheagent controller`: what plans for the whole cluster, and answers its webhook."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The configuration file (docs/controller.md).",
)
@click.option("--namespace", default="", help="Where Lease, Secret and agents are; default: the pod's own.")
@click.option("--identity", envvar="POD_NAME", default="", help="This replica's name; default: the host's.")
def controller(config: Path, namespace: str, identity: str) -> None:
    """Assign models to nodes, keep labels, volumes, gates and states, and answer the admission webhook.

    Of several replicas one leads; all answer the webhook. SIGTERM stops; the webhook goes on answering for some
    seconds, so that a rolling restart refuses no pod.

    \b
    Example:
      cacheagent controller --config controller.yaml --namespace cacheagent
    """
    # Imported late: only this command needs the server.
    from cacheagent.kube.run_controller import run

    raise SystemExit(run(config, namespace, identity))
