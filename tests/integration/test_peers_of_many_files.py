"""A version of more files than nodes have under way at the same time, and one of more than they exchange at all."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from cacheagent import blobs
from cacheagent.model import SMALL_FILE_BYTES
from cacheagent.peers import swarm
from cacheagent.spec import ModelSpec, SourceSpec
from tests.fakes.cache import content_of
from tests.fakes.origin import Origin
from tests.fakes.peer_nodes import NAMES, Received, open_nodes

FILES = {f"m/shard-{number}.bin": content_of(f"{number}", SMALL_FILE_BYTES + number) for number in range(9)}


class Watched(blobs.BlobFlights):
    """Counts large files under way."""

    now = most = 0

    async def _fetch_large(self, *call: object) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await super()._fetch_large(*call)  # type: ignore[arg-type]
        finally:
            self.now -= 1


@pytest.mark.asyncio
@pytest.mark.parametrize("most", [len(FILES), len(FILES) - 1], ids=["as many as are exchanged", "one more"])
async def test_two_nodes_and_many_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, most: int
) -> None:
    """They exchange them, a few at a time; one file too many, and each node takes all from the origin and says why."""
    monkeypatch.setattr(blobs, "SHARED_AT_ONCE", 2)
    monkeypatch.setattr(blobs, "BLOBS_AT_ONCE", 1)
    monkeypatch.setattr(swarm, "MOST_FILES", most)
    monkeypatch.setattr("cacheagent.flights.BlobFlights", Watched)
    size = sum(map(len, FILES.values()))
    received = {name: Received() for name in NAMES}
    with Origin(FILES) as origin, caplog.at_level(logging.WARNING, logger="cacheagent.peers.swarm"):
        origin.add_sums("m")
        spec = ModelSpec(name="m", source=SourceSpec(uri=f"{origin.url}/m/"), kind="tree")
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(node) for node in open_nodes(tmp_path, received)]
            await asyncio.gather(*(node.flights.ensure(spec) for node in nodes))
        sent = sum(origin.body_bytes_sent(path) for path in FILES)
    reasons = [record.getMessage() for record in caplog.records]
    if most == len(FILES):
        assert min(observer.bytes for observer in received.values()) > 0
        assert sent < 2 * size
        assert not reasons
        flights = [node.flights._engine.blobs for node in nodes]
        assert [each.most for each in flights if isinstance(each, Watched)] == [3, 3]
    else:
        assert [observer.bytes for observer in received.values()] == [0, 0]
        assert sent == 2 * size
        assert len(reasons) == len(NAMES)
        assert all("it has 9 files of 1 MiB and more, and nodes exchange at most 8" in reason for reason in reasons)
    for name in NAMES:
        (tree,) = (tmp_path / name / "models").iterdir()
        assert {f"m/{path.name}": path.read_bytes() for path in (tree / "files").glob("shard-*")} == FILES
