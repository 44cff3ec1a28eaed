"""The sending benchmark really sends: a server process behind a link, receivers that verify and write."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.sending.cell import Cell
from benchmarks.sending.measure import measure
from benchmarks.sending.model import make_model
from cacheagent.model import PIECE_SIZE_BYTES
from tests.conftest import missing, require
from tests.privileges import as_root

RATE_BYTES_PER_S = 100e6


@pytest.mark.parametrize("sends", ["plain", "clear", "tls"])
def test_two_subscribers_get_all_through_the_link(tmp_path: Path, sends: str) -> None:
    """All is counted, nobody is faster than the link, and nothing is left of files and network."""
    for tool in ("ip", "tc"):
        require(tool, "links are made with it")
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode != 0:
        missing("root", "network namespaces are made")
    model = make_model(tmp_path / "model", 2 * PIECE_SIZE_BYTES + 5)
    cell = Cell(
        sends="plain" if sends == "plain" else "product",
        subscribers=2,
        pieces=model.pieces,
        tls=sends == "tls",
        rate_bytes_per_s=RATE_BYTES_PER_S,
    )
    run = as_root(lambda: measure(cell, model, tmp_path))
    assert run.sent_bytes == 2 * model.size_bytes
    assert run.bytes_per_s < 1.1 * RATE_BYTES_PER_S
    assert run.cpu_user_s + run.cpu_system_s > 0
    assert (run.receiving_cpu_s > 0) == (sends != "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (
        f"bench{os.getpid()}" not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    )
