"""Agents that exchange a model: one copy from the origin, every byte right, whatever happens to some of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.origin import Origin
from tests.fakes.peer_agents import MODEL, PeerAgents, add_index, shards


@pytest.mark.parametrize("sums", [True, False], ids=["sha256", "no checksums"])
def test_one_copy_from_the_origin_serves_all(tmp_path: Path, sums: bool) -> None:  # noqa: FBT001 - a case of the test
    """Four cold agents that start together get what the origin has, which sends each byte of the large files once."""
    files = shards(3, 2)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 4) as fleet:
        if sums:
            origin.add_sums(MODEL)
        else:
            add_index(origin)
        fleet.start()
        fleet.wait_until_ready()
        for name in fleet.agents:
            assert fleet.files(name).items() >= files.items()
        for path, data in files.items():
            if "shard" in path:
                assert origin.body_bytes_sent(path) == len(data), path
        received = sum(fleet.metric(name, "cacheagent_peer_received_bytes_total") for name in fleet.agents)
        assert received >= 3 * sum(len(data) for path, data in files.items() if "shard" in path)
