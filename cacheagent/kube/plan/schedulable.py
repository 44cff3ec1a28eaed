"""Whether a node could ever take a pod, as far as labels and taints say: not resources, which come and go. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cacheagent.kube.names import COLD_TAINT
from cacheagent.kube.plan.selectors import all_hold, has_labels
from cacheagent.kube.plan.views import Node, Pod

_REPELS: Final = frozenset({"NoSchedule", "NoExecute"})


def could_take(node: Node, pod: Pod) -> bool:
    """By `nodeSelector`, required node affinity, taints and cordons. Our own taint passes by itself and counts for
    nothing."""
    if node.unschedulable or node.meta.deleting:
        return False
    if not has_labels(pod.spec.get("nodeSelector") or {}, node.meta.labels):
        return False
    if not _has_affinity(pod.spec.get("affinity") or {}, node):
        return False
    tolerations = pod.spec.get("tolerations") or ()
    return all(
        any(_tolerates(toleration, taint) for toleration in tolerations)
        for taint in node.taints
        if taint.get("effect") in _REPELS and taint.get("key") != COLD_TAINT
    )


def _has_affinity(affinity: Mapping[str, Any], node: Node) -> bool:
    required = (affinity.get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    return any(_matches(term, node) for term in required.get("nodeSelectorTerms") or ())


def _matches(term: Mapping[str, Any], node: Node) -> bool:
    """A term without any requirement matches nothing."""
    labels, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not labels and not fields:
        return False
    return all_hold(labels, node.meta.labels) and all_hold(fields, {"metadata.name": node.meta.name})


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("operator") == "Exists":
        return not toleration.get("key") or toleration["key"] == taint.get("key")
    return bool(toleration.get("key") == taint.get("key") and toleration.get("value", "") == taint.get("value", ""))
