"""Who vouches for pieces, for an event loop: files are read and removed in threads. The receiver process, which writes
them, loads nothing of this."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from cacheagent.peers.vouchers import Vouchers
from cacheagent.threads import in_thread

T = TypeVar("T")


class VouchersInTurn:
    """One call after the other, in the order in which they were asked for."""

    def __init__(self, vouchers: Vouchers) -> None:
        self._vouchers = vouchers
        self._turn = asyncio.Lock()
        self._forgetting: set[asyncio.Task[None]] = set()

    async def ask(self, what: Callable[[Vouchers], T]) -> T:
        """Do it and wait for it."""
        async with self._turn:
            return await in_thread(partial(what, self._vouchers))

    def forget(self, digest: str) -> None:
        """See Vouchers. Returns at once; what is asked for later finds it done."""
        task = asyncio.get_running_loop().create_task(self.ask(lambda each: each.forget(digest)), name="seals go")
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)

    async def settle(self) -> None:
        """Until all is forgotten that is to be."""
        await asyncio.gather(*self._forgetting)
