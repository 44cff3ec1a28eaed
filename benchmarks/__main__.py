"""`python -m benchmarks`: measure, write results, say which bars were met."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import engine
from benchmarks.arena import Arena, say
from benchmarks.bench import Bench, Sizes
from benchmarks.report import keep, read_outcomes, write_report
from benchmarks.scenarios import SCENARIOS, measure_scenario

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path("reports") / "benchmarks"
MEMORY = Path("/dev/shm")


def main() -> None:
    """Read the arguments, measure what they name, report."""
    wanted = _arguments()
    if os.geteuid() != 0:
        raise SystemExit("benchmarks: run as root: the page cache is dropped before each run, groups count CPU time")
    if not engine.is_installed():
        say("cacheagent itself does not run here: the peers are measured alone")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that servers and data go, too
    results = wanted.results or (QUICK_RESULTS if wanted.quick else RESULTS)
    with _bench(wanted, results) as bench:
        for scenario in SCENARIOS:
            if not wanted.only or scenario.name in wanted.only:
                keep(measure_scenario(scenario, bench), results)
    outcomes = read_outcomes(results, [scenario.name for scenario in SCENARIOS])
    say(f"{write_report(outcomes, results)}:")
    for outcome in outcomes:
        for figure in outcome.figures:
            value = "not measured" if figure.value is None else f"{figure.value:.3g} {figure.unit}"
            bound = "at most" if figure.is_upper_bound else "at least"
            verdict = {True: "met", False: "NOT MET", None: "-"}[figure.is_met]
            print(f"{outcome.name:16} {figure.title:50} {value:18} {bound} {figure.bar:g}: {verdict}")


@contextmanager
def _bench(wanted: argparse.Namespace, results: Path) -> Iterator[Bench]:
    workdir = Path(tempfile.mkdtemp(prefix="cacheagent-bench-", dir=wanted.workdir))
    scratch = Path(tempfile.mkdtemp(prefix="cacheagent-bench-", dir=MEMORY))
    arena = Arena(
        workdir=workdir,
        scratch=scratch,
        runs=wanted.runs,
        is_sweeping=wanted.sweep,
        lock=wanted.lock,
        quiet_cpus=wanted.quiet,
    )
    sizes = Sizes(
        checkpoint_bytes=int(wanted.size_gb * 1e9),
        small_files=2_000 if wanted.quick else 20_000,
        giant_bytes=int((2 if wanted.quick else 20) * 1e9),
        fleet_nodes=100 if wanted.quick else 2_000,
        fleet_rest_s=20 if wanted.quick else 180,
    )
    try:
        yield Bench(arena, sizes, results, has_peers=not wanted.alone)
    finally:
        shutil.rmtree(workdir)
        shutil.rmtree(scratch)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of: {', '.join(names)}")
    parser.add_argument("--runs", type=int, help="rounds of alternating runs [5; 1 when quick]")
    parser.add_argument("--size-gb", type=float, help="size of the sharded checkpoint [8; 1 when quick]")
    parser.add_argument("--quick", action="store_true", help=f"a look, not a result: into {QUICK_RESULTS}")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--sweep", action="store_true", help="look for the peers' best settings again")
    parser.add_argument("--workdir", type=Path, default=Path("/var/tmp"), help="on the disk under test [%(default)s]")
    parser.add_argument("--results", type=Path, help=f"where results go [{RESULTS}]")
    parser.add_argument("--lock", type=Path, help="file to lock (flock) during each run, on a shared machine")
    parser.add_argument(
        "--quiet", type=float, metavar="CPUS", help="repeat runs during which others used more than this"
    )
    wanted = parser.parse_args()
    wanted.runs = wanted.runs or (1 if wanted.quick else 5)
    wanted.size_gb = wanted.size_gb or (1.0 if wanted.quick else 8.0)
    return wanted


if __name__ == "__main__":
    main()
