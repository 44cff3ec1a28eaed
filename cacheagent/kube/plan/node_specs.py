"""What each node is told: the ModelCacheNode's spec. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from cacheagent.kube.api import MODEL_CACHE_NODES, Object
from cacheagent.kube.names import API_VERSION
from cacheagent.kube.objects import ModelCacheNodeSpec, NodeModel
from cacheagent.kube.plan.assign import Assignment
from cacheagent.kube.plan.changes import STEERS, TIDIES, Change, Unused
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.holds import Hold
from cacheagent.kube.plan.on_demand import Demand
from cacheagent.kube.plan.resolve import Resolutions
from cacheagent.kube.plan.views import CacheNode, Node
from cacheagent.kube.plan.world import World


def plan_existence(world: World) -> list[Change]:
    """A ModelCacheNode for every node on which an agent's pod is. It belongs to the Node and goes with it; one of a
    Node of the same name that is gone makes room for the new one."""
    changes = []
    with_agent = {agent.node for agent in world.agents.values() if agent.node}
    for name, node in world.nodes.items():
        present = world.cache_nodes.get(name)
        if present is None:
            if name in with_agent and not node.meta.deleting:
                changes.append(_made(node))
        elif present.meta.deleting or node.meta.uid in present.meta.owners:
            continue
        elif present.meta.owners:
            changes.append(
                Change(verb="delete", resource=MODEL_CACHE_NODES, name=name, uid=present.meta.uid, urgency=STEERS)
            )
        else:
            owners = {"metadata": {"ownerReferences": [_owner(node)]}}
            changes.append(Change(verb="patch", resource=MODEL_CACHE_NODES, name=name, body=owners))
    return changes


def _made(node: Node) -> Change:
    body: Object = {
        "apiVersion": API_VERSION,
        "kind": MODEL_CACHE_NODES.kind,
        "metadata": {"name": node.meta.name, "ownerReferences": [_owner(node)]},
        "spec": {},
    }
    return Change(verb="create", resource=MODEL_CACHE_NODES, name=node.meta.name, body=body)


def _owner(node: Node) -> Object:
    return {"apiVersion": "v1", "kind": "Node", "name": node.meta.name, "uid": node.meta.uid}


def plan_specs(  # noqa: PLR0913, PLR0917 - each is the outcome of another rule
    facts: Mapping[str, Facts],
    nodes: Mapping[str, CacheNode],
    assignment: Assignment,
    resolutions: Resolutions,
    demand: Demand,
    holds: Mapping[str, Hold],
    shared: frozenset[str] = frozenset(),
) -> list[Change]:
    """A patch for every node whose spec is not what it shall be. `shared`: versions that nodes exchange."""
    told = {name: _told(each, shared) for name, each in facts.items()}
    written = {id(each): msgspec.to_builtins(each) for each in told.values()}
    asked = {(resolution.asked, name) for name, resolution in resolutions.asked()}
    changes = []
    for name, node in nodes.items():
        models = tuple(
            _for_node(told[model], facts[model], (name, model), asked, assignment) for model in assignment.by_node[name]
        )
        denied = demand.refusals.get(name)
        refused = tuple(sorted(denied, key=lambda each: (each.model, each.namespace))) if denied else ()
        hold = holds[name]
        wanted = ModelCacheNodeSpec(models=models, refusals=refused, held=hold.held)
        if wanted != node.spec:
            changes.append(_patch(node, wanted, written))
        elif hold.unless_used is not None:  # letting go is a write of its own, after everything else
            changes.append(_patch(node, msgspec.structs.replace(wanted, held=hold.released), written, hold.unless_used))
    return changes


def _told(facts: Facts, shared: frozenset[str]) -> NodeModel:
    spec = facts.model.spec
    digest = facts.digest or spec.digest  # before it is pinned, so that nobody fetches what is not accepted
    return NodeModel(
        name=facts.name,
        source=spec.source,
        kind=spec.kind,
        digest=digest,
        revision=facts.model.status.revision if facts.digest else "",
        content_digest=spec.content_digest,
        policy=spec.policy,
        priority=spec.priority,
        pin=spec.pin,
        page_cache=spec.page_cache,
        namespaces=facts.namespaces,
        versions=facts.previous,
        peers=spec.peers,
        shared=digest in shared,
    )


def _for_node(
    told: NodeModel, facts: Facts, pair: tuple[str, str], asked: set[tuple[str, str]], assignment: Assignment
) -> NodeModel:
    """The same value for nearly every node, so that comparing thousands of specs is cheap."""
    is_asked, is_demanded, share = pair in asked, pair in assignment.on_demand, assignment.origin_shares.get(pair, 0)
    if not is_asked and not is_demanded and not share:
        return told
    return msgspec.structs.replace(
        told,
        resolve=facts.question if is_asked else "",
        on_demand=is_demanded,
        max_origin_bytes_per_s=share,
    )


def _patch(
    node: CacheNode, wanted: ModelCacheNodeSpec, written: Mapping[int, Any], unless_used: Unused | None = None
) -> Change:
    """`written`: models that many nodes share, as JSON, by identity."""
    spec: Object = {}
    if wanted.models != node.spec.models:
        spec["models"] = [written.get(id(model)) or msgspec.to_builtins(model) for model in wanted.models]
    if wanted.refusals != node.spec.refusals:
        spec["refusals"] = msgspec.to_builtins(wanted.refusals)
    if wanted.held != node.spec.held:
        spec["held"] = list(wanted.held)
    return Change(
        verb="patch",
        resource=MODEL_CACHE_NODES,
        name=node.name,
        body={"spec": spec},
        urgency=STEERS if unless_used is None else TIDIES,
        unless_used=unless_used,
    )
