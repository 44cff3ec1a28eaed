"""`make cluster`: a cluster for a person, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys

from tests.e2e.cluster.binaries import find_obstacle
from tests.e2e.cluster.cluster import running_cluster
from tests.e2e.cluster.node import NodeOptions
from tests.e2e.cluster.waiting import say


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.cluster", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3, help="how many (3)")
    nodes = [NodeOptions(name=f"n{number}") for number in range(1, parser.parse_args().nodes + 1)]
    obstacle = find_obstacle()
    if obstacle:
        say(f"{obstacle[0]} is missing: {obstacle[1]}")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with running_cluster(nodes):
            say(f"kubectl is {sys.executable.rpartition('/')[0]}/kubectl; Ctrl-C ends it all")
            while True:
                signal.pause()
    except KeyboardInterrupt:
        say("gone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
