"""Stands in for the two processes of peers: remembers what they are told, and says what the test wants them to."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec


class FakeChild:
    """Has the parts of `transfer.child.Child` that peers use. The last one made is `FakeChild.last`."""

    last: FakeChild

    def __init__(
        self,
        argv: Sequence[str],
        descriptors: Sequence[int],
        reports: object,
        *,
        name: str,
        on_report: Callable[[Any], None],
        on_end: Callable[[], None],
    ) -> None:
        self.told: list[msgspec.Struct] = []
        self.say = on_report
        self.ended = asyncio.Event()
        self.is_stuck = False
        self.is_leaving = False
        self.how_it_ended = "signal 9"
        self.is_killed = False
        self.is_forgotten = False
        self.pid = 4711
        self._on_end = on_end
        FakeChild.last = self

    def send(self, order: msgspec.Struct) -> None:
        self.told.append(order)

    def kill(self) -> None:
        self.is_killed = True

    def forget(self) -> None:
        self.is_forgotten = True

    async def close(self) -> None:
        self.is_leaving = True
        self.end()

    def end(self, *, is_stuck: bool = False) -> None:
        """It is dead, or hangs."""
        self.is_stuck = is_stuck
        self.ended.set()
        self._on_end()

    def told_of(self, kind: type[msgspec.Struct]) -> list[Any]:
        """Orders of one kind, in order."""
        return [order for order in self.told if isinstance(order, kind)]


class FailingChild(FakeChild):
    """Of a machine that has no process to spare, `failures` times more."""

    failures = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if FailingChild.failures:
            FailingChild.failures -= 1
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        super().__init__(*args, **kwargs)
