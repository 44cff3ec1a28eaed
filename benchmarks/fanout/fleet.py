"""What every variant is to a run: groups to count in, and all nodes told at once to fetch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from benchmarks.cgroup import Cgroup
from benchmarks.datasets import Dataset
from benchmarks.fanout.cell import Cell
from benchmarks.fanout.network import Network


class FetchFailed(Exception):
    """A node did not get the model; the message says which and why."""


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet is built on. `dataset`: to be fetched; `warmup`: something tiny, fetched by all before. `workdir`:
    on the disk under test, empty; `scratch`: in memory, empty.
    """

    cell: Cell
    network: Network
    dataset: Dataset
    warmup: Dataset
    workdir: Path
    scratch: Path


def kill(groups: Iterable[Cgroup]) -> None:
    """All processes of all groups, with SIGKILL."""
    for group in groups:
        group.kill()


class Fleet(Protocol):
    """N nodes that are up and wait."""

    @property
    def groups(self) -> Sequence[Cgroup]:
        """One of each node."""

    def fetch(self, counted: Sequence[int], timeout_s: float) -> Mapping[int, float]:
        """Tell all nodes at once and wait for those that count: seconds until the model was there, by node.

        Raises FetchFailed.
        """

    def find(self, node: int, path: str) -> Path:
        """Where a file of the dataset is afterwards."""

    def digest(self, node: int) -> str:
        """Of the version that the node has published; empty where the program knows none."""

    def version(self) -> str:
        """Of the program."""
