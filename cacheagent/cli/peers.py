"""`cacheagent peers`: what an operator does about peers by hand."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def peers() -> None:
    """Nodes that give models to each other."""


@peers.command()
@click.option(
    "--cache", type=click.Path(file_okay=False, path_type=Path), required=True, help="The node's cache directory."
)
def key(cache: Path) -> None:
    """Print the public halves of this node's keys, which the other members must know: of the one that it signs with
    and, after a comma, of the next one. Made where there are none.

    \b
    Example:
      cacheagent peers key --cache /var/lib/cacheagent
    """
    from cacheagent.peers.keys import load_or_make_keys  # only this command needs cryptography

    click.echo(load_or_make_keys(cache).public_text)
