"""A copy in memory of all objects of a kind, kept up to date by one list and one watch that goes on for ever."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Final

from cacheagent.kube.api import Keep, KubeApi, KubeError, KubeExpired, KubeRefused, Object, Resource, WatchEvent

LOG: Final = logging.getLogger(__name__)

Key = tuple[str, str]
"""(namespace, name); the namespace of a cluster-scoped object is empty."""
OnChange = Callable[[Object | None, Object | None], None]
"""(before, after): before is None for a new object, after for one that is gone. Quick, and it does not raise."""
FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 30.0
"""Doubled after each failure, and cut by a random factor: what client-go does (0.8 to 30 s)."""
SETTLED_S: Final = 5.0
"""A watch that lasted so long was a good one: the next failure is the first again."""


class Mirror:
    """The objects of one kind (of one namespace, of those that selectors match).

    `items` holds nothing until the first list has come (`synced`); afterwards it may be behind the server but is never
    emptied, whatever fails. The objects in it are not to be changed. One event loop.

    A change of what `keep` strips is no change. It must keep `metadata.name`, `.namespace`, and `.uid`, which tells an
    object from its successor.
    """

    def __init__(  # noqa: PLR0913 - what to list, and what to do with it
        self,
        api: KubeApi,
        resource: Resource,
        *,
        namespace: str = "",
        fields: str = "",
        labels: str = "",
        on_change: OnChange | None = None,
        keep: Keep | None = None,
    ) -> None:
        self._api = api
        self._resource = resource
        self._select = {"namespace": namespace, "fields": fields, "labels": labels}
        self._on_change = on_change
        self._keep = keep or without_managed_fields
        self.items: dict[Key, Object] = {}
        self.version = 0
        """Counts changes: whoever kept it knows whether anything happened since."""
        self.error: KubeError | None = None
        """Why the copy is not being kept up to date at this moment."""
        self._synced = asyncio.Event()
        self._changed = asyncio.Event()
        self._resource_version = ""
        self._failures = 0

    def get(self, name: str, namespace: str = "") -> Object | None:
        """One object as far as known. Not to be changed."""
        return self.items.get((namespace, name))

    @property
    def is_synced(self) -> bool:
        """The first list has come."""
        return self._synced.is_set()

    async def synced(self) -> None:
        """Return once the first list has come."""
        await self._synced.wait()

    async def changed(self, since: int) -> int:
        """Return the present `version` as soon as it is another than `since`."""
        while self.version == since:
            self._changed.clear()
            await self._changed.wait()
        return self.version

    async def run(self) -> None:
        """Until cancelled. Nothing that the server does ends it; what it could not do is in `error` and in the log."""
        while True:
            begin = time.monotonic()
            try:
                if not self._resource_version:
                    await self._list()
                await self._watch()
            except KubeExpired:
                self._resource_version = ""  # the history that we stood on is gone: look at everything again
            except KubeError as error:
                self._failed(error)
            if time.monotonic() - begin > SETTLED_S:
                self._failures = 0
            # A server that ends watches at once is not asked in a tight loop either.
            await asyncio.sleep(_pause_s(self._failures) if time.monotonic() - begin < SETTLED_S else 0)

    async def _list(self) -> None:
        found = await self._api.list(self._resource, **self._select, keep=self._keep)
        kept = {_key(item): item for item in found.items}
        for key in self.items.keys() - kept.keys():
            self._set(key, None)
        for key, item in kept.items():
            self._set(key, item)
        self._resource_version = found.resource_version
        self._well()
        self._synced.set()

    async def _watch(self) -> None:
        async for event in self._api.watch(self._resource, self._resource_version, **self._select):
            self._take(event)
            self._well()

    def _take(self, event: WatchEvent) -> None:
        version = event.object["metadata"]["resourceVersion"]
        if event.type != "BOOKMARK":
            item = self._keep(event.object)
            self._set(_key(item), None if event.type == "DELETED" else item)
        self._resource_version = version  # last: what raised before is seen again

    def _set(self, key: Key, after: Object | None) -> None:
        before = self.items.get(key)
        if after is not None:
            self.items[key] = after
        elif before is not None:
            del self.items[key]
        if _same(before, after):
            return
        self.version += 1
        self._changed.set()
        if self._on_change is not None:
            self._on_change(before, after)

    def _well(self) -> None:
        if self.error is not None:
            LOG.info("the API server answers again", extra={"resource": self._resource.plural})
        self.error = None
        self._failures = 0

    def _failed(self, error: KubeError) -> None:
        level = logging.ERROR if isinstance(error, KubeRefused) else logging.WARNING
        if self.error is None or type(self.error) is not type(error):
            LOG.log(level, "not up to date: %s", error, extra={"resource": self._resource.plural})
        self.error = error
        self._failures += 1


def without_managed_fields(item: Object) -> Object:
    """Who wrote which field: half of a small object's size, and nobody here reads it."""
    item["metadata"].pop("managedFields", None)
    return item


def _same(before: Object | None, after: Object | None) -> bool:
    """Nothing differs but the version: a write changed only what was stripped."""
    if before is None or after is None:
        return before is after
    return before == after or _versionless(before) == _versionless(after)


def _versionless(item: Object) -> Object:
    return {**item, "metadata": {**item["metadata"], "resourceVersion": ""}}


def _key(item: Object) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _pause_s(failures: int) -> float:
    longest = min(FIRST_RETRY_S * 2.0 ** min(failures, 10), LONGEST_RETRY_S)
    return random.uniform(0.5, 1) * longest
