"""`explain`: why a pod has its weights or not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from cacheagent.cli.cluster.options import cluster_options, with_cluster
from cacheagent.cli.output import Format, print_json

if TYPE_CHECKING:
    from cacheagent.kube.client import KubeClient
    from cacheagent.kube.ops.links import Explanation

MARKS: Final = {"ok": "✓", "waiting": "…", "broken": "✗", "unseen": "·"}


@click.command()
@click.argument("what", metavar="pod/NAME")
@click.option("-n", "--namespace", default="", help="[default: the context's]")
@cluster_options
def explain(what: str, namespace: str, kubeconfig: Path | None, context: str, output: Format) -> None:
    """Say why a pod waits: every link from its annotation to its mount, and the first that is not there.

    Of a workload (deployment/NAME) it takes the pod that is furthest from running; where none could be made, it says
    why.

    \b
    Examples:
      cacheagent explain pod/llama-0 -n serving
      kubectl cacheagent explain deployment/llama -n serving -o json | jq .first_missing
    """
    # Imported late: only a cluster needs it.
    from cacheagent.kube.ops.evidence import gather
    from cacheagent.kube.ops.explain import explain as walk
    from cacheagent.kube.ops.placement import parse_reference

    resource, name = parse_reference(what, with_pods=True)

    async def work(api: KubeClient) -> Explanation:
        return walk(await gather(api, resource, name, namespace or api.namespace, time.time()))

    found = with_cluster(kubeconfig, context, work)
    missing = found.first_missing
    if output == "json":
        print_json(msgspec.to_builtins(found) | {"first_missing": msgspec.to_builtins(missing)})
        return
    click.echo(f"{found.subject} in {found.namespace}")
    for link in found.links:
        click.echo(f"{MARKS[link.mark]} {link.name:14} {link.text}".rstrip())
    if missing is None:
        click.echo("nothing is missing")
    else:
        click.echo(f"next: {missing.next}")
