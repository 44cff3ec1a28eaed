"""One run: a link, a server, subscribers, and what the server's process took."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from benchmarks.cgroup import Cgroup, CpuTime, new_cgroup
from benchmarks.fanout.watch import busy_s
from benchmarks.pacing import Link, link
from benchmarks.sending.cell import Cell, Run
from benchmarks.sending.model import Model
from benchmarks.sending.serving import SERVER, plain, product
from benchmarks.sending.subscribers import receive_to_nowhere, receiving_cpu_s, subscribers
from cacheagent.peers.keys import NodeKey

SETTLE_S = 1.0
"""Processes that were started have loaded what they need, and compute nothing."""


class Took(msgspec.Struct, kw_only=True):
    """Filled when the block ends. Seconds."""

    wall_s: float = 0.0
    cpu: CpuTime = CpuTime(user_s=0.0, system_s=0.0)
    receiving_cpu_s: float = 0.0
    machine_cpu: float = 0.0


def measure(cell: Cell, model: Model, folder: Path) -> Run:
    """`folder`: empty, on the disk that subscribers write to."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with link(cell.rate_bytes_per_s or None) as to_server, new_cgroup("send") as group:
        if cell.sends == "plain":
            took = _measure_plain(cell, model, group, to_server)
        else:
            took = asyncio.run(_measure_product(cell, model, group, to_server, folder))
    return Run(
        cell=cell,
        at=at,
        sent_bytes=cell.subscribers * model.length(cell.pieces),
        wall_s=round(took.wall_s, 3),
        cpu_user_s=took.cpu.user_s,
        cpu_system_s=took.cpu.system_s,
        receiving_cpu_s=round(took.receiving_cpu_s, 2),
        machine_cpu=round(took.machine_cpu, 3),
    )


def _measure_plain(cell: Cell, model: Model, group: Cgroup, to_server: Link) -> Took:
    with plain(model, model.length(cell.pieces), group, to_server, cell.subscribers) as address:
        _prepare(cell, model)
        with _counted(group) as took:
            received = receive_to_nowhere(address, cell.subscribers)
    if received != cell.subscribers * model.length(cell.pieces):
        raise RuntimeError(f"{cell}: {received} bytes came")
    return took


async def _measure_product(cell: Cell, model: Model, group: Cgroup, to_server: Link, folder: Path) -> Took:
    names = [f"n{number}" for number in range(1, cell.subscribers + 1)]
    keys = {name: NodeKey(os.urandom(32)) for name in (SERVER, *names)}
    theirs = {name: keys[name] for name in names}
    async with (
        product(model, keys, group, to_server, tls=cell.tls, root=folder) as server,
        subscribers(theirs, model, folder, tls=cell.tls) as fleet,
    ):
        await asyncio.sleep(SETTLE_S)
        _prepare(cell, model)
        with _counted(group) as took:
            await asyncio.gather(*(each.fetch(server, range(cell.pieces)) for each in fleet))
    return took


def _prepare(cell: Cell, model: Model) -> None:
    os.sync()
    if cell.is_cold:
        model.forget()
    else:
        model.read()


@contextmanager
def _counted(group: Cgroup) -> Iterator[Took]:
    took = Took()
    cpu, receiving, busy, start = group.cpu_time(), receiving_cpu_s(), busy_s(), time.monotonic()
    yield took
    took.wall_s = time.monotonic() - start
    after = group.cpu_time()
    took.cpu = CpuTime(user_s=after.user_s - cpu.user_s, system_s=after.system_s - cpu.system_s)
    took.receiving_cpu_s = receiving_cpu_s() - receiving
    took.machine_cpu = (busy_s() - busy) / took.wall_s / (os.cpu_count() or 1)
