"""What of an object the controller keeps in memory: all others' fields go, and with them all others' changes. Pure.

A Node has 10 KB and changes every few minutes for reasons that concern nobody here; a cluster has thousands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Final

from cacheagent.kube.api import Object
from cacheagent.kube.names import DRIVER, GATE, GROUP, WAIT_CONTAINER

_IDENTITY: Final = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
)
_PLACEMENT: Final = ("nodeSelector", "affinity", "tolerations")
_MILESTONES: Final = ("PodScheduled", "PodReadyToStartContainers")
"""Conditions that say since when a pod has its node, and its volumes."""


def as_it_is(item: Object) -> Object:
    """All but who wrote which field."""
    item["metadata"].pop("managedFields", None)
    return item


def node(item: Object) -> Object:
    """Labels, taints, readiness, and our own annotations."""
    metadata, spec = item["metadata"], item.get("spec") or {}
    return {
        "kind": "Node",
        "metadata": {
            **_some(metadata, _IDENTITY),
            "labels": _shared(metadata.get("labels") or {}),
            "annotations": _our_annotations(metadata),
        },
        "spec": _some(spec, ("taints", "unschedulable")),
        "status": {"conditions": _readiness(item)},
    }


def namespace(item: Object) -> Object:
    """Labels."""
    metadata = item["metadata"]
    return {"kind": "Namespace", "metadata": {**_some(metadata, _IDENTITY), "labels": metadata.get("labels") or {}}}


def agent_pod(item: Object) -> Object:
    """Where it is and whether it is ready."""
    return {
        "kind": "Pod",
        "metadata": _some(item["metadata"], _IDENTITY),
        "spec": _some(item.get("spec") or {}, ("nodeName",)),
        "status": {"conditions": _readiness(item)},
    }


def pod(item: Object) -> Object:
    """Our annotations and volumes; when it got node and volumes, and its GPUs; where it may go only as long as it waits
    at our gate."""
    metadata, spec = item["metadata"], item.get("spec") or {}
    gated = any(gate.get("name") == GATE for gate in spec.get("schedulingGates") or ())
    return {
        "kind": "Pod",
        "metadata": {**_some(metadata, _IDENTITY), "annotations": _our_annotations(metadata)},
        "spec": {
            **_some(spec, ("nodeName", "schedulingGates", *(_PLACEMENT if gated else ()))),
            "volumes": [volume for volume in spec.get("volumes") or () if _is_of_interest(volume)],
            "containers": [{"resources": {"limits": gpus}} for gpus in _gpus(spec) if gpus],
        },
        "status": {**_some(item.get("status") or {}, ("phase",)), **_milestones(item.get("status") or {})},
    }


def _shared(labels: dict[str, str]) -> dict[str, str]:
    """Keys and values once for all nodes: a node has a hundred labels, nearly the same as its neighbour."""
    return {sys.intern(key): sys.intern(value) for key, value in labels.items()}


def _some(source: Object, keys: Iterable[str]) -> Object:
    return {key: source[key] for key in keys if key in source}


def _our_annotations(metadata: Object) -> Object:
    written: dict[str, Any] = metadata.get("annotations") or {}
    return {key: value for key, value in written.items() if key.startswith(f"{GROUP}/")}


def _gpus(spec: Object) -> Iterable[Object]:
    """Of each container; extended resources have limits only."""
    for container in spec.get("containers") or ():
        limits = (container.get("resources") or {}).get("limits") or {}
        yield {key: value for key, value in limits.items() if is_gpu(key)}


def is_gpu(resource: str) -> bool:
    """Whether a resource's name is one of GPUs, or of parts of them (MIG)."""
    return resource.endswith("/gpu") or resource.startswith("nvidia.com/mig-")


def _milestones(status: Object) -> Object:
    """Those that were reached, and how far the container is that waits for weights."""
    reached = [each for each in status.get("conditions") or () if each.get("type") in _MILESTONES]
    ours = [each for each in status.get("initContainerStatuses") or () if each.get("name") == WAIT_CONTAINER]
    kept: Object = {}
    if reached:
        kept["conditions"] = [_some(each, ("type", "status", "lastTransitionTime")) for each in reached]
    if ended := [_some(each["state"], ("terminated",)) for each in ours if "terminated" in (each.get("state") or {})]:
        kept["initContainerStatuses"] = [{"name": WAIT_CONTAINER, "state": state} for state in ended]
    return kept


def _readiness(item: Object) -> list[Object]:
    conditions = (item.get("status") or {}).get("conditions") or ()
    return [_some(each, ("type", "status")) for each in conditions if each.get("type") == "Ready"]


def _is_of_interest(volume: Object) -> bool:
    return "persistentVolumeClaim" in volume or (volume.get("csi") or {}).get("driver") == DRIVER
