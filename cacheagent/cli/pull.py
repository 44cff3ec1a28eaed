"""`cacheagent pull`: one model into the cache, watched. Asks the running agent, or does it itself where none runs."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cacheagent.api.catalog import ready_status
from cacheagent.api.errors import from_code
from cacheagent.api.schema import LONGEST_WAIT_S
from cacheagent.cli.bars import PULL, describe
from cacheagent.cli.desk import find_agent
from cacheagent.cli.options import RATE, root_and_socket, where_options
from cacheagent.cli.watching import Watcher, watcher
from cacheagent.errors import UsageError, WaitTimedOut
from cacheagent.node import open_node
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec, Policy, SourceSpec
from cacheagent.transfer.pool import TransferConfig

if TYPE_CHECKING:
    from cacheagent.api.client import AgentClient


@click.command()
@click.argument("uri")
@click.option("--revision", default="", help="Branch, tag or commit (hf).")
@click.option("--endpoint", default="", help="S3 endpoint, or Hub mirror, as a URL.")
@click.option("--region", default="", help="S3 region.")
@click.option("--credential", default="", metavar="NAME", help="Name of an AWS profile or of a token; never a secret.")
@click.option("--ca-bundle", default="", type=click.Path(), help="PEM file of a private certificate authority.")
@click.option("--path-style/--host-style", default=None, help="How S3 buckets are addressed. [default: by endpoint]")
@click.option("--include", multiple=True, metavar="PATTERN", help="Only these files; may be repeated.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Not these files; may be repeated.")
@click.option(
    "--kind",
    type=click.Choice(["checkpoint", "tree"]),
    default="checkpoint",
    show_default=True,
    help="checkpoint: safetensors, complete or refused; tree: any files.",
)
@click.option("--allow-pickle", is_flag=True, help="Accept weights that run code when loaded.")
@click.option("--name", default="", help="Name in listings. [default: the URI's last part]")
@click.option("--repo-id", default="", metavar="ORG/NAME", help="For the hf view of sources that are not the Hub.")
@click.option("--pin", is_flag=True, help="Never evict it.")
@click.option("--refresh", is_flag=True, help="Ask the origin again what the model is now.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop waiting after this long (exit code 3).")
@click.option("--connections", type=click.IntRange(1, 256), help="Fixed number (without an agent). [default: adaptive]")
@click.option("--ingress-cap", type=RATE, default=0, help="Upper limit, such as 200MB/s (without an agent).")
@where_options
def pull(uri: str, **given: Any) -> None:
    """Fetch a model into this node's cache, verified, and print where it is.

    A model that is here already is found in milliseconds; an interrupted pull goes on where it stopped. If an agent
    runs on this cache, it does the work and this command watches.

    \b
    Examples:
      cacheagent pull hf://sentence-transformers/all-MiniLM-L6-v2@main
      cacheagent pull s3://models/llama-3-70b --endpoint https://minio.example:9000
      cacheagent pull https://mirror.example/models/tiny/        (with a SHA256SUMS)
      cacheagent pull file:///mnt/lustre/models/llama-3-70b
      cacheagent pull s3://data/images --kind tree -o json
    """
    spec = _spec(uri, given)
    root, socket = root_and_socket(given["root"], given["socket"])
    transfer = TransferConfig(connections=given["connections"] or 0, ingress_cap_bytes_per_s=given["ingress_cap"])
    view = watcher(given["output"], PULL)
    cache = Cache(root, socket, transfer)
    status = asyncio.run(_pull(spec, cache, view, refresh=given["refresh"], timeout_s=given["timeout"]))
    if given["output"] == "text":
        click.echo(describe(status), err=True)
        click.echo(f"{status.path}/files")


def name_of(uri: str) -> str:
    """A name from the URI's last part: `hf://org/Llama-3@main` gives `llama-3`. Raises UsageError if there is none."""
    path = re.sub(r"^[a-z0-9]+://|[?#].*$|@[^/]*$", "", uri)
    last = path.rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:63].strip("-")
    if not name:
        raise UsageError(f"no name can be made of {uri!r}", hint="give one with --name")
    return name


def _spec(uri: str, given: dict[str, Any]) -> ModelSpec:
    # What the administrator alone decides (roots, refused networks) is no option of this command.
    source = SourceSpec(uri=uri, **{field: given[field] for field in SourceSpec.__struct_fields__ if field in given})
    return ModelSpec(
        name=given["name"] or name_of(uri),
        source=source,
        kind=given["kind"],
        policy=Policy(allow_pickle=given["allow_pickle"]),
        pin=given["pin"],
        repo_id=given["repo_id"],
    )


@dataclass(frozen=True)
class Cache:
    """Which cache, which agent, and how bytes travel where no agent runs."""

    root: Path
    socket: Path
    transfer: TransferConfig


async def _pull(
    spec: ModelSpec, cache: Cache, view: Watcher[JobStatus], *, refresh: bool, timeout_s: float | None
) -> JobStatus:
    with view:
        try:
            async with asyncio.timeout(timeout_s), find_agent(cache.socket) as client:
                if client is not None:
                    return await _ask(client, spec, view, refresh=refresh)
                return await _do(spec, cache, view, refresh=refresh)
        except TimeoutError:
            raise WaitTimedOut(
                f"{spec.name}: not there after {timeout_s:g} s",
                hint="what was proved is kept; the same command goes on from there",
            ) from None


async def _ask(client: AgentClient, spec: ModelSpec, view: Watcher[JobStatus], *, refresh: bool) -> JobStatus:
    """Let the agent do it and show what it tells."""
    watching = asyncio.create_task(_show(client, spec, view))
    try:
        status = await client.ensure(spec, refresh=refresh, wait_s=LONGEST_WAIT_S)
        while not status.finished:
            status = await client.ensure(spec, wait_s=LONGEST_WAIT_S)
    finally:
        watching.cancel()
        # What it shows is a courtesy: whether the model is there is what `ensure` answers, and what it raises is told.
        await asyncio.gather(watching, return_exceptions=True)
    view.show(status)
    if status.phase == "failed":
        raise from_code(status.error, status.message, status.hint)
    return status


async def _show(client: AgentClient, spec: ModelSpec, view: Watcher[JobStatus]) -> None:
    async for status in client.events(spec.name):
        if not status.finished:
            view.show(status)


async def _do(spec: ModelSpec, cache: Cache, view: Watcher[JobStatus], *, refresh: bool) -> JobStatus:
    """Do it in this process; Ctrl-C stops it cleanly."""
    async with open_node(cache.root, transfer=cache.transfer, on_event=view.show) as node:
        started = time.monotonic()
        hit = None if refresh else node.flights.find(spec)
        record = await node.flights.ensure(spec, refresh=refresh)
        if hit is None:
            return next(job for job in node.flights.jobs() if job.digest == record.digest)
        status = ready_status(record, node.store.path(record.digest), elapsed_s=time.monotonic() - started)
        view.show(status)
        return status
