"""Volumes of pods: who may mount what, which version, and how long one has to wait for it.

A request is judged, promised a version, and answered `ready` with its lease on disk, or `waiting` with a sentence. The
promise is on disk too, so that a volume keeps its version over a restart of this process. Holding an answer waits for
news (a job that ended, another assignment) and polls nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from msgspec.structs import replace

from cacheagent.api.errors import from_code
from cacheagent.api.schema import GRANT_S, LONGEST_WAIT_S, Done, MountsReport, Volume, VolumeRequest
from cacheagent.assignment import Asking, Assigned, Assignment, Reason, permit
from cacheagent.errors import CorruptModel, NotCached
from cacheagent.flights import Flights
from cacheagent.news import News
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec
from cacheagent.store import Lease, Promise, Record, Store
from cacheagent.threads import in_thread
from cacheagent.volumes.filling import Filling, not_fatal
from cacheagent.volumes.requests import check_request, promise_of
from cacheagent.volumes.versions import Versions, Wait, require_view
from cacheagent.volumes.waitlist import Asked, Waitlist

LOG: Final = logging.getLogger(__name__)

TELL_EVERY_S: Final = 1.0
"""How often the progress in a volume that is filled later may change. What an eye follows in `kubectl logs`. Chosen."""
SWEEP_EVERY_S: Final = 60.0
REMOVED: Final = "the volume was removed while it was asked for"
ASKED: Final = "the controller was asked to assign it to this node"


class Counts(Protocol):
    """Told of what is worth counting."""

    def count_mount(self, model: str, *, hit: bool, waited_s: float, size_bytes: int) -> None:
        """A volume got its lease; `hit`: at its first request. `size_bytes`: of the model."""


class Traces(Protocol):
    """Told of what pods waited for."""

    def kept(self, promise: Promise, record: Record, *, hit: bool) -> None:
        """A volume got its lease."""


class Volumes:
    """One event loop. `demand` is told which model a pod waits for, and says when it is tried again after a failure;
    `spell` gives a URI its one spelling (UsageError for what is none); `read_ahead` is told of versions to be read into
    memory.
    """

    def __init__(  # noqa: PLR0913 - each is one of its neighbours
        self,
        store: Store,
        flights: Flights,
        *,
        demand: Callable[[ModelSpec], float],
        counts: Counts,
        spell: Callable[[str], str] = str,
        read_ahead: Callable[[Record], None] = lambda _: None,
        traces: Traces | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.news = News()
        """What waiting volumes wait for."""
        self.asking: Callable[[], str] = lambda: ASKED
        """What becomes of a model that is not assigned."""
        self.changed = News()
        """What whoever reports on this node waits for: a lease, or something that is asked for."""
        self._store = store
        self._counts = counts
        self._spell = spell
        self._read_ahead = read_ahead
        self._traces = traces
        self._now = now
        self._versions = Versions(store, flights, demand)
        self._waitlist = Waitlist(store, now)
        self._filling = Filling(
            store,
            self._waitlist,
            self._versions,
            kept=self._kept,
            asking=lambda: self.asking(),  # noqa: PLW0108 - it is set anew later
        )
        self._holds: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._mounted: frozenset[str] | None = None

    # --- what is told

    def assign(self, assignment: Assignment) -> None:
        """From now on this is what the node is to have."""
        self._versions.assignment = assignment
        self.news.tell()

    def heard(self, status: JobStatus) -> None:
        """A job has news; its end is what waiting volumes wait for."""
        if status.finished:
            self.news.tell()

    def disk_changed(self) -> None:
        """An order changed what is on disk, or wants to."""
        self.changed.tell()

    def asked(self) -> list[Asked]:
        """What pods here ask for and is not assigned."""
        waiting = [
            Asked("" if promise.uri else promise.model, promise.namespace, promise.uri)
            for promise in self._waitlist.promises()
            if promise.later and self._versions.assignment.find(promise.model) is None
        ]
        return sorted({*self._waitlist.asked(), *waiting})

    def waiting(self) -> dict[str, list[float]]:
        """Since when (seconds since the epoch) volumes wait, by model; see `Waitlist.waiting`."""
        return self._waitlist.waiting()

    # --- what is answered

    async def put(self, volume_id: str, request: VolumeRequest) -> Volume:
        """A volume is to be mounted. Answers `ready` at once if it can; otherwise holds for at most `wait_s`. Trouble
        of a kind that this volume's owner was not told yet is told at once, once.

        Raises NotCached (no such model or version), PolicyRefused (not for this namespace), NoRoom (when the time is
        over), UsageError.
        """
        self._store.volume_path(volume_id)  # judges the id
        request = check_request(request, self._spell)
        deadline = time.monotonic() + min(request.wait_s, LONGEST_WAIT_S)
        removed = asyncio.Event()
        self._holds[volume_id].add(removed)
        try:
            while True:
                ticket, is_last = self.news.ticket, time.monotonic() >= deadline
                outcome = await self._attempt(volume_id, request, removed)
                if isinstance(outcome, Volume):
                    return outcome
                if is_last or removed.is_set() or self._waitlist.is_new_trouble(volume_id, outcome.trouble):
                    break
                await self.news.wait(ticket, deadline - time.monotonic())  # then it is said how far it is by then
        finally:
            self._holds[volume_id].discard(removed)
            if not self._holds[volume_id]:
                del self._holds[volume_id]
        if outcome.error is not None:
            raise outcome.error
        return Volume(volume_id=volume_id, state="waiting", digest=outcome.digest, message=outcome.message)

    async def remove(self, volume_id: str) -> Done:
        """The volume is not mounted any more; one that is not known is fine. Answers that are held for it end: nothing
        they do may come after this."""
        async with self._waitlist.turn:
            for held in self._holds.get(volume_id, ()):
                held.set()
            self._waitlist.forget(volume_id)
            await in_thread(partial(self._store.remove_volume, volume_id))
        await in_thread(self._store.sweep_trash)
        self.news.tell()
        self.changed.tell()
        return Done()

    async def mounted(self, report: MountsReport) -> Done:
        """Everything of ours that is mounted on this node now."""
        mounts = {mount.volume_id: mount.path for mount in report.mounts}
        async with self._waitlist.turn:
            done = await in_thread(partial(self._store.reconcile, mounts, grant_s=GRANT_S))
            self._mounted = frozenset(mounts)
            for volume_id in done.removed:
                self._waitlist.forget(volume_id)
        if done.removed:
            await in_thread(self._store.sweep_trash)
        self.changed.tell()
        return Done()

    # --- what is done meanwhile

    async def run(self) -> None:
        """Fill volumes whose model is here, say in the others how far it is, forget what nobody asks for; until
        cancelled."""
        while True:
            ticket = self.news.ticket
            await self._filling.step()
            with not_fatal("a volume that nobody asks for can't be forgotten"):
                await self._sweep()
            await self.news.wait(ticket, TELL_EVERY_S if self._filling.telling else SWEEP_EVERY_S)

    async def _sweep(self) -> None:
        """Forget volumes that nobody asks for any more: their pods are gone, and the kubelet says nothing of volumes
        that were never mounted."""
        now, heard_of, promises = time.monotonic(), self._waitlist.heard_of, self._waitlist.promises()
        for volume_id in heard_of.keys() - {promise.volume_id for promise in promises}:
            del heard_of[volume_id]
        for promise in promises:
            volume_id = promise.volume_id
            if promise.later and (self._mounted is None or volume_id in self._mounted):
                heard_of[volume_id] = now
            if now - heard_of.get(volume_id, now) > GRANT_S:
                LOG.info("a volume is forgotten: nobody asks for it any more", extra={"volume": volume_id})
                await self._drop(promise)

    async def _drop(self, promise: Promise) -> None:
        """One that has its lease is mounted, or will be seen not to be."""
        if promise.later and self._store.find_lease(promise.volume_id) is None:
            await self.remove(promise.volume_id)
            return
        async with self._waitlist.turn:
            self._waitlist.forget(promise.volume_id)
            await in_thread(partial(self._store.forget_promise, promise.volume_id))

    # --- one look

    async def _attempt(self, volume_id: str, request: VolumeRequest, removed: asyncio.Event) -> Volume | Wait:
        if removed.is_set():
            return Wait(REMOVED)
        lease = self._store.find_lease(volume_id)
        promise = self._waitlist.promise(volume_id)
        if promise is not None and promise.later and self._store.has_volume(volume_id):
            self._waitlist.hear(volume_id)
            return self._later(promise)
        if lease is not None and await self._renew(volume_id, removed):
            self._waitlist.kept(volume_id)
            return self._ready(lease, request)
        if removed.is_set():
            return Wait(REMOVED)
        asking = Asking(namespace=request.namespace, model=request.model, uri=request.uri, digest=request.digest)
        permitted = permit(self._versions.assignment, asking)
        if isinstance(permitted, Reason):
            self._ask(volume_id, request)  # as long as somebody wants it, the controller may think again
            raise from_code(permitted.code, permitted.message, permitted.hint)
        if permitted is None:
            self._ask(volume_id, request)
            return Wait(self.asking())
        self._waitlist.answered(volume_id)
        try:
            promise = await self._promise(volume_id, request, permitted, removed)
        except NotCached as error:  # an assignment on its way may bring that version
            return Wait(error.message, request.digest, error)
        if promise is None:
            return Wait(REMOVED)
        if not promise.later:
            return await self._mount(promise, permitted, removed)
        async with self._waitlist.turn:
            if removed.is_set():
                return Wait(REMOVED)
            await in_thread(partial(self._store.make_volume, volume_id))
        self.news.tell()  # it may be filled at once
        return self._later(promise)

    async def _renew(self, volume_id: str, removed: asyncio.Event) -> bool:
        """Not mounted yet though it was granted: a report of what is mounted must not end the grant on its way. False
        when one just did."""
        async with self._waitlist.turn:
            if removed.is_set():
                return False
            return await in_thread(partial(self._store.renew_lease, volume_id, older_than_s=GRANT_S / 2))

    def _ready(self, lease: Lease, request: VolumeRequest) -> Volume:
        own = self._store.has_volume(lease.volume_id)
        path = f"volumes/{lease.volume_id}" if own else f"models/{self._store.path(lease.digest).name}/{request.view}"
        return Volume(volume_id=lease.volume_id, state="ready", digest=lease.digest, path=path)

    def _later(self, promise: Promise) -> Volume:
        lease = self._store.find_lease(promise.volume_id)
        digest = lease.digest if lease is not None else promise.digest
        path = f"volumes/{promise.volume_id}"
        return Volume(volume_id=promise.volume_id, state="ready", digest=digest, path=path)

    def _ask(self, volume_id: str, request: VolumeRequest) -> None:
        if self._waitlist.ask(volume_id, request):
            self.changed.tell()

    async def _promise(
        self, volume_id: str, request: VolumeRequest, assigned: Assigned, removed: asyncio.Event
    ) -> Promise | None:
        """What the volume will get, remembered; None for a volume that was removed. Raises NotCached."""
        self._waitlist.hear(volume_id)
        known = self._waitlist.promise(volume_id)
        digest = self._versions.choose(known, assigned, request.digest)
        promise = replace(known or promise_of(volume_id, request, assigned, self._now()), digest=digest)
        if promise != known:
            self._waitlist.put(promise)  # before the disk, so that a second call at once agrees
            async with self._waitlist.turn:
                if removed.is_set():
                    return None
                await in_thread(partial(self._store.promise, promise))
        return promise

    async def _mount(self, promise: Promise, assigned: Assigned, removed: asyncio.Event) -> Volume | Wait:
        record = self._store.record(promise.digest) if promise.digest else None
        if record is None:
            return self._wait(promise, assigned)
        require_view(record, promise.view)
        async with self._waitlist.turn:
            if removed.is_set():
                return Wait(REMOVED)
            try:
                await in_thread(partial(self._take_lease, promise))
            except NotCached:  # it has just been evicted
                return self._wait(promise, assigned)
            except CorruptModel as error:
                return Wait(f"{error.message}; {error.hint}", promise.digest)
            self._kept(promise, record)
        return Volume(
            volume_id=promise.volume_id,
            state="ready",
            digest=promise.digest,
            path=f"models/{self._store.path(promise.digest).name}/{promise.view}",
        )

    def _take_lease(self, promise: Promise) -> None:
        self._store.lease(promise.volume_id, promise.digest, owner=promise.owner)
        self._store.forget_promise(promise.volume_id)

    def _wait(self, promise: Promise, assigned: Assigned) -> Wait:
        self._waitlist.miss(promise.volume_id)
        return self._versions.wait(promise, assigned)

    def _kept(self, promise: Promise, record: Record) -> None:
        hit = not self._waitlist.was_missed(promise.volume_id)
        waited_s = max(0.0, self._now() - promise.since)
        self._counts.count_mount(promise.model, hit=hit, waited_s=waited_s, size_bytes=record.size_bytes)
        if self._traces is not None:
            self._traces.kept(promise, record, hit=hit)
        self._waitlist.forget(promise.volume_id)
        if promise.page_cache:
            self._read_ahead(record)
        self.changed.tell()
