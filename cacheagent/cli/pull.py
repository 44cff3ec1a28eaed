"""`cacheagent pull`: one model into the cache, watched. Asks the running agent, or does it itself where none runs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import click

from cacheagent.cli.bars import Watcher, describe, watcher
from cacheagent.cli.output import Format
from cacheagent.cli.options import root_and_socket, where_options
from cacheagent.errors import UsageError, WaitTimedOut
from cacheagent.model import Kind
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec, Policy, SourceSpec


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
@click.option("--connections", type=click.IntRange(1, 256), help="Fixed number of connections. [default: adaptive]")
@click.option("--ingress-cap", metavar="RATE", help="Upper limit, such as 200MB/s (without an agent).")
@where_options
def pull(  # noqa: PLR0913, PLR0917 - click hands every option as an argument
    uri: str,
    revision: str,
    endpoint: str,
    region: str,
    credential: str,
    ca_bundle: str,
    path_style: bool | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    kind: Kind,
    allow_pickle: bool,
    name: str,
    repo_id: str,
    pin: bool,
    refresh: bool,
    timeout: float | None,
    connections: int | None,
    ingress_cap: str | None,
    root: Path | None,
    socket: Path | None,
    output: Format,
) -> None:
    """Fetch a model into this node's cache, verified, and print where it is.

    A model that is here already is found in milliseconds; an interrupted pull goes on where it stopped. If an agent runs on
    this cache, it does the work and this command watches.

    \b
    Examples:
      cacheagent pull hf://sentence-transformers/all-MiniLM-L6-v2@main
      cacheagent pull s3://models/llama-3-70b --endpoint https://minio.example:9000
      cacheagent pull https://mirror.example/models/tiny/        (with a SHA256SUMS)
      cacheagent pull file:///mnt/lustre/models/llama-3-70b
      cacheagent pull s3://data/images --kind tree -o json
    """
    source = SourceSpec(
        uri=uri,
        revision=revision,
        endpoint=endpoint,
        region=region,
        credential=credential,
        ca_bundle=ca_bundle,
        path_style=path_style,
        include=include,
        exclude=exclude,
    )
    spec = ModelSpec(
        name=name or name_of(uri),
        source=source,
        kind=kind,
        policy=Policy(allow_pickle=allow_pickle),
        pin=pin,
        repo_id=repo_id,
    )
