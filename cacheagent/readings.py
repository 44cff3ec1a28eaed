"""What the metrics read of a running agent when somebody scrapes."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from cacheagent.api.schema import Wanted
from cacheagent.errors import StoreError
from cacheagent.events import EventHub
from cacheagent.metrics import RateSinceLast, Reading
from cacheagent.node import Node
from cacheagent.page_cache import RESULTS, PageCache
from cacheagent.scrub import Scrub
from cacheagent.store import Usage
from cacheagent.threads import in_thread
from cacheagent.volumes import Volumes
from cacheagent.warming import Warming

LOG: Final = logging.getLogger(__name__)


class Readings:
    """Looks at everything once, from the event loop. A disk that can't be looked at shows its last figures: what else
    is counted is wanted most just then."""

    def __init__(  # noqa: PLR0913 - it looks at everything
        self,
        node: Node,
        scrub: Scrub,
        warming: Warming,
        volumes: Volumes,
        hub: EventHub,
        page_cache: PageCache,
        *,
        disk: Callable[[], str],
    ) -> None:
        """`disk`: what is wrong with it."""
        self._disk = disk
        self._volumes = volumes
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
        wanted = self._warming.wanted()
        sizes, done = self._progress(wanted)
        waiting = self._volumes.waiting()
        oldest = min((min(since) for since in waiting.values()), default=time.time())
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
            evicted_bytes=store.evicted_bytes(),
            disk_writable=not self._disk(),
            jobs_running=sum(not job.finished for job in self._node.flights.jobs()),
            models_ready={each.name: each.state == "ready" for each in wanted},
            models_by_state=Counter(each.state for each in wanted),
            model_sizes=sizes,
            model_bytes_done=done,
            volumes_waiting={model: len(since) for model, since in waiting.items()},
            oldest_wait_s=max(0.0, time.time() - oldest),
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

    def _progress(self, wanted: Iterable[Wanted]) -> tuple[dict[str, int], dict[str, int]]:
        """Size, and how much of it is here, of each model of which that is known."""
        jobs = {job.name: job for job in self._node.flights.jobs() if not job.finished}
        sizes, done = dict[str, int](), dict[str, int]()
        for each in wanted:
            record = self._node.store.record(each.digest) if each.digest else None
            if record is not None:
                sizes[each.name] = done[each.name] = record.size_bytes
            elif (job := jobs.get(each.name)) is not None and job.bytes_total:
                sizes[each.name], done[each.name] = job.bytes_total, job.bytes_done
        return sizes, done
