"""`refresh`, `pin`, `unpin` and `evict` on the cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cacheagent.cli.cluster.options import DURATION, cluster_options, with_cluster
from cacheagent.cli.output import Format, print_json

if TYPE_CHECKING:
    from cacheagent.kube.client import KubeClient
    from cacheagent.kube.plan.views import Model


@click.command()
@click.argument("model")
@click.option("--timeout", type=DURATION, default="5m", show_default=True, help="Stop waiting for the answer (exit 3).")
@cluster_options
def refresh(model: str, timeout: float, kubeconfig: Path | None, context: str, output: Format) -> None:
    """Have an agent ask the origin what a model is now, and pin that. Nodes that keep the model fetch what is new; pods
    that run keep the version that they have.

    \b
    Example:
      cacheagent refresh llama-3-70b
    """
    from cacheagent.errors import WaitTimedOut
    from cacheagent.kube.api import MODEL_CACHES
    from cacheagent.kube.ops.orders import find_model, order_refresh, wait_resolved
    from cacheagent.kube.ops.view import view_cluster

    async def work(api: KubeClient) -> tuple[Model, Model]:
        before = await find_model(api, model)
        async with view_cluster(api) as view:
            view.wrote(MODEL_CACHES, await order_refresh(api, before))
            try:
                async with asyncio.timeout(timeout or None):
                    return before, await wait_resolved(view, model)
            except TimeoutError:
                raise WaitTimedOut(
                    f"{model}: no answer after {timeout:g} s; {before.status.digest[:19] or 'nothing'} stays pinned",
                    hint=f"an answer is pinned when it comes; cacheagent cluster status {model}",
                ) from None

    before, after = with_cluster(kubeconfig, context, work)
    old, new = before.status.digest, after.status.digest
    if output == "json":
        print_json({"model": model, "before": old, "digest": new, "moved": bool(old) and old != new})
    elif old and old != new:
        click.echo(f"{model}: the origin has moved: {old[:19]} was pinned, {new} is now")
    else:
        click.echo(f"{model}: the origin holds {new}{', as before' if old else ''}")


@click.command()
@click.argument("model")
@cluster_options
def pin(model: str, kubeconfig: Path | None, context: str, output: Format) -> None:
    """Never evict a model on the nodes that it is assigned to (spec.pin).

    \b
    Example:
      cacheagent cluster pin llama-3-70b
    """
    _set_pin(model, True, kubeconfig, context, output)


@click.command()
@click.argument("model")
@cluster_options
def unpin(model: str, kubeconfig: Path | None, context: str, output: Format) -> None:
    """Let a pinned model be evicted again.

    \b
    Example:
      cacheagent cluster unpin llama-3-70b
    """
    _set_pin(model, False, kubeconfig, context, output)


def _set_pin(model: str, pin: bool, kubeconfig: Path | None, context: str, output: Format) -> None:  # noqa: FBT001
    from cacheagent.kube.ops.orders import order_spec

    with_cluster(kubeconfig, context, lambda api: order_spec(api, model, {"pin": pin}))
    if output == "json":
        print_json({"model": model, "pin": pin})
    else:
        click.echo(f"{model}: {'pinned' if pin else 'unpinned'} on the nodes that it is assigned to")


@click.command()
@click.argument("model")
@cluster_options
def evict(model: str, kubeconfig: Path | None, context: str, output: Format) -> None:
    """Let all nodes give a model up: its warm-ups end, and it is neither prefetched nor pinned any more.

    Each node removes the bytes when it needs their room, never while a pod has them mounted. A pod that asks for the
    model has it fetched where it runs. `kubectl edit modelcache` (spec.prefetch) takes it back.

    \b
    Example:
      cacheagent cluster evict llama-3-70b
    """
    from cacheagent.kube.ops.orders import end_warmups, order_spec

    async def work(api: KubeClient) -> list[str]:
        await order_spec(api, model, {"prefetch": False, "pin": False})
        return await end_warmups(api, model)

    ended = with_cluster(kubeconfig, context, work)
    if output == "json":
        print_json({"model": model, "ended_warmups": ended, "prefetch": False, "pin": False})
        return
    warmups = f"; {len(ended)} warm-up{'s' if len(ended) != 1 else ''} ended" if ended else ""
    click.echo(f"{model}: no node keeps it any more; its bytes go when their room is needed{warmups}")
