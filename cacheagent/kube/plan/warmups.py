"""Warm-ups: how far they are, and their end. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cacheagent.kube.api import MODEL_WARMUPS
from cacheagent.kube.objects import ModelWarmupStatus, NodeCounts
from cacheagent.kube.plan.assign import warmed_nodes
from cacheagent.kube.plan.changes import STEERS, TELLS, TIDIES, Change, merge_patch
from cacheagent.kube.plan.conditions import carried, condition, ready, states
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.status import NEWS_EVERY_S
from cacheagent.kube.plan.tally import tally
from cacheagent.kube.plan.times import written_time
from cacheagent.kube.plan.views import CacheNode, Warmup
from cacheagent.kube.plan.world import World


def plan_warmups(
    world: World,
    facts: Mapping[str, Facts],
    nodes: Mapping[str, CacheNode],
    agents: frozenset[str],
    now: float,
) -> tuple[list[Change], float]:
    """Their states; those whose time is over are removed. And when the next one's time is over."""
    changes, deadline = [], float("inf")
    for name, warmup in sorted(world.warmups.items()):
        if warmup.meta.deleting:
            continue
        if now >= warmup.expires_at:
            changes.append(
                Change(verb="delete", resource=MODEL_WARMUPS, name=name, uid=warmup.meta.uid, urgency=TIDIES)
            )
            continue
        deadline = min(deadline, warmup.expires_at)
        wanted = _warmup_status(warmup, facts.get(warmup.spec.model), nodes, world, agents, now)
        if wanted != warmup.status:
            is_news = states(wanted.conditions) != states(warmup.status.conditions)
            changes.append(
                Change(
                    verb="patch",
                    resource=MODEL_WARMUPS,
                    name=name,
                    subresource="status",
                    body={"status": merge_patch(msgspec.to_builtins(wanted), msgspec.to_builtins(warmup.status))},
                    urgency=STEERS if is_news else TELLS,
                    lazy_s=0.0 if is_news else NEWS_EVERY_S,
                )
            )
    return changes, deadline


def _warmup_status(
    warmup: Warmup,
    facts: Facts | None,
    nodes: Mapping[str, CacheNode],
    world: World,
    agents: frozenset[str],
    now: float,
) -> ModelWarmupStatus:
    generation = warmup.meta.generation
    if facts is None:
        why = f"there is no ModelCache {warmup.spec.model[:100]!r}"
        state, digest, counts = condition("Ready", "False", "UnknownModel", why), "", NodeCounts()
    else:
        chosen = warmed_nodes(warmup, facts, nodes, world.nodes)
        counted = tally(facts.name, facts.digest, chosen, agents)
        state, digest, counts = ready(facts, counted), facts.digest, counted.counts
        if not facts.resolved and state.status == "True":  # the version before the one that it is to warm
            state = condition("Ready", "False", "NotResolved", "the source is being looked at")
        if not counts.assigned:
            state = condition("Ready", "False", "NoNodes", "no cache node matches")
    return ModelWarmupStatus(
        observed_generation=generation,
        conditions=(carried(state, warmup.status.conditions, generation, now),),
        digest=digest,
        nodes=counts,
        expires_at=written_time(warmup.expires_at),
    )
