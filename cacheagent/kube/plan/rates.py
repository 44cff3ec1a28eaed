"""What each node may take of a model from its origin while a warm-up has a limit. Pure.

A warm-up's rate is shared out among its nodes that lack the version: equally, and anew whenever one is ready, fails or
comes back. The shares never come to more than the rate. A node of several such warm-ups keeps to the smallest share.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from cacheagent.kube.plan.assign import living_warmups, warmed_nodes
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.views import CacheNode
from cacheagent.kube.plan.world import World

LEAST_RATE: Final = 1_000_000
"""A lower limit counts as this: 141 GB would take two days on a single node. Chosen."""
IDLE_PART: Final = 100
"""Nodes that fetch nothing now (no agent, or they failed and try again later) may have a hundredth together: they may
begin before we hear of it, and the others need not go slower for their sake. Chosen."""
EXACT_UP_TO: Final = 8
"""More nodes than this are counted in steps of an eighth, rounded up: else every node that is ready would have all the
others written to. At most a ninth of the rate is not given out."""


def origin_shares(
    world: World, facts: Mapping[str, Facts], nodes: Mapping[str, CacheNode], agents: frozenset[str], now: float
) -> dict[tuple[str, str], int]:
    """Bytes/s by (node, model), of every node that lacks what a limited warm-up is to bring; others have no limit."""
    shares: dict[tuple[str, str], int] = {}
    for model, warmups in living_warmups(world, now).items():
        each = facts.get(model)
        for warmup in warmups:
            if each is None or not warmup.origin_rate:
                continue
            missing = [node for node in warmed_nodes(warmup, each, nodes, world.nodes) if not _has(node, each)]
            busy = {node.name for node in missing if node.name in agents and not _failed(node, each)}
            told = share_out(max(LEAST_RATE, warmup.origin_rate), busy, {node.name for node in missing} - busy)
            for name, share in told.items():
                shares[name, model] = min(share, shares.get((name, model), share))
    return shares


def share_out(rate: int, busy: Collection[str], idle: Collection[str]) -> dict[str, int]:
    """By node, at least one byte/s each. `busy`: those that fetch or are about to."""
    aside = rate if not busy else rate // IDLE_PART if idle else 0
    shares = dict.fromkeys(idle, max(1, aside // counted(len(idle)))) if idle else {}
    if busy:
        shares |= dict.fromkeys(busy, max(1, (rate - aside) // counted(len(busy))))
    return shares


def counted(nodes: int) -> int:
    """At least so many, and the same for numbers that are near each other."""
    step = max(1, (1 << nodes.bit_length()) // (2 * EXACT_UP_TO))
    return -(-nodes // step) * step


def _has(node: CacheNode, facts: Facts) -> bool:
    return facts.resolved and bool(facts.digest) and facts.digest in node.ready


def _failed(node: CacheNode, facts: Facts) -> bool:
    entries = node.entries.get(facts.name, ())
    # One without a digest is about the source; beside one of this version it is only a look that failed.
    meant = [entry for entry in entries if entry.digest == facts.digest] or [e for e in entries if not e.digest]
    return any(entry.phase == "failed" for entry in meant)
