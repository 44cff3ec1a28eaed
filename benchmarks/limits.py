"""What the machine gives to anybody, measured in the same session: bytes received to nowhere, direct writes."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.arena import Arena, say
from benchmarks.datasets import Dataset
from benchmarks.measure import Command, measure
from benchmarks.servers import Server, presigned_url

PROGRAM = Path(__file__).parent / "programs" / "receive.py"
# Tried in each of as many processes as there are CPUs; the best counts.
THREADS = (1, 2, 4)
WRITERS = 4
BLOCK_BYTES = 2 << 20


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates in bytes per second, and what receiving costs, in CPU seconds per GB."""

    receive_bytes_per_s: float
    receive_cpu_s_per_gb: float
    disk_bytes_per_s: float

    @property
    def bytes_per_s(self) -> float:
        """The slower of both: no transfer can be faster."""
        return min(self.receive_bytes_per_s, self.disk_bytes_per_s)


def measure_limits(server: Server, dataset: Dataset, arena: Arena) -> Limits:
    """The best of a few ways to receive everything once, and `fio` writing as much as the dataset has."""
    receptions = [receive(server, dataset, arena, threads=threads) for threads in THREADS]
    rate, cpu_s = max(receptions)
    limits = Limits(
        receive_bytes_per_s=rate,
        receive_cpu_s_per_gb=cpu_s / (dataset.size_bytes / 1e9),
        disk_bytes_per_s=write_direct(server, dataset, arena),
    )
    say(
        f"  limits: receive {rate / 1e9:.2f} GB/s at {limits.receive_cpu_s_per_gb:.2f} CPU-s/GB, "
        f"disk {limits.disk_bytes_per_s / 1e9:.2f} GB/s"
    )
    return limits


def best_of(measured: Sequence[Limits]) -> Limits:
    """The most that was seen of each: a bar is not lowered by a limit that was measured in a bad moment."""
    best = max(measured, key=lambda limits: limits.receive_bytes_per_s)
    return msgspec.structs.replace(best, disk_bytes_per_s=max(limits.disk_bytes_per_s for limits in measured))


def receive(server: Server, dataset: Dataset, arena: Arena, *, threads: int) -> tuple[float, float]:
    """(bytes per second, CPU seconds) of receiving every byte once and keeping nothing; its start is not counted."""
    request = {
        "ca_bundle": str(server.target.ca_bundle or ""),
        "files": [(presigned_url(server.target, file.path), file.size_bytes) for file in dataset.files],
        "threads": threads,
        "processes": os.cpu_count(),
    }
    with arena.turn():
        run = measure(Command(argv=[sys.executable, str(PROGRAM)], env={"REQUEST": json.dumps(request)}), server=server)
    return dataset.size_bytes / float(run.output), run.cpu_s


def write_direct(server: Server, dataset: Dataset, arena: Arena) -> float:
    """Bytes per second of `fio`: large direct sequential writes into preallocated files, with the final flush."""
    stem = arena.workdir / "fio"
    each_bytes = dataset.size_bytes // WRITERS // BLOCK_BYTES * BLOCK_BYTES
    options = ["--rw=write", f"--bs={BLOCK_BYTES}", "--direct=1", "--ioengine=psync", f"--numjobs={WRITERS}"]
    options += [f"--size={each_bytes}", "--fallocate=posix", "--end_fsync=1", "--group_reporting"]
    options += ["--output-format=json", f"--output={stem}.json", f"--filename_format={stem}.$jobnum"]
    try:
        with arena.turn():
            measure(Command(argv=["fio", "--name=limit", *options]), server=server)
        (job,) = json.loads(Path(f"{stem}.json").read_text())["jobs"]
    finally:
        for path in arena.workdir.glob("fio.*"):
            path.unlink()
    return float(job["write"]["bw_bytes"])
