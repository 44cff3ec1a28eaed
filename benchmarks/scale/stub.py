"""An agent without a disk: it watches its one object and its lists of peers and reports on itself as the real one does,
by the real one's own mirrors and reporter, and pretends to fetch."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from benchmarks.scale.fleet import FILES, SIZE_BYTES, digest_of
from cacheagent.kube.api import MODEL_CACHE_NODES, KubeApi, Object
from cacheagent.kube.convert import now_text, spec_of
from cacheagent.kube.mirror import Mirror
from cacheagent.kube.node_report import Reporter
from cacheagent.kube.objects import ModelCacheNodeSpec, ModelCacheNodeStatus, NodeModel, NodeModelStatus, NodeUsage
from cacheagent.kube.peer_lists import PeerLists
from cacheagent.member import Member

DISK_BYTES: Final = 30_000_000_000_000


class Pretence(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long fetching takes, in seconds, at random between two bounds: for the models named here; others are there
    at once."""

    fetch_s: dict[str, tuple[float, float]]

    def seconds(self, model: str) -> float:
        """For one node's copy."""
        return random.uniform(*self.fetch_s.get(model, (0.0, 0.0)))


class Share:
    """What thousands of stubs in one process have in common: equal specs once, and what became of each model.

    `assigned_at`, `ready_at`: by model, when each node first saw its order, and when the API server had taken its
    report that the model is ready (seconds since the epoch).
    """

    def __init__(self) -> None:
        self.assigned_at: dict[str, list[float]] = {}
        self.ready_at: dict[str, list[float]] = {}
        self._models: dict[tuple[NodeModel, ...], tuple[NodeModel, ...]] = {}

    def essence(self, item: Object) -> Object:
        """As the real agent's: its own status is no news. The spec as a value."""
        metadata = {key: item["metadata"].get(key) for key in ("name", "uid", "generation", "resourceVersion")}
        spec = spec_of(item, ModelCacheNodeSpec)
        return {"metadata": metadata, "spec": replace(spec, models=self._models.setdefault(spec.models, spec.models))}


class ConfirmedReporter(Reporter):
    """Says which report the API server has taken."""

    def __init__(
        self,
        api: KubeApi,
        name: str,
        look: Callable[[], Awaitable[ModelCacheNodeStatus]],
        taken: Callable[[ModelCacheNodeStatus], None],
    ) -> None:
        super().__init__(api, name, look)
        self._taken = taken

    async def _report(self) -> None:
        before = self._sent
        await super()._report()
        if self._sent is not None and self._sent is not before:
            self._taken(self._sent)


class Stub:
    """One agent. One event loop."""

    def __init__(self, api: KubeApi, name: str, pretence: Pretence, share: Share) -> None:
        self._pretence = pretence
        self._share = share
        self._name = name
        self._spec = ModelCacheNodeSpec()
        self._generation = 0
        self._uid = ""
        self._began: dict[str, float] = {}
        self._takes: dict[str, float] = {}
        self._ready: dict[NodeModel, NodeModelStatus] = {}
        self._first = asyncio.Event()
        self._assigned: set[str] = set()
        self._reported: set[str] = set()
        self._mirror = Mirror(
            api, MODEL_CACHE_NODES, fields=f"metadata.name={name}", keep=share.essence, on_change=self._changed
        )
        self._reporter = ConfirmedReporter(api, name, self._look, self._taken)
        keys = (base64.b64encode(hashlib.sha256(f"{name} {each}".encode()).digest()).decode() for each in range(2))
        me = Member(name=name, address=f"{name}:7411", key=",".join(keys))
        self._peers = PeerLists(api, me, changed=self._reporter.tell)

    async def reported(self) -> None:
        """Return when the API server has its first report."""
        await self._first.wait()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._mirror.run())
            group.create_task(self._reporter.run())
            group.create_task(self._peers.run())

    def _changed(self, _before: Object | None, after: Object | None) -> None:
        if after is None:
            self._uid = ""
            self._reporter.forget(there=False)
            return
        self._spec = after["spec"]
        self._generation = after["metadata"]["generation"]
        if after["metadata"]["uid"] != self._uid:
            self._uid = after["metadata"]["uid"]
            self._reporter.forget(there=True)
        for model in self._spec.models:
            if model.name not in self._assigned:
                self._assigned.add(model.name)
                self._share.assigned_at.setdefault(model.name, []).append(time.time())
            if model.name not in self._began and (model.digest or model.resolve):
                self._begin(model.name)
        self._reporter.tell()

    def _begin(self, name: str) -> None:
        takes_s = self._pretence.seconds(name)
        self._began[name], self._takes[name] = time.monotonic(), takes_s
        if takes_s:
            # The real one reports that it has the order, then that it fetches, then that it is done.
            for later_s in (0.2, takes_s):
                asyncio.get_running_loop().call_later(later_s, self._reporter.tell)

    async def _look(self) -> ModelCacheNodeStatus:
        models = tuple(map(self._entry, self._spec.models))
        used = sum(model.bytes_done for model in models)
        usage = NodeUsage(capacity_bytes=DISK_BYTES, free_bytes=DISK_BYTES - used, used_bytes=used)
        return ModelCacheNodeStatus(
            observed_generation=self._generation,
            agent_version="0.0.0",
            incarnation=hashlib.sha256(self._name.encode()).hexdigest()[:32],
            reported_at=now_text(),
            usage=usage,
            models=models,
            public_key=self._peers.me.key,
            peer_address=self._peers.me.address,
        )

    def _entry(self, model: NodeModel) -> NodeModelStatus:
        if (known := self._ready.get(model)) is not None:
            return known
        if not model.digest and not model.resolve:
            return NodeModelStatus(name=model.name, phase="pending", message="waits for the version to be decided")
        digest = model.digest or digest_of(model.name)
        passed_s, takes_s = time.monotonic() - self._began[model.name], self._takes[model.name]
        entry = NodeModelStatus(
            name=model.name,
            phase="ready",
            digest=digest,
            resolved_for=model.resolve,
            content_digest=digest_of(digest),
            files=FILES,
            size_bytes=SIZE_BYTES,
            bytes_done=SIZE_BYTES,
        )
        if passed_s >= takes_s:
            self._ready[model] = entry
            return entry
        return NodeModelStatus(
            name=model.name,
            phase="fetching" if passed_s > 0.1 else "pending",
            digest=digest,
            resolved_for=model.resolve,
            files=FILES,
            size_bytes=SIZE_BYTES,
            bytes_done=int(SIZE_BYTES * passed_s / takes_s),
            rate_bytes_per_s=int(SIZE_BYTES / takes_s),
            message=f"{passed_s / takes_s:.0%}, about {takes_s - passed_s:.0f} s left",
        )

    def _taken(self, status: ModelCacheNodeStatus) -> None:
        self._first.set()
        for entry in status.models:
            if entry.phase == "ready" and entry.name not in self._reported:
                self._reported.add(entry.name)
                self._share.ready_at.setdefault(entry.name, []).append(time.time())
