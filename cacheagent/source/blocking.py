"""Blocking clients behind an async face: daemon threads, a bound, and a watch for calls that hang.

Cancelling the awaiting task returns at once while the thread goes on to the end of its call; the permit is given back
by the thread's own end, so that the bound holds whatever callers do. Threads are daemons: one that hangs in a system
call on a dead mount never keeps the process from ending."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from cacheagent.errors import OriginUnavailable

T = TypeVar("T")


class BlockingCalls:
    """At most `limit` blocking calls at a time, from one event loop."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._permits = asyncio.Semaphore(limit)

    async def run(self, call: Callable[[], T]) -> T:
        """Await `call()` in a thread."""
        await self._permits.acquire()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def finish(setter: Callable[[Any], None], value: Any) -> None:
            self._permits.release()
            if not done.done():
                setter(value)

        def target() -> None:
            try:
                outcome: tuple[Callable[[Any], None], Any] = (done.set_result, call())
            except BaseException as error:  # whatever it is, it belongs to the task that awaits
                outcome = (done.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left who could want the answer
                loop.call_soon_threadsafe(finish, *outcome)

        threading.Thread(target=target, name=self._name, daemon=True).start()
        return await done

    async def run_watched(self, call: Callable[[], T], *, progress: Callable[[], int], stall_s: float, what: str) -> T:
        """The same, but give up (and leave the thread behind) when `progress()` stays the same for `stall_s`
        seconds."""
        work = asyncio.ensure_future(self.run(call))
        try:
            seen = -1
            while seen != (seen := progress()):
                finished, _ = await asyncio.wait({work}, timeout=stall_s)
                if finished:
                    return work.result()
        finally:
            work.cancel()
        raise OriginUnavailable(
            f"{what} did not answer for {stall_s:g} s",
            hint="the file server behind the mount may be gone; the call was left behind and the agent goes on",
        )
