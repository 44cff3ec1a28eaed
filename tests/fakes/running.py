"""Root tasks in tests, and waiting for a condition in the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

LIMIT_S: Final = 90.0
"""Generous: a condition that does not come within it never comes."""


@asynccontextmanager
async def running(*roots: Coroutine[Any, Any, Any]) -> AsyncGenerator[None, None]:
    """Root tasks for as long as the block lasts; they are cancelled at its end, and one that failed fails the block."""
    tasks = [asyncio.create_task(root) for root in roots]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


async def until(condition: Callable[[], Any], what: str) -> None:
    """Return once it is so; a coroutine's answer is awaited. Fails with `what` after a generous limit."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        answer = condition()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return
        assert time.monotonic() < deadline, f"not within {LIMIT_S:.0f} s: {what}"
        await asyncio.sleep(0.01)
