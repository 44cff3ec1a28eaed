"""One coroutine function over many items, a bounded number at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def in_parallel(work: Callable[[Item], Awaitable[Result]], items: Sequence[Item], *, lanes: int) -> list[Result]:
    """Results in the order of `items`. The first error cancels the rest and is raised as it is."""
    results: dict[int, Result] = {}
    pending = iter(enumerate(items))

    async def lane() -> None:
        for index, item in pending:
            results[index] = await work(item)

    tasks = [asyncio.ensure_future(lane()) for _ in range(min(lanes, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [results[index] for index in range(len(items))]
