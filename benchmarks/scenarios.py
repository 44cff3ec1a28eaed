"""The table of scenarios: server, dataset, contestants, bars. Each is one row or several of the published table."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from benchmarks import bars, engine, peers
from benchmarks.arena import say
from benchmarks.bars import Bar
from benchmarks.bench import Bench, DatasetKind, ServerKind
from benchmarks.contest import Entry, compete
from benchmarks.contestant import Contestant
from benchmarks.limits import best_of, measure_limits
from benchmarks.machine import describe_machine
from benchmarks.outcome import Outcome
from benchmarks.probes import measure_hits, measure_restart
from benchmarks.sweeps import with_best_settings

CAP_BYTES_PER_S = 200e6


class Contest(msgspec.Struct, frozen=True, kw_only=True):
    """Our engine and some peers fetch one dataset from one server in turn."""

    server: ServerKind
    dataset: DatasetKind
    ours: Contestant
    bars: tuple[Bar, ...]
    peers: tuple[Contestant, ...] = ()
    has_limits: bool = False
    has_samples: bool = False
    most_runs: int = 100
    note: str = ""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement: a contest, or a probe of our own with no peer to compare with."""

    name: str
    title: str
    contest: Contest | None = None
    probe: Callable[[Bench, str, str], Outcome] | None = None


def _measure_scale(bench: Bench, name: str, title: str) -> Outcome:
    # Imported when it runs: its servers are the tests', who give up root's rights and clear the environment.
    from benchmarks.scale.scenario import measure_scale

    return measure_scale(bench, name, title)


S3_PEERS = (peers.s5cmd(), peers.rclone(), peers.awscrt(), peers.boto3())

SCENARIOS = (
    Scenario(
        name="nginx",
        title="shards from nginx, plain HTTP, as S3",
        contest=Contest(
            server="nginx",
            dataset="checkpoint",
            ours=engine.engine(),
            peers=S3_PEERS,
            has_limits=True,
            bars=(
                bars.of_limit(0.75),
                bars.against("s5cmd", 1.5),
                bars.against("rclone", 1.8),
                bars.against("awscrt", 1.0),
                bars.against("boto3", 3.0),
                bars.cpu(0.80),
                bars.cpu_against("s5cmd", 0.5),
            ),
        ),
    ),
    Scenario(
        name="paced",
        title="shards from nginx behind a link of 0.8 GB/s",
        contest=Contest(
            server="nginx-paced",
            dataset="checkpoint",
            ours=engine.engine(),
            peers=(peers.s5cmd(), peers.awscrt()),
            has_limits=True,
            bars=(bars.of_limit(0.95),),
        ),
    ),
    Scenario(
        name="tls",
        title="shards from nginx, TLS 1.3, as S3",
        contest=Contest(
            server="nginx-tls",
            dataset="checkpoint",
            ours=engine.engine(),
            peers=S3_PEERS,
            has_limits=True,
            bars=(bars.against("s5cmd", 1.0), bars.cpu(1.6)),
        ),
    ),
    Scenario(
        name="memory-16",
        title="memory at 16 connections",
        contest=Contest(
            server="nginx",
            dataset="checkpoint",
            ours=engine.engine(options=("--connections", "16")),
            bars=(bars.memory(250e6), bars.connections(16)),
            most_runs=2,
        ),
    ),
    Scenario(
        name="memory-140",
        title="memory at 140 connections",
        contest=Contest(
            server="nginx",
            dataset="checkpoint",
            ours=engine.engine(options=("--connections", "140")),
            bars=(bars.memory(2**30), bars.connections(140)),
            most_runs=2,
        ),
    ),
    Scenario(
        name="hub",
        title="the same model from a Hub server (nginx), with SHA-256 checked",
        contest=Contest(
            server="nginx",
            dataset="checkpoint",
            ours=engine.engine(scheme="hf"),
            peers=(peers.huggingface_hub(),),
            bars=(bars.against("huggingface_hub", 2.0), bars.cpu(1.6)),
        ),
    ),
    Scenario(
        name="ingress-cap",
        title="ingress capped at 200 MB/s",
        contest=Contest(
            server="nginx-link",
            dataset="checkpoint",
            ours=engine.engine(options=("--ingress-cap", "200MB/s")),
            bars=(bars.read_within(CAP_BYTES_PER_S, 0.03), bars.wire_within(CAP_BYTES_PER_S, 0.10)),
            has_samples=True,
            most_runs=1,
        ),
    ),
    Scenario(
        name="seaweedfs",
        title="shards from SeaweedFS",
        contest=Contest(
            server="seaweedfs",
            dataset="checkpoint",
            ours=engine.engine(),
            peers=S3_PEERS,
            has_limits=True,
            bars=(bars.against_best_peer(0.95), bars.against("s5cmd", 1.1), bars.against("boto3", 2.0)),
        ),
    ),
    Scenario(
        name="small-nginx",
        title="20,000 files of 50 KB from nginx, as S3",
        contest=Contest(
            server="nginx",
            dataset="small",
            ours=engine.engine(kind="tree"),
            peers=(peers.s5cmd(),),
            bars=(bars.against("s5cmd", 2.0),),
        ),
    ),
    Scenario(
        name="small-seaweedfs",
        title="20,000 files of 50 KB from SeaweedFS",
        contest=Contest(
            server="seaweedfs",
            dataset="small",
            ours=engine.engine(kind="tree"),
            peers=(peers.s5cmd(),),
            bars=(bars.against("s5cmd", 1.2),),
        ),
    ),
    Scenario(
        name="giant",
        title="one object of 20 GB from nginx",
        contest=Contest(
            server="nginx",
            dataset="giant",
            ours=engine.engine(),
            bars=(bars.first_piece(1.0), bars.flat_to_the_end(0.9)),
            has_samples=True,
            most_runs=1,
            note="The object is sparse in the server's memory, a stamp in every MiB; on the client's disk it is whole.",
        ),
    ),
    Scenario(name="hit", title="a resident model asked for by the agent's socket", probe=measure_hits),
    Scenario(name="restart", title="restart with 1,000 records and 1 TB (sparse)", probe=measure_restart),
    Scenario(name="scale", title="2,000 nodes and 50 models on a real API server", probe=_measure_scale),
)


