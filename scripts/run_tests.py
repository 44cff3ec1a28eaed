"""All tests, in two runs of pytest side by side, and one report of the coverage: what `make test` does.

Tests on a cluster mostly wait for it and the others mostly compute: together they take as long as the longer half.

Usage: run_tests.py            both; the one on a cluster prints into reports/cluster.log, which is shown at the end
       run_tests.py ARGUMENTS  one run of pytest with these (a part of the tests would miss the coverage floor)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, TextIO

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"
CLUSTER_LOG = REPORTS / "cluster.log"


class Half(NamedTuple):
    """Some of the tests, and the tiers of which one test at least must have passed under CI=true."""

    name: str
    paths: tuple[str, ...]
    tiers: tuple[str, ...]


CLUSTER = Half("cluster", ("tests/e2e",), ("kube",))
REST = Half("rest", ("tests", "--ignore=tests/e2e"), ("s3_real", "kube_api"))


def say(sentence: str) -> None:
    print(f"run_tests: {sentence}", flush=True)


def begin(half: Half, output: TextIO | None) -> subprocess.Popen[bytes]:
    """Each half collects its coverage in a folder of its own: the end of a run combines all that it finds there."""
    collected = _collected(half)
    collected.parent.mkdir(parents=True, exist_ok=True)
    options = ["--cov", "--cov-report=", "--cov-fail-under=0", f"--junitxml=reports/junit-{half.name}.xml"]
    options += [f"--require-tier={tier}" for tier in half.tiers]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *half.paths, *options],
        cwd=ROOT,
        env=os.environ | {"COVERAGE_FILE": str(collected)},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
    )


def _collected(half: Half) -> Path:
    return REPORTS / "coverage" / half.name / ".coverage"


def wait(running: dict[str, subprocess.Popen[bytes]]) -> list[int]:
    """Until all have ended; each ends in its own way on Ctrl-C, which a terminal sends to all of them."""
    begun = time.monotonic()
    waiting = dict(running)
    while waiting:
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            say("interrupted: waiting for both halves to put everything away")
        for name in [name for name, process in waiting.items() if process.poll() is not None]:
            status = waiting.pop(name).returncode
            say(f"the half {name!r} ended with status {status} after {time.monotonic() - begun:.0f} s")
    return [process.returncode for process in running.values()]


def report_coverage() -> int:
    coverage = [sys.executable, "-m", "coverage"]
    collected = [str(_collected(half)) for half in (CLUSTER, REST)]
    combined = subprocess.run([*coverage, "combine", "--quiet", *collected], cwd=ROOT, check=False).returncode
    return combined or subprocess.run([*coverage, "report"], cwd=ROOT, check=False).returncode


def run_both() -> int:
    REPORTS.mkdir(exist_ok=True)
    say(f"two halves side by side; the one on a real cluster prints into {CLUSTER_LOG.relative_to(ROOT)}")
    with CLUSTER_LOG.open("w") as log:
        running = {CLUSTER.name: begin(CLUSTER, log), REST.name: begin(REST, None)}

        def pass_on(number: int, _frame: object) -> None:
            for process in running.values():
                if process.poll() is None:
                    process.send_signal(number)

        signal.signal(signal.SIGTERM, pass_on)
        statuses = wait(running)
    print(CLUSTER_LOG.read_text(), flush=True)
    statuses.append(report_coverage())
    return max(abs(status) for status in statuses)


def main() -> int:
    arguments = sys.argv[1:]
    if not arguments:
        return run_both()
    options = ["--cov", "--cov-report=term", "--junitxml=reports/junit.xml"]
    return subprocess.run([sys.executable, "-m", "pytest", *options, *arguments], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
