"""Runs on disk: one JSON file that grows by each run, so that a measurement may be ended and gone on with."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.fanout.cell import Run
from benchmarks.machine import Machine, describe_machine
from cacheagent.model import Value

FILE = "fanout-runs.json"


class Runs(Value):
    """All runs, on one machine, in the order in which they were made."""

    machine: Machine
    runs: tuple[Run, ...] = ()


def read_runs(results: Path) -> Runs:
    """What is there."""
    return msgspec.json.decode((results / FILE).read_bytes(), type=Runs)


def add_run(run: Run, results: Path, workdir: Path) -> None:
    """One more."""
    results.mkdir(parents=True, exist_ok=True)
    before = read_runs(results).runs if (results / FILE).exists() else ()
    runs = Runs(machine=describe_machine(workdir), runs=(*before, run))
    scratch = results / f"{FILE}.new"
    scratch.write_bytes(msgspec.json.format(msgspec.json.encode(runs), indent=1))
    scratch.replace(results / FILE)
