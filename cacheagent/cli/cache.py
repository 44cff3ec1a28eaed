"""Commands on what is in the cache: `ls`, `status`, `verify`, `pin`, `unpin`, `evict`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click

from cacheagent.api.schema import Model, Status
from cacheagent.cli.bars import describe
from cacheagent.cli.desk import Desk, open_desk
from cacheagent.cli.options import root_and_socket, where_options
from cacheagent.cli.output import Format, duration, print_json, print_table, size

T = TypeVar("T")


@click.command()
@where_options
def ls(root: Path | None, socket: Path | None, output: Format) -> None:
    """List the models in this node's cache.

    \b
    Examples:
      cacheagent ls
      cacheagent ls -o json | jq -r '.[].path'
    """
    models = _with_desk(root, socket, lambda desk: desk.models())
    if output == "json":
        print_json(models)
        return
    now = time.time()
    rows = [
        (
            model.name,
            model.digest[:19],
            size(model.size_bytes),
            str(model.files),
            _ago(now - model.last_used),
            _marks(model) or "ready",
            model.uri,
        )
        for model in models
    ]
    print_table(("NAME", "DIGEST", "SIZE", "FILES", "LAST USED", "STATE", "SOURCE"), rows)


@click.command()
@click.argument("ref", required=False)
@where_options
def status(ref: str | None, root: Path | None, socket: Path | None, output: Format) -> None:
    """Show the cache: room, models, work in progress and why something is not here; or one model.

    REF is a model's name, its digest, or the beginning of its digest.

    \b
    Examples:
      cacheagent status
      cacheagent status llama-3-70b -o json
    """
    if ref is not None:
        model = _with_desk(root, socket, lambda desk: desk.model(ref))
        print_json(model) if output == "json" else _print_model(model)
        return
    state = _with_desk(root, socket, lambda desk: desk.status())
    print_json(state) if output == "json" else _print_status(state)


@click.command()
@click.argument("ref")
@where_options
def verify(ref: str, root: Path | None, socket: Path | None, output: Format) -> None:
    """Read a model back from disk and compare every piece with what was recorded when it was fetched.

    REF is a model's name, its digest, or the beginning of its digest. Exit code 1 if a byte differs.

    \b
    Example:
      cacheagent verify llama-3-70b
    """

    async def work(desk: Desk) -> tuple[Model, float]:
        model, started = await desk.model(ref), time.monotonic()
        await desk.verify(ref)
        return model, time.monotonic() - started

    model, seconds = _with_desk(root, socket, work)
    if output == "json":
        print_json({"digest": model.digest, "size_bytes": model.size_bytes, "seconds": seconds, "verified": True})
    else:
        click.echo(f"{model.name}: all {size(model.size_bytes)} as fetched, read back in {duration(seconds)}")


@click.command()
@click.argument("ref")
@where_options
def pin(ref: str, root: Path | None, socket: Path | None, output: Format) -> None:
    """Never evict a model. REF is a model's name, its digest, or the beginning of its digest.

    \b
    Example:
      cacheagent pin llama-3-70b
    """
    _tell(_with_desk(root, socket, lambda desk: desk.pin(ref)), "pinned: it stays until it is unpinned", output)


@click.command()
@click.argument("ref")
@where_options
def unpin(ref: str, root: Path | None, socket: Path | None, output: Format) -> None:
    """Let a pinned model be evicted again. REF is a model's name, its digest, or the beginning of its digest.

    \b
    Example:
      cacheagent unpin llama-3-70b
    """
    _tell(_with_desk(root, socket, lambda desk: desk.unpin(ref)), "unpinned: it goes when room is needed", output)


@click.command()
@click.argument("ref")
@where_options
def evict(ref: str, root: Path | None, socket: Path | None, output: Format) -> None:
    """Remove a model from this node's cache now.

    REF is a model's name, its digest, or the beginning of its digest. A model that is pinned or mounted stays, and the
    command says so (exit code 1). Files that other models share stay for them.

    \b
    Example:
      cacheagent evict llama-3-70b
    """
    gone = _with_desk(root, socket, lambda desk: desk.evict(ref))
    if output == "json":
        print_json(gone)
    else:
        click.echo(f"{ref}: evicted, {size(gone.freed_bytes)} freed")


def _with_desk(root: Path | None, socket: Path | None, work: Callable[[Desk], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_desk(*root_and_socket(root, socket)) as desk:
            return await work(desk)

    return asyncio.run(run())


def _tell(model: Model, what: str, output: Format) -> None:
    print_json(model) if output == "json" else click.echo(f"{model.name}: {what}")


def _print_model(model: Model) -> None:
    facts = {
        "name": model.name,
        "digest": model.digest,
        "source": model.uri,
        "revision": model.revision or "-",
        "size": f"{size(model.size_bytes)} in {model.files} files",
        "path": f"{model.path}/files",
        "hf view": f"HF_HUB_CACHE={model.path}/hf ({model.repo_id})" if model.repo_id else "-",
        "fetched": f"{_ago(time.time() - model.published_at)} ago",
        "state": _marks(model) or "ready",
    }
    for name, value in facts.items():
        click.echo(f"{name:9} {value}")


def _print_status(state: Status) -> None:
    usage = state.usage
    click.echo(
        f"{state.root}: {usage.models} models, {size(usage.used_bytes)} used, "
        f"{size(usage.evictable_bytes)} of it evictable; "
        f"{size(usage.free_bytes)} of {size(usage.capacity_bytes)} free, floor {size(usage.floor_bytes)}"
    )
    if state.config_error:
        click.echo(f"configuration: the last reload was refused: {state.config_error}")
    for job in state.jobs:
        if not job.finished:
            click.echo(describe(job))
    for wanted in state.wanted:
        if wanted.state != "ready":
            why = f": {wanted.message}" + (f" (next: {wanted.hint})" if wanted.hint else "") if wanted.message else ""
            again = f"; tried again in {duration(wanted.retry_in_s)}" if wanted.retry_in_s > 0 else ""
            click.echo(f"{wanted.name}: {wanted.state}{why}{again}")
    for model in state.models:
        click.echo(f"{model.name}: {_marks(model) or 'ready'}, {size(model.size_bytes)}, {model.path}/files")


def _marks(model: Model) -> str:
    leased = f"mounted {len(model.leases)}x" if model.leases else ""
    return ", ".join(
        mark for mark in ("pinned" if model.pin else "", leased, "suspect" if model.suspect else "") if mark
    )


def _ago(seconds: float) -> str:
    return duration(max(0, round(seconds))) if seconds < 86400 else f"{seconds / 86400:.0f} d"
