"""`python -m benchmarks.scale`: the scenario alone, in any size, as JSON on standard output."""

from __future__ import annotations

import argparse
import sys

from benchmarks.scale.fleet import Size
from benchmarks.scale.scenario import measured

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--nodes", type=int, default=200, help="[%(default)s]")
    parser.add_argument("--models", type=int, default=50, help="one of them is only warmed [%(default)s]")
    parser.add_argument("--rest-s", type=float, default=60.0, help="how long to measure at rest [%(default)s]")
    wanted = parser.parse_args()
    size = Size(nodes=wanted.nodes, models=wanted.models, rest_s=wanted.rest_s)
    import msgspec

    sys.stdout.buffer.write(msgspec.json.encode(measured(size)) + b"\n")
