"""Which nodes exchange which versions with each other: the ModelCachePeers. Pure.

Versions that the same nodes are to have share their lists, and a list has 64 nodes at most; where there are several,
they hang together in a tree, and each says who is above and below. So a node that comes, goes or gets another address
is one write for each pool of models that it has, and with a tree four at most, however many models and nodes there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from cacheagent.cohorts import tree_of
from cacheagent.kube.api import MODEL_CACHE_PEERS, Object
from cacheagent.kube.names import API_VERSION, MANAGED_BY, MANAGED_BY_US, member_label, short_digest
from cacheagent.kube.objects import ModelCachePeersSpec, PeerBelow, PeerMember
from cacheagent.kube.plan.assign import Assignment
from cacheagent.kube.plan.changes import STEERS, TIDIES, Change, merge_patch
from cacheagent.kube.plan.digests import is_digest
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.views import CacheNode, Node
from cacheagent.kube.plan.world import World
from cacheagent.member import Member

GATHER_S: Final = 1.0
"""A list that was just written is written again after so long: nodes come, and roll, in flocks. Chosen: short against
a download, and against what an agent waits for its list."""
ZONE: Final = "topology.kubernetes.io/zone"


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
    zones = {name: world.nodes[name].meta.labels.get(ZONE, "") for name in {each for names in groups for each in names}}
    found = {name: _member(nodes[name], world.nodes[name], zone) for name, zone in zones.items()}
    reachable = {name: member for name, member in found.items() if member is not None}
    wanted: dict[str, ModelCachePeersSpec] = {}
    for names, digests in groups.items():
        wanted |= _lists(digests, {name: zones[name] for name in names}, reachable)
    return Sharing(
        shared=frozenset(digest for digests in groups.values() for digest in digests),
        changes=tuple(_changes(wanted, world)),
    )


def _lists(
    digests: tuple[str, ...], zones: Mapping[str, str], reachable: Mapping[str, PeerMember]
) -> dict[str, ModelCachePeersSpec]:
    """Of the same nodes, by name. One where nobody can be reached is none, and who is below it has nobody above."""
    tree = tree_of(zones)
    members = {
        key: tuple(reachable[name] for name in cohort.names if name in reachable) for key, cohort in tree.items()
    }
    below: defaultdict[str, list[PeerBelow]] = defaultdict(list)
    for key, cohort in tree.items():
        if cohort.above is not None:
            below[cohort.above] += [PeerBelow(name=member.name, key=member.key) for member in members[key]]
    nodes = 1 << (len(zones) - 1).bit_length() if len(tree) > 1 else 0  # rounded up: one more changes no list
    return {
        _name(digests, key): ModelCachePeersSpec(
            digests=digests,
            members=members[key],
            nodes=nodes,
            level=cohort.level,
            above=members[cohort.above] if cohort.above is not None else (),
            below=tuple(sorted(below[key], key=lambda each: each.name)),
        )
        for key, cohort in tree.items()
        if members[key]
    }


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


def _member(node: CacheNode, kube_node: Node, zone: str) -> PeerMember | None:
    """None for a node that can't be reached: its agent has not said how, or the Node is not ready."""
    status = node.status
    if not status.public_key or not kube_node.ready:
        return None
    try:
        Member(name=node.name, address=status.peer_address, key=status.public_key)
    except ValueError:  # whatever an agent writes must not stop the plan
        return None
    return PeerMember(name=node.name, address=status.peer_address, key=status.public_key, zone=zone)


def _name(digests: Sequence[str], cohort: str) -> str:
    """By the first of the versions, which stays the first whatever nodes come and go."""
    return f"{short_digest(digests[0])}-{cohort}" if cohort else short_digest(digests[0])


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
            news = merge_patch(msgspec.to_builtins(spec), msgspec.to_builtins(present.spec))
            body = {"spec": news, "metadata": {"labels": merge_patch(labels, present.meta.labels)}}
            yield Change(
                verb="patch", resource=MODEL_CACHE_PEERS, name=name, body=body, urgency=STEERS, lazy_s=GATHER_S
            )
    for name, peers in world.peers.items():
        if name not in wanted and not peers.meta.deleting:
            yield Change(verb="delete", resource=MODEL_CACHE_PEERS, name=name, uid=peers.meta.uid, urgency=TIDIES)
