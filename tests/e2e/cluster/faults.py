"""Ways to break single things of the product, and to look at one node's agent."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.node import Node
from tests.e2e.cluster.process import run
from tests.e2e.cluster.product import NAMESPACE, agent_pod
from tests.e2e.cluster.waiting import wait_until

AGENT_PORT = 9471


def container_status(cluster: Cluster, namespace: str, pod: str, container: str) -> dict[str, Any]:
    """As the kubelet last said."""
    statuses = cluster.get("pod", pod, "-n", namespace)["status"]["containerStatuses"]
    return dict(next(each for each in statuses if each["name"] == container))


def kill_container(cluster: Cluster, namespace: str, pod: str, container: str = "main") -> str:
    """`kill -9` to its first process, so that the kernel ends all of it. Returns the container's id."""
    found = cluster.get("pod", pod, "-n", namespace)
    container_id = str(container_status(cluster, namespace, pod, container)["containerID"])
    kill_container_id(cluster.node(found["spec"]["nodeName"]), container_id)
    return container_id


def kill_container_id(node: Node, container_id: str) -> None:
    """The same for a container whose id is known: the API server need not be there."""
    for line in node.ctr("tasks", "ls").splitlines():
        task, pid, *_ = line.split()
        if task == container_id.removeprefix("containerd://"):
            node.nsenter_command("kill", "-9", pid)
            return
    raise ValueError(f"{container_id} doesn't run on {node.name}")


def wait_until_started_again(
    cluster: Cluster, namespace: str, pod: str, container: str, before: str, *, limit: float = 90.0
) -> None:
    """Another container than `before` is ready in its place."""

    def ready() -> bool:
        status = container_status(cluster, namespace, pod, container)
        return bool(status["ready"]) and status["containerID"] != before

    wait_until(ready, f"{container} of {pod} is started again", limit)


def apply_at_last(cluster: Cluster, *objects: Mapping[str, Any], limit: float = 60.0) -> None:
    """Apply objects, again if they are refused: something that they need is on its way."""

    def applied() -> bool:
        cluster.apply(*objects)
        return True

    wait_until(applied, "the objects are taken", limit)


def agent_metrics_url(cluster: Cluster, node: str) -> str:
    """Where the agent of a node tells what it counts; the same after its container was restarted."""
    pod = cluster.get("pod", agent_pod(cluster, node), "-n", NAMESPACE)
    return f"http://{pod['status']['podIP']}:{AGENT_PORT}/metrics"


def metrics_at(url: str) -> dict[str, float]:
    """What an agent counts since it started, by `name{label="value"}`."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def total(metrics: dict[str, float], name: str, **labels: str) -> float:
    """The sum over all series of that name with these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value for key, value in metrics.items() if re.split(r"[{ ]", key)[0] == name and all(w in key for w in wanted)
    )


def node_status(cluster: Cluster, node: str) -> dict[str, Any]:
    """What the agent last reported of itself."""
    return dict(cluster.get("modelcachenode", node).get("status", {}))


def node_model(cluster: Cluster, node: str, model: str, digest: str = "") -> dict[str, Any]:
    """What the agent last reported of one model (of one version of it); empty if it names none."""
    for each in node_status(cluster, node).get("models", []):
        if each["name"] == model and (not digest or each.get("digest") == digest):
            return dict(each)
    return {}


@contextlib.contextmanager
def slow_link(cluster: Cluster, node: str, megabits_per_s: int) -> Iterator[None]:
    """What goes to the node over its link is held to that rate until the block ends."""
    link = f"{cluster.bridge}n{cluster.node(node).number}"
    shape = ("tbf", "rate", f"{megabits_per_s}mbit", "burst", "256k", "limit", "2m")
    run("tc", "qdisc", "add", "dev", link, "root", *shape)
    try:
        yield
    finally:
        run("tc", "qdisc", "delete", "dev", link, "root")


def published_versions(node: Node) -> set[str]:
    """Digests of the versions that are on the node's disk."""
    found = node.nsenter_command("ls", "/var/lib/cacheagent/models").stdout.split()
    return {name.replace("sha256-", "sha256:") for name in found}


def leader(cluster: Cluster) -> str:
    """Name of the controller's pod that leads."""
    (lease,) = cluster.get("leases", "-n", NAMESPACE)["items"]
    return str(lease["spec"]["holderIdentity"])


def events_on(cluster: Cluster, name: str, kind: str) -> list[str]:
    """`Reason: message` of the events about an object, in whatever namespace they are."""
    selector = f"involvedObject.name={name},involvedObject.kind={kind}"
    found = json.loads(cluster.kubectl("get", "events", "-A", "--field-selector", selector, "-o", "json"))["items"]
    return [f"{each['reason']}: {each['message']}" for each in found]
