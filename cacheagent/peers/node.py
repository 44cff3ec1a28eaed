"""What this node is among its peers: the parts that every exchange uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cacheagent.peers.keys import NodeKey
from cacheagent.peers.member import Membership
from cacheagent.peers.observer import PeerObserver
from cacheagent.peers.quiet import Quiet
from cacheagent.peers.receiving import Receiving
from cacheagent.peers.service import Service
from cacheagent.store import Store


@dataclass(frozen=True, kw_only=True)
class PeerNode:
    """`name`: this node's, among the members. `origin_share`: what this node may take from the origin of a digest, in
    bytes a second; 0: no limit. `quiet`: what the log says of members."""

    name: str
    key: NodeKey
    service: Service
    receiving: Receiving
    store: Store
    membership: Membership
    observer: PeerObserver
    origin_share: Callable[[str], int] = lambda _digest: 0
    quiet: Quiet = field(default_factory=Quiet)
