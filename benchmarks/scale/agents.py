"""A process of many stub agents: `python -m benchmarks.scale.agents FILE`, where FILE holds an `Order`.

Answers each line on its standard input with what happened so far, as one line of JSON.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from benchmarks.scale.fleet import conditions
from benchmarks.scale.stub import Pretence, Share, Stub
from cacheagent.kube.access import find_access
from cacheagent.kube.api import NODES, KubeError
from cacheagent.kube.client import KubeClient

STARTING: Final = 16
"""Agents that have not reported yet. They come with a rollout; all at once they would only measure how this one process
and an API server on the same CPUs give up on each other."""


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`heartbeat_s`: how often each kubelet writes its Node's status (in reality every 300 s)."""

    kubeconfig: str
    kubelets_kubeconfig: str
    nodes: tuple[str, ...]
    pretence: Pretence
    heartbeat_s: float


class Done(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Since the start. `requests`: by "verb plural status"; `received_bytes`: by "verb plural", bodies after
    decompression. `ready`: on how many nodes each model is. `assigned_at`, `ready_at`: of models that take time to
    fetch, as in `Share`."""

    requests: dict[str, int] = {}
    received_bytes: dict[str, int] = {}
    heartbeats: int = 0
    ready: dict[str, int] = {}
    assigned_at: dict[str, list[float]] = {}
    ready_at: dict[str, list[float]] = {}


async def run(order: Order) -> None:
    """Until the standard input ends."""
    requests, received = Counter[str](), Counter[str]()
    kubelets = [0]
    access, other = await find_access(Path(order.kubeconfig)), await find_access(Path(order.kubelets_kubeconfig))
    # One connection a watch, as with real agents; those of single requests are kept and shared, real ones are not.
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=access.tls or True, limit=0)) as session,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=other.tls or True)) as kubelets_session,
        asyncio.TaskGroup() as group,
    ):
        api = KubeClient(
            access,
            session,
            lambda verb, plural, status: requests.update([f"{verb} {plural} {status}"]),
            lambda verb, plural, size: received.update({f"{verb} {plural}": size}),
        )
        share = Share()
        stubs = [Stub(api, name, order.pretence, share) for name in order.nodes]
        tasks: list[asyncio.Task[None]] = []
        tasks.append(group.create_task(_start(stubs, group, tasks)))
        tasks.append(group.create_task(_beat(KubeClient(other, kubelets_session), order, kubelets)))
        while await asyncio.to_thread(sys.stdin.readline):
            slow = order.pretence.fetch_s
            done = Done(
                requests=dict(requests),
                received_bytes=dict(received),
                heartbeats=kubelets[0],
                ready={model: len(times) for model, times in share.ready_at.items()},
                assigned_at={model: share.assigned_at.get(model, []) for model in slow},
                ready_at={model: share.ready_at.get(model, []) for model in slow},
            )
            sys.stdout.buffer.write(msgspec.json.encode(done) + b"\n")
            sys.stdout.buffer.flush()
        for task in tasks:
            task.cancel()


async def _start(stubs: list[Stub], group: asyncio.TaskGroup, tasks: list[asyncio.Task[None]]) -> None:
    turns = asyncio.Semaphore(STARTING)

    async def first_report(stub: Stub) -> None:
        await stub.reported()
        turns.release()

    for stub in stubs:
        await turns.acquire()
        tasks += (group.create_task(stub.run()), group.create_task(first_report(stub)))


async def _beat(kubelets: KubeClient, order: Order, count: list[int]) -> None:
    """What kubelets write of their Nodes at rest: the largest part of what the controller's watch of Nodes carries."""
    names = list(order.nodes)
    random.shuffle(names)
    while True:
        for name in names:
            await asyncio.sleep(order.heartbeat_s / len(names))
            try:
                await kubelets.patch(NODES, name, {"status": {"conditions": conditions()}}, subresource="status")
            except KubeError as error:
                print(f"heartbeat of {name}: {error}", file=sys.stderr)
            count[0] += 1


if __name__ == "__main__":
    asyncio.run(run(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Order)))
