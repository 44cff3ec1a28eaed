"""The controller's copies of the cluster: one mirror a kind, parsed once for each change, and what we wrote a moment
ago.

A mirror learns of our own writes a little later than we do. Planning from the old object would write it again, so what
the API server answered to a write stands in for the mirror's object until that has caught up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec

from cacheagent.kube import slim
from cacheagent.kube.api import (
    CLAIMS,
    MODEL_CACHE_NODES,
    MODEL_CACHE_PEERS,
    MODEL_CACHES,
    MODEL_WARMUPS,
    NAMESPACES,
    NODES,
    PODS,
    VOLUMES,
    KubeApi,
    Object,
    Resource,
)
from cacheagent.kube.mirror import Key, Mirror
from cacheagent.kube.names import AGENT_COMPONENT, INJECTED_LABEL, MANAGED_BY, MANAGED_BY_US
from cacheagent.kube.plan import Memory, PlanSettings, World, views
from cacheagent.kube.shared import CacheNodes

LOG: Final = logging.getLogger(__name__)

BELIEVED_S: Final = 10.0
"""How long our own write is believed over the mirror when the mirror never shows it. Chosen: watches lag by less."""

T = TypeVar("T")
OURS: Final = f"{MANAGED_BY}={MANAGED_BY_US}"


@dataclass(frozen=True, slots=True)
class _Written:
    """What a write left behind. `over`: the mirror's object that it stands in for, None for a new one."""

    item: Object
    over: Object | None
    until: float


class Copy(Generic[T]):
    """The objects of one kind as values. A value is made anew only when its object was."""

    def __init__(self, mirror: Mirror, parse: Callable[[Object], T], keep: Callable[[Object], Object]) -> None:
        self.mirror = mirror
        self._parse = parse
        self._keep = keep
        self._parsed: dict[Key, tuple[Object, T | None]] = {}
        self._written: dict[Key, _Written] = {}

    def wrote(self, item: Object) -> None:
        """The API server answered a write with this object."""
        item = self._keep(item)
        key = (item["metadata"].get("namespace", ""), item["metadata"]["name"])
        self._written[key] = _Written(item, self.mirror.items.get(key), time.monotonic() + BELIEVED_S)

    def deleted(self, key: Key) -> None:
        """The API server took our order to delete it; its finalizers may keep it for a while."""
        item = self.mirror.items.get(key)
        if item is not None:
            gone = {**item, "metadata": {**item["metadata"], "deletionTimestamp": "now"}}
            self._written[key] = _Written(gone, item, time.monotonic() + BELIEVED_S)

    def values(self) -> dict[Key, T]:
        """All that could be parsed."""
        items = self._present()
        for key in self._parsed.keys() - items.keys():
            del self._parsed[key]
        found: dict[Key, T] = {}
        for key, item in items.items():
            cached = self._parsed.get(key)
            if cached is None or cached[0] is not item:
                cached = self._parsed[key] = (item, self._try(item))
            if cached[1] is not None:
                found[key] = cached[1]
        return found

    def _present(self) -> Mapping[Key, Object]:
        if not self._written:
            return self.mirror.items
        now = time.monotonic()
        for key, written in list(self._written.items()):
            if now > written.until or _caught_up(self.mirror.items.get(key), written):
                del self._written[key]
        return {**self.mirror.items, **{key: written.item for key, written in self._written.items()}}

    def _try(self, item: Object) -> T | None:
        try:
            return self._parse(item)
        except (msgspec.ValidationError, ValueError, TypeError, AttributeError) as error:
            kind, name = item.get("kind"), item["metadata"]["name"]
            LOG.error("%s %s can't be understood and is left out: %s", kind, name, error)  # noqa: TRY400 - not ours
            return None


def _caught_up(seen: Object | None, written: _Written) -> bool:
    """Whether the mirror shows this write or something after it."""
    if seen is None:
        return written.over is not None
    if seen is written.over:
        return False
    # Versions of one kind are numbers that grow: promised since Kubernetes 1.35, true of every server on etcd before.
    mine, its = (str(each["metadata"].get("resourceVersion", "")) for each in (written.item, seen))
    return not (mine.isdigit() and its.isdigit()) or int(its) >= int(mine)


