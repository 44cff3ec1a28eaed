"""The scripts of examples/pytorch, run with a real torch on datasets that the cache published; and the benchmark's."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from benchmarks.epoch.measure import CASES, run
from tests.fakes.models import write_files
from tests.manifests.chart import ROOT
from tests.stacks.environments import VLLM, find
from tests.unit.test_store_views import read_only_mount

pytestmark = [pytest.mark.stacks, pytest.mark.timeout(600)]

IMAGES = 203
CLASSES = 10
SHARDS = 5
DECODED_BYTES = 128 * 128 * 3


def images() -> dict[str, bytes]:
    """A dataset of single files, a folder a class."""
    return {f"{number % CLASSES}/{number:06}.jpg": number.to_bytes(4, "big") * 500 for number in range(IMAGES)}


def shards() -> dict[str, bytes]:
    """The same as tar shards, each image beside its class."""
    buffers = [io.BytesIO() for _ in range(SHARDS)]
    archives = [tarfile.open(fileobj=buffer, mode="w") for buffer in buffers]  # noqa: SIM115
    for number, (path, content) in enumerate(images().items()):
        stem = path.partition("/")[2].removesuffix(".jpg")
        for name, body in ((f"{stem}.jpg", content), (f"{stem}.cls", str(number % CLASSES).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archives[number % SHARDS].addfile(member, io.BytesIO(body))
    for archive in archives:
        archive.close()
    return {f"images-{number:05}.tar": buffer.getvalue() for number, buffer in enumerate(buffers)}


def script_of(example: str) -> str:
    """The one in its ConfigMap."""
    text = (ROOT / "examples/pytorch" / example).read_text()
    (found,) = [item["data"]["train.py"] for item in yaml.safe_load_all(text) if item["kind"] == "ConfigMap"]
    return str(found)


@pytest.mark.parametrize(
    ("example", "files", "said"),
    [
        ("folder.yaml", images(), ["102 of 203 images in 10 classes", "102 of 203 images in 10 classes"]),
        ("shards.yaml", shards(), ["122 images in its share of 5 shards", "81 images in its share of 5 shards"]),
    ],
)
def test_an_epoch_of_two_ranks(tmp_path: Path, example: str, files: dict[str, bytes], said: list[str]) -> None:
    """Each rank sees its share, with several workers, from a read-only mount; a shard is read by one worker only."""
    program = find(VLLM)
    write_files(tmp_path / "origin", files)
    command = [sys.executable, "-m", "cacheagent", "pull", f"file://{tmp_path}/origin", "--kind", "tree"]
    pulled = subprocess.run(
        [*command, "--root", tmp_path / "cache"], capture_output=True, text=True, check=False, timeout=120
    )
    assert pulled.returncode == 0, pulled.stderr
    (tmp_path / "train.py").write_text(script_of(example))
    with read_only_mount(Path(pulled.stdout.strip()), tmp_path / "data") as mount:
        for rank, sentence in enumerate(said):
            variables = {"JOB_COMPLETION_INDEX": str(rank), "WORLD_SIZE": "2", "WORKERS": "2", "HOME": str(tmp_path)}
            done = subprocess.run(
                [program / "bin/python", tmp_path / "train.py", mount],
                env=variables, capture_output=True, text=True, check=False, timeout=240,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-2000:]
            assert done.stdout.strip() == f"rank {rank} of 2: {sentence}"


def test_the_benchmarks_program_reads_what_it_made(tmp_path: Path) -> None:
    """Every image once from either layout, in the size that it has at the origin where it isn't decoded."""
    program = find(VLLM) / "bin/python"
    origin = tmp_path / "origin"
    run(program, {"make": str(origin), "images": IMAGES, "shards": SHARDS})
    on_disk = sum(path.stat().st_size for path in (origin / "folder").rglob("*.jpg"))
    for case in CASES:
        asked = {"layout": case.layout, "decode": case.decode, "workers": 2, "path": str(origin / case.layout)}
        answer = json.loads(run(program, asked))
        assert answer["images"] == IMAGES
        assert answer["bytes"] == (IMAGES * DECODED_BYTES if case.decode else on_disk)
