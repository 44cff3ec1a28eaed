"""The one place where the event loop hands blocking work to a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread and wait for it *to its end*, also when the caller is cancelled.

    `asyncio.to_thread` returns at once on cancellation while its thread goes on writing; whoever then releases a
    reservation or removes a directory does so under that thread's hands. Here cancellation is delivered after the
    thread has finished, so what `work` did is complete. `work` must therefore be bounded: disk calls on our own
    filesystem, never the network.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise cancelled from failure
        raise cancelled
    return task.result()
