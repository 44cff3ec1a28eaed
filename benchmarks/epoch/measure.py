"""One dataset in two layouts at three places, and epochs over each in turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.arena import say
from benchmarks.measure import drop_page_cache
from cacheagent.demo.seaweedfs import S3Server, running_seaweedfs
from tests.e2e.cluster.paced import paced_origin
from tests.fakes.fusefs import DiskFaults, FaultyDisk
from tests.fakes.s3 import client_for

PROGRAM: Final = Path(__file__).resolve().parents[1] / "programs/epoch.py"
LAYOUTS: Final = ("folder", "shards")
CACHE: Final = "the cache"
BUCKET: Final = "datasets"
READ_DELAY_S: Final = 0.010
MOUNT_BYTES_PER_S: Final = 100e6
"""Of all readers together: a gigabit, as of a filer that many share."""
LINK_BYTES_PER_S: Final = 20e6
"""What one node gets of a link that a fleet shares; that of the fan-out's figures."""
Place = Mapping[str, Any]


class Case(msgspec.Struct, frozen=True):
    """`decode`: as a CPU has to. Where a GPU decodes, the loader only reads."""

    layout: str
    decode: bool = True

    @property
    def label(self) -> str:
        """As figures and rows name it."""
        return self.layout if self.decode else f"{self.layout}, not decoded"


CASES: Final = (Case("folder"), Case("shards"), Case("shards", decode=False))
PLACES: Final = {
    "S3 by boto3": CASES,
    "S3 by boto3 at 20 MB/s": CASES[1:],  # single files take far longer for each to be asked for
    "a slow mount": CASES,
}
"""What the cache is compared with, and in which cases."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """`workers`: of each DataLoader."""

    images: int = 20_000
    shards: int = 20
    workers: int = 4
    rounds: int = 3


class Epochs(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds`: of each round, by `<place>, <case>`."""

    size: Size
    image_bytes: int
    seconds: dict[str, list[float]]

    def median(self, place: str, case: Case) -> float:
        """Seconds of an epoch."""
        return statistics.median(self.seconds[f"{place}, {case.label}"])


def measure(size: Size, python: Path, workdir: Path) -> Epochs:
    """Everything; needs root, to forget the page cache before each epoch."""
    run(python, {"make": str(workdir / "origin"), "images": size.images, "shards": size.shards})
    say(f"{size.images:,} images are made, in folders and in {size.shards} shards")
    image_bytes = sum(path.stat().st_size for path in (workdir / "origin/folder").rglob("*.jpg"))
    seconds: dict[str, list[float]] = {}
    with places(workdir) as found:
        for number in range(size.rounds):
            for case in CASES:
                asked = {"layout": case.layout, "decode": case.decode, "workers": size.workers}
                for place, where in found.items():
                    if case not in PLACES.get(place, CASES):
                        continue
                    taken = epoch(python, {**asked, **where(case.layout)}, size.images, image_bytes)
                    seconds.setdefault(f"{place}, {case.label}", []).append(taken)
                    say(f"round {number + 1}: {place}, {case.label}: {taken:.1f} s")
    return Epochs(size=size, image_bytes=image_bytes, seconds=seconds)


@contextmanager
def places(workdir: Path) -> Iterator[dict[str, Any]]:
    """What a request for a layout says of each place."""
    origin = workdir / "origin"
    published = {layout: pull(origin / layout, workdir / "cache") for layout in LAYOUTS}
    with (
        running_seaweedfs(workdir / "s3") as server,
        FaultyDisk(origin, workdir / "mount") as disk,
        paced_origin(server.endpoint, LINK_BYTES_PER_S) as link,
    ):
        upload(server, origin)
        disk.inject(DiskFaults(read_delay_s=READ_DELAY_S, read_bytes_per_s=MOUNT_BYTES_PER_S))
        os.environ.update(
            AWS_ACCESS_KEY_ID=server.access_key, AWS_SECRET_ACCESS_KEY=server.secret_key, AWS_REGION=server.region
        )
        yield {
            CACHE: lambda layout: {"path": str(published[layout])},
            "S3 by boto3": lambda layout: {"path": "", "endpoint": server.endpoint, "bucket": BUCKET},
            "S3 by boto3 at 20 MB/s": lambda layout: {"path": "", "endpoint": link.endpoint, "bucket": BUCKET},
            "a slow mount": lambda layout: {"path": str(disk.mountpoint / layout)},
        }


def pull(directory: Path, root: Path) -> Path:
    """Into the cache by the real engine; where its files are."""
    command = [sys.executable, "-m", "cacheagent", "pull", f"file://{directory}", "--kind", "tree", "--root", str(root)]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def upload(server: S3Server, origin: Path) -> None:
    """Both layouts into one bucket."""
    client = client_for(server)
    client.create_bucket(Bucket=BUCKET)
    files = [path for layout in LAYOUTS for path in (origin / layout).rglob("*") if path.is_file()]

    def put(path: Path) -> None:
        client.put_object(Bucket=BUCKET, Key=str(path.relative_to(origin)), Body=path.read_bytes())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, files))


def epoch(python: Path, request: Place, images: int, image_bytes: int) -> float:
    """Seconds of one, from a disk of which nothing is in memory."""
    drop_page_cache()
    answer = json.loads(run(python, request))
    if answer["images"] != images or (not request["decode"] and answer["bytes"] != image_bytes):
        raise RuntimeError(f"{answer} came, of {images} images of {image_bytes} bytes: {request}")
    return float(answer["seconds"])


def run(python: Path, request: Place) -> str:
    """What the program printed."""
    environment = {**os.environ, "REQUEST": json.dumps(request), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, PROGRAM], env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout
