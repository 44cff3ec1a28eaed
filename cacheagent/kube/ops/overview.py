"""All models and all nodes at one moment, for people and for machines."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import msgspec

from cacheagent.kube.api import KubeApi
from cacheagent.kube.objects import NodeUsage
from cacheagent.kube.ops.nodes import NodeState, node_states
from cacheagent.kube.ops.orders import find_model
from cacheagent.kube.ops.progress import find_condition
from cacheagent.kube.ops.view import read_world
from cacheagent.kube.plan import World
from cacheagent.kube.plan.assign import living_warmups
from cacheagent.kube.plan.facts import Facts, facts_of, living_cache_nodes, ready_agents
from cacheagent.kube.plan.views import CacheNode


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """`nodes`: those that shall have it; `others`: those that have this version and need not. `state`: one sentence.
    `since`: when its version was pinned (RFC 3339). `limits`: of those warm-ups that have one, bytes/s from the origin.
    `origin_digest`: what the origin held when somebody last looked; empty if nobody did since it was pinned."""

    name: str
    uri: str
    digest: str
    since: str
    size_bytes: int
    state: str
    nodes: tuple[NodeState, ...]
    others: tuple[str, ...]
    warmups: tuple[str, ...]
    limits: dict[str, int]
    origin_digest: str

    @property
    def ready(self) -> int:
        """Of the nodes that shall have it."""
        return sum(node.state == "ready" for node in self.nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCache:
    """`message`: what is wrong, or what it works on; empty at rest."""

    node: str
    usage: NodeUsage
    rate_bytes_per_s: int
    ready: int
    assigned: int
    models: tuple[str, ...]
    message: str
    reported_at: str


async def look_at_models(api: KubeApi) -> list[ModelView]:
    """Sorted by name. Raises KubeError."""
    world = await read_world(api)
    return [model_view(world, facts, time.time()) for facts in facts_of(world).values()]


async def look_at_model(api: KubeApi, name: str) -> ModelView:
    """Raises KubeNotFound, KubeError."""
    await find_model(api, name)
    world = await read_world(api)
    return model_view(world, facts_of(world)[name], time.time())


async def look_at_nodes(api: KubeApi) -> list[NodeCache]:
    """Sorted by name. Raises KubeError."""
    world = await read_world(api)
    ready = ready_agents(world)
    return [node_cache(node, has_agent=name in ready) for name, node in living_cache_nodes(world).items()]


def model_view(world: World, facts: Facts, now: float) -> ModelView:
    """One model. The nodes are those that the controller has assigned it to."""
    nodes = living_cache_nodes(world)
    assigned = [node for node in nodes.values() if facts.name in node.assigned]
    others = [
        name
        for name, node in nodes.items()
        if facts.name not in node.assigned and facts.digest and facts.digest in node.on_disk
    ]
    warmups = living_warmups(world, now).get(facts.name, ())
    conditions = facts.model.status.conditions
    resolved = find_condition(conditions, "Resolved")
    return ModelView(
        name=facts.name,
        uri=facts.model.spec.source.uri,
        digest=facts.digest,
        since=resolved.last_transition_time if resolved is not None and resolved.status == "True" else "",
        size_bytes=facts.model.status.size_bytes,
        state=state_of(facts),
        nodes=node_states(world, facts.name, facts.digest, assigned),
        others=tuple(others),
        warmups=tuple(warmup.meta.name for warmup in warmups),
        limits={warmup.meta.name: warmup.origin_rate for warmup in warmups if warmup.origin_rate},
        origin_digest=facts.model.status.origin_digest,
    )


def state_of(facts: Facts) -> str:
    """What somebody should know first: what is broken, else how far it is."""
    conditions = facts.model.status.conditions
    for kind, bad in (("Degraded", "True"), ("Resolved", "False"), ("Resolved", "Unknown")):
        found = find_condition(conditions, kind)
        if found is not None and found.status == bad:
            return f"{found.reason}: {found.message}" if found.message else found.reason
    ready = find_condition(conditions, "Ready")
    if ready is None:
        return "the controller has not looked at it yet"
    return "ready" if ready.status == "True" else f"{ready.reason}: {ready.message}"


def node_cache(node: CacheNode, *, has_agent: bool) -> NodeCache:
    """One node's cache."""
    entries = [entry for name in node.assigned for entry in node.entries.get(name, ())]
    failed = [entry for entry in entries if entry.phase == "failed"]
    busy = [entry for entry in entries if entry.phase in {"fetching", "resolving"}]
    message = ""
    if not node.reported:
        message = "its agent has never reported"
    elif not has_agent:
        message = f"its agent is not ready; these figures are of {node.status.reported_at}"
    elif failed:
        message = f"{failed[0].name}: {failed[0].message or failed[0].code}"
    elif busy:
        message = f"{busy[0].name}: {busy[0].message or busy[0].phase}"
    ready = sum(any(entry.phase == "ready" for entry in node.entries.get(name, ())) for name in node.assigned)
    return NodeCache(
        node=node.name,
        usage=node.status.usage,
        rate_bytes_per_s=sum(entry.rate_bytes_per_s for entry in entries),
        ready=ready,
        assigned=len(node.assigned),
        models=tuple(node.assigned),
        message=message,
        reported_at=node.status.reported_at,
    )


def model_json(view: ModelView) -> dict[str, Any]:
    """For machines."""
    told: dict[str, Any] = msgspec.to_builtins(view)
    return told | {"ready": view.ready}


def node_cache_json(cache: NodeCache) -> dict[str, Any]:
    """For machines: every figure, also those that are nothing."""
    usage = {name: getattr(cache.usage, name) for name in NodeUsage.__struct_fields__}
    told: dict[str, Any] = msgspec.to_builtins(cache)
    return told | {"usage": usage}
