"""`python -m benchmarks.epoch`: measure, keep, say. Needs root, and the environment that `make test-stacks` makes."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from benchmarks.epoch.measure import (
    CACHE,
    LINK_BYTES_PER_S,
    MOUNT_BYTES_PER_S,
    PLACES,
    READ_DELAY_S,
    Epochs,
    Size,
    measure,
)
from benchmarks.machine import describe_machine
from benchmarks.outcome import Figure, Outcome, Table
from benchmarks.report import keep, write_report
from tests.stacks.environments import VLLM

BAR = 3.0


def main() -> None:
    """Measure, keep, say where."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epoch", description=__doc__)
    parser.add_argument("--images", type=int, default=Size().images, help="[%(default)s]")
    parser.add_argument("--workers", type=int, default=Size().workers, help="of a DataLoader [%(default)s]")
    parser.add_argument("--rounds", type=int, default=Size().rounds, help="[%(default)s]")
    parser.add_argument("--workdir", type=Path, default=Path("/var/tmp"), help="on the disk under test [%(default)s]")
    parser.add_argument("--results", type=Path, default=Path("reports/benchmarks/epoch"), help="[%(default)s]")
    wanted = parser.parse_args()
    if not VLLM.is_made:
        raise SystemExit(f"{VLLM.folder} is not there: make test-stacks makes it")
    workdir = Path(tempfile.mkdtemp(prefix="cacheagent-epoch-", dir=wanted.workdir))
    try:
        size = Size(images=wanted.images, workers=wanted.workers, rounds=wanted.rounds)
        outcome = told(measure(size, VLLM.folder / "bin/python", workdir), workdir)
    finally:
        for directory in (workdir / "cache").rglob("*/"):  # published trees are read-only
            directory.chmod(0o755)
        shutil.rmtree(workdir)
    keep(outcome, wanted.results)
    print(write_report([outcome], wanted.results).read_text())


def told(epochs: Epochs, workdir: Path) -> Outcome:
    """Figures and a table."""
    size = epochs.size
    return Outcome(
        name="epoch",
        title=f"An epoch over {size.images:,} images",
        machine=describe_machine(workdir),
        workload=(
            f"{size.images:,} JPEGs of {epochs.image_bytes / size.images / 1000:.0f} KB, decoded, "
            f"{size.workers} workers, page cache dropped before each; in folders in random order, "
            f"and in {size.shards} tar shards from front to back; these also read and not decoded"
        ),
        figures=tuple(
            Figure(
                title=f"epoch from the cache against {place}, {case.label}",
                value=epochs.median(place, case) / epochs.median(CACHE, case),
                bar=BAR,
                is_upper_bound=False,
                unit="times as fast",
                how="medians of the rounds, from the list of files to the last batch",
            )
            for place, cases in PLACES.items()
            for case in cases
        ),
        tables=(
            Table(
                title="Seconds of an epoch, each round",
                columns=("", *(f"round {number + 1}" for number in range(size.rounds))),
                rows=tuple((name, *(f"{each:.1f}" for each in rounds)) for name, rounds in epochs.seconds.items()),
            ),
        ),
        note=(
            "S3 is SeaweedFS on the same machine, so the server's work costs the same CPUs; the mount is FUSE, "
            f"{READ_DELAY_S * 1000:.0f} ms a read and {MOUNT_BYTES_PER_S / 1e6:.0f} MB/s in all. "
            f"{LINK_BYTES_PER_S / 1e6:.0f} MB/s is what one of many nodes gets, by a proxy before the same server. "
            "Decoding binds the shards: two cores decode less than any of these places gives. "
            "`not decoded` is the loader alone, as where a GPU decodes (DALI, nvJPEG): what the source itself costs. "
            "What no figure has: the one fetch into the cache, which is before the first epoch."
        ),
    )


if __name__ == "__main__":
    main()
