"""One job per model: many askers, one download; an asker who leaves cancels nothing."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol

import msgspec

from cacheagent.blobs import BlobFlights, Peers
from cacheagent.errors import CacheAgentError, NotCached
from cacheagent.fetch import Engine, OpenSource, fetch_model, require_version
from cacheagent.model import Manifest, canonical_json
from cacheagent.progress import JobStatus
from cacheagent.resolve import resolve
from cacheagent.spec import ModelSpec
from cacheagent.store import Record, Store
from cacheagent.threads import in_thread
from cacheagent.tracking import Tracker
from cacheagent.transfer.base import Transport
from cacheagent.verify import verify_record

LOG: Final = logging.getLogger(__name__)

INTEREST_S: Final = 600.0
"""How long one asking keeps a job alive: twice the kubelet's longest pause between two calls for a volume (5 minutes
with its jitter), so that a waiting pod never finds its download cancelled."""

ASKER: Final = "asker"
"""Whoever asks without saying who it is."""

ENDED_JOBS_KEPT: Final = 200
"""Ended jobs that `jobs` still tells of. Chosen."""


class Watcher(Protocol):
    """Told of each job once when it begins and once when it has ended, however it did."""

    def began(self, tracker: Tracker) -> None: ...

    def ended(self, tracker: Tracker) -> None: ...


class NobodyWatches:
    """A watcher that does nothing."""

    def began(self, tracker: Tracker) -> None:
        """See `Watcher`."""

    def ended(self, tracker: Tracker) -> None:
        """See `Watcher`."""


class _Job:
    def __init__(self, task: asyncio.Task[Record], tracker: Tracker) -> None:
        self.task = task
        self.tracker = tracker
        self.wanted_until: dict[str, float] = {}
        """By who wants it."""


class Flights:
    """The agent's work in progress. One event loop; `ensure` may be called any number of times for the same model."""

    def __init__(  # noqa: PLR0913 - each is one of its neighbours
        self,
        store: Store,
        transport: Transport,
        open_source: OpenSource,
        *,
        on_event: Callable[[JobStatus], None],
        watcher: Watcher | None = None,
        now: Callable[[], float] = time.monotonic,
        peers: Peers | None = None,
    ) -> None:
        self._watcher: Watcher = watcher or NobodyWatches()
        self._store = store
        self._transport = transport
        self._engine = Engine(
            store=store, transport=transport, open_source=open_source, blobs=BlobFlights(store, transport, peers)
        )
        self._on_event = on_event
        self._now = now
        self._running: dict[str, _Job] = {}
        self._ended: dict[str, JobStatus] = {}
        self._limits: dict[str, int] = {}

    def find(self, spec: ModelSpec) -> Record | None:
        """The published version that this request names or was last resolved to, without asking the origin."""
        digest = spec.digest or self._store.resolution(source_key(spec))
        return self._store.record(digest) if digest else None

    async def ensure(self, spec: ModelSpec, *, priority: int | None = None, refresh: bool = False) -> Record:
        """Return the model's record, fetching it if need be; joins a job that runs already.

        `refresh` asks the origin again what the model is now. Cancelling the call leaves the job running for as long as
        somebody was interested in the last `INTEREST_S` seconds. Raises what `fetch.fetch_model` raises.
        """
        if not refresh and (found := self.find(spec)) is not None:
            used = await in_thread(partial(self._store.touch, found.digest))  # it writes, and waits for whoever does
            if used is not None:
                return used
        job = self._start(spec, priority=priority, wanted_s=INTEREST_S)
        return await asyncio.shield(job.task)

    def start(
        self,
        spec: ModelSpec,
        *,
        priority: int | None = None,
        refresh: bool = False,
        wanted_s: float = math.inf,
        urgent: bool = False,
        by: str = ASKER,
    ) -> None:
        """The same without waiting; `jobs` tells what becomes of it. `urgent`: its bytes go before others'. `by`: who
        wants it; see `let_go`."""
        if refresh or self.find(spec) is None:
            job = self._start(spec, priority=priority, wanted_s=wanted_s, by=by)
            if urgent and not job.tracker.urgent:
                job.tracker.urgent = True
                self._engine.blobs.raise_priority(job.tracker)
                self._limit(source_key(spec))

    def limit(self, limits: Mapping[ModelSpec, int]) -> None:
        """Fetch these no faster (bytes/s) from now on, and everything else without a limit. A job that a pod waits for
        has none: nobody's start is slower than it would be if nobody had warmed anything."""
        before, self._limits = self._limits, {source_key(spec): rate for spec, rate in limits.items() if rate}
        for key in before.keys() | self._limits.keys():
            if before.get(key) != self._limits.get(key):
                self._limit(key)

    def let_go(self, spec: ModelSpec, by: str) -> None:
        """Whoever that is wants it no more; `drop_unwanted` ends it unless somebody else does."""
        job = self._running.get(source_key(spec))
        if job is not None:
            job.wanted_until.pop(by, None)

    async def look_up(self, spec: ModelSpec) -> Manifest:
        """What the source holds now, without fetching it. Raises what `resolve` raises."""
        source = self._engine.open_source(spec.source)
        try:
            manifest = await resolve(source, spec)
        finally:
            await source.close()
        require_version(spec, manifest)
        return manifest

    def jobs(self) -> list[JobStatus]:
        """Running jobs first, then the last one that ended of each model."""
        running = [job.tracker.status() for job in self._running.values()]
        return running + [status for key, status in self._ended.items() if key not in self._running]

    def job(self, spec: ModelSpec) -> JobStatus | None:
        """How far the job for this request is, or how the last one ended."""
        key = source_key(spec)
        running = self._running.get(key)
        return running.tracker.status() if running else self._ended.get(key)

    def drop_unwanted(self) -> None:
        """Cancel jobs that nobody has asked for within their time; what they proved is kept."""
        for job in self._running.values():
            if max(job.wanted_until.values(), default=-math.inf) < self._now():
                job.task.cancel()

    async def verify(self, digest: str) -> None:
        """Read every piece of a published model back and compare it with the record. Raises CorruptModel, NotCached."""
        record = self._store.record(digest)
        if record is None:
            raise NotCached(f"{digest} is not in this cache", hint="`cacheagent ls` shows what is")
        await verify_record(self._store, self._transport, record)

    async def close(self) -> None:
        """Cancel all jobs and wait until none of them writes any more."""
        tasks = [job.task for job in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, spec: ModelSpec, *, priority: int | None, wanted_s: float, by: str = ASKER) -> _Job:
        key = source_key(spec)
        job = self._running.get(key)
        if job is None:
            tracker = Tracker(spec.name, spec.source.uri, spec.priority, self._on_event, cap=key)
            job = _Job(asyncio.create_task(self._run(key, spec, tracker), name=f"model {spec.name}"), tracker)
            # An asker may have left: its failure is in `jobs`, and must not be reported as never retrieved.
            job.task.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._running[key] = job
            self._watcher.began(tracker)
            self._limit(key)
        if priority is not None:
            job.tracker.priority = max(job.tracker.priority, priority)
            self._engine.blobs.raise_priority(job.tracker)
        job.wanted_until[by] = max(job.wanted_until.get(by, -math.inf), self._now() + wanted_s)
        return job

    def _limit(self, key: str) -> None:
        """Put the limit of one model into force, as it is now."""
        job = self._running.get(key)
        if job is not None:
            job.tracker.limit_bytes_per_s = 0 if job.tracker.urgent else self._limits.get(key, 0)
            self._engine.blobs.limit(job.tracker)

    async def _run(self, key: str, spec: ModelSpec, tracker: Tracker) -> Record:
        try:
            record = await fetch_model(self._engine, spec, tracker)
            await in_thread(partial(self._store.set_resolution, key, spec.name, spec.source.uri, record.digest))
            tracker.ready(str(self._store.path(record.digest)), record.manifest)
            return record
        except CacheAgentError as error:
            tracker.failed(error)
            raise
        except Exception as error:
            LOG.exception("a defect ended a job", extra={"model": spec.name})
            tracker.failed(CacheAgentError(f"{spec.name}: a defect: {error!r}"[:500], hint="report it with the log"))
            raise
        finally:
            del self._running[key]
            self._transport.set_cap(key, 0)
            self._remember(key, tracker.status())
            self._watcher.ended(tracker)

    def _remember(self, key: str, status: JobStatus) -> None:
        self._ended.pop(key, None)
        if status.finished:  # a cancelled job leaves nothing to tell
            self._ended[key] = status
        while len(self._ended) > ENDED_JOBS_KEPT:
            self._ended.pop(next(iter(self._ended)))


_LATER: Final = (
    ("", "digest"),
    ("", "content_digest"),
    ("source", "roots"),
    ("source", "refused_networks"),
    ("source", "plain_path"),
)
"""Fields that came later: where they say nothing, the key is that of before them, which disks remember."""


def source_key(spec: ModelSpec) -> str:
    """64 hex digits that name *what is asked for*: everything that changes which files arrive, nothing that does not
    (the name, the priority, the pin)."""
    asked = msgspec.to_builtins(spec)
    for field in ("name", "priority", "pin", "keep_warm", "peers"):
        del asked[field]
    for place, field in _LATER:
        if not (part := asked[place] if place else asked)[field]:
            del part[field]
    return hashlib.sha256(canonical_json(asked)).hexdigest()
