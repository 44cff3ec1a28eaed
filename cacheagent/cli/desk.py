"""Whom a command asks about the cache: the agent that owns it, or the directory itself where none runs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cacheagent import __version__
from cacheagent.api.catalog import find_record, model_of, models_of, usage_of
from cacheagent.api.schema import Done, Evicted, Model, Status
from cacheagent.errors import AgentUnavailable, NotCached
from cacheagent.node import Node, open_node
from cacheagent.threads import in_thread

if TYPE_CHECKING:
    from cacheagent.api.client import AgentClient


class Desk(Protocol):
    """The questions and orders of `ls`, `status`, `verify`, `pin`, `unpin` and `evict`."""

    async def models(self) -> tuple[Model, ...]: ...

    async def model(self, ref: str) -> Model: ...

    async def status(self) -> Status: ...

    async def verify(self, ref: str) -> Done: ...

    async def pin(self, ref: str) -> Model: ...

    async def unpin(self, ref: str) -> Model: ...

    async def evict(self, ref: str) -> Evicted: ...


@asynccontextmanager
async def find_agent(socket: Path) -> AsyncIterator[AgentClient | None]:
    """The agent that serves this socket, or None. One that is there and does not answer is an error, not an absence."""
    if not await in_thread(socket.exists):
        yield None
        return
    # Imported late: the HTTP client takes a third of a second, which a pull without an agent does not need.
    from cacheagent.api.client import AgentClient

    async with AgentClient(socket) as client:
        yield client if await _answers(client) else None


async def _answers(client: AgentClient) -> bool:
    try:
        await client.version()
    except AgentUnavailable as error:
        cause = getattr(error.__cause__, "os_error", error.__cause__)
        # No socket, or the file of an agent that was killed.
        if isinstance(cause, FileNotFoundError | ConnectionRefusedError):
            return False
        raise
    return True


@asynccontextmanager
async def open_desk(root: Path, socket: Path) -> AsyncIterator[Desk]:
    """The agent if one runs. Otherwise the directory, owned for the length of the block; one that does not exist is an
    empty cache to whoever asks, and is not made.
    """
    async with find_agent(socket) as client:
        if client is not None:
            yield client
            return
    if not await in_thread(root.exists):
        raise NotCached(f"there is no cache at {root}", hint="`cacheagent pull` makes one; --root names another")
    started = time.monotonic()
    async with open_node(root) as node:
        yield _LocalDesk(root, node, started)


class _LocalDesk:
    def __init__(self, root: Path, node: Node, started: float) -> None:
        self._root = root
        self._node = node
        self._store = node.store
        self._started = started

    async def models(self) -> tuple[Model, ...]:
        return models_of(self._store)

    async def model(self, ref: str) -> Model:
        return model_of(self._store, find_record(self._store, ref))

    async def status(self) -> Status:
        return Status(
            version=__version__,
            root=str(self._root),
            uptime_s=time.monotonic() - self._started,
            usage=usage_of(self._store),
            models=models_of(self._store),
            wanted=(),
            jobs=(),
        )

    async def verify(self, ref: str) -> Done:
        record = find_record(self._store, ref)
        await self._node.flights.verify(record.digest)
        return Done(digest=record.digest)

    async def pin(self, ref: str) -> Model:
        record = find_record(self._store, ref)
        await in_thread(partial(self._store.pin, record.digest))
        return await self.model(record.digest)

    async def unpin(self, ref: str) -> Model:
        record = find_record(self._store, ref)
        await in_thread(partial(self._store.unpin, record.digest))
        return await self.model(record.digest)

    async def evict(self, ref: str) -> Evicted:
        record = find_record(self._store, ref)
        freed = await in_thread(partial(self._store.evict, record.digest))
        return Evicted(digest=record.digest, freed_bytes=freed)
