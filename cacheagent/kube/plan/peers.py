"""Which nodes exchange which versions with each other: the ModelCachePeers. Pure.

Versions that the same nodes are to have share their lists, and a list has 64 nodes at most. So a node that comes, goes
or gets another address is one write for each pool of models that it has, however many models and nodes there are.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec

from cacheagent.kube.api import MODEL_CACHE_PEERS, Object
from cacheagent.kube.names import API_VERSION, MANAGED_BY, MANAGED_BY_US, member_label, short_digest
from cacheagent.kube.objects import ModelCachePeersSpec, PeerMember
from cacheagent.kube.plan.assign import Assignment
from cacheagent.kube.plan.changes import STEERS, TIDIES, Change, merge_patch
from cacheagent.kube.plan.digests import is_digest
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.views import CacheNode, Node
from cacheagent.kube.plan.world import World
from cacheagent.member import Member

COHORT: Final = 64
"""Nodes of one list at most: nobody talks to thousands. Each list costs the origin one copy. Chosen, not measured."""
GATHER_S: Final = 1.0
"""A list that was just written is written again after so long: nodes come, and roll, in flocks. Chosen: short against
a download, and against what an agent waits for its list."""
ZONE: Final = "topology.kubernetes.io/zone"
_BITS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """`shared`: versions that several nodes are to have and to exchange. `changes`: of the lists."""

    shared: frozenset[str] = frozenset()
    changes: tuple[Change, ...] = ()


def plan_peers(
    world: World, facts: Mapping[str, Facts], nodes: Mapping[str, CacheNode], assignment: Assignment
) -> Sharing:
    """The lists as they shall be, against those that are there."""
    groups = _groups(facts, assignment) if world.settings.peers else {}
    reachable: dict[str, PeerMember] = {}
    wanted: dict[str, ModelCachePeersSpec] = {}
    for names, digests in groups.items():
        cohorts = cohorts_of(names)
        total = 1 << (len(names) - 1).bit_length() if len(cohorts) > 1 else 0  # rounded up: one more changes no list
        for prefix, cohort in cohorts.items():
            for name in cohort:
                if name not in reachable and (member := _member(nodes[name], world.nodes[name])) is not None:
                    reachable[name] = member
            members = tuple(reachable[name] for name in sorted(cohort) if name in reachable)
            if members:
                wanted[_name(digests, prefix)] = ModelCachePeersSpec(digests=digests, members=members, nodes=total)
    return Sharing(
        shared=frozenset(digest for digests in groups.values() for digest in digests),
        changes=tuple(_changes(wanted, world)),
    )


def _groups(facts: Mapping[str, Facts], assignment: Assignment) -> dict[tuple[str, ...], tuple[str, ...]]:
    """By the nodes that are to have them, the versions; both sorted. Without those that one node alone is to have."""
    holders: dict[str, tuple[str, ...]] = {}
    never = set()
    for name, each in facts.items():
        digest = each.digest or each.model.spec.digest
        if not is_digest(digest):
            continue
        if each.model.spec.peers == "never":
            never.add(digest)
        names = tuple(node.name for node in assignment.by_model.get(name, ()))
        also = holders.get(digest)
        holders[digest] = names if also is None else tuple(sorted({*names, *also}))
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for digest in sorted(holders.keys() - never):
        if len(holders[digest]) > 1:
            groups[holders[digest]].append(digest)
    return {names: tuple(digests) for names, digests in groups.items()}


def cohorts_of(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parts of at most 64 names, by what the bits of their names' hashes begin with: a part that is too large is parted
    by the next bit. So the same names come to the same parts, whatever was before, and one name more or less changes
    its own part alone, unless that has to be parted or can be made one with its other half.
    """
    parts: dict[str, tuple[str, ...]] = {}
    open_ended: list[tuple[str, Sequence[str]]] = [("", names)]
    while open_ended:
        prefix, inside = open_ended.pop()
        if len(inside) <= COHORT or len(prefix) == _BITS:
            if inside:
                parts[prefix] = tuple(inside)
            continue
        bit = _BITS - 1 - len(prefix)
        halves: tuple[list[str], list[str]] = [], []
        for name in inside:
            halves[_hash(name) >> bit & 1].append(name)
        open_ended += [(f"{prefix}{half}", inside) for half, inside in enumerate(halves)]
    return parts


@lru_cache(maxsize=16384)  # a plan asks it of every node, again and again
def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[: _BITS // 8], "big")


def _member(node: CacheNode, kube_node: Node) -> PeerMember | None:
    """None for a node that can't be reached: its agent has not said how, or the Node is not ready."""
    status = node.status
    if not status.public_key or not kube_node.ready:
        return None
    try:
        Member(name=node.name, address=status.peer_address, key=status.public_key)
    except ValueError:  # whatever an agent writes must not stop the plan
        return None
    return PeerMember(
        name=node.name,
        address=status.peer_address,
        key=status.public_key,
        zone=kube_node.meta.labels.get(ZONE, ""),
    )


def _name(digests: Sequence[str], prefix: str) -> str:
    """By the first of the versions, which stays the first whatever nodes come and go."""
    return f"{short_digest(digests[0])}-{prefix}" if prefix else short_digest(digests[0])


def _changes(wanted: Mapping[str, ModelCachePeersSpec], world: World) -> Iterable[Change]:
    """New lists go before those that they replace: who reads both finds the same in them."""
    for name, spec in wanted.items():
        labels = {MANAGED_BY: MANAGED_BY_US, **{member_label(member.name): "" for member in spec.members}}
        present = world.peers.get(name)
        if present is None:
            body: Object = {
                "apiVersion": API_VERSION,
                "kind": MODEL_CACHE_PEERS.kind,
                "metadata": {"name": name, "labels": labels},
                "spec": msgspec.to_builtins(spec),
            }
            yield Change(verb="create", resource=MODEL_CACHE_PEERS, name=name, body=body, urgency=STEERS)
        elif not present.meta.deleting and (spec != present.spec or labels != present.meta.labels):
            body = {"spec": msgspec.to_builtins(spec), "metadata": {"labels": merge_patch(labels, present.meta.labels)}}
            yield Change(
                verb="patch", resource=MODEL_CACHE_PEERS, name=name, body=body, urgency=STEERS, lazy_s=GATHER_S
            )
    for name, peers in world.peers.items():
        if name not in wanted and not peers.meta.deleting:
            yield Change(verb="delete", resource=MODEL_CACHE_PEERS, name=name, uid=peers.meta.uid, urgency=TIDIES)
