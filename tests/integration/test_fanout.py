"""The fanout benchmark really runs: agents in network namespaces behind links of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from benchmarks.fanout.cell import Cell
from benchmarks.fanout.measure import datasets, measure
from benchmarks.fanout.network import NAMESPACES
from benchmarks.fanout.turns import Turns
from tests.conftest import missing, require
from tests.privileges import as_root


def test_two_agents_fetch_directly_through_links_of_their_own(tmp_path: Path) -> None:
    """The links' counters see two copies leave the origin, and nothing is left of the network."""
    for tool in ("ip", "tc", "nginx", "nsenter"):
        require(tool, "links are made and served with it")
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode != 0:
        missing("root", "network namespaces are made")
    cell = Cell(
        variant="direct",
        nodes=2,
        size_bytes=16_000_000,
        piece_bytes=1 << 20,
        rate_bytes_per_s=20e6,
        origin_links=2.0,
    )
    with datasets(cell.size_bytes) as data:
        run = as_root(lambda: measure(cell, data, tmp_path, Turns()))
    assert run.failure == ""
    assert len(run.times_s) == 2
    assert min(run.times_s) >= 0.9 * cell.limit_s - 0.1  # a full bucket lets the first bytes through at once
    assert 2.0 <= run.origin_bytes / cell.size_bytes < 2.5
    assert run.received_bytes >= 2 * cell.size_bytes
    assert run.cpu_s > 0
    names = [path.name for path in NAMESPACES.iterdir()]
    assert [name for name in names if name.startswith(f"caf{os.getpid()}")] == []
