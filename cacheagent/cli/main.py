"""Where a command begins: what it will import is asked of the disk before it is imported."""

import sys

from cacheagent.cli.read_ahead import read_ahead


def main() -> None:
    """`cacheagent …`, which ends the process."""
    read_ahead(sys.argv[1:])
    from cacheagent.cli.root import cli, run  # late: this is what is read ahead

    run(cli, "cacheagent")


def kubectl_main() -> None:
    """`kubectl cacheagent …`: the same commands as `cacheagent cluster …`. kubectl finds it by its name on PATH."""
    from cacheagent.cli.cluster.group import cluster
    from cacheagent.cli.root import run

    run(cluster, "kubectl cacheagent")
