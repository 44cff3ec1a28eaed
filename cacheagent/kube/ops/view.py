"""What operators may read of the cluster: once, or kept up to date while they watch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from cacheagent.kube import slim
from cacheagent.kube.api import (
    MODEL_CACHE_NODES,
    MODEL_CACHES,
    MODEL_WARMUPS,
    NODES,
    PODS,
    KubeApi,
    KubeError,
    KubeRefused,
    Object,
    Resource,
)
from cacheagent.kube.copies import Copy
from cacheagent.kube.mirror import Mirror
from cacheagent.kube.names import AGENT_COMPONENT
from cacheagent.kube.plan import World, views

T = TypeVar("T")
AGENTS: Final = ",".join(f"{key}={value}" for key, value in AGENT_COMPONENT.items())


class ClusterView:
    """Copies of models, nodes' caches, warm-ups, nodes and agents. `view_cluster` makes one. One event loop."""

    def __init__(self, api: KubeApi) -> None:
        self.changed = asyncio.Event()
        self._models = self._copy(api, MODEL_CACHES, views.parse_model, slim.as_it_is)
        self._cache_nodes = self._copy(api, MODEL_CACHE_NODES, views.parse_cache_node, slim.as_it_is)
        self._warmups = self._copy(api, MODEL_WARMUPS, views.parse_warmup, slim.as_it_is)
        self._nodes = self._copy(api, NODES, views.parse_node, slim.node)
        self._agents = self._copy(api, PODS, views.parse_agent_pod, slim.agent_pod, AGENTS)

    def _copy(
        self,
        api: KubeApi,
        resource: Resource,
        parse: Callable[[Object], T],
        keep: Callable[[Object], Object],
        labels: str = "",
    ) -> Copy[T]:
        mirror = Mirror(api, resource, keep=keep, labels=labels, on_change=lambda _before, _after: self.changed.set())
        return Copy(mirror, parse, keep)

    @property
    def _copies(self) -> tuple[Copy[Any], ...]:
        return self._models, self._cache_nodes, self._warmups, self._nodes, self._agents

    @property
    def mirrors(self) -> list[Mirror]:
        """All of them."""
        return [copy.mirror for copy in self._copies]

    def world(self) -> World:
        """As it is known at this moment."""
        return World(
            models=_by_name(self._models),
            cache_nodes=_by_name(self._cache_nodes),
            warmups=_by_name(self._warmups),
            nodes=_by_name(self._nodes),
            agents={f"{key[0]}/{key[1]}": agent for key, agent in self._agents.values().items()},
        )

    def wrote(self, resource: Resource, item: Object) -> None:
        """The API server answered a write of ours with this object; the copy may learn of it a little later."""
        copies: dict[Resource, Copy[Any]] = {MODEL_CACHES: self._models, MODEL_WARMUPS: self._warmups}
        copies[resource].wrote(item)
        self.changed.set()

    def check(self) -> None:
        """Raises KubeRefused when we may not look (any more). An API server that is away is waited for."""
        for mirror in self.mirrors:
            if isinstance(mirror.error, KubeRefused):
                raise mirror.error

    async def wait_changed(self, at_most_s: float) -> None:
        """Return when something changed, or after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self.changed.wait()
        self.changed.clear()


@asynccontextmanager
async def view_cluster(api: KubeApi) -> AsyncIterator[ClusterView]:
    """Raises KubeError when something can't be listed at the beginning."""
    view = ClusterView(api)
    tasks = [asyncio.create_task(mirror.run()) for mirror in view.mirrors]
    try:
        for mirror in view.mirrors:
            await _first_list(mirror)
        yield view
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_world(api: KubeApi) -> World:
    """Everything once. Raises KubeError."""
    async with view_cluster(api) as view:
        return view.world()


async def _first_list(mirror: Mirror) -> None:
    synced = asyncio.create_task(mirror.synced())
    try:
        while not synced.done():
            error: KubeError | None = mirror.error
            if error is not None:
                raise error
            await asyncio.wait({synced}, timeout=0.05)
    finally:
        synced.cancel()


def _by_name(copy: Copy[T]) -> dict[str, T]:
    return {name: value for (_, name), value in copy.values().items()}
