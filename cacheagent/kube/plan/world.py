"""Everything a plan looks at: the objects, what the administrator set, and what only this process remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cacheagent.kube.plan.views import (
    AgentPod,
    CacheNode,
    Claim,
    Meta,
    Model,
    Node,
    Peers,
    Pod,
    Volume,
    Warmup,
)
from cacheagent.kube.uris import AllowList

IN_USE_FOR_S: Final = 60.0
"""How long it is believed that something is in use after pods were found that use it. Chosen: a round of asking a
minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """`host_root`: the cache directory on the nodes. `cold`: whether the cold taint is ours to take away and to put
    back; `cold_deadline_s`: after so long it is taken away whatever is missing. `uri_idle_s`: a ModelCache that a URI
    made is removed when nobody used it for so long. `peers`: whether nodes are told of each other.
    """

    host_root: str = "/var/lib/cacheagent"
    allow_list: AllowList = field(default_factory=AllowList)
    cold: bool = False
    cold_deadline_s: float = 1800.0
    uri_idle_s: float = 86400.0
    peers: bool = True


InUse = tuple[str, str, str]
"""(node, namespace, claim): pods bound to that node use it; with an empty node, any pods do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a plan leaves for the next one. Losing it (another leader) costs time, never correctness. Times are seconds
    since the epoch.

    `last_wanted`: when a pod last asked for or used (node, model). `failed`: when (model, token, node) failed to
    resolve. `waiting`: uids of pods that were seen waiting on their node. `superseded`: since when a claim (namespace,
    name) is not wanted. `in_use`: until when something is taken as in use. `fresh`: nothing was planned yet.
    """

    last_wanted: Mapping[tuple[str, str], float] = field(default_factory=dict)
    failed: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()
    superseded: Mapping[tuple[str, str], float] = field(default_factory=dict)
    in_use: Mapping[InUse, float] = field(default_factory=dict)
    fresh: bool = True

    def found_in_use(self, what: frozenset[InUse], now: float) -> Memory:
        """With these taken as in use for a while."""
        return replace(self, in_use={**self.in_use, **dict.fromkeys(what, now + IN_USE_FOR_S)})


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The objects by name; pods by uid; claims by (namespace, name). `agents`: pods of the agent by their own uid."""

    models: Mapping[str, Model] = field(default_factory=dict)
    cache_nodes: Mapping[str, CacheNode] = field(default_factory=dict)
    warmups: Mapping[str, Warmup] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    agents: Mapping[str, AgentPod] = field(default_factory=dict)
    pods: Mapping[str, Pod] = field(default_factory=dict)
    namespaces: Mapping[str, Meta] = field(default_factory=dict)
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    claims: Mapping[tuple[str, str], Claim] = field(default_factory=dict)
    peers: Mapping[str, Peers] = field(default_factory=dict)
    settings: PlanSettings = PlanSettings()
    memory: Memory = Memory()
