"""Behaviour that every source shares, as thin wrappers: each is a Source around a Source. `open_source` stacks them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from cacheagent.errors import TransferFailed
from cacheagent.location import Location
from cacheagent.model import RemoteFile
from cacheagent.source.base import Listing, Source

RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0)
"""Five tries in about 7.5 s: longer than a rolling restart of a gateway's pod behind a load balancer. Chosen. Whoever
wants to outlast more asks again (the agent does)."""

T = TypeVar("T")


class Wrapped:
    """Passes everything on; wrappers override `_around`."""

    def __init__(self, inner: Source) -> None:
        self._inner = inner
        self.kind = inner.kind
        self.trust_domain = inner.trust_domain

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._inner!r})"

    async def list(self) -> Listing:
        """See `Source.list`."""
        return await self._around(self._inner.list)

    async def describe(self, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
        """See `Source.describe`."""
        return await self._around(partial(self._inner.describe, files))

    async def read(self, file: RemoteFile, limit_bytes: int) -> bytes:
        """See `Source.read`."""
        return await self._around(partial(self._inner.read, file, limit_bytes))

    async def locate(self, files: Sequence[RemoteFile]) -> Sequence[Location]:
        """See `Source.locate`."""
        return await self._around(partial(self._inner.locate, files))

    async def close(self) -> None:
        """See `Source.close`."""
        await self._inner.close()

    async def _around(self, call: Callable[[], Awaitable[T]]) -> T:
        raise NotImplementedError


class Retrying(Wrapped):
    """Asks again after a TransferFailed, a bounded number of times, with full jitter on the later half of each
    delay."""

    def __init__(self, inner: Source, *, delays_s: Sequence[float] = RETRY_DELAYS_S) -> None:
        super().__init__(inner)
        self._delays_s = delays_s

    async def _around(self, call: Callable[[], Awaitable[T]]) -> T:
        for delay_s in self._delays_s:
            try:
                return await call()
            except TransferFailed:
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
        return await call()


class Limited(Wrapped):
    """At most `limit` calls at a time; what one call does in parallel is its source's own bound."""

    def __init__(self, inner: Source, *, limit: int) -> None:
        super().__init__(inner)
        self._permits = asyncio.Semaphore(limit)

    async def _around(self, call: Callable[[], Awaitable[T]]) -> T:
        async with self._permits:
            return await call()
