"""Which models belong on which nodes, and why: selectors, living warm-ups, demand, and what is in use there. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.on_demand import LINGER_S, Demand
from cacheagent.kube.plan.selectors import has_labels
from cacheagent.kube.plan.views import CacheNode, Node, Warmup
from cacheagent.kube.plan.world import World


@dataclass(slots=True)
class Assignment:
    """`by_node`: names of models, sorted. `by_model`: nodes, sorted by name. `on_demand`: (node, model) that nothing
    but demand keeps there. `last_wanted`: as in `Memory`. `deadline`: when demand next ends (seconds since the epoch).
    `origin_shares`: see `rates`, bytes/s by (node, model).
    """

    by_node: dict[str, list[str]] = field(default_factory=dict)
    by_model: dict[str, list[CacheNode]] = field(default_factory=dict)
    on_demand: set[tuple[str, str]] = field(default_factory=set)
    last_wanted: dict[tuple[str, str], float] = field(default_factory=dict)
    deadline: float = float("inf")
    origin_shares: dict[tuple[str, str], int] = field(default_factory=dict)


def assign(
    world: World, facts: Mapping[str, Facts], nodes: Mapping[str, CacheNode], demand: Demand, now: float
) -> Assignment:
    """The whole assignment. Models go through in order of their names, so each node's list is sorted."""
    found = Assignment(by_node={name: [] for name in nodes})
    warmups = living_warmups(world, now)
    kept = _kept_by_demand(world, nodes, demand)
    for name, each in facts.items():
        chosen = _planned_nodes(each, nodes, world.nodes, warmups.get(name, ()))
        for node in kept.get(name, ()):
            if node not in chosen and _stays(found, world, nodes[node], name, demand, now):
                chosen.add(node)
                found.on_demand.add((node, name))
        found.by_model[name] = [nodes[node] for node in sorted(chosen)]
        for node in chosen:
            found.by_node[node].append(name)
    return found


def living_warmups(world: World, now: float) -> dict[str, list[Warmup]]:
    """By model."""
    living: dict[str, list[Warmup]] = defaultdict(list)
    for warmup in world.warmups.values():
        if not warmup.meta.deleting and now < warmup.expires_at:
            living[warmup.spec.model].append(warmup)
    return living


def _planned_nodes(
    facts: Facts, nodes: Mapping[str, CacheNode], all_nodes: Mapping[str, Node], warmups: Iterable[Warmup]
) -> set[str]:
    spec = facts.model.spec
    selectors: list[Mapping[str, str]] = [spec.node_selector] if spec.prefetch else []
    chosen: set[str] = set()
    for warmup in warmups:
        selectors += warmed_selector(warmup, facts)
        chosen.update(name for name in warmup.spec.nodes if name in nodes)
    for selector in selectors:
        if selector:
            chosen.update(name for name in nodes if has_labels(selector, all_nodes[name].meta.labels))
        else:
            chosen.update(nodes)
    return chosen


def warmed_nodes(
    warmup: Warmup, facts: Facts, nodes: Mapping[str, CacheNode], all_nodes: Mapping[str, Node]
) -> list[CacheNode]:
    """Those that have the model because of this warm-up, in the order of `nodes`."""
    selectors = warmed_selector(warmup, facts)
    return [
        node
        for name, node in nodes.items()
        if name in warmup.spec.nodes or any(has_labels(each, all_nodes[name].meta.labels) for each in selectors)
    ]


def warmed_selector(warmup: Warmup, facts: Facts) -> list[Mapping[str, str]]:
    """The selector of a warm-up (none or one): its own, or the model's where it says nothing at all."""
    if warmup.spec.node_selector is not None:
        return [warmup.spec.node_selector]
    return [] if warmup.spec.nodes else [facts.model.spec.node_selector]


def _kept_by_demand(world: World, nodes: Mapping[str, CacheNode], demand: Demand) -> dict[str, set[str]]:
    """By model, the nodes on which something may keep it: pods that ask, volumes that are mounted, demand that was."""
    kept: dict[str, set[str]] = defaultdict(set)
    for name, model in demand.asked:
        kept[model].add(name)
    for name, node in nodes.items():
        for model in node.mounted:
            if model in node.assigned:
                kept[model].add(name)
        for model, assigned in node.assigned.items():
            if assigned.on_demand:
                kept[model].add(name)
    return kept


def _stays(found: Assignment, world: World, node: CacheNode, model: str, demand: Demand, now: float) -> bool:
    pair = (node.name, model)
    if pair in demand.asked or model in node.mounted:
        found.last_wanted[pair] = now
        return True
    # Another controller's memory is not ours: the time begins anew, and what the node's spec says holds until then.
    last = world.memory.last_wanted.get(pair, now)
    found.last_wanted[pair] = last
    if now < last + LINGER_S:
        found.deadline = min(found.deadline, last + LINGER_S)
        return True
    del found.last_wanted[pair]
    return False
