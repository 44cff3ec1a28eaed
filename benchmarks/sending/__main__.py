"""`python -m benchmarks.sending`: runs in alternation, each kept as soon as it is done; then the table."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.arena import say
from benchmarks.machine import Machine, describe_machine
from benchmarks.outcome import Outcome
from benchmarks.report import keep, write_report
from benchmarks.sending.cell import Cell, Run
from benchmarks.sending.figures import figures, table
from benchmarks.sending.measure import measure
from benchmarks.sending.model import Model, make_model
from cacheagent.model import PIECE_SIZE_BYTES, Value

RESULTS = Path("reports") / "benchmarks" / "sending"
FILE = "sending-runs.json"
SHAPED_S = 12.0
NOTE = (
    "One server process of the product that has the model, subscribers that are the product's receiver processes, "
    "and a veth pair between them. What a packet costs on its way through such a pair, the receiver's TCP and its "
    "acknowledgements too, is done in the call that sends it and counts as the server's: the plain rows are that, and "
    "sendfile(2) itself. A real network card takes that off the sender, and gives it interrupts of its own."
)


class Runs(Value):
    """All runs, on one machine, in the order in which they were made."""

    machine: Machine
    runs: tuple[Run, ...] = ()


def main() -> None:
    """Measure what the arguments name, in rounds over all cells; say what came out."""
    wanted = _arguments()
    if os.geteuid() != 0:
        raise SystemExit(
            "benchmarks.sending: run as root: it makes a network namespace and a group that counts CPU time"
        )
    wanted.results.mkdir(parents=True, exist_ok=True)
    file = wanted.results / FILE
    runs = msgspec.json.decode(file.read_bytes(), type=Runs).runs if file.exists() else ()
    with tempfile.TemporaryDirectory(prefix="cas", dir=wanted.workdir) as folder:
        model = make_model(Path(folder) / "model", int(wanted.size_mb * 1e6))
        for cell in [cell for _ in range(wanted.runs) for cell in _cells(wanted, model)]:
            run = measure(cell, model, Path(folder))
            say(f"{cell}: {run.cpu_s_per_gb:.2f} CPU-s/GB, {run.bytes_per_s / 1e6:.0f} MB/s, {run.machine_cpu:.0%}")
            runs = (*runs, run)
            kept = Runs(machine=describe_machine(wanted.workdir), runs=runs)
            file.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1))
    outcome = _outcome(msgspec.json.decode(file.read_bytes(), type=Runs))
    keep(outcome, wanted.results)
    print(write_report([outcome], wanted.results))


def _cells(wanted: argparse.Namespace, model: Model) -> Iterator[Cell]:
    for rate_mb in wanted.rates_mb:
        for subscribers in wanted.subscribers:
            for sends in wanted.sends:
                yield Cell(
                    sends="plain" if sends == "plain" else "product",
                    subscribers=subscribers,
                    pieces=_pieces(model, rate_mb * 1e6, subscribers),
                    tls=sends == "tls",
                    rate_bytes_per_s=rate_mb * 1e6,
                    is_cold=wanted.cold,
                )


def _pieces(model: Model, rate_bytes_per_s: float, subscribers: int) -> int:
    """What takes a shaped link about `SHAPED_S`; else all."""
    in_time = round(SHAPED_S * rate_bytes_per_s / subscribers / PIECE_SIZE_BYTES)
    return min(model.pieces, max(1, in_time)) if rate_bytes_per_s else model.pieces


def _outcome(runs: Runs) -> Outcome:
    sizes = sorted({run.sent_bytes // run.cell.subscribers for run in runs.runs})
    return Outcome(
        name="sending",
        title="sending to peers",
        machine=runs.machine,
        workload=f"{sizes[0] / 1e6:.0f} to {sizes[-1] / 1e6:.0f} MB to each, in pieces of 16 MiB",
        figures=tuple(figures(runs.runs)),
        tables=(table(runs.runs),),
        note=NOTE,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sending", description=__doc__)

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    def words(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--subscribers", type=numbers, default=[1, 15], help="[1,15]")
    parser.add_argument("--sends", type=words, default=["plain", "clear", "tls"], help="[plain,clear,tls]")
    parser.add_argument("--rates-mb", type=numbers, default=[0, 20, 100], help="of the link; 0: not shaped [0,20,100]")
    parser.add_argument("--runs", type=int, default=5, help="rounds; 0 only writes the report again [%(default)s]")
    parser.add_argument("--size-mb", type=float, default=512.0, help="of the model [%(default)s]")
    parser.add_argument("--cold", action="store_true", help="from the disk, not from the page cache")
    parser.add_argument("--workdir", type=Path, default=Path("/var/tmp"), help="on the disk under test [%(default)s]")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where runs are added to [%(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    main()
