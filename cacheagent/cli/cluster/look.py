"""`status` and `nodes` of a cluster: what is where, what is not, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cacheagent.cli.cluster.options import cluster_options, with_cluster
from cacheagent.cli.output import Format, duration, print_json, print_table, size


@click.command()
@click.argument("model", required=False)
@cluster_options
def status(model: str | None, kubeconfig: Path | None, context: str, output: Format) -> None:
    """Show all models of the cluster; or one: where it is, where not yet, and why.

    \b
    Examples:
      kubectl cacheagent status
      cacheagent cluster status llama-3-70b -o json
    """
    # Imported late: only a cluster needs it.
    from cacheagent.kube.ops.overview import look_at_model, look_at_models, model_json

    if model is None:
        views = with_cluster(kubeconfig, context, look_at_models)
        if output == "json":
            print_json([model_json(view) for view in views])
            return
        rows = [
            (
                view.name,
                view.digest[7:19] or "-",
                size(view.size_bytes) if view.digest else "-",
                f"{view.ready}/{len(view.nodes)}",
                view.state,
                view.uri,
            )
            for view in views
        ]
        print_table(("NAME", "VERSION", "SIZE", "READY", "STATE", "SOURCE"), rows)
        return
    found = with_cluster(kubeconfig, context, lambda api: look_at_model(api, model))
    if output == "json":
        print_json(model_json(found))
        return
    facts = {
        "name": found.name,
        "source": found.uri,
        "digest": f"{found.digest} (pinned since {found.since})" if found.digest else "-",
        "size": size(found.size_bytes) if found.digest else "-",
        "ready": f"{found.ready} of {len(found.nodes)} nodes",
        "state": found.state,
        "warm-ups": ", ".join(_warmup(name, found.limits) for name in found.warmups) or "-",
    }
    if found.origin_digest:
        has_moved = found.origin_digest != found.digest
        facts["origin"] = f"has moved: it holds {found.origin_digest}" if has_moved else "holds this version"
    for name, value in facts.items():
        click.echo(f"{name:9} {value}")
    if found.nodes:
        click.echo()
        print_table(("NODE", "STATE", "DONE", "RATE", "LEFT", "MOUNTED", "WHY"), [_row(node) for node in found.nodes])
    if found.others:
        click.echo(f"on other nodes, until their room is needed: {', '.join(found.others)}")


def _warmup(name: str, limits: dict[str, int]) -> str:
    return f"{name} (at most {size(limits[name])}/s from the origin)" if name in limits else name


def _row(node: Any) -> tuple[str, ...]:
    return (
        node.node,
        node.state,
        f"{node.bytes_done / node.size_bytes:.0%}" if node.size_bytes else "-",
        f"{size(node.rate_bytes_per_s)}/s" if node.rate_bytes_per_s else "-",
        duration(round(node.left_s)) if node.left_s >= 0 else "-",
        str(node.mounted),
        node.why or "-",
    )


@click.command()
@cluster_options
def nodes(kubeconfig: Path | None, context: str, output: Format) -> None:
    """Show the cache of each node: room, what is on its way, and what is wrong.

    \b
    Examples:
      cacheagent nodes
      cacheagent nodes -o json | jq -r '.[] | select(.message != "") | .node'
    """
    from cacheagent.kube.ops.overview import look_at_nodes, node_cache_json

    found = with_cluster(kubeconfig, context, look_at_nodes)
    if output == "json":
        print_json([node_cache_json(each) for each in found])
        return
    rows = [
        (
            each.node,
            size(each.usage.capacity_bytes),
            size(each.usage.used_bytes),
            size(each.usage.reserved_bytes),
            size(each.usage.evictable_bytes),
            size(each.usage.free_bytes),
            f"{size(each.rate_bytes_per_s)}/s" if each.rate_bytes_per_s else "-",
            f"{each.ready}/{each.assigned}",
            each.message or "-",
        )
        for each in found
    ]
    print_table(("NODE", "CAPACITY", "USED", "RESERVED", "EVICTABLE", "FREE", "RATE", "READY", "MESSAGE"), rows)
