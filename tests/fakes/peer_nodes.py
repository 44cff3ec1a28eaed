"""Two engines that know each other as peers, in one process with a test; their workers and peers' processes are
real."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from cacheagent.config import Address, PeersSettings
from cacheagent.member import Member
from cacheagent.node import Node, open_node
from cacheagent.peers.keys import load_or_make_keys
from cacheagent.peers.swarm import NodePeers
from cacheagent.transfer.pool import TransferConfig
from tests.fakes.cache import NO_FLOOR
from tests.fakes.peer_agents import free_port
from tests.fakes.peer_exchange import CountingObserver

NAMES = ("n0", "n1")


class Received(CountingObserver):
    """Counts bytes from the other node."""

    bytes = 0

    def peer_received(self, size_bytes: int, *, crosses: bool) -> None:
        self.bytes += size_bytes


def open_nodes(
    directory: Path, received: dict[str, Received], **settings: Any
) -> list[AbstractAsyncContextManager[Node]]:
    """Two engines that know each other, in this process; workers and peers' processes are real."""
    keys = {name: load_or_make_keys(directory / name) for name in NAMES}
    ports = {name: free_port() for name in NAMES}
    members = tuple(Member(name=name, address=f"127.0.0.1:{ports[name]}", key=keys[name].public_text) for name in NAMES)
    nodes: list[AbstractAsyncContextManager[Node]] = []
    for name in NAMES:
        own = PeersSettings(listen=Address(f"127.0.0.1:{ports[name]}"), name=name, members=members, **settings)
        peers = NodePeers(own, directory / name, received[name], lambda _store, _digest: False)
        transfer = TransferConfig(workers=1)
        nodes.append(open_node(directory / name, store_policy=NO_FLOOR, transfer=transfer, open_peers=peers.open))
    return nodes
