"""The scenario of `make bench`: one run, its bars, its tables."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.bench import Bench
from benchmarks.machine import Machine, describe_machine
from benchmarks.outcome import Figure, Outcome, Table
from benchmarks.scale.cluster import REPOSITORY
from benchmarks.scale.figures import PROJECTED, Phase, Row, Scale, quantile, rows
from benchmarks.scale.fleet import Size
from benchmarks.scale.measure import measure
from tests.fakes.kube_server import running_api_server

SCRIPT: Final = REPOSITORY / "scripts/kube_binaries.py"
MODELS: Final = 50
POOLS: Final = 5
MEMORY_MB: Final = 300.0
ROUND_S: Final = 1.0
WRITES_PER_S: Final = 50.0
"""The controller's default; it bounds how fast a fleet has its orders."""


def measure_scale(bench: Bench, name: str, title: str) -> Outcome:
    """A fleet at rest and while it is warmed. Everything that was counted is kept beside the outcome."""
    size = Size(nodes=bench.sizes.fleet_nodes, models=MODELS, pools=POOLS, rest_s=bench.sizes.fleet_rest_s)
    with bench.arena.turn():
        scale = measured(size)
    return keep_scale(scale, bench.results, name, title, describe_machine(bench.arena.workdir))


def measured(size: Size) -> Scale:
    """One run. Where the API server and etcd are not built yet, they are now: ten minutes, once."""
    subprocess.run([sys.executable, SCRIPT], check=True, stdout=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="cacheagent-scale-") as folder, running_api_server(Path(folder)) as server:
        return asyncio.run(measure(server, size, Path(folder)))


def keep_scale(scale: Scale, results: Path, name: str, title: str, machine: Machine) -> Outcome:
    """Write what was counted; the outcome that follows from it."""
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}-counted.json").write_bytes(msgspec.json.encode(scale) + b"\n")
    return Outcome(
        name=name,
        title=title,
        machine=machine,
        workload=(
            f"{scale.nodes} nodes in {scale.pools} pools, {scale.models - 1} models for one pool each, one for all, "
            f"one stub agent a node, kubelets that write their Nodes every 300 s"
        ),
        figures=tuple(_figures(scale)),
        tables=(_formula(scale), _objects(scale)),
        note=(
            f"API server and etcd used {scale.warmup.server_cpu_s:.0f} CPU-seconds, the controller "
            f"{scale.warmup.controller.cpu_s:.0f}, in the {scale.warmup.seconds:.0f} s of the warm-up; times are this "
            "machine's, counts and bytes are anybody's."
        ),
    )


def _figures(scale: Scale) -> Iterator[Figure]:
    rest, warmup = scale.rest, scale.warmup

    def at_most(title: str, value: float, bar: float, unit: str, how: str) -> Figure:
        return Figure(title=title, value=value, bar=bar, is_upper_bound=True, unit=unit, how=how)

    yield at_most(
        "requests at rest, beside watches and the lease",
        _needless(rest) / (rest.seconds / 60),
        0,
        "requests/min",
        f"controller and all agents, counted by themselves, for {rest.seconds:.0f} s",
    )
    yield at_most(
        "controller's memory",
        max(rest.pss_bytes, warmup.pss_bytes) / 1e6,
        MEMORY_MB,
        "MB",
        "Pss of its process, the most of four samples a second, at rest and in the warm-up",
    )
    yield at_most(
        "round of planning, p99",
        quantile(warmup.rounds_s, 0.99),
        ROUND_S,
        "s",
        f"all {len(warmup.rounds_s)} rounds of the warm-up, in wall time: copies read, everything planned",
    )
    yield at_most(
        "warm-up: last node has its order",
        scale.assigned_s[-1],
        1.5 * scale.nodes / WRITES_PER_S,
        "s",
        "from the creation of the ModelWarmup to the event at that node's agent; 50 writes a second are permitted",
    )


def _needless(rest: Phase) -> int:
    return rest.controller.others - rest.controller.requests.get("replace leases", 0) + rest.agents.others


def _formula(scale: Scale) -> Table:
    return Table(
        title=f"What is constant, what grows with the fleet, and what {PROJECTED:,} nodes come to by that",
        columns=("", "unit", f"{scale.nodes:,} nodes", "constant", "for each node", f"{PROJECTED:,} nodes", "because"),
        rows=tuple(_cells(row) for row in rows(scale)),
    )


def _cells(row: Row) -> tuple[str, ...]:
    numbers = (row.measured, row.constant, row.per_node, row.at(PROJECTED))
    return (row.title, row.unit, *map(_short, numbers), row.because)


def _objects(scale: Scale) -> Table:
    parts = ("", "managedFields", "spec", "status")
    kinds = [name for name in scale.object_bytes if "," not in name]
    return Table(
        title="Objects as JSON, in bytes, after the warm-up",
        columns=("", "whole", *parts[1:]),
        rows=tuple(
            (kind, *(f"{scale.object_bytes[f'{kind}, {part}' if part else kind]:,}" for part in parts))
            for kind in kinds
        ),
    )


def _short(number: float) -> str:
    if number == 0:
        return "0"
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
