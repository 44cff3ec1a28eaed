"""One node's engine put together: store, workers, sources, flights. The agent and a plain `pull` are built on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cacheagent.blobs import Peers
from cacheagent.flights import Flights, Watcher
from cacheagent.progress import JobStatus
from cacheagent.source import open_source
from cacheagent.store import Store, StorePolicy
from cacheagent.threads import in_thread
from cacheagent.transfer.observer import TransferObserver
from cacheagent.transfer.pool import TransferConfig, WorkerPool

OpenPeers = Callable[[Store, WorkerPool], AbstractAsyncContextManager[Peers | None]]
"""How a node finds itself among peers, if it does."""


@asynccontextmanager
async def no_peers(_store: Store, _pool: WorkerPool) -> AsyncIterator[Peers | None]:
    """A node that fetches everything from the sources itself."""
    yield None


@dataclass(frozen=True, kw_only=True)
class Node:
    """What owns one cache directory while it lives."""

    store: Store
    transport: WorkerPool
    flights: Flights


@asynccontextmanager
async def open_node(  # noqa: PLR0913 - each is a part that a plain pull goes without
    root: Path,
    *,
    store_policy: StorePolicy | None = None,
    transfer: TransferConfig | None = None,
    on_event: Callable[[JobStatus], None] = lambda _: None,
    observer: TransferObserver | None = None,
    watcher: Watcher | None = None,
    open_peers: OpenPeers = no_peers,
) -> AsyncIterator[Node]:
    """Own the cache directory for the length of the block: adopt what is there, start the workers, and at the end stop
    everything within seconds with partial work kept. Raises StoreBusy, UnknownLayout, DiskFault before that.
    """
    store = await in_thread(partial(Store.open, root, store_policy or StorePolicy()))
    try:
        async with WorkerPool(transfer, observer=observer) as pool, open_peers(store, pool) as peers:
            flights = Flights(store, pool, open_source, on_event=on_event, watcher=watcher, peers=peers)
            try:
                yield Node(store=store, transport=pool, flights=flights)
            finally:
                await flights.close()
    finally:
        await in_thread(store.close)
