"""Parameters from measured runs, and how far the simulation is from those that it was not fitted to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

from benchmarks.fanout.cell import Cell, Run, Source, Tcp
from benchmarks.fanout.figures import Summary, summarize
from benchmarks.fanout.simulate.fleet import Scene
from benchmarks.fanout.simulate.flows import simulate
from benchmarks.fanout.simulate.state import Parameters
from cacheagent.model import Value
from cacheagent.peers.sender import CHUNK_BYTES

FLAT, DEEP, DEEP_COHORT = 4, 16, 8
"""The numbers of nodes whose times fit the two free parameters: in one cohort, no size that is to be foretold; and in
cohorts of at most so many, which are two or three on as many levels. In smaller ones nodes that feed two cohorts have
to send more than a link carries, and it is chance which tree it is."""
SEEDS = 5
"""Trees of few nodes differ by their names' hashes: the median of so many."""
TRIES = 12
MOST_HOP_S = 8.0


class Check(Value):
    """One measured cell beside what the simulation says of it, in seconds."""

    nodes: int
    rate_bytes_per_s: float
    source: Source
    tcp: Tcp
    cohort: int
    measured_s: float
    simulated_s: float
    is_fitted: bool

    @property
    def error(self) -> float:
        """Of the simulation, as a part of what was measured."""
        return self.simulated_s / self.measured_s - 1


def calibrate(runs: Sequence[Run]) -> tuple[Parameters, list[Check]]:
    """From runs with peers: the link's payload, start and end from one node; what a fleet needs beside that, once and
    for each hop, from one of a single cohort and one that is a tree. Every other fleet is a check of which one node was
    measured behind such a link.

    Raises LookupError where those runs are missing.
    """
    cells = [each for each in summarize(runs) if each.cell.variant == "peers" and each.cell.disturbed is None]
    links = {_link(each.cell) for each in cells if each.cell.nodes == 1}
    cells = [each for each in cells if each.cell.is_bound_by_links and _link(each.cell) in links]
    flat = next((each for each in cells if each.cell.nodes == FLAT and not each.cell.is_tree), None)
    deep = next((each for each in cells if (each.cell.nodes, each.cell.cohort) == (DEEP, DEEP_COHORT)), None)
    if flat is None or deep is None:
        raise LookupError(f"no runs of {FLAT} nodes, and of {DEEP} in cohorts of {DEEP_COHORT}, are there to fit to")
    hop_s, uneven_s = _fit(alone(runs, flat.cell), flat, deep)
    checks = []
    for each in cells:
        if each.cell.nodes > 1:
            parameters = _with(alone(runs, each.cell), hop_s, uneven_s)
            checks.append(_check(each, parameters, is_fitted=each in (flat, deep)))
    return _with(alone(runs, flat.cell), hop_s, uneven_s), checks


def alone(runs: Sequence[Run], like: Cell) -> Parameters:
    """What one node alone tells of links like these. Raises LookupError."""
    found = [
        run
        for run in runs
        if run.cell.variant == "peers" and run.cell.nodes == 1 and _link(run.cell) == _link(like)
        if not run.failure
    ]
    if not found:
        raise LookupError(f"no run of one node with peers at {like.rate_bytes_per_s / 1e6:g} MB/s is there")
    starts, rates = zip(*map(_start_and_rate, found), strict=True)
    start_s, rate = median(starts), median(rates)
    total_s = median(run.times_s[0] for run in found)
    return Parameters(
        size_bytes=like.size_bytes,
        pieces=-(-like.size_bytes // like.piece_bytes),
        link_bytes_per_s=rate,
        origin_links=like.origin_links,
        step_bytes=min(CHUNK_BYTES, like.piece_bytes),
        hop_s=0.0,
        start_s=start_s,
        finish_s=max(0.0, total_s - start_s - like.size_bytes / rate),
    )


def _link(cell: Cell) -> tuple[object, ...]:
    return cell.rate_bytes_per_s, cell.size_bytes, cell.tcp


def _start_and_rate(run: Run) -> tuple[float, float]:
    """When bytes began to flow, and payload a second in the middle: a line through two of the moments."""
    total = run.received_bytes
    inner = [moment for moment in run.moments if 0.2 * total < moment.received < 0.8 * total]
    first, last = inner[0], inner[-1]
    wire = (last.received - first.received) / (last.at_s - first.at_s)
    return max(0.0, first.at_s - first.received / wire), wire * run.cell.size_bytes / total


def _fit(parameters: Parameters, flat: Summary, deep: Summary) -> tuple[float, float]:
    """Time of a hop, by what the tree takes longer than the cohort; then what is missing to the cohort's time."""
    low, high = 0.0, MOST_HOP_S
    for _ in range(TRIES):
        middle = (low + high) / 2
        tried = _with(parameters, middle, 0.0)
        if _simulated_s(deep.cell, tried) - _simulated_s(flat.cell, tried) < deep.median_s - flat.median_s:
            low = middle
        else:
            high = middle
    hop_s = (low + high) / 2
    return hop_s, max(0.0, flat.median_s - _simulated_s(flat.cell, _with(parameters, hop_s, 0.0)))


def _check(measured: Summary, parameters: Parameters, *, is_fitted: bool) -> Check:
    return Check(
        nodes=measured.cell.nodes,
        rate_bytes_per_s=measured.cell.rate_bytes_per_s,
        source=measured.cell.source,
        tcp=measured.cell.tcp,
        cohort=measured.cell.cohort,
        measured_s=measured.median_s,
        simulated_s=_simulated_s(measured.cell, parameters),
        is_fitted=is_fitted,
    )


def _simulated_s(cell: Cell, parameters: Parameters) -> float:
    seeds = range(1, 1 + SEEDS if cell.is_tree else 2)
    scenes = (Scene(nodes=cell.nodes, cohort=cell.cohort, seed=seed) for seed in seeds)
    return median(simulate(scene, parameters).at(0.5) for scene in scenes)


def _with(parameters: Parameters, hop_s: float, uneven_s: float) -> Parameters:
    return msgspec.structs.replace(parameters, hop_s=hop_s, uneven_s=uneven_s)
