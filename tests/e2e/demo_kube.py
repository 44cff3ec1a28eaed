"""`make demo-kube`: the product on a real Kubernetes of three nodes, for a person to watch. Root; about two minutes.

Each step shows what a person would type and see, and fails when it doesn't come true.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from typing import Any

import yaml

from tests.e2e.cluster import models, product
from tests.e2e.cluster.binaries import find_obstacle
from tests.e2e.cluster.cluster import Cluster, running_cluster
from tests.e2e.cluster.paced import paced_origin
from tests.e2e.cluster.waiting import say, wait_until

NAME = "llama"
SHARDS = 8
ORIGIN_BYTES_PER_S = 40e6
"""Slow enough to watch."""


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
        with running_cluster() as cluster, contextlib.ExitStack() as stack:
            Demo(cluster, stack, size_bytes).run()
    except KeyboardInterrupt:
        return 130
    return 0


class Demo:
    """The steps, in their order. `rows`: what each took, for the end."""

    def __init__(self, cluster: Cluster, stack: contextlib.ExitStack, size_bytes: int) -> None:
        self.cluster = cluster
        self.stack = stack
        self.size_bytes = size_bytes
        self.rows: list[tuple[str, float]] = []

    def run(self) -> None:
        title("The chart, on three nodes of which two are in the pool `warm`")
        self.cluster.kubectl("label", "nodes", "n1", "n2", "pool=warm")
        show(f"$ helm install {product.RELEASE} daemonset/chart -n {product.NAMESPACE} -f values.yaml")
        product.install(self.cluster)
        self.kubectl("get", "pods", "-n", product.NAMESPACE, "-o", "wide")
        weights = self.upload()
        self.warm(weights)
        self.roll_out(weights)
        self.start_elsewhere(weights)
        title("What it came to")
        for what, seconds in self.rows:
            show(f"{seconds:6.1f} s  {what}")

    def upload(self) -> models.Weights:
        """To a bucket that gives it away no faster than a person can follow."""
        store = self.cluster.object_store
        size = f"{self.size_bytes / 1e9:.1f} GB"
        title(f"A checkpoint of {size} in an S3 bucket that sends {ORIGIN_BYTES_PER_S / 1e6:.0f} MB/s")
        weights = models.upload_checkpoint(store, NAME, size_bytes=self.size_bytes, shards=SHARDS)
        origin = self.stack.enter_context(paced_origin(store.endpoint, ORIGIN_BYTES_PER_S))
        show(f"{len(weights.files)} files in {weights.uri}")
        return models.Weights(
            uri=weights.uri,
            endpoint=origin.endpoint,
            region=weights.region,
            files=weights.files,
            size_bytes=weights.size_bytes,
        )

    def warm(self, weights: models.Weights) -> None:
        title("A ModelCache names it: the nodes of the pool fetch it, before anybody needs it")
        self.apply("modelcache.yaml", models.model_cache(NAME, weights, nodeSelector={"pool": "warm"}))
        begin = time.monotonic()
        show(f"$ kubectl get modelcache {NAME} --watch")
        seen: list[str] = []

        def ready() -> bool:
            for line in self.cluster.kubectl("get", "modelcache", NAME).splitlines():
                story = "NAME" if line.startswith("NAME") else without_age(line)
                if story not in seen:
                    seen.append(story)
                    show(line)
            return models.condition(models.model_status(self.cluster, NAME), "Ready") == "True"

        wait_until(ready, f"{NAME} is ready", 300, pause=2.0)
        self.rows.append(
            ("from the ModelCache to two nodes that have it, every byte verified", time.monotonic() - begin)
        )
        self.kubectl("get", "modelcachenodes")

    def roll_out(self, weights: models.Weights) -> None:
        title("A Deployment asks for it by an annotation, and nothing else: its pods start where the weights are")
        pod = models.reading_pod("server", "default", NAME)
        server = models.deployment("server", "default", pod, replicas=2)
        short = {**server, "spec": {"replicas": 2, "template": {"metadata": server["spec"]["template"]["metadata"]}}}
        begin = time.monotonic()
        self.apply("server.yaml", server, shown=short, more="    spec: …  # containers, without a word about weights")
        self.kubectl("rollout", "status", "deployment/server", "--timeout=120s")
        self.rows.append(("from `kubectl apply` to the Deployment rolled out", time.monotonic() - begin))
        self.kubectl("get", "pods", "-l", "app=server", "-o", "wide")
        for made in models.wait_until_running(self.cluster, "default", "server", pods=2):
            self.check(made["metadata"]["name"], weights)

    def start_elsewhere(self, weights: models.Weights) -> None:
        title("A pod on the third node, which nobody asked to have it: it waits there, and is told how far it is")
        begin = time.monotonic()
        self.cluster.apply(models.reading_pod("elsewhere", "default", NAME, node="n3"))
        show("$ kubectl apply -f elsewhere.yaml")
        models.wait_until_running(self.cluster, "default", "elsewhere", limit=300)
        self.rows.append(("from `kubectl apply` to a pod that runs on a node without them", time.monotonic() - begin))
        show("$ kubectl get events --field-selector involvedObject.name=elsewhere")
        for event in models.events_of(self.cluster, "default", "elsewhere"):
            show(event)
        self.check("elsewhere", weights)
        self.kubectl("get", "modelcaches,modelcachenodes")

    def check(self, pod: str, weights: models.Weights) -> None:
        """Raises `AssertionError` unless the pod read what the origin has."""
        seen = models.read_report(self.cluster, "default", pod)
        if seen.files != weights.files:
            raise AssertionError(f"{pod} read something else than the origin has: {seen.files}")
        show(
            f"{pod} read {len(seen.files)} files in {seen.read - seen.started:.1f} s; each SHA-256 is the origin's. "
            f"A write into /mnt/models: {seen.write}"
        )

    def kubectl(self, *arguments: str) -> None:
        show(f"$ kubectl {' '.join(arguments)}")
        show(self.cluster.kubectl(*arguments))

    def apply(self, file: str, item: dict[str, Any], *, shown: dict[str, Any] | None = None, more: str = "") -> None:
        show(f"$ cat {file}")
        show(yaml.safe_dump(shown or item, sort_keys=False, allow_unicode=True).rstrip())
        if more:
            show(more)
        show(f"$ kubectl apply -f {file}")
        self.cluster.apply(item)


def without_age(line: str) -> str:
    """A line of `kubectl get modelcache` with the age taken out."""
    return " ".join(word for word in line.split() if not (word[0].isdigit() and word[-1] in "smh"))


def show(text: str) -> None:
    print(text.rstrip(), flush=True)  # noqa: T201


def title(text: str) -> None:
    show(f"\n== {text}")


if __name__ == "__main__":
    sys.exit(main())
