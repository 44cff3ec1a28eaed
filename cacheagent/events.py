"""Fans job states out to whoever listens, and waits for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cacheagent.progress import JobStatus

BACKLOG: Final = 512
"""States that wait for one listener before it is dropped. A job tells of itself at most about five times a second, so
four busy jobs fill it in 25 s. Chosen, not measured."""


class Subscription:
    """One listener's queue."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: asyncio.Queue[JobStatus | None] = asyncio.Queue(BACKLOG + 1)  # and the end
        self.ended = False
        """Nothing more is put in: the hub closed, or this listener was too slow."""

    async def next(self) -> JobStatus | None:
        """The next state, or None when there will be no more."""
        if self.ended and self._waiting.empty():
            return None
        return await self._waiting.get()

    def offer(self, status: JobStatus) -> None:
        """Queue a state that concerns this listener; one too many ends the subscription."""
        if self.ended or (self._name and self._name != status.name):
            return
        if self._waiting.qsize() >= BACKLOG:
            self.end()
        else:
            self._waiting.put_nowait(status)

    def end(self) -> None:
        """No more states; those that wait can still be read."""
        if not self.ended:
            self.ended = True
            self._waiting.put_nowait(None)


class EventHub:
    """Everything that happens to jobs passes here. One event loop; `publish` never blocks."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._subscriptions)

    def publish(self, status: JobStatus) -> None:
        """Hand a state to all listeners; one that is `BACKLOG` states behind is dropped."""
        for subscription in self._subscriptions:
            subscription.offer(status)

    @contextmanager
    def subscribe(self, name: str = "") -> Iterator[Subscription]:
        """Listen to one model's jobs, or to all, for the length of the block."""
        subscription = Subscription(name)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def close(self) -> None:
        """End all subscriptions."""
        for subscription in self._subscriptions:
            subscription.end()
