"""Versions that PersistentVolumes point at stay on a node until nobody can be on the way to them. Pure.

Two phases: a version is held before its label invites pods, and the label is taken away, and pods are looked for,
before the agent may evict it. What the objects say is the state, so another controller goes on where this one stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cacheagent.kube.names import version_label
from cacheagent.kube.plan.assign import Assignment
from cacheagent.kube.plan.changes import Unused
from cacheagent.kube.plan.digests import is_digest
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.views import CacheNode, Node
from cacheagent.kube.plan.world import InUse, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """`held`: what is not evicted. `released`: the same once `unless_used` was seen to hold. `leaving`: versions whose
    label goes (or is gone) because the agent wants their room."""

    held: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    unless_used: Unused | None = None
    leaving: frozenset[str] = frozenset()


def plan_holds(
    world: World,
    facts: Mapping[str, Facts],
    nodes: Mapping[str, CacheNode],
    assignment: Assignment,
    claims: Mapping[str, set[tuple[str, str]]],
    used: set[InUse],
) -> dict[str, Hold]:
    """By node. `claims`: those that stand for a version, `used`: see `volumes`."""
    nothing = Hold()
    if not claims and not any(node.spec.held or node.status.evicting for node in nodes.values()):
        return dict.fromkeys(nodes, nothing)
    holds = {}
    for name, node in nodes.items():
        here = node.on_disk | {facts[model].digest for model in assignment.by_node[name]}
        versions = sorted(digest for digest in claims if digest in here)
        holds[name] = _hold(node, world.nodes[name], versions, claims, used)
    return holds


def _hold(
    node: CacheNode, kube_node: Node, versions: list[str], claims: Mapping[str, set[tuple[str, str]]], used: set[InUse]
) -> Hold:
    leaving = {
        digest
        for digest in node.status.evicting
        if is_digest(digest) and not any((node.name, *claim) in used for claim in claims.get(digest, ()))
    }
    unlabelled = {digest for digest in leaving if version_label(digest) not in kube_node.ours}
    held = tuple(digest for digest in versions if digest not in unlabelled or digest in node.spec.held)
    ending = unlabelled.intersection(held)
    unless_used = Unused(frozenset().union(*(claims[digest] for digest in ending)), node.name) if ending else None
    return Hold(
        held=held,
        released=tuple(digest for digest in held if digest not in ending),
        unless_used=unless_used,
        leaving=frozenset(leaving),
    )
