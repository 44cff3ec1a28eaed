"""The fanout benchmark really runs: agents in network namespaces behind links of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.fanout import aria2
from benchmarks.fanout.cell import Cell, Run, Variant
from benchmarks.fanout.measure import datasets, measure
from benchmarks.fanout.network import NAMESPACES
from benchmarks.fanout.turns import Turns
from tests.conftest import missing, require
from tests.privileges import as_root

NODES = 2
SIZE = 16_000_000


def test_two_agents_fetch_directly_through_links_of_their_own(tmp_path: Path) -> None:
    """The links' counters see two copies leave the origin, and nothing is left of the network."""
    run = measured("direct", tmp_path)
    assert min(run.times_s) >= 0.9 * run.cell.limit_s - 0.1  # a full bucket lets the first bytes through at once
    assert 2.0 <= run.origin_bytes / SIZE < 2.5


def test_two_agents_exchange_through_links_of_their_own(tmp_path: Path) -> None:
    """They send to each other, and one copy and little more leaves the origin."""
    run = measured("peers", tmp_path)
    assert 1.0 <= run.origin_bytes / SIZE < 1.7, "two without each other"
    assert run.sent_bytes > SIZE / 4
    assert run.digest.startswith("sha256-"), "or nobody can say afterwards which piece had which home"


def test_two_clients_of_bittorrent_exchange_through_links_of_their_own(tmp_path: Path) -> None:
    """What agents are compared with runs behind the same links, where it is installed."""
    if not Path(aria2.PROGRAM).exists():
        pytest.skip(f"{aria2.PROGRAM} is no part of this project: only who compares with it installs it")
    run = measured("aria2", tmp_path)
    assert run.sent_bytes > SIZE / 20


def measured(variant: Variant, folder: Path) -> Run:
    """A run of two nodes that went well, after which nothing of its network is left."""
    for tool in ("ip", "tc", "nginx", "nsenter"):
        require(tool, "links are made and served with it")
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode != 0:
        missing("root", "network namespaces are made")
    cell = Cell(
        variant=variant,
        nodes=NODES,
        size_bytes=SIZE,
        piece_bytes=1 << 20,
        rate_bytes_per_s=4e6,  # seconds, so that a busy machine does not keep nodes from each other all the time
        origin_links=1.0,
    )
    with datasets(SIZE) as data:
        run = as_root(lambda: measure(cell, data, folder, Turns()))
    assert run.failure == ""
    assert len(run.times_s) == NODES
    assert run.received_bytes >= NODES * SIZE
    assert run.cpu_s > 0
    names = [path.name for path in NAMESPACES.iterdir()]
    assert [name for name in names if name.startswith(f"caf{os.getpid()}")] == []
    return run
