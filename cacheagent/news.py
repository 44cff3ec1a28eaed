"""Wakes everybody who waits for a change, and loses none that comes between a look and the wait."""

from __future__ import annotations

import asyncio


class News:
    """One event loop. Take a ticket, look, then wait with the ticket."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def ticket(self) -> asyncio.Event:
        """What `wait` wants: everything that is told from now on ends that wait."""
        return self._event

    def tell(self) -> None:
        """Something has changed."""
        self._event.set()
        self._event = asyncio.Event()

    @staticmethod
    async def wait(ticket: asyncio.Event, limit_s: float) -> bool:
        """Return at the first news since the ticket; False when there was none in time."""
        if limit_s <= 0 and not ticket.is_set():
            return False
        try:
            async with asyncio.timeout(max(0.0, limit_s)):
                await ticket.wait()
        except TimeoutError:
            return ticket.is_set()
        return True
