"""What is kept of a cluster when a test failed: everything that somebody would ask for first."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from tests.e2e.cluster.node import Node

Kubectl = Callable[..., str]

_LISTS = {
    "events.txt": ("get", "events", "-A", "--sort-by=.lastTimestamp", "-o", "wide"),
    "objects.txt": (
        "get",
        "nodes,pods,daemonsets,deployments,services,endpointslices,pv,pvc,csidrivers,csinodes,leases",
        "-A",
        "-o",
        "wide",
    ),
    "pods.txt": ("describe", "pods", "-A"),
    "nodes.txt": ("describe", "nodes"),
    "pods.yaml": ("get", "pods", "-A", "-o", "yaml"),
    "nodes.yaml": ("get", "nodes", "-o", "yaml"),
    "webhooks.yaml": ("get", "mutatingwebhookconfigurations,validatingwebhookconfigurations", "-o", "yaml"),
}


def keep_evidence(folder: Path, kubectl: Kubectl, nodes: list[Node], logs: Path) -> None:
    """Write it all below `folder`. What can't be had is said in the file that would have held it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, arguments in _LISTS.items():
        _write(folder / name, lambda arguments=arguments: kubectl(*arguments))  # type: ignore[misc]
    _write(folder / "ours.yaml", lambda: _our_objects(kubectl))
    _keep_pod_logs(folder / "pods", kubectl)
    for node in nodes:
        place = folder / "nodes" / node.name
        place.mkdir(parents=True, exist_ok=True)
        _write(place / "mountinfo.txt", lambda node=node: node.nsenter_command("cat", "/proc/self/mountinfo").stdout)  # type: ignore[misc]
        _write(place / "processes.txt", lambda node=node: node.nsenter_command("ps", "-ef").stdout)  # type: ignore[misc]
        _write(place / "cache.txt", lambda node=node: _look_into_the_cache(node))  # type: ignore[misc]
    for log in logs.rglob("*.log"):
        target = folder / "logs" / log.relative_to(logs)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, lambda log=log: log.read_text(errors="replace"))  # type: ignore[misc]


def _write(path: Path, make: Callable[[], str]) -> None:
    try:
        text = make()
    except Exception as error:
        text = f"could not be had: {type(error).__name__}: {error}\n"
    path.write_text(text)


def _our_objects(kubectl: Kubectl) -> str:
    names = kubectl("api-resources", "--api-group=cacheagent.io", "-o", "name").split()
    return kubectl("get", ",".join(names), "-A", "-o", "yaml") if names else "no such objects are known here\n"


def _look_into_the_cache(node: Node) -> str:
    return node.nsenter_command("find", "/var/lib/cacheagent", "-maxdepth", "4", "-printf", "%M %u %n %s %p\n").stdout


def _keep_pod_logs(folder: Path, kubectl: Kubectl) -> None:
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(Exception):  # the API server is down: pods.txt says so
        for pod in json.loads(kubectl("get", "pods", "-A", "-o", "json"))["items"]:
            namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
            containers = pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
            for container in (each["name"] for each in containers):
                where = ("logs", "-n", namespace, name, "-c", container)
                _write(folder / f"{namespace}_{name}_{container}.log", lambda where=where: kubectl(*where))  # type: ignore[misc]
                before = kubectl_or_nothing(kubectl, *where, "--previous")
                if before:
                    (folder / f"{namespace}_{name}_{container}.previous.log").write_text(before)


def kubectl_or_nothing(kubectl: Kubectl, *arguments: str) -> str:
    """What it prints, or nothing when it fails."""
    try:
        return kubectl(*arguments)
    except AssertionError:
        return ""
