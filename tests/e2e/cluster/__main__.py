"""`make cluster`: a cluster for a person, with the chart installed, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys

from tests.e2e.cluster import product
from tests.e2e.cluster.binaries import find_obstacle
from tests.e2e.cluster.cluster import running_cluster
from tests.e2e.cluster.node import NodeOptions
from tests.e2e.cluster.waiting import NotSeen, say


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.cluster", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3, help="how many (3)")
    parser.add_argument("--bare", action="store_true", help="without the chart")
    options = parser.parse_args()
    obstacle = find_obstacle()
    if obstacle:
        say(f"{obstacle[0]} is missing: {obstacle[1]}")
        return 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with running_cluster([NodeOptions(name=f"n{number + 1}") for number in range(options.nodes)]) as cluster:
            if not options.bare:
                say(f"installing {product.CHART} into the namespace {product.NAMESPACE}")
                try:
                    product.install(cluster)
                except NotSeen as error:  # it can be looked at
                    say(f"not ready: {error}")
            say(f"export KUBECONFIG={cluster.kubeconfig} PATH={sys.executable.rpartition('/')[0]}:$PATH")
            say(f"an S3 server for pods: {cluster.object_store.endpoint}")
            say("Ctrl-C ends it all")
            while True:
                signal.pause()
    except KeyboardInterrupt:
        say("gone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
