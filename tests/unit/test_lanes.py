"""Units of work in a few lanes."""

from __future__ import annotations

import asyncio

import pytest

from cacheagent.errors import NoRoom
from cacheagent.lanes import in_lanes

pytestmark = pytest.mark.asyncio


async def test_every_unit_is_worked_on_a_few_at_a_time_in_order() -> None:
    """Twenty units, three lanes: never four at once, begun in their order."""
    begun: list[int] = []
    running = most = 0

    async def work(unit: int) -> None:
        nonlocal running, most
        begun.append(unit)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await in_lanes(range(20), work, lanes=3)
    assert begun == list(range(20))
    assert most == 3


async def test_the_first_failure_is_raised_as_itself_after_the_others_have_ended() -> None:
    """No group reaches the caller, no lane is left running, no further unit begins."""
    ended: list[str] = []
    begun: list[int] = []

    async def work(unit: int) -> None:
        begun.append(unit)
        if unit == 1:
            raise NoRoom("full")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(f"unit {unit}")

    with pytest.raises(NoRoom, match="full") as caught:
        await in_lanes(range(5), work, lanes=2)
    assert ended == ["unit 0"]
    assert begun == [0, 1]
    assert isinstance(caught.value.__cause__, ExceptionGroup)


async def test_cancelling_cancels_the_lanes_and_waits_for_them() -> None:
    """Nothing runs on behind a caller who left."""
    ended: list[int] = []
    started = asyncio.Event()

    async def work(unit: int) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(unit)

    task = asyncio.create_task(in_lanes([1], work, lanes=4))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [1]
