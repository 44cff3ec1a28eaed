"""What a session of measuring holds: one dataset in memory at a time, servers for it, and where results go."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.arena import Arena, say
from benchmarks.datasets import Dataset, build_checkpoint, build_giant, build_small_files
from benchmarks.pacing import link
from benchmarks.servers import Server, nginx, seaweedfs
from benchmarks.target import BUCKET

DatasetKind = Literal["checkpoint", "small", "giant"]
ServerKind = Literal["nginx", "nginx-paced", "nginx-link", "nginx-tls", "seaweedfs"]

SHARDS = 8
SMALL_FILE_BYTES = 50_000
PACE_BYTES_PER_S = 0.8e9


class Sizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much is moved; how large the fleet is, and how long it is watched at rest."""

    checkpoint_bytes: int
    small_files: int
    giant_bytes: int
    fleet_nodes: int
    fleet_rest_s: float


class Bench:
    """One session. Everything it makes is under the arena's two directories."""

    def __init__(self, arena: Arena, sizes: Sizes, results: Path, *, has_peers: bool) -> None:
        self.arena = arena
        self.sizes = sizes
        self.results = results
        self.has_peers = has_peers
        self._dataset: tuple[DatasetKind, Dataset] | None = None

    @contextlib.contextmanager
    def serving(self, server: ServerKind, kind: DatasetKind) -> Iterator[tuple[Server, Dataset]]:
        """A server with that dataset. nginx leaves the dataset for the next scenario, SeaweedFS takes it in."""
        dataset = self._get_dataset(kind)
        with contextlib.ExitStack() as stack:
            match server:
                case "nginx-paced":
                    wire = stack.enter_context(link(PACE_BYTES_PER_S))
                    yield stack.enter_context(nginx(dataset, self.arena.scratch, link=wire)), dataset
                case "nginx-link":
                    wire = stack.enter_context(link(None))
                    yield stack.enter_context(nginx(dataset, self.arena.scratch, link=wire)), dataset
                case "nginx" | "nginx-tls":
                    yield stack.enter_context(nginx(dataset, self.arena.scratch, tls=server == "nginx-tls")), dataset
                case "seaweedfs":
                    with self.arena.turn():
                        running = stack.enter_context(seaweedfs(dataset, self.arena.scratch))
                    self._forget()
                    yield running, dataset

    def _get_dataset(self, kind: DatasetKind) -> Dataset:
        if self._dataset and self._dataset[0] == kind:
            return self._dataset[1]
        self._forget()
        root = self.arena.scratch / "docroot" / BUCKET / kind
        with self.arena.turn():
            dataset = self._build(kind, root)
        say(f" dataset {kind}: {len(dataset.files)} files, {dataset.size_bytes / 1e9:.2f} GB in memory")
        self._check_disk(dataset)
        self._dataset = kind, dataset
        return dataset

    def _build(self, kind: DatasetKind, root: Path) -> Dataset:
        match kind:
            case "checkpoint":
                return build_checkpoint(root, shards=SHARDS, size_bytes=self.sizes.checkpoint_bytes)
            case "small":
                return build_small_files(root, count=self.sizes.small_files, size_bytes=SMALL_FILE_BYTES)
            case "giant":
                return build_giant(root, size_bytes=self.sizes.giant_bytes)

    def _check_disk(self, dataset: Dataset) -> None:
        free = shutil.disk_usage(self.arena.workdir).free
        needed = int(dataset.size_bytes * 1.2) + (11 << 30)  # the store keeps 10 GiB free by default
        if free < needed:
            raise SystemExit(
                f"{self.arena.workdir} has {free / 1e9:.1f} GB free, this dataset needs {needed / 1e9:.1f} GB; "
                "choose another disk with --workdir or less with --size-gb"
            )

    def _forget(self) -> None:
        if self._dataset:
            shutil.rmtree(self._dataset[1].root)
            self._dataset = None
