"""Blocking work and cancellation."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cacheagent.threads import in_thread

pytestmark = pytest.mark.asyncio


async def test_the_result_and_the_error_come_back() -> None:
    """As if it had been called here."""
    assert await in_thread(lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


async def test_cancellation_waits_until_the_thread_has_finished() -> None:
    """Whoever releases what the thread uses does so after it, however often it is cancelled."""
    started, release, finished = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        assert release.wait(60)
        finished.set()

    task = asyncio.create_task(in_thread(work))
    assert await asyncio.to_thread(started.wait, 60)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished.is_set()


async def test_an_error_under_cancellation_is_not_lost() -> None:
    """It is the cause of the cancellation that the caller sees."""
    started, release = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        assert release.wait(60)
        raise OSError("disk")

    task = asyncio.create_task(in_thread(work))
    assert await asyncio.to_thread(started.wait, 60)
    task.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert isinstance(caught.value.__cause__, OSError)
