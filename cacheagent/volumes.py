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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple, Protocol

from msgspec.structs import replace

from cacheagent.api.errors import from_code
from cacheagent.api.schema import GRANT_S, LONGEST_WAIT_S, Done, MountsReport, Volume, VolumeRequest
from cacheagent.assignment import Asking, Assigned, Assignment, Reason, choose_version, permit
from cacheagent.errors import CacheAgentError, CorruptModel, NoRoom, NotCached, UsageError
from cacheagent.flights import Flights
from cacheagent.news import News
from cacheagent.outlook import describe_wait
from cacheagent.progress import JobStatus
from cacheagent.quantity import size_text
from cacheagent.spec import ModelSpec
from cacheagent.store import Lease, Promise, Record, Store
from cacheagent.threads import in_thread

LOG: Final = logging.getLogger(__name__)

TELL_EVERY_S: Final = 1.0
"""How often the progress in a volume that is filled later may change. What an eye follows in `kubectl logs`. Chosen."""
SWEEP_EVERY_S: Final = 60.0
REMOVED: Final = "the volume was removed while it was asked for"
ASKED: Final = "the controller was asked to assign it to this node"


class Asked(NamedTuple):
    """A model that somebody here wants and that is not assigned."""

    model: str
    namespace: str
    uri: str


class Counts(Protocol):
    """Told of what is worth counting."""

    def count_mount(self, model: str, *, hit: bool, waited_s: float, size_bytes: int) -> None:
        """A volume got its lease; `hit`: at its first request. `size_bytes`: of the model."""


