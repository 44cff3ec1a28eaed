"""Nodes in a tree of small cohorts, in one process with a test; their workers and peers' processes are real."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Self

from cacheagent.cohorts import Circle, circle_of, tree_of
from cacheagent.config import Address, PeersSettings
from cacheagent.member import Member
from cacheagent.node import Node, open_node
from cacheagent.peers.keys import NodeKey, load_or_make_keys
from cacheagent.peers.swarm import NodePeers
from cacheagent.spec import ModelSpec, SourceSpec
from cacheagent.store import Record
from cacheagent.transfer.pool import TransferConfig
from tests.fakes.cache import NO_FLOOR
from tests.fakes.origin import Origin
from tests.fakes.peer_agents import MODEL, free_port
from tests.fakes.peer_exchange import CountingObserver

COHORT = 3
NODES = 9
FULL = [(level, COHORT) for level in (1, 2, 3)]
"""Level and size of each cohort."""


class Counted(CountingObserver):
    """Bytes from other nodes, and of them those from other zones."""

    def __init__(self) -> None:
        super().__init__()
        self.received = self.crossed = 0

    def peer_received(self, size_bytes: int, *, crosses: bool) -> None:
        self.received += size_bytes
        self.crossed += size_bytes if crosses else 0


class CohortNodes:
    """Nodes that know each other from a list, in cohorts of three at most. Each that is begun fetches the model and
    goes on to serve it until it is killed, or until the end. Their names are such that all cohorts are full, and one
    hangs below the other; with `zones`, of each node in order, they are any."""

    def __init__(self, directory: Path, origin: Origin, zones: str = "") -> None:
        self.spec = ModelSpec(name=MODEL, source=SourceSpec(uri=f"{origin.url}/{MODEL}/"), kind="tree")
        self.digest = ""
        self.members: tuple[Member, ...] = ()
        self.ports: dict[str, int] = {}
        self.keys: dict[str, NodeKey] = {}
        self.counted: dict[str, Counted] = {}
        self.records: dict[str, asyncio.Future[Record]] = {}
        self._zones = zones
        self._directory = directory
        self._lives: dict[str, asyncio.Task[None]] = {}

    @property
    def levels(self) -> list[list[str]]:
        """Names of the nodes at each level of the tree, from the root on."""
        found = defaultdict(list)
        for member in self.members:
            found[self.circle(member.name).level].append(member.name)
        return [found[level] for level in sorted(found)]

    def circle(self, name: str) -> Circle:
        """As the node sees itself."""
        return circle_of(self.members, name, size=COHORT, salt=self.digest)

    def begin(self, *names: str) -> None:
        """These, or all, at the same time."""
        for name in names or self.ports:
            self.records[name] = asyncio.get_running_loop().create_future()
            self._lives[name] = asyncio.create_task(self._live(name))

    async def wait(self, *names: str) -> Record:
        """Until the model is published on these, or on all; one of their records."""
        records = await asyncio.gather(*(self.records[name] for name in names or self.records))
        return records[0]

    async def kill(self, *names: str) -> None:
        """All that they have open is closed, in the middle of whatever they do."""
        for name in names:
            self._lives[name].cancel()
            self.records.pop(name).cancel()
        await asyncio.gather(*(self._lives.pop(name) for name in names), return_exceptions=True)

    def files(self, name: str) -> dict[str, bytes]:
        """What a node has published."""
        path = self._directory / name / "models" / self.digest.replace(":", "-") / "files"
        return {f"{MODEL}/{file.relative_to(path)}": file.read_bytes() for file in path.rglob("*") if file.is_file()}

    async def __aenter__(self) -> Self:
        self.digest = await self._look_up()
        names = self._names()
        self.ports = {name: free_port() for name in names}
        own = {name: load_or_make_keys(self._directory / name) for name in names}
        self.keys = {name: keys.current for name, keys in own.items()}
        self.counted = {name: Counted() for name in names}
        self.members = tuple(
            Member(name=name, address=f"127.0.0.1:{self.ports[name]}", key=own[name].public_text, zone=zone)
            for name, zone in zip(names, self._zones or [""] * NODES, strict=True)
        )
        return self

    async def _look_up(self) -> str:
        """The model's digest, of the origin, by a node that is none of them."""
        async with open_node(self._directory / "stranger", store_policy=NO_FLOOR) as node:
            return (await node.flights.look_up(self.spec)).digest

    def _names(self) -> list[str]:
        for attempt in count():
            names = [f"n{attempt}-{number}" for number in range(len(self._zones) or NODES)]
            tree = tree_of(dict.fromkeys(names, ""), size=COHORT, salt=self.digest)
            if self._zones or sorted((each.level, len(each.names)) for each in tree.values()) == FULL:
                return names
        raise AssertionError

    async def __aexit__(self, *error: object) -> None:
        with suppress(asyncio.CancelledError):
            await self.kill(*self._lives)

    async def _live(self, name: str) -> None:
        own = PeersSettings(listen=Address(f"127.0.0.1:{self.ports[name]}"), name=name, members=self.members)
        path = self._directory / name
        peers = NodePeers(own, path, self.counted[name], lambda _store, _digest: False, cohort=COHORT)
        transfer = TransferConfig(workers=1)
        async with open_node(path, store_policy=NO_FLOOR, transfer=transfer, open_peers=peers.open) as node:
            serving = asyncio.create_task(peers.run())
            try:
                self.records[name].set_result(await self._fetch(node))
                await serving
            finally:
                serving.cancel()

    async def _fetch(self, node: Node) -> Record:
        return await node.flights.ensure(self.spec)
