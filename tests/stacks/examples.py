"""Examples on the tests' cluster: as a person would apply them, with what the files say is to be changed, and a small
server in place of the engine: it reads its weights, says what it read, and is healthy from then on."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import yaml

from tests.e2e.cluster.binaries import ROOT
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.faults import agent_metrics_url, metrics_at, total
from tests.e2e.cluster.image import PRODUCT_IMAGE
from tests.e2e.cluster.models import READ, Seen, Weights, model_cache, printed
from tests.e2e.cluster.product import ON_EVERY_NODE, agent_nodes

GPU: Final = "nvidia.com/gpu"
ENGINE: Final = "vllm"
"""The container."""
SERVE: Final = (
    READ
    + """
import http.server, signal, sys

class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.ThreadingHTTPServer(("", int(os.environ.get("PORT", "8000"))), Healthy).serve_forever()
"""
)

NEXT_TO_NOTHING: Final = 100_000
"""Bytes: what a listing of the source costs, and no piece of a model."""

Object = dict[str, Any]


def values_of(stack: str) -> Object:
    """The example's values of the chart, and beside them what the tests' cluster needs."""
    values = copy.deepcopy(dict(ON_EVERY_NODE))
    for key, value in read(stack, "values.yaml")[0].items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return values


def read(stack: str, name: str = "deployment.yaml") -> list[Object]:
    """Objects of a file."""
    return list(yaml.safe_load_all((ROOT / "examples" / stack / name).read_text()))


def adapted(stack: str, namespace: str, weights: Weights, source: Mapping[str, Any]) -> list[Object]:
    """Objects of its deployment.yaml: source (`source` adds fields), namespace and engine are this cluster's."""
    objects = copy.deepcopy(read(stack))
    for item in objects:
        if item["kind"] == "ModelCache":
            item["spec"]["source"] = model_cache("", weights, source=source)["spec"]["source"]
            continue
        item["metadata"]["namespace"] = namespace
        if item["kind"] == "Deployment":
            spec = item["spec"]["template"]["spec"]
            spec["terminationGracePeriodSeconds"] = 2
            (container,) = spec["containers"]
            container |= {"image": PRODUCT_IMAGE, "command": ["/usr/bin/python3", "-u", "-c", SERVE]}
            container.pop("args")
            for probe in ("startupProbe", "readinessProbe"):
                container.get(probe, {}).update(periodSeconds=1)
    return objects


def seen_by(cluster: Cluster, namespace: str, pod: str) -> Seen:
    """What the server in an example's pod has read."""
    return msgspec.json.decode(printed(cluster, namespace, pod, container=ENGINE), type=Seen)


def brought_in(cluster: Cluster) -> float:
    """Bytes that the nodes' agents took off the network since they started."""
    urls = [agent_metrics_url(cluster, node) for node in sorted(agent_nodes(cluster))]
    return sum(total(metrics_at(url), "cacheagent_ingress_bytes_total") for url in urls)


def set_gpus(cluster: Cluster, node: str, count: int | None) -> None:
    """What the node says that it has, as NVIDIA's device plugin does; None as before it ever ran."""
    status = cluster.get("node", node)["status"]
    name = GPU.replace("/", "~1")
    change = {"op": "remove"} if count is None else {"op": "add", "value": str(count)}
    patch = [
        {**change, "path": f"/status/{part}/{name}"}
        for part in ("capacity", "allocatable")
        if count is not None or GPU in status[part]
    ]
    if patch:
        cluster.kubectl("patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(patch))
