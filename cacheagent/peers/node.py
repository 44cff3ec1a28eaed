"""What this node is among its peers: the parts that every exchange uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cacheagent.member import Member
from cacheagent.peers.budget import share
from cacheagent.peers.homes import cohort
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.member import Membership
from cacheagent.peers.observer import PeerObserver
from cacheagent.peers.quiet import Quiet
from cacheagent.peers.receiving import Receiving
from cacheagent.peers.service import Service
from cacheagent.store import Store


@dataclass(frozen=True, kw_only=True)
class PeerNode:
    """`name`: this node's, among the members. `origin_budget`: see `PeersSettings`, in bytes a second. `quiet`: what
    the log says of members."""

    name: str
    key: NodeKey
    service: Service
    receiving: Receiving
    store: Store
    membership: Membership
    observer: PeerObserver
    origin_budget: int = 0
    quiet: Quiet = field(default_factory=Quiet)

    def origin_share(self, digest: str) -> int:
        """What this node may take from the origin of a digest, in bytes a second; 0: no limit. All members count, also
        those in other cohorts, which take a copy of their own."""
        names = {member.name for member in self.membership.members(digest)}
        return share(self.origin_budget, len(names | {self.name}) if names else 0)

    def members(self, digest: str) -> Sequence[Member]:
        """With whom this node exchanges a digest, itself included."""
        return cohort(self.membership.members(digest), self.name, digest)
