"""What the metrics read of a running agent when somebody scrapes."""

from __future__ import annotations

import logging
from typing import Final

from cacheagent.errors import StoreError
from cacheagent.events import EventHub
from cacheagent.metrics import RateSinceLast, Reading
from cacheagent.node import Node
from cacheagent.page_cache import RESULTS, PageCache
from cacheagent.scrub import Scrub
from cacheagent.store import Usage
from cacheagent.threads import in_thread
from cacheagent.warming import Warming

LOG: Final = logging.getLogger(__name__)


class Readings:
    """Looks at everything once, from the event loop. A disk that can't be looked at shows its last figures: what else
    is counted is wanted most just then."""

    def __init__(self, node: Node, scrub: Scrub, warming: Warming, hub: EventHub, page_cache: PageCache) -> None:
        self._page_cache = page_cache
        self._node = node
        self._scrub = scrub
        self._warming = warming
        self._hub = hub
        self._ingress = RateSinceLast()
        self._usage: Usage | None = None

    async def take(self) -> Reading:
        """All figures now."""
        try:
            self._usage = await in_thread(self._node.store.usage)
        except StoreError as error:
            LOG.warning("the metrics show old figures of the disk: %s", error)
        counts = self._scrub.counts
        store, pool, usage = self._node.store, self._node.transport, self._usage
        return Reading(
            capacity_bytes=usage.capacity if usage else 0,
            free_bytes=usage.free if usage else 0,
            used_bytes=usage.used if usage else 0,
            reserved_bytes=usage.reserved if usage else 0,
            evictable_bytes=usage.evictable if usage else 0,
            floor_bytes=usage.floor if usage else 0,
            models=usage.models if usage else 0,
            blobs=usage.blobs if usage else 0,
            quarantined=usage.quarantined if usage else 0,
            leases=len(store.leases()),
            evictions=store.evictions(),
            jobs_running=sum(not job.finished for job in self._node.flights.jobs()),
            models_ready={wanted.name: wanted.state == "ready" for wanted in self._warming.wanted()},
            listeners=self._hub.listeners,
            workers=pool.running_workers,
            connections=pool.connections_in_use,
            received_bytes=pool.received_bytes,
            ingress_bytes_per_s=self._ingress(pool.received_bytes),
            ingress_cap_bytes_per_s=pool.config.ingress_cap_bytes_per_s,
            scrub_progress=self._scrub.progress(),
            scrubbed_bytes=counts.bytes_read,
            scrub_pieces={"found": counts.pieces_wrong, "repaired": counts.pieces_repaired},
            scrub_blobs_lost=counts.blobs_lost,
            page_cache_reads={why: self._page_cache.results[why] for why in RESULTS},
            page_cache_bytes=self._page_cache.bytes_read,
            page_cache_resident=await self._page_cache.residency(),
        )
