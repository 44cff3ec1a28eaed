"""`python -m benchmarks.fanout.simulate`: what 256 and 4,096 nodes would take, by times that were measured."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.fanout.results import read_runs
from benchmarks.fanout.simulate.calibrate import Check, calibrate
from benchmarks.fanout.simulate.fleet import Fleet, Scene, Shape, connections, crossings
from benchmarks.fanout.simulate.flows import Parameters, simulate
from cacheagent.model import PIECE_SIZE_BYTES, Value

FILE = "fanout-simulated.json"
SHAPES: tuple[Shape, ...] = ("apart", "tree")


class Row(Value):
    """One fleet. Times are over that of one node: of the median node, of the 99th of a hundred, of the slowest, among
    those that are neither slow nor dead. `origin_copies`: what the origin sent, in models; `crossings`: copies that
    cross from zone to zone for each node; `connections`: the most of any node.
    """

    nodes: int
    shape: Shape
    slow: float
    failing: float
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
        print(f"{check.nodes:4} nodes: measured {check.measured_s:.2f} s, simulated {check.simulated_s:.2f} s ({kind})")
    scaled = scale_up(measured, wanted.model_gb * 1e9, wanted.link_gb * 1e9)
    rows = []
    for row in _rows(wanted.nodes, scaled):
        rows.append(row)
        print(
            f"{row.nodes:5} nodes, {row.shape:5}, {row.slow:.1%} slow, {row.failing:.2%} failing: T(N)/T(1) "
            f"{row.median:.3f}, p99 {row.p99:.3f}, slowest {row.slowest:.3f}; origin {row.origin_copies:.2f} copies, "
            f"{row.crossings:.2f} crossings a node, {row.connections} connections",
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
    )


def _rows(sizes: list[int], parameters: Parameters) -> Iterator[Row]:
    one = simulate(Scene(nodes=1), parameters).at(0.5)
    for nodes in sizes:
        for shape in SHAPES if nodes > 64 else SHAPES[:1]:
            for slow, failing in ((0.0, 0.0), (0.01, 0.001)):
                scene = Scene(nodes=nodes, shape=shape, zones=4, slow=slow, failing=failing)
                result, fleet = simulate(scene, parameters), Fleet(scene, parameters.pieces)
                yield Row(
                    nodes=nodes,
                    shape=shape,
                    slow=slow,
                    failing=failing,
                    median=result.at(0.5) / one,
                    p99=result.at(0.99) / one,
                    slowest=result.at(1.0) / one,
                    origin_copies=result.origin_bytes / parameters.size_bytes,
                    crossings=crossings(fleet),
                    connections=connections(fleet),
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
    parser.add_argument("--model-gb", type=float, default=140.0, help="[%(default)s]")
    parser.add_argument("--link-gb", type=float, default=1.25, help="of a node, GB/s [%(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    main()
