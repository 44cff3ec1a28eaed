"""How far a warm-up is: counts, bytes, the nodes that are behind, and whether waiting for it makes sense. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cacheagent.errors import CacheAgentError, OriginWrong, PolicyRefused, SourceChanged, VersionMoved
from cacheagent.kube.objects import Condition, NodeModelStatus
from cacheagent.kube.ops.nodes import NodeState, node_states
from cacheagent.kube.plan.assign import warmed_nodes
from cacheagent.kube.plan.facts import Facts, facts_of, living_cache_nodes
from cacheagent.kube.plan.resolve import SAME_EVERYWHERE, failure_to_resolve
from cacheagent.kube.plan.views import Warmup
from cacheagent.kube.plan.world import World

NEXT: Final = "--refresh warms what the origin holds now; --pinned goes on with the nodes that have the old version"
MOVED: Final = frozenset({VersionMoved.code, SourceChanged.code})
POLICY: Final = frozenset({PolicyRefused.code, "pickle-refused"})


class OriginMoved(OriginWrong):
    """The origin holds another version than the one that is pinned, so nodes that lack it can't get it any more."""

    code = "origin-moved"


class WarmupGone(CacheAgentError):
    """Somebody deleted the warm-up, or its model, or its time is over."""

    code = "warm-up-gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`nodes`: those that shall have the version, furthest behind first. `wanted`: how many of them must be ready.
    `resolved`: whether it is known what the source is; `since`: when that was settled (RFC 3339). `max_origin_rate`:
    bytes/s that all of them together may take from the origin; 0 for no limit."""

    model: str
    warmup: str
    digest: str
    resolved: bool
    since: str
    size_bytes: int
    nodes: tuple[NodeState, ...]
    share: float
    max_origin_rate: int = 0

    @property
    def ready(self) -> int:
        """Nodes that have it, verified and published."""
        return sum(node.state == "ready" for node in self.nodes)

    @property
    def wanted(self) -> int:
        """Nodes that must be ready: the share of them, rounded up, at least one."""
        return max(1, math.ceil(len(self.nodes) * self.share - 1e-9))

    @property
    def is_done(self) -> bool:
        """A warm-up of no nodes is never done: a pipeline that waits for nothing would not notice."""
        return self.resolved and bool(self.digest) and self.ready >= self.wanted

    @property
    def missing(self) -> tuple[NodeState, ...]:
        """Nodes that are not ready."""
        return tuple(node for node in self.nodes if node.state != "ready")

    @property
    def bytes_total(self) -> int:
        """On all nodes."""
        return self.size_bytes * len(self.nodes)

    @property
    def bytes_done(self) -> int:
        """On all nodes; of those that are ready, all."""
        return sum(self.size_bytes if node.state == "ready" else node.bytes_done for node in self.nodes)

    @property
    def rate_bytes_per_s(self) -> int:
        """Of all nodes together."""
        return sum(node.rate_bytes_per_s for node in self.nodes)

    @property
    def left_s(self) -> float:
        """Seconds until enough nodes are ready at the present rates; negative when nobody can tell."""
        needed = self.wanted - self.ready
        times = sorted(node.left_s for node in self.nodes if node.left_s >= 0)
        return times[needed - 1] if 0 < needed <= len(times) else -1.0


def progress_of(world: World, warmup: Warmup, share: float) -> Progress:
    """Raises WarmupGone where the model is not there (any more)."""
    facts = facts_of(world).get(warmup.spec.model)
    if facts is None:
        raise WarmupGone(f"there is no ModelCache {warmup.spec.model!r} any more", hint="create it, then warm it again")
    chosen = warmed_nodes(warmup, facts, living_cache_nodes(world), world.nodes)
    digest = facts.digest if facts.resolved else ""
    state = find_condition(facts.model.status.conditions, "Resolved")
    return Progress(
        model=facts.name,
        warmup=warmup.meta.name,
        digest=digest,
        resolved=facts.resolved,
        since=state.last_transition_time if state is not None and state.status == "True" else "",
        size_bytes=facts.model.status.size_bytes if digest else 0,
        nodes=node_states(world, facts.name, digest, chosen),
        share=share,
        max_origin_rate=warmup.origin_rate,
    )


def check_source(world: World, model: str) -> None:
    """Raises what makes waiting pointless: PolicyRefused, or OriginWrong with what the agent says of the source.

    Failures that may pass (an origin that is away) are none: agents go on trying, and so does whoever waits.
    """
    facts = facts_of(world).get(model)
    if facts is None or facts.resolved:
        return
    state = find_condition(facts.model.status.conditions, "Resolved")
    if state is not None and state.reason == "DigestMismatch" and facts.model.spec.digest:
        raise OriginMoved(f"{model}: {state.message}", hint="nothing else is accepted as long as spec.digest says so")
    failed = source_failure(world, facts)
    if failed is None:
        return
    node, entry = failed
    if entry.code in SAME_EVERYWHERE or entry.code in POLICY:
        kind = PolicyRefused if entry.code in POLICY else OriginWrong
        raise kind(
            f"{model}: the source is not usable: {node} says: {entry.message or entry.code}",
            hint="mend the source or spec.source of the ModelCache; the agents go on trying meanwhile",
        )


def source_failure(world: World, facts: Facts) -> tuple[str, NodeModelStatus] | None:
    """The node that is asked what the source is, and why it can't say."""
    if not facts.question:
        return None
    for name, node in living_cache_nodes(world).items():
        assigned = node.assigned.get(facts.name)
        if assigned is not None and assigned.resolve == facts.question and node.heard:
            entry = failure_to_resolve(facts, node)
            if entry is not None:
                return name, entry
    return None


def check_look(facts: Facts, since: str, origin: str) -> None:
    """Raises OriginMoved when the origin was seen to hold another version than the one that is pinned."""
    if origin and origin != facts.digest:
        raise OriginMoved(
            f"{facts.name}: the origin has moved since {facts.digest} was pinned{f' at {since}' if since else ''}: "
            f"it holds {origin} now",
            hint=NEXT,
        )


def check_origin(progress: Progress) -> None:
    """Raises OriginMoved when nodes report that the pinned version is not at the origin any more."""
    moved = [node for node in progress.nodes if node.state == "failed" and node.code in MOVED]
    if moved:
        since = f" at {progress.since}" if progress.since else ""
        raise OriginMoved(
            f"{progress.model}: the origin has moved since {progress.digest[7:19]} was pinned{since}: "
            f"{moved[0].node} says: {moved[0].why}",
            hint=NEXT,
        )


def find_condition(conditions: Sequence[Condition], kind: str) -> Condition | None:
    """One condition, or None."""
    return next((each for each in conditions if each.type == kind), None)
