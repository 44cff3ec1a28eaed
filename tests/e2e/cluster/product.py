"""The product in the cluster: its chart, as an operator installs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cacheagent.kube.names import API_VERSION, DRIVER
from tests.e2e.cluster.binaries import ROOT
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.waiting import wait_until

CHART = ROOT / "daemonset/chart"
RELEASE = "cacheagent"
NAMESPACE = "cacheagent-system"
STORE = "store"
"""Name of the credentials that the test's S3 server takes."""
TREES = "/var/lib/trees"
"""On the nodes; on-demand URIs may name what is in `public` below it, where a rule permits that."""
ON_EVERY_NODE: Mapping[str, Any] = {
    "nodes": "all",
    "credentials": {STORE: {"kind": "aws", "secretName": STORE}},
    "agent": {"config": {"page_cache": {"min_memory": "1GiB"}, "store": {"floor": "32MiB"}}},
    "sources": {"hostPaths": [{"path": TREES}]},
    "onDemand": {"fileRoots": [f"{TREES}/public"]},
}
"""Values of the chart: a cache on every node, access to the cluster's object store and to a directory of the nodes;
models may be read into memory on machines smaller than a GPU node too, where they ask for it; small disks may be
filled."""


def install(cluster: Cluster, values: Mapping[str, Any] = ON_EVERY_NODE, *, limit: float = 180.0) -> None:
    """Install the chart or change its values; returns when agents, drivers, controllers and the webhook are ready."""
    prepare_namespace(cluster)
    values_file = cluster.folder / "control-plane/values.json"
    values_file.write_text(json.dumps(values))
    cluster.helm("upgrade", "--install", RELEASE, CHART, "--namespace", NAMESPACE, "--values", values_file)
    wait_until_ready(cluster, limit=limit)


def prepare_namespace(cluster: Cluster) -> None:
    """The release's namespace, with the secret that the credentials `STORE` are read from."""
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    store = cluster.object_store
    keys = {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
    secret = {"name": STORE, "namespace": NAMESPACE}
    cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": secret, "stringData": keys},
    )


def model_cache(cluster: Cluster, name: str, uri: str, **spec: Any) -> dict[str, Any]:
    """A ModelCache of something in the cluster's object store; `spec` adds fields as they are in the object."""
    store = cluster.object_store
    source = {"uri": uri, "endpoint": store.endpoint, "region": store.region, "credentials": STORE, "pathStyle": True}
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelCache",
        "metadata": {"name": name},
        "spec": {"source": source, **spec},
    }


def wait_until_ready(cluster: Cluster, *, limit: float = 180.0) -> None:
    """Every agent and controller is ready, none of before an upgrade answers any more, and the kubelet of each agent's
    node knows the driver."""
    for kind in ("daemonset", "deployment"):
        wait_until(lambda kind=kind: _is_rolled_out(cluster, kind), f"each {kind} is rolled out", limit)  # type: ignore[misc]
    wait_until(lambda: not _ending(cluster), "those of before are gone", limit)
    wait_until(lambda: agent_nodes(cluster) <= driver_nodes(cluster), "the driver is registered on each node", limit)
    wait_until(lambda: _webhook_can_be_called(cluster), "the webhook has an endpoint", limit)


def uninstall(cluster: Cluster) -> None:
    """As an operator would; what the chart leaves on purpose is left."""
    cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")


def agent_pod(cluster: Cluster, node: str) -> str:
    """The name of the agent's pod on a node. Raises `ValueError` when there isn't exactly one."""
    (pod,) = (pod for pod in _agents(cluster) if pod["spec"].get("nodeName") == node)
    return str(pod["metadata"]["name"])


def agent_nodes(cluster: Cluster) -> set[str]:
    return {pod["spec"]["nodeName"] for pod in _agents(cluster) if "nodeName" in pod["spec"]}


def driver_nodes(cluster: Cluster) -> set[str]:
    """Nodes whose kubelet knows our CSI driver."""
    return {
        each["metadata"]["name"]
        for each in cluster.get("csinodes")["items"]
        if any(driver["name"] == DRIVER for driver in each["spec"].get("drivers") or [])
    }


def _agents(cluster: Cluster) -> list[dict[str, Any]]:
    answer = cluster.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=agent")
    return [pod for pod in answer["items"] if "deletionTimestamp" not in pod["metadata"]]


def _ending(cluster: Cluster) -> list[str]:
    """Pods of ours that are being deleted: they serve what is asked of them until they end."""
    pods = cluster.get("pods", "-n", NAMESPACE)["items"]
    return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" in pod["metadata"]]


def _webhook_can_be_called(cluster: Cluster) -> bool:
    """Pods may be ready and the API server not know where they are: it finds them by the Service's endpoints."""
    slices = cluster.get("endpointslices", "-n", NAMESPACE, "-l", f"kubernetes.io/service-name={RELEASE}-webhook")
    endpoints = [endpoint for each in slices["items"] for endpoint in each.get("endpoints") or []]
    return any(endpoint["conditions"]["ready"] for endpoint in endpoints)


def _is_rolled_out(cluster: Cluster, kind: str) -> bool:
    found = cluster.get(kind, "-n", NAMESPACE)["items"]
    return bool(found) and all(_has_all(each) for each in found)


def _has_all(workload: dict[str, Any]) -> bool:
    status, generation = workload["status"], workload["metadata"]["generation"]
    if status.get("observedGeneration", 0) < generation:
        return False
    wanted = status.get("desiredNumberScheduled", workload["spec"].get("replicas"))
    updated = status.get("updatedNumberScheduled", status.get("updatedReplicas", 0))
    ready = status.get("numberReady", status.get("readyReplicas", 0))
    return bool(wanted == updated == ready)
