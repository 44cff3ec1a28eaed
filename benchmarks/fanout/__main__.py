"""`python -m benchmarks.fanout`: runs in alternation, each kept as soon as it is done; then the table.

python -m benchmarks.fanout --nodes 1,2,4 --runs 1 --variants direct,aria2
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.arena import say
from benchmarks.fanout.cell import SCENARIOS, Cell, Run
from benchmarks.fanout.figures import summarize
from benchmarks.fanout.fleet import FetchFailed
from benchmarks.fanout.measure import FLEETS, datasets, measure
from benchmarks.fanout.report import outcome_of, plot
from benchmarks.fanout.results import add_run, read_runs
from benchmarks.fanout.turns import Turns
from benchmarks.report import keep, write_report
from cacheagent.cohorts import COHORT

RESULTS = Path("reports") / "benchmarks" / "fanout"


def main() -> None:
    """Measure what the arguments name, in rounds over all cells; say what came out. Where anything failed the status is
    1: a run that was begun is kept with its reason, a fleet that could not be set up is only said."""
    wanted = _arguments()
    if os.geteuid() != 0:
        raise SystemExit("benchmarks.fanout: run as root: it makes network namespaces and groups that count CPU time")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that namespaces and agents go, too
    failures = 0
    turns = Turns(lock=wanted.lock, turnstile=wanted.turnstile)
    if wanted.runs:
        with datasets(int(wanted.size_mb * 1e6)) as data:
            for _ in range(wanted.runs):
                for cell in _cells(wanted, data[0].size_bytes):
                    try:
                        run = measure(cell, data, wanted.workdir, turns, wanted.logs)
                    except FetchFailed as error:
                        say(f"{cell}: not measured: {error}")
                        failures += 1
                        continue
                    say(_line(run))
                    add_run(run, wanted.results, wanted.workdir)
                    failures += bool(run.failure)
    runs = read_runs(wanted.results)
    outcome = outcome_of(runs)
    keep(outcome, wanted.results)
    plot(summarize(runs.runs), wanted.results / "fanout.png")
    print(write_report([outcome], wanted.results))
    if failures:
        raise SystemExit(f"benchmarks.fanout: {failures} runs failed")


def _cells(wanted: argparse.Namespace, size_bytes: int) -> Iterator[Cell]:
    for nodes in wanted.nodes:
        for variant in wanted.variants:
            yield Cell(
                variant=variant,
                nodes=nodes,
                size_bytes=size_bytes,
                piece_bytes=int(wanted.piece_mib * 2**20),
                rate_bytes_per_s=wanted.rate_mb * 1e6,
                origin_links=wanted.origin_links,
                scenario=wanted.scenario,
                source="s3" if variant == "aria2" else wanted.source,
                tcp=wanted.tcp,
                connection_bytes_per_s=int(wanted.connection_mb * 1e6),
                cohort=wanted.cohort,
            )


def _line(run: Run) -> str:
    if run.failure:
        return f"{run.cell}: FAILED: {run.failure}"
    ordered, size = sorted(run.times_s), run.cell.size_bytes
    return (
        f"{run.cell}: median {ordered[len(ordered) // 2]:.2f} s, worst {ordered[-1]:.2f} s "
        f"(limit {run.cell.limit_s:.2f} s), "
        f"origin {run.origin_bytes / size:.3f} S, "
        f"{run.cpu_s / (run.received_bytes + run.sent_bytes) * 1e9:.2f} CPU-s/GB, "
        f"CPUs {run.machine_cpu:.0%}, {max(run.pss_bytes, default=0) / 1e6:.0f} MB"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fanout", description=__doc__)

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser.add_argument("--nodes", type=numbers, default=[1, 2, 4, 8, 16], help="[1,2,4,8,16]")
    parser.add_argument(
        "--variants", type=lambda text: text.split(","), default=[*FLEETS], help=f"[{','.join(FLEETS)}]"
    )
    parser.add_argument("--runs", type=int, default=5, help="rounds; 0 only writes the report again [%(default)s]")
    parser.add_argument("--size-mb", type=float, default=512.0, help="of the model [%(default)s]")
    parser.add_argument("--piece-mib", type=float, default=1.0, help="of the agents' pieces [%(default)s]")
    parser.add_argument("--rate-mb", type=float, default=20.0, help="of a node's link, MB/s each way [%(default)s]")
    parser.add_argument("--origin-links", type=float, default=2.0, help="the origin's link in such links [%(default)s]")
    parser.add_argument("--scenario", choices=SCENARIOS, default="undisturbed")
    parser.add_argument("--source", choices=("s3", "sha256"), default="s3", help="[%(default)s]")
    parser.add_argument("--tcp", choices=("cubic", "bbr"), default="cubic", help="congestion control [%(default)s]")
    parser.add_argument("--connection-mb", type=float, default=0.0, help="the origin gives one, MB/s; 0: no limit")
    parser.add_argument("--cohort", type=int, default=COHORT, help="members of one at most [%(default)s]")
    parser.add_argument("--workdir", type=Path, default=Path("/var/tmp"), help="on the disk under test [%(default)s]")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where runs are added to [%(default)s]")
    parser.add_argument("--logs", type=Path, help="keep the nodes' logs of the last run there")
    parser.add_argument("--lock", type=Path, help="file to lock (flock) during each run, on a shared machine")
    parser.add_argument("--turnstile", type=Path, help="file to hold while waiting for that lock")
    wanted = parser.parse_args()
    if unknown := set(wanted.variants) - set(FLEETS):
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    return wanted


if __name__ == "__main__":
    main()