def measure_scenario(scenario: Scenario, bench: Bench) -> Outcome:
    """Measure it now."""
    say(f"{scenario.name}: {scenario.title}")
    if scenario.probe:
        return scenario.probe(bench, scenario.name, scenario.title)
    assert scenario.contest
    return _hold(scenario, scenario.contest, bench)


def _hold(scenario: Scenario, contest: Contest, bench: Bench) -> Outcome:
    arena = msgspec.structs.replace(bench.arena, runs=min(bench.arena.runs, contest.most_runs))
    workload = "small" if contest.dataset == "small" else "shards"
    contestants = (*((contest.ours,) if engine.is_installed() else ()), *(contest.peers if bench.has_peers else ()))
    with bench.serving(contest.server, contest.dataset) as (server, dataset):
        before = [measure_limits(server, dataset, arena)] if contest.has_limits else []
        chosen = with_best_settings(
            contestants, server, dataset, arena, workload=workload, file=bench.results / "sweeps.json"
        )
        entries = compete(chosen, server, dataset, arena)
        after = [measure_limits(server, dataset, arena)] if contest.has_limits else []
    limits = best_of(before + after) if before else None
    return Outcome(
        name=scenario.name,
        title=scenario.title,
        machine=describe_machine(arena.workdir),
        workload=f"{len(dataset.files)} files, {dataset.size_bytes / 1e9:.2f} GB",
        figures=tuple(bar.judge(entries, limits) for bar in contest.bars),
        entries=entries if contest.has_samples else tuple(map(_without_samples, entries)),
        limits=limits,
        note=contest.note,
    )


def _without_samples(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, runs=tuple(msgspec.structs.replace(run, samples=()) for run in entry.runs))
