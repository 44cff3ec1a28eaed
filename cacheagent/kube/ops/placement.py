"""Which nodes a workload's pods could run on, as far as its template and the nodes' labels and taints say. Pure."""

from __future__ import annotations

from typing import Final

from cacheagent.errors import UsageError
from cacheagent.kube.api import PODS, Object, Resource
from cacheagent.kube.plan.facts import living_cache_nodes
from cacheagent.kube.plan.schedulable import could_take
from cacheagent.kube.plan.views import Pod, parse_pod
from cacheagent.kube.plan.world import World

DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment", namespaced=True)
REPLICA_SETS: Final = Resource("apps", "v1", "replicasets", "ReplicaSet", namespaced=True)
WORKLOADS: Final = {
    "deployment": DEPLOYMENTS,
    "deploy": DEPLOYMENTS,
    "replicaset": REPLICA_SETS,
    "rs": REPLICA_SETS,
    "statefulset": Resource("apps", "v1", "statefulsets", "StatefulSet", namespaced=True),
    "sts": Resource("apps", "v1", "statefulsets", "StatefulSet", namespaced=True),
    "daemonset": Resource("apps", "v1", "daemonsets", "DaemonSet", namespaced=True),
    "ds": Resource("apps", "v1", "daemonsets", "DaemonSet", namespaced=True),
    "job": Resource("batch", "v1", "jobs", "Job", namespaced=True),
}
"""By what people call them."""


def parse_reference(written: str, *, with_pods: bool = False) -> tuple[Resource, str]:
    """`deployment/NAME`; with pods also `pod/NAME`, or a bare name. Raises UsageError."""
    kind, slash, name = written.partition("/")
    if not slash and with_pods:
        return PODS, written
    kind = kind.lower().removesuffix("s") if kind.lower() not in WORKLOADS else kind.lower()
    known = WORKLOADS | ({"pod": PODS, "po": PODS} if with_pods else {})
    if not name or kind not in known:
        example = "pod/NAME or deployment/NAME" if with_pods else "deployment/NAME"
        raise UsageError(f"{written[:100]!r} names no workload", hint=f"write {example}; known: {', '.join(known)}")
    return known[kind], name


def pod_of(workload: Object) -> Pod:
    """A pod as its template makes it."""
    template = workload.get("spec", {}).get("template") or {}
    metadata = {**(template.get("metadata") or {}), "namespace": workload["metadata"].get("namespace", "")}
    return parse_pod({"metadata": metadata, "spec": template.get("spec") or {}})


def nodes_like(world: World, pod: Pod) -> tuple[str, ...]:
    """Cache nodes that could take this pod, sorted; what a node has room for is not looked at."""
    return tuple(name for name in living_cache_nodes(world) if could_take(world.nodes[name], pod))
