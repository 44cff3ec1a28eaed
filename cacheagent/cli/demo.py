"""`cacheagent demo`: the main job, on an S3 server of its own, for a person to watch."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--size-gb", type=click.FloatRange(0.05, 50), default=2.0, show_default=True, help="Size of the checkpoint."
)
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="Where to work. [default: a temporary directory]"
)
def demo(size_gb: float, directory: Path | None) -> None:
    """Start a real S3 server, pull two models from it, kill the agent in the middle of a third, and compare.

    Everything runs on loopback, needs no root, and is removed at the end.

    \b
    Examples:
      cacheagent demo
      cacheagent demo --size-gb 0.5 --dir /var/tmp
    """
    # Imported late: needs the packages of the `demo` extra.
    from cacheagent.demo.show import run_demo

    run_demo(size_bytes=int(size_gb * 1e9), directory=directory)
