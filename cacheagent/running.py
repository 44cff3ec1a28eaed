"""How a long-running process runs and ends: root tasks that never end by themselves, and orders from outside."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

from cacheagent.errors import RootTaskEnded

LOG: Final = logging.getLogger(__name__)


async def until_stopped(
    roots: Mapping[str, Coroutine[Any, Any, None]], stop: asyncio.Event, *, who: str = "the agent"
) -> None:
    """Run the root tasks until `stop`, then cancel them and wait for their end.

    None of them ever ends by itself: if one does, all are stopped and RootTaskEnded says which and why.
    """
    tasks = {asyncio.create_task(work, name=name) for name, work in roots.items()}
    stopping = asyncio.create_task(stop.wait())
    ended, running = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for task in ended - {stopping}:
        reason = repr(task.exception()) if task.exception() else "it returned"
        raise RootTaskEnded(
            f"{who} stopped because {task.get_name()} ended: {reason}", hint="report it with the log"
        ) from task.exception()


class Orders:
    """What the outside wants of a running process.

    `stop_within_s`: so long after the order to stop the process ends as it is, which must lose nothing.
    """

    def __init__(self, stop_within_s: float) -> None:
        self.stop = asyncio.Event()
        self.reload = asyncio.Event()
        self.stopped_by = ""
        self._stop_within_s = stop_within_s

    @contextmanager
    def from_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop, a second one ends at once; SIGHUP reloads."""
        loop = asyncio.get_running_loop()
        actions: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: partial(self._stop, "SIGTERM"),
            signal.SIGINT: partial(self._stop, "SIGINT"),
            signal.SIGHUP: self.reload.set,
        }
        for number, action in actions.items():
            loop.add_signal_handler(number, action)
        try:
            yield
        finally:
            for number in actions:
                loop.remove_signal_handler(number)

    def _stop(self, name: str) -> None:
        if self.stop.is_set():
            end_now("told twice to stop")
        self.stopped_by = name
        self.stop.set()
        LOG.info("stopping", extra={"by": name})
        late = threading.Timer(self._stop_within_s, end_now, ["something did not stop in time"])
        late.daemon = True  # it must not keep alive what has stopped
        late.start()


def allow_descriptors() -> None:
    """As many as this process may have, and the children that it starts: systemd lets it begin with 1024, which are for
    programs that use `select`; a node with many peers needs more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # more than the kernel gives anybody by now
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def end_now(why: str) -> None:
    """End the process as kill -9 would: nothing is lost that was proved."""
    LOG.error("ended at once: %s; what was proved is on disk", why)
    sys.stderr.flush()
    os._exit(1)
