"""The agent's side of a cluster: one ModelCacheNode, whose spec it follows and whose status it writes. Nothing else.

The last assignment is on disk as well: a node that starts while the API server is away serves what it was to serve.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from functools import partial
from typing import Final

import msgspec

from cacheagent.assignment import Assignment
from cacheagent.desired import Desired
from cacheagent.errors import CacheAgentError
from cacheagent.flights import Flights
from cacheagent.kube.api import MODEL_CACHE_NODES, KubeApi, KubeError, Object
from cacheagent.kube.convert import now_text, spec_of
from cacheagent.kube.mirror import Mirror
from cacheagent.kube.node_lookups import Lookups
from cacheagent.kube.node_models import SHARED, Found, NodePolicy, assignment_of, priorities_of, version_of
from cacheagent.kube.node_report import Reporter
from cacheagent.kube.node_status import Seen, status_of
from cacheagent.kube.objects import (
    KubeValue,
    ModelCacheNodeSpec,
    ModelCacheNodeStatus,
    ModelCachePeersSpec,
    NodeModel,
)
from cacheagent.kube.peer_lists import PeerLists
from cacheagent.member import Member
from cacheagent.news import News
from cacheagent.progress import JobStatus
from cacheagent.store import Store
from cacheagent.threads import in_thread
from cacheagent.volumes import ASKED, Volumes
from cacheagent.warming import Warming

LOG: Final = logging.getLogger(__name__)


class Kept(KubeValue):
    """What is on disk of the assignment, and of who else wants what."""

    generation: int = 0
    spec: ModelCacheNodeSpec = ModelCacheNodeSpec()
    found: dict[str, Found] = {}
    peers: tuple[ModelCachePeersSpec, ...] = ()


class NodeAgent:
    """One event loop. `start` before the node serves anybody, `run` while it does. `me`: this node as its peers know
    it; None without any."""

    def __init__(  # noqa: PLR0913 - each is one of its neighbours
        self,
        api: KubeApi,
        name: str,
        *,
        store: Store,
        flights: Flights,
        warming: Warming,
        volumes: Volumes,
        desired: Desired,
        policy: NodePolicy,
        me: Member | None = None,
    ) -> None:
        self._name = name
        self._store = store
        self._flights = flights
        self._warming = warming
        self._volumes = volumes
        self._desired = desired
        self._policy = policy
        self._kept = Kept()
        self._assignment = Assignment(open_ended=True)
        self._wrong: dict[str, CacheAgentError] = {}
        self._errors: dict[str, CacheAgentError] = {}
        self._phases: dict[tuple[str, str], str] = {}
        self._uid = ""
        self._incarnation = ""
        self._demanded: set[tuple[str, str]] = set()
        self._news = News()
        self._mirror = Mirror(
            api, MODEL_CACHE_NODES, fields=f"metadata.name={name}", on_change=self._changed, keep=_essence
        )
        self._reporter = Reporter(api, name, self._look)
        self._lookups = Lookups(flights.look_up, policy, changed=self._found)
        self.peers = PeerLists(api, me, changed=self._news.tell) if me is not None else None
        """With whom this node exchanges what, if with anybody."""
        self.liars: Collection[str] = ()
        """Peers that were caught: told in the status."""

    def start(self) -> None:
        """Follow what is known from before. Blocking: it reads a small file. Raises DiskFault."""
        try:
            self._kept = msgspec.json.decode(self._store.assignment() or b"{}", type=Kept)
        except msgspec.MsgspecError as error:
            LOG.warning("the last assignment can't be read, and is asked for again: %s", error)
        self._lookups.found = dict(self._kept.found)
        self._incarnation = self._store.incarnation()
        self._demanded = {(model.name, model.digest) for model in self._kept.spec.models if model.on_demand}
        self._store.expect_mounts()
        if self.peers is not None:
            self.peers.start(self._kept.peers)
        self._put_into_force(room=self._hold(self._kept))

    async def run(self) -> None:
        """Until cancelled."""
        self._lookups.want(self._kept.spec.models)
        work = [self._mirror.run(), self._reporter.run(), self._follow(), self._watch_volumes()]
        if self.peers is not None:
            work.append(self.peers.run())
        try:
            async with asyncio.TaskGroup() as group:
                for each in work:
                    group.create_task(each)
        finally:
            await self._lookups.close()

    def _waits(self, model: NodeModel, digest: str) -> bool:
        """Whether a fetch waits for who else wants the version: one node's answer is told to the others first, so that
        it does not begin alone."""
        if self.peers is None or model.peers == "never" or not digest or self._store.record(digest) is not None:
            return False
        return (model.shared or not model.digest) and self.peers.wait(digest)

    def heard(self, status: JobStatus) -> None:
        """A job has news: another phase is reported at once, progress when its time comes."""
        key = (status.name, status.uri)
        if self._phases.get(key) != status.phase:
            self._phases[key] = status.phase
            self._reporter.tell()
        if status.finished:
            self._phases.pop(key, None)

    def asking(self) -> str:
        """What becomes of a model that is not assigned."""
        trouble = self._mirror.error or self._reporter.error
        if trouble is None:
            return ASKED
        return f"{ASKED}, but the Kubernetes API can't be reached: {trouble.message}"

    # --- following the spec

    def _changed(self, before: Object | None, after: Object | None) -> None:
        self._news.tell()

    async def _follow(self) -> None:
        """Take in the object as it is now, again and again. One that is gone changes nothing: the controller makes it
        again, and pods go on meanwhile."""
        known: Object | None = None
        while True:
            ticket = self._news.ticket
            item = self._mirror.get(self._name)
            if self._lookups.found != self._kept.found or self._has_other_peers():
                await self._keep(self._kept)
            elif self._lookups.errors != self._errors or self._is_waiting():
                self._put_into_force(room=False)
            if item is not known:
                known = item
                uid = item["metadata"]["uid"] if item is not None else ""
                if uid != self._uid:
                    self._uid = uid
                    self._reporter.forget(there=bool(uid))
                if item is not None:
                    await self._take(item)
            await ticket.wait()

    def _has_other_peers(self) -> bool:
        return self.peers is not None and self.peers.specs != self._kept.peers

    def _is_waiting(self) -> bool:
        return any(assigned.pending == SHARED for assigned in self._assignment.models)

    async def _take(self, item: Object) -> None:
        try:
            spec = spec_of(item, ModelCacheNodeSpec)
        except KubeError:
            LOG.exception("the assignment can't be read; the one before it is in force")
            return
        self._lookups.want(spec.models)
        await self._keep(Kept(generation=item["metadata"].get("generation", 0), spec=spec))

    def _found(self) -> None:
        """A question has its answer, or can't be answered now."""
        self._news.tell()
        self._reporter.tell()

    async def _keep(self, kept: Kept) -> None:
        """Into force first: a disk that fails must not hold up what pods wait for. What is to stay comes before all: it
        is in force when it is reported. In a thread, since the store may be busy with an eviction."""
        peers = self.peers.specs if self.peers is not None else ()
        kept = msgspec.structs.replace(kept, found=dict(self._lookups.found), peers=peers)
        room = await in_thread(partial(self._hold, kept))
        self._kept = kept
        self._put_into_force(room=room)
        try:
            await in_thread(partial(self._store.set_assignment, msgspec.json.encode(self._kept) + b"\n"))
        except CacheAgentError as error:
            LOG.warning("the assignment can't be kept for the next start: %s", error)

    def _hold(self, kept: Kept) -> bool:
        """The store's part; whether it may evict more than before."""
        spec, found = kept.spec, kept.found
        pinned = {version_of(model, found.get(model.resolve)) for model in spec.models if model.pin} - {""}
        let_go = self._store.hold(spec.held, pinned)
        has_sunk = self._store.rank(priorities_of(spec, found))
        return let_go or has_sunk

    def _put_into_force(self, *, room: bool) -> None:
        spec, found = self._kept.spec, self._kept.found
        self._errors = dict(self._lookups.errors)
        if self.peers is not None:
            self.peers.forget({version_of(model, found.get(model.resolve)) for model in spec.models})
        self._assignment, self._wrong = assignment_of(spec, found, self._policy, self._errors, self._waits)
        self._desired.assign(self._assignment)
        self._flights.limit({each.spec: each.max_origin_bytes_per_s for each in self._assignment.models})
        on_demand = {(model.name, model.digest) for model in spec.models if model.on_demand}
        self._demanded &= on_demand
        for assigned in self._assignment.models:  # a version once: whoever goes on waiting for it asks again and again
            asked = (assigned.spec.name, assigned.spec.digest)
            if asked in on_demand - self._demanded and not assigned.pending:
                self._demanded.add(asked)
                self._warming.demand(assigned.spec)
        if room:
            self._warming.room_was_made()
        self._reporter.tell()

    # --- reporting

    async def _watch_volumes(self) -> None:
        mounted: set[str] = set()
        while True:
            ticket = self._volumes.changed.ticket
            self._reporter.tell()
            before, mounted = mounted, {lease.digest for lease in self._store.leases()}
            if before - mounted:
                self._warming.room_was_made()
            await ticket.wait()

    async def _look(self) -> ModelCacheNodeStatus:
        usage, evicting = await in_thread(lambda: (self._store.usage(), self._store.evicting()))
        running = [job for job in self._flights.jobs() if not job.finished]
        return status_of(
            Seen(
                spec=self._kept.spec,
                generation=self._kept.generation,
                assignment=self._assignment,
                found=self._lookups.found,
                errors=self._lookups.errors,
                wrong=self._wrong,
                records=self._store.records(),
                leases=self._store.leases(),
                job=self._flights.job,
                retry_in_s=self._warming.retry_in_s,
                running=running,
                wanted=self._volumes.asked(),
                evicting=evicting,
                usage=usage,
                incarnation=self._incarnation,
                reported_at=now_text(),
                public_key=self.peers.me.key if self.peers is not None else "",
                peer_address=self.peers.me.address if self.peers is not None else "",
                liars=self.liars,
            )
        )


def _essence(item: Object) -> Object:
    """Without the status, which is ours: writing it is no news."""
    metadata = {key: item["metadata"].get(key) for key in ("name", "uid", "generation", "resourceVersion")}
    return {"metadata": metadata, "spec": item.get("spec") or {}}