class Copies:
    """All kinds that a plan looks at. `changed` is set whenever any of them did. One event loop."""

    def __init__(self, api: KubeApi, namespace: str) -> None:
        self.changed = asyncio.Event()
        self._of: dict[Resource, list[Copy[Any]]] = {}
        agents = ",".join(f"{key}={value}" for key, value in AGENT_COMPONENT.items())
        self.models = self._copy(api, MODEL_CACHES, views.parse_model, slim.as_it_is)
        self.cache_nodes = self._copy(api, MODEL_CACHE_NODES, views.parse_cache_node, CacheNodes().keep)
        self.warmups = self._copy(api, MODEL_WARMUPS, views.parse_warmup, slim.as_it_is)
        self.nodes = self._copy(api, NODES, views.parse_node, slim.node)
        self.namespaces = self._copy(api, NAMESPACES, views.parse_meta, slim.namespace)
        self.agents = self._copy(api, PODS, views.parse_agent_pod, slim.agent_pod, namespace=namespace, labels=agents)
        self.pods = self._copy(api, PODS, views.parse_pod, slim.pod, labels=f"{INJECTED_LABEL}=true")
        self.volumes = self._copy(api, VOLUMES, views.parse_volume, slim.as_it_is, labels=OURS)
        self.peers = self._copy(api, MODEL_CACHE_PEERS, views.parse_peers, slim.as_it_is)
        self.claims = self._copy(api, CLAIMS, views.parse_claim, slim.as_it_is, labels=OURS)

    def _copy(
        self,
        api: KubeApi,
        resource: Resource,
        parse: Callable[[Object], T],
        keep: Callable[[Object], Object],
        **select: str,
    ) -> Copy[T]:
        mirror = Mirror(api, resource, keep=keep, on_change=lambda _before, _after: self.changed.set(), **select)
        copy = Copy(mirror, parse, keep)
        self._of.setdefault(resource, []).append(copy)
        return copy

    @property
    def mirrors(self) -> list[Mirror]:
        """All of them."""
        return [copy.mirror for copies in self._of.values() for copy in copies]

    def roots(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What has to run for as long as the copies shall be up to date, by name."""
        return {
            f"mirror {number} of {resource.plural}": copy.mirror.run()
            for resource, copies in self._of.items()
            for number, copy in enumerate(copies)
        }

    def missing(self) -> str:
        """Kinds that were not listed yet; empty when all were."""
        return ", ".join(
            sorted(
                {
                    resource.plural
                    for resource, copies in self._of.items()
                    for copy in copies
                    if not copy.mirror.is_synced
                }
            )
        )

    async def synced(self) -> None:
        """Return once everything was listed."""
        for mirror in self.mirrors:
            await mirror.synced()

    def wrote(self, resource: Resource, item: Object) -> None:
        """The API server answered a write with this object."""
        for copy in self._of[resource]:
            # An agent's pod and an injected one are the same kind in two copies; each is only in one of them.
            if resource != PODS or _key(item) in copy.mirror.items:
                copy.wrote(item)
        self.changed.set()

    def deleted(self, resource: Resource, name: str, namespace: str) -> None:
        """The API server took our order to delete it."""
        for copy in self._of[resource]:
            copy.deleted((namespace, name))
        self.changed.set()

    def world(self, settings: PlanSettings, memory: Memory) -> World:
        """Everything as it is known at this moment. It does not change any more."""
        pods = self.pods.values()
        return World(
            models=_by_name(self.models),
            cache_nodes=_by_name(self.cache_nodes),
            warmups=_by_name(self.warmups),
            nodes=_by_name(self.nodes),
            agents={f"{key[0]}/{key[1]}": agent for key, agent in self.agents.values().items()},
            pods={pod.meta.uid: pod for pod in pods.values()},
            namespaces=_by_name(self.namespaces),
            volumes=_by_name(self.volumes),
            claims=self.claims.values(),
            peers=_by_name(self.peers),
            settings=settings,
            memory=memory,
        )


def _by_name(copy: Copy[T]) -> dict[str, T]:
    return {name: value for (_, name), value in copy.values().items()}


def _key(item: Object) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]
