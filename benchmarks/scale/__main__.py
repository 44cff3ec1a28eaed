"""`python -m benchmarks.scale`: this scenario alone, in any size. Needs no root."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.report import keep, write_report
from benchmarks.scale.fleet import Size
from benchmarks.scale.scenario import MODELS, POOLS, keep_scale, measured


def main() -> None:
    """Measure, keep, say where."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--nodes", type=int, default=200, help="[%(default)s]")
    parser.add_argument("--models", type=int, default=MODELS, help="one of them is only warmed [%(default)s]")
    parser.add_argument("--pools", type=int, default=POOLS, help="a model is on the nodes of one [%(default)s]")
    parser.add_argument("--rest-s", type=float, default=60.0, help="how long to measure at rest [%(default)s]")
    parser.add_argument("--results", type=Path, default=Path("reports/benchmarks/scale"), help="[%(default)s]")
    wanted = parser.parse_args()
    size = Size(nodes=wanted.nodes, models=wanted.models, pools=wanted.pools, rest_s=wanted.rest_s)
    scale = measured(size)
    title = f"{wanted.nodes:,} nodes and {wanted.models} models on a real API server"
    outcome = keep_scale(scale, wanted.results, "scale", title, describe_machine(Path.cwd()))
    keep(outcome, wanted.results)
    print(write_report([outcome], wanted.results))


if __name__ == "__main__":
    main()
