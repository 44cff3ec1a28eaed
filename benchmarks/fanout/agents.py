"""The agents: the real program, one a node, each with a cache and a socket of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cacheagent
from benchmarks import engine
from benchmarks.cgroup import Cgroup, new_cgroup
from benchmarks.fanout.cell import Cell, Source
from benchmarks.fanout.fleet import FetchFailed, Ground, kill
from benchmarks.fanout.identities import peer_settings
from benchmarks.pacing import Link
from benchmarks.servers import nginx
from benchmarks.target import REGION, Target
from cacheagent.api.client import AgentClient
from cacheagent.demo.child import running_child
from cacheagent.errors import AgentUnavailable

PIECES = Path(__file__).parent / "pieces"
PRODUCT = Path(cacheagent.__file__).parent.parent
START_TIMEOUT_S = 180.0
WARMUP_TIMEOUT_S = 120.0


class Agents:
    """A fleet of agents. Everything of node k is in `<workdir>/n<k>`."""

    def __init__(self, folders: Sequence[Path], groups: Sequence[Cgroup]) -> None:
        self.groups = groups
        self._folders = folders

    def fetch(self, counted: Sequence[int], timeout_s: float) -> Mapping[int, float]:
        """All sockets are connected before; the order goes to all in the same turn of the loop."""
        return asyncio.run(self._fetch("model", counted, timeout_s))

    def warm_up(self) -> None:
        """Every agent has fetched something from the origin: its libraries are loaded, as they are on a real node."""
        asyncio.run(self._fetch("warmup", range(len(self._folders)), WARMUP_TIMEOUT_S))

    def find(self, node: int, path: str) -> Path:
        """In the tree that is published; the other one is the small model's."""
        return self._published(node) / "files" / path

    def digest(self, node: int) -> str:
        """The name of that tree: with the members it says which piece has which home."""
        return self._published(node).name

    def version(self) -> str:
        """Of the product."""
        return engine.engine().version()

    def _published(self, node: int) -> Path:
        versions = (self._folders[node] / "root" / "models").iterdir()
        return max(versions, key=lambda version: len(list((version / "files").iterdir())))

    async def _fetch(self, name: str, counted: Sequence[int], timeout_s: float) -> dict[int, float]:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(AgentClient(each / "root/agent.sock")) for each in self._folders]
            await asyncio.gather(*map(_answers, clients, self._folders))
            start = time.monotonic()
            orders = [
                asyncio.create_task(_ensure(client, name, node, start, timeout_s))
                for node, client in enumerate(clients)
            ]
            try:
                return {node: await orders[node] for node in counted}
            finally:
                for order in orders:
                    order.cancel()
                await asyncio.gather(*orders, return_exceptions=True)


@contextlib.contextmanager
def agents(ground: Ground) -> Iterator[Agents]:
    """N agents that run, have fetched the small model, and wait. The origin runs as long."""
    cell = ground.cell
    with contextlib.ExitStack() as stack:
        target, warmup = (stack.enter_context(_origin(ground, name)) for name in ("dataset", "warmup"))
        folders = [ground.workdir / place.port for place in ground.network.nodes]
        roots = [folder / "root" for folder in folders]
        peers = peer_settings(ground.network.nodes, roots) if cell.variant == "peers" else [None] * cell.nodes
        groups = []
        for node, (place, folder, settings) in enumerate(zip(ground.network.nodes, folders, peers, strict=True)):
            folder.mkdir(exist_ok=True)
            config = folder / "models.yaml"
            config.write_text(
                json.dumps(_config(folder / "root", target, warmup, cell.source, settings))
            )  # JSON is YAML
            group = stack.enter_context(new_cgroup(place.port))
            command = place.entering([engine.PROGRAM, "agent", "--config", str(config)])
            environment = target.environment() | _environment(cell, node)
            child = running_child(group.entering(command), log_path=folder / "log", environment=environment)
            stack.enter_context(child)
            groups.append(group)
        stack.callback(kill, groups)  # first of all: nobody needs a polite end
        fleet = Agents(folders, groups)
        fleet.warm_up()
        yield fleet


@contextlib.contextmanager
def _origin(ground: Ground, name: str) -> Iterator[Target]:
    scratch = ground.scratch / name
    scratch.mkdir()
    origin = ground.network.origin
    link = Link(namespace=origin.namespace, interface=origin.port, server_address=origin.address)
    thin = ground.cell.connection_bytes_per_s
    with nginx(getattr(ground, name), scratch, link=link, connection_bytes_per_s=thin) as server:
        yield server.target


def _config(root: Path, target: Target, warmup: Target, source: Source, peers: dict[str, Any] | None) -> dict[str, Any]:
    models = [
        {"name": "model", "keep_warm": False, "source": _source(target, source)},
        {"name": "warmup", "keep_warm": False, "source": _source(warmup, source)},
    ]
    config: dict[str, Any] = {"root": str(root), "listen": "", "store": {"floor": "1GiB"}, "models": models}
    return config | ({"peers": peers} if peers else {})


def _source(target: Target, source: Source) -> dict[str, str]:
    if source == "sha256":
        return {"uri": target.base_url}
    return {"uri": target.s3_uri, "endpoint": target.endpoint, "region": REGION}


def _environment(cell: Cell, node: int) -> dict[str, str]:
    """Of the same product as ours; what is changed in it is in `PIECES`."""
    lies = {"FANOUT_LIES": "1"} if cell.scenario == "lying" and node == cell.disturbed else {}
    sizes = {"FANOUT_PIECE_BYTES": str(cell.piece_bytes), "FANOUT_COHORT": str(cell.cohort)}
    return {"PYTHONPATH": f"{PIECES}{os.pathsep}{PRODUCT}"} | sizes | lies


async def _answers(client: AgentClient, folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            await client.version()
            return
        except AgentUnavailable as error:
            if time.monotonic() > deadline:
                said = (folder / "log").read_text(errors="replace")[-1000:]
                raise FetchFailed(f"{folder.name} does not answer: {said}") from error
            await asyncio.sleep(0.1)


async def _ensure(client: AgentClient, name: str, node: int, start: float, timeout_s: float) -> float:
    status = await client.ensure(name, wait_s=timeout_s)
    took_s = time.monotonic() - start
    if status.phase != "ready":
        raise FetchFailed(f"node {node + 1} after {took_s:.1f} s: {status.phase} {status.message}")
    return took_s
