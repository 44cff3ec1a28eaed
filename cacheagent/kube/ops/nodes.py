"""How far each node is with one version of a model, and why not further. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from cacheagent.kube.objects import NodeModelStatus
from cacheagent.kube.plan.facts import ready_agents
from cacheagent.kube.plan.views import CacheNode
from cacheagent.kube.plan.world import World

State = Literal["ready", "fetching", "resolving", "pending", "failed", "no agent"]

TELLING: Final = 0.05
"""The part of a model after which its rate is believed. Chosen."""
_ORDER: Final[tuple[State, ...]] = ("failed", "no agent", "pending", "resolving", "fetching", "ready")
"""The ones that somebody should look at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """One node as to one version. `why`: a sentence, empty when it is ready. `code`: of the error where it failed.
    `max_origin_bytes_per_s`: what a warm-up lets it take from the origin; 0 for no limit."""

    node: str
    state: State
    digest: str = ""
    bytes_done: int = 0
    size_bytes: int = 0
    rate_bytes_per_s: int = 0
    mounted: int = 0
    why: str = ""
    code: str = ""
    max_origin_bytes_per_s: int = 0

    @property
    def left_s(self) -> float:
        """Seconds at this rate; negative when nobody can tell: the first pieces say little about a rate."""
        if self.state != "fetching" or self.rate_bytes_per_s <= 0 or self.bytes_done < self.size_bytes * TELLING:
            return -1.0
        return max(0, self.size_bytes - self.bytes_done) / self.rate_bytes_per_s


def node_states(world: World, model: str, digest: str, nodes: Iterable[CacheNode]) -> tuple[NodeState, ...]:
    """Those furthest behind first."""
    ready, present = ready_agents(world), frozenset(agent.node for agent in world.agents.values())
    found = [
        replace(
            _state(world, find_entry(node, model, digest), digest, node, (ready, present)),
            max_origin_bytes_per_s=told.max_origin_bytes_per_s if (told := node.assigned.get(model)) else 0,
        )
        for node in nodes
    ]
    return tuple(sorted(found, key=_rank))


def _state(
    world: World,
    entry: NodeModelStatus | None,
    digest: str,
    node: CacheNode,
    agents: tuple[frozenset[str], frozenset[str]],
) -> NodeState:
    """Ready means verified, published and mountable: what its agent says of this very version."""
    state = NodeState(node=node.name, state="pending", digest=digest)
    if entry is not None:
        state = replace(
            state,
            bytes_done=entry.bytes_done,
            size_bytes=entry.size_bytes,
            mounted=entry.mounted,
        )
    if digest and digest in node.ready:
        return replace(state, state="ready")
    kind, why = _behind(world, node, entry, agents)
    kube_node = world.nodes.get(node.name)
    if kube_node is not None and kube_node.unschedulable:
        why = f"{why} (the node is cordoned)"
    rate = entry.rate_bytes_per_s if entry is not None and kind == "fetching" else 0
    code = entry.code if entry is not None and kind == "failed" else ""
    return replace(state, state=kind, why=why, rate_bytes_per_s=rate, code=code)


def find_entry(node: CacheNode, model: str, digest: str) -> NodeModelStatus | None:
    """What a node says of this version, else of the model before it knew one."""
    entries = node.entries.get(model, ())
    same = next((each for each in entries if each.digest == digest), None)
    return same or next((each for each in entries if not each.digest), None)


def _behind(
    world: World, node: CacheNode, entry: NodeModelStatus | None, agents: tuple[frozenset[str], frozenset[str]]
) -> tuple[State, str]:
    ready, present = agents
    if node.name not in ready:
        kube_node = world.nodes.get(node.name)
        if kube_node is not None and not kube_node.ready:
            return "no agent", "the node is not ready"
        return "no agent", "its agent is not ready" if node.name in present else "no agent runs on it"
    if entry is None:
        return "pending", "it has not begun"
    if entry.phase == "failed":
        return "failed", entry.message or entry.code or "failed"
    if entry.phase == "ready":
        return "failed", f"withdrawn: {entry.message}"
    part = f", {entry.bytes_done / entry.size_bytes:.0%}" if entry.bytes_done and entry.size_bytes else ""
    return entry.phase, entry.message or f"{entry.phase}{part}"


def _rank(state: NodeState) -> tuple[int, float, str]:
    part = state.bytes_done / state.size_bytes if state.size_bytes else 0.0
    return _ORDER.index(state.state), part, state.node
