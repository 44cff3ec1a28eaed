"""The cold taint: taken off a node when everything required is there, or at a deadline; put back when it comes back
empty.

Put on by the node pool. `--register-with-taints` does not touch a Node that exists, so a node whose disk was wiped
comes back without it: its agent then reports another incarnation of its directory, and the taint is put on here. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cacheagent.kube.api import NODES
from cacheagent.kube.names import COLD_SINCE, COLD_TAINT, INCARNATION
from cacheagent.kube.plan.changes import Note, Regarding
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.times import seconds_of, written_time
from cacheagent.kube.plan.views import CacheNode, Node
from cacheagent.kube.plan.world import PlanSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Coldness:
    """What to write on a Node. `taints`: all of them, None to leave them. `deadline`: seconds since the epoch."""

    taints: list[Mapping[str, Any]] | None = None
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    deadline: float = float("inf")


_WARM = Coldness()


def plan_cold(
    settings: PlanSettings, node: Node, cache_node: CacheNode | None, required: Iterable[Facts], now: float
) -> Coldness:
    """`required`: models that belong on this node and without which it stays cold."""
    is_cold = any(taint.get("key") == COLD_TAINT for taint in node.taints)
    if not settings.cold or (cache_node is None and not is_cold):
        return _WARM
    reported = cache_node is not None and cache_node.reported
    missing = [
        each.name for each in required if cache_node is None or not each.digest or each.digest not in cache_node.ready
    ]
    incarnation = cache_node.status.incarnation if cache_node else ""
    if is_cold:
        return _of_cold(settings, node, missing, incarnation if reported else None, now)
    if not reported:
        return _WARM
    known = node.meta.annotations.get(INCARNATION, "")
    if not incarnation or incarnation == known:
        return _WARM
    if not known or not missing:
        return Coldness(annotations={INCARNATION: incarnation})
    taint = {"key": COLD_TAINT, "effect": "NoSchedule"}
    return Coldness(
        taints=[*node.taints, taint],
        annotations={COLD_SINCE: written_time(now), INCARNATION: None},
        notes=(_note(node, "Normal", "Cold", f"came back with an empty cache; waits for {_names(missing)}"),),
    )


def _of_cold(settings: PlanSettings, node: Node, missing: list[str], incarnation: str | None, now: float) -> Coldness:
    written = node.meta.annotations.get(COLD_SINCE, "")
    since = seconds_of(written) or now
    deadline = since + settings.cold_deadline_s
    warm = {COLD_SINCE: None} if written else {}
    taints = [taint for taint in node.taints if taint.get("key") != COLD_TAINT]
    if incarnation is not None and not missing:
        return Coldness(
            taints=taints,
            annotations={**warm, **({INCARNATION: incarnation} if incarnation else {})},
            notes=(_note(node, "Normal", "Warm", "all required models are ready"),),
        )
    if now >= deadline:
        lacking = _names(missing) if incarnation is not None else "a report of the cache's agent"
        return Coldness(
            taints=taints,
            annotations={**warm, **({INCARNATION: incarnation} if incarnation else {})},
            notes=(_note(node, "Warning", "ColdDeadline", f"taken into use without {lacking}: the deadline passed"),),
        )
    return Coldness(annotations={} if written else {COLD_SINCE: written_time(now)}, deadline=deadline)


def _names(missing: list[str]) -> str:
    return ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")


def _note(node: Node, kind: Any, reason: str, message: str) -> Note:
    return Note(Regarding(NODES, node.meta.name, "", node.meta.uid), kind, reason, message)
