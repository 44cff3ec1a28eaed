"""The whole decision of a round: from what is there to what has to be written. Pure, and the same for the same world.

Everything is level-triggered: nothing here remembers what was written, so a round that was half carried out, or
carried out by another controller, is simply planned again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cacheagent.kube.plan.assign import Assignment, assign
from cacheagent.kube.plan.changes import Change, Note
from cacheagent.kube.plan.cold import plan_cold
from cacheagent.kube.plan.facts import Facts, facts_of, living_cache_nodes, ready_agents
from cacheagent.kube.plan.holds import Hold, plan_holds
from cacheagent.kube.plan.labels import LabelBook, plan_node, wanted_labels
from cacheagent.kube.plan.node_specs import plan_existence, plan_specs
from cacheagent.kube.plan.on_demand import demand_of, plan_uris
from cacheagent.kube.plan.peers import plan_peers
from cacheagent.kube.plan.pods import plan_pods
from cacheagent.kube.plan.rates import origin_shares
from cacheagent.kube.plan.resolve import resolve
from cacheagent.kube.plan.status import plan_status
from cacheagent.kube.plan.views import CacheNode
from cacheagent.kube.plan.volumes import claims_in_use, plan_volumes
from cacheagent.kube.plan.warmups import plan_warmups
from cacheagent.kube.plan.world import Memory, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`changes`: most urgent first. `notices`: what people are told although nothing is written. `deadline`: when to
    plan again though nothing changed (seconds since the epoch, infinite for never). `memory`: for the next plan.
    """

    changes: tuple[Change, ...]
    notices: tuple[Note, ...]
    deadline: float
    memory: Memory


def plan(world: World, now: float) -> Plan:
    """What has to be written so that the world is as it shall be. `now`: seconds since the epoch."""
    facts, nodes, agents = facts_of(world), living_cache_nodes(world), ready_agents(world)
    demand = demand_of(world, facts, nodes)
    assignment = assign(world, facts, nodes, demand, now)
    assignment.origin_shares = origin_shares(world, facts, nodes, agents, now)
    resolutions = resolve(world, facts.values(), assignment.by_model, agents, now)
    used = claims_in_use(world)
    volumes = plan_volumes(world, facts, used, now)
    sharing = plan_peers(world, facts, nodes, assignment)
    holds = plan_holds(world, facts, nodes, assignment, volumes.claims, used)
    node_changes, cold_deadline = _plan_nodes(world, facts, nodes, assignment, (holds, volumes.claims), now)
    pods = plan_pods(world, facts, nodes, assignment.by_node, now)
    warmups, warmup_deadline = plan_warmups(world, facts, nodes, agents, now)
    changes = [
        *pods.changes,
        *plan_uris(world, facts, demand, now),
        *plan_existence(world),
        *sharing.changes,  # before the specs, so that who is told of a model finds its list
        *plan_specs(facts, nodes, assignment, resolutions, demand, holds, sharing.shared),
        *volumes.changes,
        *node_changes,
        *plan_status(world, facts, assignment, resolutions, agents, now),
        *warmups,
    ]
    in_use = {what: until for what, until in world.memory.in_use.items() if now < until}
    deadlines = (
        assignment.deadline,
        resolutions.deadline,
        volumes.deadline,
        cold_deadline,
        pods.deadline,
        warmup_deadline,
    )
    return Plan(
        changes=tuple(sorted(changes, key=lambda change: change.urgency)),
        notices=tuple(pods.notices),
        deadline=min(*deadlines, *in_use.values()),
        memory=Memory(
            last_wanted=assignment.last_wanted,
            failed=resolutions.failed,
            waiting=frozenset(pods.waiting),
            superseded=volumes.superseded,
            in_use=in_use,
            fresh=False,
        ),
    )


def _plan_nodes(
    world: World,
    facts: Mapping[str, Facts],
    nodes: Mapping[str, CacheNode],
    assignment: Assignment,
    held: tuple[Mapping[str, Hold], Mapping[str, set[tuple[str, str]]]],
    now: float,
) -> tuple[list[Change], float]:
    """Labels and taints of all Nodes, and when the next cold one runs out of time."""
    book, (holds, claims) = LabelBook(facts), held
    required = [name for name, each in facts.items() if each.model.spec.required]
    changes, deadline = [], float("inf")
    for name, kube_node in world.nodes.items():
        if kube_node.meta.deleting:
            continue
        node = nodes.get(name)
        labels = wanted_labels(book, node, kube_node, holds[name], claims) if node is not None else kube_node.ours
        assigned = assignment.by_node.get(name, ()) if required else ()
        needed = [facts[model] for model in required if model in assigned and (name, model) not in assignment.on_demand]
        cold = plan_cold(world.settings, kube_node, node, needed, now)
        deadline = min(deadline, cold.deadline)
        if change := plan_node(kube_node, labels, cold):
            changes.append(change)
    return changes, deadline
