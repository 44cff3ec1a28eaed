"""`warm`: models onto nodes before anybody needs them; the gate in a rollout pipeline."""

from __future__ import annotations

from typing import Any

import click

from cacheagent.cli.cluster.options import DURATION, cluster_options
from cacheagent.cli.options import RATE


@click.command()
@click.argument("model", metavar="MODEL|URI")
@click.option("--nodes", "selector", default="", metavar="SELECTOR", help="Labels of the nodes: pool=h100,zone=a.")
@click.option("--like", default="", metavar="deployment/NAME", help="The nodes where this workload's pods could run.")
@click.option("-n", "--namespace", default="", help="Of the workload; must be permitted to use the model.")
@click.option("--percent", type=click.IntRange(1, 100), default=100, show_default=True, help="Of nodes to wait for.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until they are ready.")
@click.option("--timeout", type=DURATION, default="30m", show_default=True, help="Stop waiting (exit 3); 0 never does.")
@click.option(
    "--ttl", type=DURATION, default="24h", show_default=True, help="How long the nodes keep it because of this."
)
@click.option("--refresh", is_flag=True, help="Ask the origin what the model is now, and warm that.")
@click.option("--pinned", is_flag=True, help="Warm the pinned version, and don't ask the origin.")
@click.option("--revision", default="", help="Of a URI: branch, tag or commit (hf).")
@click.option("--endpoint", default="", help="Of a URI: S3 endpoint, or Hub mirror.")
@click.option("--region", default="", help="Of a URI: S3 region.")
@click.option("--credential", default="", metavar="NAME", help="Of a URI: name of the chart's credentials.")
@click.option(
    "--max-origin-rate", type=RATE, default=0, help="All nodes together: 500MB/s. Pods that wait are not slowed down."
)
@cluster_options
def warm(model: str, **given: Any) -> None:
    """Have nodes fetch a model, and wait until it is verified and published on them.

    It makes a ModelWarmup that lives for a while, whatever becomes of this command; the same command again joins it. A
    URI that no ModelCache names gets one. Without --nodes and --like: the nodes that the ModelCache names.

    \b
    Exit codes:
      0  ready on the wanted share of nodes    3  timed out; says which nodes are missing, and why
      1  the source is broken, or has moved    4  refused (RBAC, admission, namespaces)

    \b
    Examples:
      cacheagent warm llama-3-70b --nodes pool=h100 && kubectl rollout restart deployment/llama
      cacheagent warm llama-3-70b --like deployment/llama -n serving --percent 90 --timeout 20m
      cacheagent warm hf://org/name --revision v2 --no-wait
      cacheagent warm llama-3-70b --max-origin-rate 500MB/s --timeout 6h
      kubectl cacheagent warm llama-3-70b --refresh -o json
    """
    # Imported late: only this command needs it.
    from cacheagent.cli.cluster.warming import Request, run_warm

    fields = Request.__struct_fields__
    raise SystemExit(run_warm(Request(model=model, **{name: given[name] for name in fields if name != "model"})))
