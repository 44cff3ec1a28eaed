"""What the API answers, without HTTP: the same questions and orders as the client's methods, on this engine."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from cacheagent import __version__
from cacheagent.api.catalog import (
    find_record,
    lease_of,
    leases_of,
    model_of,
    models_of,
    ready_status,
    usage_of,
)
from cacheagent.api.schema import (
    LONGEST_WAIT_S,
    Done,
    EnsureRequest,
    Evicted,
    Lease,
    LeaseRequest,
    Leases,
    Model,
    Models,
    MountsReport,
    MountTimes,
    Status,
    Version,
    Volume,
    VolumeRequest,
    Wanted,
)
from cacheagent.errors import AgentUnavailable, CorruptModel, NotCached, UsageError
from cacheagent.flights import INTEREST_S, Flights
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec
from cacheagent.store import Record, Store
from cacheagent.threads import in_thread


class Configured(Protocol):
    """What the configuration asks for, as it is now."""

    config_error: str
    """Why the last reload was refused, or empty."""

    def model(self, name: str) -> ModelSpec | None:
        """The configured model of that name."""

    def wanted(self) -> tuple[Wanted, ...]:
        """The state of every configured model."""


class Mounting(Protocol):
    """What mounts volumes; see the client's methods of the same routes."""

    async def put(self, volume_id: str, request: VolumeRequest) -> Volume:
        """A volume is to be mounted."""

    async def remove(self, volume_id: str) -> Done:
        """It is not any more."""

    async def mounted(self, report: MountsReport) -> Done:
        """What is mounted now."""

    def disk_changed(self) -> None:
        """Somebody gave an order that changes what is on disk, or wants to."""


class Traces(Protocol):
    """Told of volumes, so that their pods' starts can be traced."""

    def asked(self, volume_id: str) -> None: ...

    def mounted(self, volume_id: str, times: MountTimes) -> None: ...


class Counts(Protocol):
    """Told of what is worth counting."""

    def count_ensure(self, name: str, *, hit: bool) -> None: ...

    def count_corrupt(self) -> None: ...


