"""`python -m benchmarks.fanout.simulate`: what 256 and 4,096 nodes would take, by times that were measured."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec

from benchmarks.fanout.results import read_runs
from benchmarks.fanout.simulate.calibrate import Check, calibrate
from benchmarks.fanout.simulate.fleet import Scene, Tree, connections, crossings, tree
from benchmarks.fanout.simulate.flows import Result, simulate
from benchmarks.fanout.simulate.state import Parameters
from cacheagent.model import PIECE_SIZE_BYTES, Value

FILE = "fanout-simulated.json"
ZONES = 4
FEW = 256
SEEDS_OF_FEW = 10
"""So many nodes are quickly simulated, and one of them that is slow or dead weighs more: more is drawn."""


class Row(Value):
    """One size of fleet; each figure is the worst of all `seeds`, so no two need be of the same one. Times are over
    that of one node: of the median node, of the 99th of a hundred, of the slowest, among those that are neither slow
    nor dead. `levels`: of the tree. `origin_copies`: what the origin sent, in models, without spot checks, which are
    not simulated: where members check each other they cost each cohort about 1 % of a copy and each node a piece more.
    `crossings`: copies that cross from zone to zone by a node, while nobody is slow or dead. `connections`: the most
    that any node may have, both directions together.
    """

    nodes: int
    seeds: int
    slow: float
    failing: float
    levels: int
    median: float
    p99: float
    slowest: float
    origin_copies: float
    crossings: float
    connections: int


class Simulated(Value):
    """All of it. `scaled`: what the fleets were computed with: a real model on links as much faster as it is larger."""

    measured: Parameters
    scaled: Parameters
    checks: tuple[Check, ...]
    rows: tuple[Row, ...]


def main() -> None:
    """Calibrate, check, simulate, keep."""
    wanted = _arguments()
    measured, checks = calibrate(read_runs(wanted.results).runs)
    for check in checks:
        kind = "fitted" if check.is_fitted else f"{check.error:+.1%}"
        kind += f", {check.source}, {check.tcp}"
        if check.nodes > check.cohort:
            kind += f", cohorts of {check.cohort}"
        print(f"{check.nodes:4} nodes: measured {check.measured_s:.2f} s, simulated {check.simulated_s:.2f} s ({kind})")
    scaled = scale_up(measured, wanted.model_gb * 1e9, wanted.link_gb * 1e9)
    rows = []
    for row in _rows(wanted, scaled):
        rows.append(row)
        print(
            f"{row.nodes:5} nodes, {row.slow:.1%} slow, {row.failing:.2%} failing, worst of {row.seeds}: T(N)/T(1) "
            f"{row.median:.3f}, p99 {row.p99:.3f}, slowest {row.slowest:.3f}; origin {row.origin_copies:.3f} copies, "
            f"{row.crossings:.3f} crossings a node, {row.connections} connections, {row.levels} levels",
            flush=True,
        )
    result = Simulated(measured=measured, scaled=scaled, checks=tuple(checks), rows=tuple(rows))
    (wanted.results / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))


def scale_up(measured: Parameters, size_bytes: float, link_bytes_per_s: float) -> Parameters:
    """The same times of hops, start and end, with a model, pieces and links of real size."""
    return Parameters(
        size_bytes=size_bytes,
        pieces=max(1, round(size_bytes / PIECE_SIZE_BYTES)),
        link_bytes_per_s=link_bytes_per_s,
        origin_links=measured.origin_links,
        step_bytes=measured.step_bytes,
        hop_s=measured.hop_s,
        start_s=measured.start_s,
        finish_s=measured.finish_s,
        uneven_s=measured.uneven_s,
    )


def _rows(wanted: argparse.Namespace, parameters: Parameters) -> Iterator[Row]:
    one = simulate(Scene(nodes=1), parameters).at(0.5)
    with ProcessPoolExecutor(wanted.processes) as pool:
        scenes = [
            [Scene(nodes=nodes, zones=ZONES, slow=slow, failing=failing, seed=seed) for seed in _seeds(nodes, wanted)]
            for nodes in wanted.nodes
            for slow, failing in ((0.0, 0.0), (0.01, 0.001))
        ]
        running = [[pool.submit(simulate, scene, parameters) for scene in drawn] for drawn in scenes]
        for drawn, results in zip(scenes, running, strict=True):
            trees = [tree(scene.nodes, scene.zones, scene.seed, parameters.pieces) for scene in drawn]
            yield _worst(drawn[0], [each.result() for each in results], trees, one, parameters.size_bytes)


def _seeds(nodes: int, wanted: argparse.Namespace) -> range:
    return range(1, 1 + (max(wanted.seeds, SEEDS_OF_FEW) if nodes <= FEW else wanted.seeds))


def _worst(scene: Scene, results: list[Result], trees: list[Tree], one_s: float, size_bytes: float) -> Row:
    return Row(
        nodes=scene.nodes,
        seeds=len(results),
        slow=scene.slow,
        failing=scene.failing,
        levels=max(int(each.level.max()) for each in trees),
        median=max(each.at(0.5) for each in results) / one_s,
        p99=max(each.at(0.99) for each in results) / one_s,
        slowest=max(each.at(1.0) for each in results) / one_s,
        origin_copies=max(each.origin_bytes for each in results) / size_bytes,
        crossings=max(map(crossings, trees)),
        connections=max(map(connections, trees)),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fanout.simulate", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="runs [%(default)s]")
    parser.add_argument(
        "--nodes",
        type=lambda text: [int(word) for word in text.split(",")],
        default=[64, 256, 4096],
        help="[64,256,4096]",
    )
    parser.add_argument("--seeds", type=int, default=3, help="of each size; few nodes have ten [%(default)s]")
    parser.add_argument("--processes", type=int, help="that simulate at once [as many as CPUs]")
    parser.add_argument("--model-gb", type=float, default=140.0, help="[%(default)s]")
    parser.add_argument("--link-gb", type=float, default=1.25, help="of a node, GB/s [%(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    main()
