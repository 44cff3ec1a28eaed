"""What counts as a sign of life of a worker, and as what an origin brought."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cacheagent.location import HttpLocation
from cacheagent.transfer.concurrency import FixedLimit
from cacheagent.transfer.config import TransferConfig
from cacheagent.transfer.group import WorkerGroup
from cacheagent.transfer.orders import FetchStream, GoesOn
from cacheagent.transfer.origin import Origin
from cacheagent.transfer.process import Asked, Worker


class Sampled(FixedLimit):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(4)
        self.samples: list[float] = []

    def sample(self, now: float, goodput_bytes_per_s: float, *, saturated: bool) -> None:
        self.samples.append(goodput_bytes_per_s)


@pytest.mark.asyncio
@pytest.mark.parametrize("follows", [True, False])
async def test_who_waits_for_others_says_nothing_of_the_rest_of_its_worker(*, follows: bool) -> None:
    """Its own order goes on; a read that hangs beside it is noticed as soon as without it. The control is a stream that
    fetches."""
    loop = asyncio.get_running_loop()
    work = FetchStream(
        id=1, location=HttpLocation(url="http://o/a"), file_size=1, target="/t", lanes=1, checksums=(), follows=follows
    )
    asked = Asked(work=work, answer=loop.create_future(), on_part=None, asked_at=0.0)
    worker: Any = SimpleNamespace(_asked={1: asked}, _loop=loop, alive_at=0.0, is_up=False)
    Worker._take(worker, GoesOn(id=1))
    assert asked.asked_at > 0
    assert (worker.alive_at == 0) is follows
    assert worker.is_up


def test_what_is_received_is_not_our_own_disks() -> None:
    """However many of its readers are under way: their part is not missing in what the origin is said to bring."""
    limits = [Sampled(), Sampled()]
    origins = [
        Origin(limit, TransferConfig(), random.Random(1), brings=brings)
        for limit, brings in zip(limits, (True, False), strict=True)
    ]
    for origin in origins:
        origin.in_flight = 3
    worker = SimpleNamespace(counters=SimpleNamespace(advance=lambda: (1000, 0)), alive_at=0.0)
    group: Any = SimpleNamespace(
        workers=[worker], _ticked_at=0.0, _flights=[SimpleNamespace(origin=origin) for origin in origins]
    )
    WorkerGroup._measure(cast("WorkerGroup", group), 2.0)
    assert limits[0].samples == [500.0]
    assert limits[1].samples == []
