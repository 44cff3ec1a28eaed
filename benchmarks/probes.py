"""Figures of the running agent, without peers: how fast a hit is, how fast it starts with a full cache."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from benchmarks import engine
from benchmarks.arena import say
from benchmarks.bench import Bench
from benchmarks.datasets import build_checkpoint
from benchmarks.machine import describe_machine
from benchmarks.measure import drop_page_cache
from benchmarks.outcome import Figure, Outcome
from cacheagent.api.client import AgentClient
from cacheagent.demo.child import running_child
from cacheagent.errors import AgentUnavailable
from cacheagent.spec import ModelSpec, SourceSpec

FILL_STORE = Path(__file__).parent / "programs" / "fill_store.py"
HITS = 2000
RECORDS = 1000
MODEL_BYTES = 10**9
START_TIMEOUT_S = 60.0


def measure_hits(bench: Bench, name: str, title: str) -> Outcome:
    """`ensure` of a resident model by the unix socket, one after the other, from one client."""
    times_s = sorted(_in_fresh_cache(bench, _time_hits)) if engine.is_installed() else []
    p50, p99 = (statistics.quantiles(times_s, n=100)[rank] for rank in (49, 98)) if times_s else (None, None)
    how = f"{HITS} calls of the typed client, one at a time, over a kept connection"
    return Outcome(
        name=name,
        title=title,
        machine=describe_machine(bench.arena.workdir),
        workload=f"{HITS} calls",
        figures=(
            _milliseconds("hit, p50", p50, 5.0, how),
            _milliseconds("hit, p99", p99, 20.0, how),
        ),
    )


def measure_restart(bench: Bench, name: str, title: str) -> Outcome:
    """From the start of the agent's process until it answers with every model, page cache dropped."""
    seconds = _in_fresh_cache(bench, _time_restarts) if engine.is_installed() else []
    return Outcome(
        name=name,
        title=title,
        machine=describe_machine(bench.arena.workdir),
        workload=f"{RECORDS} records of {MODEL_BYTES / 1e9:.0f} GB in 8 sparse files each",
        figures=(
            Figure(
                title="ready after a restart",
                value=statistics.median(seconds) if seconds else None,
                bar=2.0,
                is_upper_bound=True,
                unit="s",
                how="median, process start to the answer that lists all models, the interpreter's own start included",
            ),
        ),
    )


def _in_fresh_cache(bench: Bench, measure: Callable[[Bench, Path], list[float]]) -> list[float]:
    folder = bench.arena.workdir / "agent"
    folder.mkdir()
    try:
        with bench.arena.turn():
            return measure(bench, folder)
    finally:
        shutil.rmtree(folder)


def _time_hits(bench: Bench, folder: Path) -> list[float]:
    model = bench.arena.scratch / "resident"
    build_checkpoint(model, shards=2, size_bytes=64 << 20)
    spec = ModelSpec(name="resident", source=SourceSpec(uri=f"file://{model}"))

    async def call() -> list[float]:
        async with _connected(folder) as client:
            status = await client.ensure(spec, wait_s=START_TIMEOUT_S)
            if status.phase != "ready":
                raise RuntimeError(f"the model did not get ready: {status}")
            return [await _timed(client, spec) for _ in range(HITS)]

    try:
        with _agent(folder):
            times_s = asyncio.run(call())
    finally:
        shutil.rmtree(model)
    say(f"  {HITS} hits: median {statistics.median(times_s) * 1e3:.2f} ms, worst {max(times_s) * 1e3:.2f} ms")
    return times_s


async def _timed(client: AgentClient, spec: ModelSpec) -> float:
    start = time.monotonic()
    status = await client.ensure(spec)
    if status.phase != "ready":
        raise RuntimeError(f"a hit was none: {status}")
    return time.monotonic() - start


def _time_restarts(bench: Bench, folder: Path) -> list[float]:
    request = {"root": str(folder / "root"), "models": RECORDS, "model_bytes": MODEL_BYTES}
    subprocess.run([sys.executable, str(FILL_STORE), json.dumps(request)], check=True)

    async def models() -> int:
        async with _connected(folder) as client:
            return len(await client.models())

    times_s = []
    for _ in range(bench.arena.runs):
        drop_page_cache()
        start = time.monotonic()
        with _agent(folder):
            found = asyncio.run(models())
            times_s.append(time.monotonic() - start)
        if found != RECORDS:
            raise RuntimeError(f"the agent lists {found} of {RECORDS} models")
        say(f"  ready with {found} models after {times_s[-1]:.2f} s")
    return times_s


@contextlib.contextmanager
def _agent(folder: Path) -> Iterator[None]:
    config = folder / "models.yaml"
    # JSON is YAML. A terabyte of holes counts as one, and would be evicted to leave room on a disk that is nearly full.
    store = {"high_watermark": "100%", "low_watermark": "100%"}
    config.write_text(json.dumps({"root": str(folder / "root"), "listen": "", "store": store}))
    command = [engine.PROGRAM, "agent", "--config", str(config)]
    with running_child(command, log_path=folder / "log"):
        yield


@contextlib.asynccontextmanager
async def _connected(folder: Path) -> AsyncIterator[AgentClient]:
    async with AgentClient(folder / "root" / "agent.sock") as client, asyncio.timeout(START_TIMEOUT_S):
        while True:
            try:
                await client.version()
                break
            except AgentUnavailable:
                await asyncio.sleep(0.005)
        yield client


def _milliseconds(title: str, value_s: float | None, bar_ms: float, how: str) -> Figure:
    value = None if value_s is None else value_s * 1e3
    return Figure(title=title, value=value, bar=bar_ms, is_upper_bound=True, unit="ms", how=how)
