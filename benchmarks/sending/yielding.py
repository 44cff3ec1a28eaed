"""What serving's making way for others does: `python -m benchmarks.sending.yielding`.

A reader of cold files takes what it can from a disk while peers are served other cold files from it, each its own
part, so that the disk reads every byte that is sent. Three ways in turn: nobody is served; serving does not make way
(the server is told of a cache directory in memory, which has no disk); serving makes way. Subscribers write to memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Literal, get_args

import msgspec

from benchmarks.arena import say
from benchmarks.cgroup import new_cgroup
from benchmarks.machine import Machine, describe_machine
from benchmarks.pacing import link
from benchmarks.sending.measure import SETTLE_S
from benchmarks.sending.model import Model, make_model
from benchmarks.sending.serving import SERVER, product
from benchmarks.sending.subscribers import subscribers
from cacheagent.model import Value
from cacheagent.peers.keys import NodeKey

Way = Literal["nobody is served", "serving stays", "serving makes way"]
READ_BYTES = 1 << 20
IN_MEMORY = Path("/dev/shm")
FILE = "yielding-runs.json"


class Run(Value):
    """`reader_bytes_per_s`: while it read; `served_bytes`: to all peers meanwhile; both over `wall_s`."""

    way: Way
    at: str
    wall_s: float
    reader_bytes_per_s: float
    served_bytes: int


class Runs(Value):
    """All runs, on one machine."""

    machine: Machine
    subscribers: int
    runs: tuple[Run, ...] = ()


class Reader:
    """Reads a file from its beginning to its end, again and again, from the disk each time."""

    def __init__(self, model: Model) -> None:
        self.read_bytes = 0
        self._model = model
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """As long as the block."""
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join()

    def _run(self) -> None:
        buffer = bytearray(READ_BYTES)
        while not self._stopping.is_set():
            self._model.forget()
            with self._model.path.open("rb", buffering=0) as file:
                while not self._stopping.is_set() and (count := file.readinto(buffer)):
                    self.read_bytes += count


async def measure(way: Way, served: Model, other: Model, count: int, seconds: float) -> Run:
    """One of them. Raises RuntimeError if all is served before the time is over."""
    names = [f"n{number}" for number in range(1, count + 1)]
    keys = {name: NodeKey(os.urandom(32)) for name in (SERVER, *names)}
    theirs = {name: keys[name] for name in names}
    root = served.path.parent if way == "serving makes way" else IN_MEMORY
    at, reader = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), Reader(other)
    with link(None) as to_server, new_cgroup("send") as group, tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        async with (
            product(served, keys, group, to_server, tls=False, root=root) as server,
            subscribers(theirs, served, Path(folder), tls=False, sparse=True) as fleet,
        ):
            await asyncio.sleep(SETTLE_S)
            os.sync()
            served.forget()
            fetches = (
                []
                if way == "nobody is served"
                else [
                    asyncio.create_task(each.fetch(server, range(number, served.pieces, count)))
                    for number, each in enumerate(fleet)
                ]
            )
            start = time.monotonic()
            with reader.running():
                done, _ = await asyncio.wait(
                    [*fetches, asyncio.create_task(asyncio.sleep(seconds))], return_when="FIRST_COMPLETED"
                )
                wall_s = time.monotonic() - start
            if wall_s < seconds:
                raise RuntimeError(f"all was served, or nothing: {[task.exception() for task in done]}")
            served_bytes = sum(each.received_bytes for each in fleet)
            for task in fetches:
                task.cancel()
    return Run(way=way, at=at, wall_s=wall_s, reader_bytes_per_s=reader.read_bytes / wall_s, served_bytes=served_bytes)


def _line(run: Run) -> str:
    served = run.served_bytes / run.wall_s
    return f"{run.way}: reader {run.reader_bytes_per_s / 1e6:.0f} MB/s, served {served / 1e6:.0f} MB/s"


def main() -> None:
    """Measure in rounds, keep, say the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sending.yielding", description=__doc__)
    parser.add_argument("--subscribers", type=int, default=15, help="[%(default)s]")
    parser.add_argument("--runs", type=int, default=5, help="rounds [%(default)s]")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each [%(default)s]")
    parser.add_argument("--size-mb", type=float, default=8000.0, help="of each file [%(default)s]")
    parser.add_argument("--workdir", type=Path, default=Path("/var/tmp"), help="on the disk under test [%(default)s]")
    parser.add_argument("--results", type=Path, default=Path("reports/benchmarks/sending"), help="[%(default)s]")
    wanted = parser.parse_args()
    wanted.results.mkdir(parents=True, exist_ok=True)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="cas", dir=wanted.workdir) as folder:
        served, other = (make_model(Path(folder) / name, int(wanted.size_mb * 1e6)) for name in ("served", "other"))
        for way in [way for _ in range(wanted.runs) for way in get_args(Way)]:
            run = asyncio.run(measure(way, served, other, wanted.subscribers, wanted.seconds))
            say(_line(run))
            runs.append(run)
            kept = Runs(machine=describe_machine(wanted.workdir), subscribers=wanted.subscribers, runs=tuple(runs))
            (wanted.results / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1))
    for way in get_args(Way):
        print(f"{way}: {median(run.reader_bytes_per_s for run in runs if run.way == way) / 1e6:.0f} MB/s")


if __name__ == "__main__":
    main()
