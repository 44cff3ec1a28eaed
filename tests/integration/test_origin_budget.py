"""What nodes that want the same version take from its origin together."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from cacheagent.model import SMALL_FILE_BYTES
from cacheagent.quantity import Rate
from cacheagent.spec import ModelSpec, SourceSpec
from tests.fakes.cache import content_of
from tests.fakes.origin import Origin
from tests.fakes.peer_nodes import NAMES, Received, open_nodes

FILES = {f"m/shard-{number}.bin": content_of(f"{number}", 2 * SMALL_FILE_BYTES) for number in range(4)}
BUDGET = 8_000_000


@pytest.mark.asyncio
@pytest.mark.parametrize("budget", [0, BUDGET])
async def test_two_nodes_keep_to_one_budget(tmp_path: Path, budget: int) -> None:
    """Each takes half of it at most, and they still take one copy and exchange the rest: what the origin sends takes
    its time. Without a budget nothing is limited."""
    received = {name: Received() for name in NAMES}
    with Origin(FILES) as origin:
        origin.add_sums("m")
        spec = ModelSpec(name="m", source=SourceSpec(uri=f"{origin.url}/m/"), kind="tree")
        async with AsyncExitStack() as stack:
            opened = open_nodes(tmp_path, received, origin_budget_bytes_per_s=Rate(budget))
            nodes = [await stack.enter_async_context(node) for node in opened]
            peers = [node.flights._engine.blobs._peers for node in nodes]
            began = time.monotonic()
            records = await asyncio.gather(*(node.flights.ensure(spec) for node in nodes))
            seconds = time.monotonic() - began
            shares = [each.origin_share(records[0].digest) for each in peers if each is not None]
        sent = sum(origin.body_bytes_sent(path) for path in FILES)
    assert shares == [budget // 2, budget // 2]
    assert min(observer.bytes for observer in received.values()) > 0
    assert sent >= sum(map(len, FILES.values()))
    if budget:
        assert sent <= 1.1 * budget * seconds + 2**20, "a slice of each node may come at once"