class _Wait(NamedTuple):
    """Not ready. `error`: what to raise instead of the sentence when the time is over. `trouble`: the code of what is
    wrong, if something is."""

    message: str
    digest: str = ""
    error: CacheAgentError | None = None
    trouble: str = ""


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
        now: Callable[[], float] = time.time,
    ) -> None:
        self.news = News()
        """What waiting volumes wait for."""
        self.asking: Callable[[], str] = lambda: ASKED
        """What becomes of a model that is not assigned."""
        self.changed = News()
        """What whoever reports on this node waits for: a lease, or something that is asked for."""
        self._store = store
        self._flights = flights
        self._demand = demand
        self._counts = counts
        self._spell = spell
        self._read_ahead = read_ahead
        self._now = now
        self._assignment = Assignment()
        self._promises = {promise.volume_id: promise for promise in store.promises()}
        self._heard_of: dict[str, float] = dict.fromkeys(self._promises, time.monotonic())
        self._asked: dict[str, tuple[Asked, float]] = {}
        self._missed = set(self._promises)
        self._lines: dict[str, str] = {}
        self._holds: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._troubles: defaultdict[str, set[str]] = defaultdict(set)
        self._mounted: frozenset[str] | None = None
        self._turn = asyncio.Lock()
        self._hold()

    # --- what is told

    def assign(self, assignment: Assignment) -> None:
        """From now on this is what the node is to have."""
        self._assignment = assignment
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
        oldest = time.monotonic() - GRANT_S
        self._asked = {volume_id: each for volume_id, each in self._asked.items() if each[1] > oldest}
        waiting = [
            Asked("" if promise.uri else promise.model, promise.namespace, promise.uri)
            for promise in self._promises.values()
            if promise.later and self._assignment.find(promise.model) is None
        ]
        return sorted({*(each for each, _ in self._asked.values()), *waiting})

    def waiting(self) -> dict[str, list[float]]:
        """Since when (seconds since the epoch) volumes wait, by model. One whose model is not assigned here is filed
        under the name that was asked for, or under `uri`."""
        since: defaultdict[str, list[float]] = defaultdict(list)
        for promise in self._promises.values():
            since[promise.model].append(promise.since)
        behind_s = self._now() - time.monotonic()
        for asked, heard_at in self._asked.values():
            since[asked.model or "uri"].append(heard_at + behind_s)
        return dict(since)

    # --- what is answered

    async def put(self, volume_id: str, request: VolumeRequest) -> Volume:
        """A volume is to be mounted. Answers `ready` at once if it can; otherwise holds for at most `wait_s`. Trouble
        of a kind that this volume's owner was not told yet is told at once, once.

        Raises NotCached (no such model or version), PolicyRefused (not for this namespace), NoRoom (when the time is
        over), UsageError.
        """
        self._store.volume_path(volume_id)  # judges the id
        request = self._named(request)
        deadline = time.monotonic() + min(request.wait_s, LONGEST_WAIT_S)
        removed = asyncio.Event()
        self._holds[volume_id].add(removed)
        try:
            while True:
                ticket, is_last = self.news.ticket, time.monotonic() >= deadline
                outcome = await self._attempt(volume_id, request, removed)
                if isinstance(outcome, Volume):
                    return outcome
                if is_last or removed.is_set() or self._is_new_trouble(volume_id, outcome.trouble):
                    break
                await self.news.wait(ticket, deadline - time.monotonic())  # then it is said how far it is by then
        finally:
            self._holds[volume_id].discard(removed)
            if not self._holds[volume_id]:
                del self._holds[volume_id]
        if outcome.error is not None:
            raise outcome.error
        return Volume(volume_id=volume_id, state="waiting", digest=outcome.digest, message=outcome.message)

    def _is_new_trouble(self, volume_id: str, trouble: str) -> bool:
        """Whether to end a hold for it. A code counts once: each refusal doubles the kubelet's pause."""
        if not trouble or trouble in self._troubles[volume_id]:
            return False
        self._troubles[volume_id].add(trouble)
        return True

    async def remove(self, volume_id: str) -> Done:
        """The volume is not mounted any more; one that is not known is fine. Answers that are held for it end: nothing
        they do may come after this."""
        async with self._turn:
            for held in self._holds.get(volume_id, ()):
                held.set()
            self._forget(volume_id)
            await in_thread(partial(self._store.remove_volume, volume_id))
        await in_thread(self._store.sweep_trash)
        self.news.tell()
        self.changed.tell()
        return Done()

    async def mounted(self, report: MountsReport) -> Done:
        """Everything of ours that is mounted on this node now."""
        mounts = {mount.volume_id: mount.path for mount in report.mounts}
        async with self._turn:
            done = await in_thread(partial(self._store.reconcile, mounts, grant_s=GRANT_S))
            self._mounted = frozenset(mounts)
            for volume_id in done.removed:
                self._forget(volume_id)
        if done.removed:
            await in_thread(self._store.sweep_trash)
        self.changed.tell()
        return Done()

    # --- volumes that are filled later

    async def run(self) -> None:
        """Fill volumes whose model is here, say in the others how far it is, forget what nobody asks for; until
        cancelled."""
        while True:
            ticket = self.news.ticket
            for promise in list(self._promises.values()):
                if promise.later and self._store.has_volume(promise.volume_id):
                    with _not_fatal("a volume that is filled later can't be written to"):
                        await self._fill_or_tell(promise)
            with _not_fatal("a volume that nobody asks for can't be forgotten"):
                await self._sweep()
            await self.news.wait(ticket, TELL_EVERY_S if self._lines else SWEEP_EVERY_S)

    async def _fill_or_tell(self, promise: Promise) -> None:
        try:
            line = await self._fill(promise)
        except CacheAgentError as error:
            line = str(error)
        if not line or self._lines.get(promise.volume_id) == line:
            return
        async with self._turn:
            if promise.volume_id in self._promises:
                await in_thread(partial(self._store.write_progress, promise.volume_id, f"{promise.model}: {line}"))
                self._lines[promise.volume_id] = line

    async def _fill(self, promise: Promise) -> str:
        """Fill it if its version is here; else why not, a sentence. Raises what `Store.fill_volume` raises."""
        assigned = self._assignment.find(promise.model)
        if (lease := self._store.find_lease(promise.volume_id)) is not None:  # an earlier try began with this version
            promise = replace(promise, digest=lease.digest)
        record = self._store.record(promise.digest) if promise.digest else None
        if record is None and assigned is not None and not promise.exactly:
            if not assigned.permits(promise.namespace):  # of that name, but maybe another model than it was then
                return f"namespace {promise.namespace!r} may not mount model {promise.model!r} any more"
            digest = self._current(assigned, "")
            record = self._store.record(digest) if digest else None
            promise = replace(promise, digest=digest)
        if record is not None:
            _require_view(record, promise.view)
            await self._link(promise, record)
            return ""
        if assigned is not None:
            return self._wait(promise, assigned).message
        for refused in self._assignment.refusals:
            if refused.namespace == promise.namespace and refused.model == (promise.uri or promise.model):
                return refused.error.message
        return self.asking()

    async def _link(self, promise: Promise, record: Record) -> None:
        async with self._turn:
            if promise.volume_id not in self._promises:  # removed meanwhile
                return
            whole = f"all {size_text(record.size_bytes)} are here"
            await in_thread(partial(self._store.write_progress, promise.volume_id, f"{promise.model}: {whole}"))
            await in_thread(partial(self._store.fill_volume, promise))
        self._kept(promise, record)

    async def _sweep(self) -> None:
        """Forget volumes that nobody asks for any more: their pods are gone, and the kubelet says nothing of volumes
        that were never mounted."""
        now = time.monotonic()
        for volume_id in self._heard_of.keys() - self._promises.keys():
            del self._heard_of[volume_id]
        for promise in list(self._promises.values()):
            volume_id = promise.volume_id
            if promise.later and (self._mounted is None or volume_id in self._mounted):
                self._heard_of[volume_id] = now
            if now - self._heard_of.get(volume_id, now) > GRANT_S:
                LOG.info("a volume is forgotten: nobody asks for it any more", extra={"volume": volume_id})
                await self._drop(promise)

    async def _drop(self, promise: Promise) -> None:
        """One that has its lease is mounted, or will be seen not to be."""
        if promise.later and self._store.find_lease(promise.volume_id) is None:
            await self.remove(promise.volume_id)
            return
        async with self._turn:
            self._forget(promise.volume_id)
            await in_thread(partial(self._store.forget_promise, promise.volume_id))

    # --- one look

    def _named(self, request: VolumeRequest) -> VolumeRequest:
        if request.uri and request.model:
            raise UsageError("a volume has both model and uri", hint="keep one of them")
        if not (request.uri or request.model or request.digest):
            raise UsageError("a volume names no model", hint="`model` is the name of a ModelCache")
        return replace(request, uri=self._spell(request.uri)) if request.uri else request

    async def _attempt(self, volume_id: str, request: VolumeRequest, removed: asyncio.Event) -> Volume | _Wait:
        if removed.is_set():
            return _Wait(REMOVED)
        lease = self._store.find_lease(volume_id)
        promise = self._promises.get(volume_id)
        if promise is not None and promise.later and self._store.has_volume(volume_id):
            self._heard_of[volume_id] = time.monotonic()
            return self._later(promise)
        if lease is not None and await self._renew(volume_id, removed):
            self._promises.pop(volume_id, None)
            return self._ready(lease, request)
        if removed.is_set():
            return _Wait(REMOVED)
        asking = Asking(namespace=request.namespace, model=request.model, uri=request.uri, digest=request.digest)
        permitted = permit(self._assignment, asking)
        if isinstance(permitted, Reason):
            self._ask(volume_id, request)  # as long as somebody wants it, the controller may think again
            raise from_code(permitted.code, permitted.message, permitted.hint)
        if permitted is None:
            self._ask(volume_id, request)
            return _Wait(self.asking())
        self._asked.pop(volume_id, None)
        try:
            promise = await self._promise(volume_id, request, permitted, removed)
        except NotCached as error:  # an assignment on its way may bring that version
            return _Wait(error.message, request.digest, error)
        if promise is None:
            return _Wait(REMOVED)
        if not promise.later:
            return await self._mount(promise, permitted, removed)
        async with self._turn:
            if removed.is_set():
                return _Wait(REMOVED)
            await in_thread(partial(self._store.make_volume, volume_id))
        self.news.tell()  # it may be filled at once
        return self._later(promise)

    async def _renew(self, volume_id: str, removed: asyncio.Event) -> bool:
        """Not mounted yet though it was granted: a report of what is mounted must not end the grant on its way. False
        when one just did."""
        async with self._turn:
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
        asked = Asked(request.model, request.namespace, request.uri)
        new = volume_id not in self._asked
        self._asked[volume_id] = (asked, time.monotonic())
        if new:
            self.changed.tell()

    async def _promise(
        self, volume_id: str, request: VolumeRequest, assigned: Assigned, removed: asyncio.Event
    ) -> Promise | None:
        """What the volume will get, remembered; None for a volume that was removed. It keeps its version, unless that
        never came here and the model has moved on: nobody has seen it, and it would never come."""
        self._heard_of[volume_id] = time.monotonic()
        known = self._promises.get(volume_id)
        digest = known.digest if known is not None else ""
        if known is not None and known.exactly:
            choose_version(assigned, self._current(assigned, digest), digest)  # may it still?
        elif not digest or self._store.record(digest) is None:
            digest = choose_version(assigned, self._current(assigned, request.digest), request.digest)
        promise = known or Promise(
            volume_id=volume_id,
            model=assigned.spec.name,
            namespace=request.namespace,
            since=self._now(),
            uri=request.uri,
            exactly=bool(request.digest),
            owner=f"{request.namespace}/{request.pod}" if request.pod else request.namespace,
            view=request.view,
            later=request.wait == "init",
            page_cache=request.page_cache or assigned.page_cache,
        )
        promise = replace(promise, digest=digest)
        if promise != known:
            self._promises[volume_id] = promise  # before the disk, so that a second call at once agrees
            self._hold()
            async with self._turn:
                if removed.is_set():
                    return None
                await in_thread(partial(self._store.promise, promise))
        return promise

    def _current(self, assigned: Assigned, asked: str) -> str:
        """The version that the model means here: an older one that is asked for by its digest counts too, where the
        configuration file is the only authority."""
        spec = assigned.spec
        if spec.digest:
            return spec.digest
        record = self._store.record(asked) if asked else None
        is_ours = assigned.namespaces is None and not assigned.pending  # the controller's have a digest or wait for one
        if record is not None and is_ours and record.name == spec.name:
            return asked
        found = self._flights.find(spec)
        return found.digest if found is not None else ""

    async def _mount(self, promise: Promise, assigned: Assigned, removed: asyncio.Event) -> Volume | _Wait:
        record = self._store.record(promise.digest) if promise.digest else None
        if record is None:
            return self._wait(promise, assigned)
        _require_view(record, promise.view)
        async with self._turn:
            if removed.is_set():
                return _Wait(REMOVED)
            try:
                await in_thread(partial(self._take_lease, promise))
            except NotCached:  # it has just been evicted
                return self._wait(promise, assigned)
            except CorruptModel as error:
                return _Wait(f"{error.message}; {error.hint}", promise.digest)
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

    def _wait(self, promise: Promise, assigned: Assigned) -> _Wait:
        """Have it fetched, and say how far it is."""
        self._missed.add(promise.volume_id)
        if assigned.pending and not promise.digest:
            return _Wait(assigned.pending, trouble=assigned.trouble)
        if promise.digest and promise.digest != assigned.spec.digest and self._is_old(promise, assigned):
            gone = NotCached(
                f"{promise.digest} of model {promise.model!r} is not on this node and is not fetched any more",
                hint="delete the pod: its replacement gets the current version",
            )
            return _Wait(gone.message, promise.digest, gone)
        retry_in_s = self._demand(assigned.spec)
        jobs = self._flights.jobs()
        job = self._flights.job(assigned.spec)
        running = [other for other in jobs if not other.finished]
        sentence = describe_wait(job, retry_in_s, running)
        error = NoRoom(job.message, hint=job.hint) if job is not None and job.error == NoRoom.code else None
        trouble = job.error if job is not None and job.phase == "failed" else ""
        return _Wait(sentence, promise.digest or (job.digest if job is not None else ""), error, trouble)

    def _is_old(self, promise: Promise, assigned: Assigned) -> bool:
        """Whether the version is one that is only known, not fetched."""
        return bool(assigned.spec.digest) or promise.digest in assigned.versions

    # --- bookkeeping

    def _kept(self, promise: Promise, record: Record) -> None:
        hit = promise.volume_id not in self._missed
        waited_s = max(0.0, self._now() - promise.since)
        self._counts.count_mount(promise.model, hit=hit, waited_s=waited_s, size_bytes=record.size_bytes)
        self._forget(promise.volume_id)
        if promise.page_cache:
            self._read_ahead(record)
        self.changed.tell()

    def _forget(self, volume_id: str) -> None:
        self._promises.pop(volume_id, None)
        self._heard_of.pop(volume_id, None)
        self._asked.pop(volume_id, None)
        self._lines.pop(volume_id, None)
        self._troubles.pop(volume_id, None)
        self._missed.discard(volume_id)
        self._hold()

    def _hold(self) -> None:
        self._store.hold_promised({promise.digest for promise in self._promises.values() if promise.digest})


@contextmanager
def _not_fatal(what: str) -> Iterator[None]:
    """A full or faulty disk must not end the agent: others can be mounted. It is tried again with the next news."""
    try:
        yield
    except CacheAgentError as error:
        LOG.warning("%s: %s", what, error)


def _require_view(record: Record, view: str) -> None:
    if view == "hf" and not record.manifest.repo_id:
        raise UsageError(
            f"model {record.name!r} has no hf view: no repository id is known for it",
            hint="set the source's repoId (org/name), or use the view `files`",
        )