class Answers:
    """The engine as the API shows it. One event loop; blocking work of the store goes to threads.

    Errors are those of `cacheagent.errors`: NotCached and UsageError for a ref that means nothing or too much, and
    what store and flights raise.
    """

    def __init__(  # noqa: PLR0913 - each is one of its neighbours
        self,
        root: Path,
        store: Store,
        flights: Flights,
        configured: Configured,
        *,
        volumes: Mounting,
        counts: Counts,
        traces: Traces | None = None,
    ) -> None:
        self.volumes = volumes
        self._traces = traces
        self._root = root
        self._store = store
        self._flights = flights
        self._configured = configured
        self._counts = counts
        self._started = time.monotonic()

    def version(self) -> Version:
        return Version(version=__version__)

    async def status(self) -> Status:
        return Status(
            version=__version__,
            root=str(self._root),
            uptime_s=time.monotonic() - self._started,
            usage=await in_thread(partial(usage_of, self._store)),
            models=models_of(self._store),
            wanted=self._configured.wanted(),
            jobs=tuple(self._flights.jobs()),
            config_error=self._configured.config_error,
        )

    def models(self) -> Models:
        return Models(models=models_of(self._store))

    def model(self, ref: str) -> Model:
        return model_of(self._store, self.record(ref))

    async def ensure(self, request: EnsureRequest) -> JobStatus:
        """Answer at once for a model that is here. Otherwise see that a job runs and hold the answer for at most
        `wait_s`; whoever stops waiting stops nothing.
        """
        spec = self._asked(request)
        here = self.record(request.name) if spec is None else self._flights.find(spec)
        hit = here is not None and not request.refresh
        self._counts.count_ensure(request.name if spec is None else spec.name, hit=hit)
        if here is not None and (hit or spec is None):
            await in_thread(partial(self._store.touch, here.digest))
            return ready_status(here, self._store.path(here.digest))
        assert spec is not None
        if request.wait_s > 0:
            await self._wait(spec, request)
        else:
            self._flights.start(spec, priority=request.priority, refresh=request.refresh, wanted_s=INTEREST_S)
        return self._job(spec)

    def jobs(self, name: str = "") -> list[JobStatus]:
        """What a new listener is told first."""
        return [job for job in self._flights.jobs() if not name or job.name == name]

    def refresh(self, ref: str) -> JobStatus:
        spec = self._known_source(ref)
        self._flights.start(spec, refresh=True, wanted_s=INTEREST_S)
        return self._job(spec)

    async def verify(self, ref: str) -> Done:
        record = self.record(ref)
        try:
            await self._flights.verify(record.digest)
        except CorruptModel as error:
            self._counts.count_corrupt()
            # No new volumes until it is whole: the scrub takes the withdrawn ones first.
            await in_thread(partial(self._store.withdraw, record.digest, error.message))
            raise
        return Done(digest=record.digest)

    async def pin(self, ref: str) -> Model:
        record = self.record(ref)
        await in_thread(partial(self._store.pin, record.digest))
        return self.model(record.digest)

    async def unpin(self, ref: str) -> Model:
        record = self.record(ref)
        await in_thread(partial(self._store.unpin, record.digest))
        return self.model(record.digest)

    async def evict(self, ref: str) -> Evicted:
        record = self.record(ref)
        try:
            freed = await in_thread(partial(self._store.evict, record.digest))
        finally:
            self.volumes.disk_changed()
        return Evicted(digest=record.digest, freed_bytes=freed)

    async def lease(self, volume_id: str, request: LeaseRequest) -> Lease:
        digest = self.record(request.ref).digest
        await in_thread(partial(self._store.lease, volume_id, digest, owner=request.owner))
        return lease_of(self._store, volume_id, digest, request.owner)

    async def release(self, volume_id: str) -> Done:
        await in_thread(partial(self._store.release, volume_id))
        return Done()

    async def volume(self, volume_id: str, request: VolumeRequest) -> Volume:
        if self._traces is None:
            return await self.volumes.put(volume_id, request)
        self._traces.asked(volume_id)
        volume = await self.volumes.put(volume_id, request)
        return replace(volume, traced=volume.state == "ready")

    def mount(self, volume_id: str, times: MountTimes) -> Done:
        if self._traces is not None:
            self._traces.mounted(volume_id, times)
        return Done()

    def leases(self) -> Leases:
        return Leases(leases=leases_of(self._store))

    def record(self, ref: str) -> Record:
        """What a ref means here: a configured name is exactly what the configuration says now, not an older version
        of the same name.
        """
        spec = self._configured.model(ref)
        if spec is None:
            return find_record(self._store, ref)
        record = self._flights.find(spec)
        if record is None:
            job = self._flights.job(spec)
            phase = "nobody has asked for it yet" if job is None else job.message or job.phase
            raise NotCached(
                f"{ref} is configured and not here yet: {phase}", hint="`cacheagent status` shows how far it is"
            )
        return record

    def _asked(self, request: EnsureRequest) -> ModelSpec | None:
        """The model that is asked for; None for the name of one that is only known as being here."""
        if (request.spec is None) == (not request.name):
            raise UsageError("expected either spec or name", hint="name is that of a configured or cached model")
        if request.spec is None and request.refresh:
            return self._known_source(request.name)
        return request.spec or self._configured.model(request.name)

    def _known_source(self, name: str) -> ModelSpec:
        spec = self._configured.model(name)
        if spec is None:
            raise UsageError(
                f"{name!r} is not in the agent's configuration, so that nobody knows where to ask again",
                hint="`cacheagent pull URI --refresh` asks the origin of a model that was pulled by hand",
            )
        return spec

    async def _wait(self, spec: ModelSpec, request: EnsureRequest) -> None:
        asking = asyncio.ensure_future(self._flights.ensure(spec, priority=request.priority, refresh=request.refresh))
        # How it ended is in the job's status; its exception is nobody's here.
        asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            await asyncio.wait({asking}, timeout=min(request.wait_s, LONGEST_WAIT_S))
        finally:
            asking.cancel()

    def _job(self, spec: ModelSpec) -> JobStatus:
        status = self._flights.job(spec)
        if status is None:
            raise AgentUnavailable(
                f"{spec.name}: the work was stopped before it ended", hint="the agent is stopping; ask again"
            )
        return status
