"""Many units of work, a few at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def in_lanes(units: Iterable[T], work: Callable[[T], Awaitable[None]], *, lanes: int) -> None:
    """Do `work` on every unit, in order, `lanes` at a time.

    The first failure cancels the other lanes and is raised when they have ended; what else failed meanwhile is its
    cause. Cancelling cancels all lanes and waits for them.
    """
    waiting = deque(units)

    async def lane() -> None:
        while waiting:
            await work(waiting.popleft())

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(lanes, len(waiting))):
                group.create_task(lane())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
