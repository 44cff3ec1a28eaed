"""One run: a network, a fleet, everybody told at once, everything counted, the bytes compared."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from benchmarks.datasets import Dataset, blake3_of, build_checkpoint
from benchmarks.fanout.agents import agents
from benchmarks.fanout.aria2 import aria2
from benchmarks.fanout.cell import Cell, Moment, Run
from benchmarks.fanout.fleet import FetchFailed, Fleet, Ground
from benchmarks.fanout.network import network
from benchmarks.fanout.shaping import shape
from benchmarks.fanout.turns import Turns
from benchmarks.fanout.watch import Look, Watcher, busy_s, cpu_by_program
from benchmarks.measure import drop_page_cache
from benchmarks.target import BUCKET

SHARDS = 8
WARMUP_BYTES = 4 << 20
COMPARED_NODES = 2
MOMENT_S = 0.5
SLOW = 0.1
FLEETS: dict[str, Callable[[Ground], AbstractContextManager[Fleet]]] = {
    "direct": agents,
    "peers": agents,
    "aria2": aria2,
}


@contextlib.contextmanager
def datasets(size_bytes: int) -> Iterator[tuple[Dataset, Dataset]]:
    """The model and something tiny, in memory."""
    with tempfile.TemporaryDirectory(prefix="cacheagent-fanout-", dir="/dev/shm") as folder:
        docroot = Path(folder) / BUCKET
        yield (
            build_checkpoint(docroot / "model", shards=SHARDS, size_bytes=size_bytes),
            build_checkpoint(docroot / "warmup", shards=1, size_bytes=WARMUP_BYTES),
        )


def measure(cell: Cell, data: tuple[Dataset, Dataset], workdir: Path, turns: Turns, logs: Path | None = None) -> Run:
    """Set up beside others, measure alone, take down, compare. A run that failed has its reason. `logs`: where
    those of all nodes are kept.
    """
    senders = cell.nodes + 1
    node_link = shape(cell.rate_bytes_per_s, senders)
    origin_link = shape(cell.origin_rate_bytes_per_s, senders)
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="caf", dir=workdir)))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="caf", dir="/dev/shm")))
        with turns.working():
            made = stack.enter_context(network(cell.nodes, node_link=node_link, origin_link=origin_link, tcp=cell.tcp))
            ground = Ground(cell=cell, network=made, dataset=data[0], warmup=data[1], workdir=home, scratch=scratch)
            fleet = stack.enter_context(FLEETS[cell.variant](ground))
            if cell.scenario == "slow" and cell.disturbed is not None:
                made.reshape(made.nodes[cell.disturbed], shape(cell.rate_bytes_per_s * SLOW, senders))
        with turns.measuring():
            drop_page_cache()
            run = _measured(cell, ground, fleet)
        if logs:
            _keep_logs(home, logs)
        with turns.working():
            return run if run.failure else compared(run, ground.dataset, fleet)


def _keep_logs(home: Path, logs: Path) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    for log in home.glob("*/log"):
        shutil.copy(log, logs / f"{log.parent.name}.log")


def _measured(cell: Cell, ground: Ground, fleet: Fleet) -> Run:
    counted = [node for node in range(cell.nodes) if node != cell.disturbed]
    programs, cpu_before = cpu_by_program(fleet.groups), _cpu_s(fleet)
    at, busy, start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), busy_s(), time.monotonic()
    times: Mapping[int, float] = {}
    failure = ""
    with Watcher(ground.network, fleet.groups) as watcher, _disturbance(cell, fleet):
        try:
            times = fleet.fetch(counted, _patience_s(cell))
        except FetchFailed as error:
            failure = str(error)
    wall_s, machine_s, cpu_s = time.monotonic() - start, busy_s() - busy, _cpu_s(fleet) - cpu_before
    spent = {name: round(s - programs.get(name, 0), 2) for name, s in cpu_by_program(fleet.groups).items()}
    looks, pss_bytes = watcher.seen()
    moments = tuple(moments_of(looks, cell.nodes))
    nodes = [looks[-1].traffic[place.port].since(looks[0].traffic[place.port]) for place in ground.network.nodes]
    return Run(
        cell=cell,
        version=fleet.version(),
        at=at,
        times_s=tuple(round(times[node], 3) for node in sorted(times)),
        origin_bytes=moments[-1].origin_sent,
        received_bytes=sum(node.received for node in nodes),
        sent_bytes=sum(node.sent for node in nodes),
        cpu_s=round(cpu_s, 2),
        cpu_by_program_s=spent,
        machine_cpu=round(machine_s / wall_s / (os.cpu_count() or 1), 3),
        pss_bytes=pss_bytes,
        moments=moments,
        failure=failure,
        digest="" if failure else fleet.digest(counted[0]),
    )


def moments_of(looks: Sequence[Look], nodes: int) -> Iterator[Moment]:
    """Two looks a second, the first and the last in any case."""
    first, next_s = looks[0], 0.0
    for look in looks:
        if look.at_s < next_s and look is not looks[-1]:
            continue
        next_s = look.at_s + MOMENT_S
        since = [look.traffic[f"n{n}"].since(first.traffic[f"n{n}"]).received for n in range(1, nodes + 1)]
        yield Moment(
            at_s=round(look.at_s, 2),
            origin_sent=look.traffic["origin"].since(first.traffic["origin"]).sent,
            received=sum(since),
            least_received=min(since),
            most_received=max(since),
        )


@contextlib.contextmanager
def _disturbance(cell: Cell, fleet: Fleet) -> Iterator[None]:
    if cell.scenario != "killed" or cell.disturbed is None:
        yield
        return
    timer = threading.Timer(cell.limit_s / 2, fleet.groups[cell.disturbed].kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _patience_s(cell: Cell) -> float:
    """So long may it take: everything through the origin's link, and as much again."""
    directly_s = cell.nodes * cell.size_bytes / cell.origin_rate_bytes_per_s
    return 30 + 2 * max(directly_s, cell.limit_s)


def _cpu_s(fleet: Fleet) -> float:
    return sum(group.cpu_time().total_s for group in fleet.groups)


def compared(run: Run, dataset: Dataset, fleet: Fleet) -> Run:
    """Every byte of two of the nodes that count, drawn anew for each run. With a wrong one the run has failed."""
    counted = [node for node in range(run.cell.nodes) if node != run.cell.disturbed]
    chosen = random.sample(counted, min(COMPARED_NODES, len(counted)))
    pairs = [(fleet.find(node, file.path), file) for node in chosen for file in dataset.files]
    with ThreadPoolExecutor(2) as pool:
        for (path, file), found in zip(pairs, pool.map(lambda pair: blake3_of(pair[0]), pairs), strict=True):
            if found != file.blake3:
                failure = f"{path}: BLAKE3 is {found}, the dataset has {file.blake3}"
                return msgspec.structs.replace(run, failure=failure)
    return run
