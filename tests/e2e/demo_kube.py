"""`make demo-kube`: the product on a real Kubernetes of three nodes, for a person to watch. Root; about three minutes.

Each step says what it does, shows what a person would look at, and fails when it doesn't come true.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cacheagent.demo.bucket import Bucket
from cacheagent.demo.checkpoint import write_checkpoint
from cacheagent.kube.names import MODEL
from tests.e2e.cluster import product
from tests.e2e.cluster.binaries import find_obstacle
from tests.e2e.cluster.cluster import Cluster, running_cluster
from tests.e2e.cluster.waiting import say, wait_until
from tests.e2e.cluster.workload import python_pod

NAME = "llama"
READ = """
import os
files = sorted(os.listdir("/mnt/models"))
total = sum(os.path.getsize(os.path.join("/mnt/models", name)) for name in files)
print(f"{len(files)} files, {total / 1e6:.0f} MB in /mnt/models; first read:", files[0])
"""


def show(text: str) -> None:
    print(text.rstrip(), flush=True)  # noqa: T201


def title(text: str) -> None:
    show(f"\n== {text}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo-kube", description=__doc__)
    parser.add_argument("--size-gb", type=float, default=0.5, help="size of the checkpoint (0.5)")
    size_bytes = int(parser.parse_args().size_gb * 1e9)
    obstacle = find_obstacle()
    if obstacle:
        say(f"{obstacle[0]} is missing: {obstacle[1]}")
        return 1
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with running_cluster() as cluster:
            run(cluster, size_bytes)
    except KeyboardInterrupt:
        return 130
    return 0


def run(cluster: Cluster, size_bytes: int) -> None:
    title("The chart is installed on three nodes")
    product.install(cluster)
    show(cluster.kubectl("get", "pods", "-n", product.NAMESPACE, "-o", "wide"))

    title(f"A checkpoint of {size_bytes / 1e9:.1f} GB is in the bucket; a ModelCache names it")
    fill_bucket(cluster, size_bytes)
    cluster.apply(product.model_cache(cluster, NAME, f"s3://models/{NAME}", prefetch=False))
    show(cluster.kubectl("get", "modelcaches"))

    title("A pod asks for it by annotation, on a node that has nothing yet: it starts when the weights are there")
    cold = time_to_succeed(cluster, "cold", "n1")
    title("A second pod on the same node")
    warm = time_to_succeed(cluster, "warm", "n1")
    title("A pod on another node")
    other = time_to_succeed(cluster, "other", "n2")
    show(cluster.kubectl("get", "modelcaches,modelcachenodes"))

    title("What it came to")
    for name, seconds in (("cold", cold), ("warm", warm), ("another node", other)):
        show(f"{name:14}{seconds:6.1f} s from `kubectl apply` to the pod's end")


def fill_bucket(cluster: Cluster, size_bytes: int) -> None:
    """A random checkpoint of four shards below `s3://models/<NAME>`."""
    bucket = Bucket(cluster.object_store, "models")
    bucket.create()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, NAME)
        write_checkpoint(folder, size_bytes=size_bytes, shards=4)
        bucket.upload(folder, NAME)


def time_to_succeed(cluster: Cluster, name: str, node: str) -> float:
    """Seconds until a pod with the annotation has read its model and ended; shows its events and what it printed."""
    begin = time.monotonic()
    cluster.apply(python_pod(name, READ, node=node, metadata={"annotations": {MODEL: NAME}}))
    wait_until(lambda: phase(cluster, name) == "Succeeded", f"pod {name} has read its model", 180)
    seconds = time.monotonic() - begin
    show(cluster.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}"))
    show(f"the pod says: {cluster.kubectl('logs', name)}")
    return seconds


def phase(cluster: Cluster, name: str) -> Any:
    return cluster.get("pod", name)["status"].get("phase")


if __name__ == "__main__":
    sys.exit(main())
