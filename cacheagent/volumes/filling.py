"""Volumes that are mounted empty and filled when their model is here; till then they say how far it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from msgspec.structs import replace

from cacheagent.errors import CacheAgentError
from cacheagent.quantity import size_text
from cacheagent.store import Promise, Record, Store
from cacheagent.threads import in_thread
from cacheagent.volumes.versions import Versions, require_view
from cacheagent.volumes.waitlist import Waitlist

LOG: Final = logging.getLogger(__name__)


class Filling:
    """One event loop. `kept` is told of each promise that was kept; `asking` says what becomes of a model that is not
    assigned."""

    def __init__(
        self,
        store: Store,
        waitlist: Waitlist,
        versions: Versions,
        *,
        kept: Callable[[Promise, Record], None],
        asking: Callable[[], str],
    ) -> None:
        self._store = store
        self._waitlist = waitlist
        self._versions = versions
        self._kept = kept
        self._asking = asking

    @property
    def telling(self) -> bool:
        """Whether volumes are here that somebody may be reading."""
        return bool(self._waitlist.lines)

    async def step(self) -> None:
        """Fill those whose model is here, and say in the others how far it is."""
        for promise in self._waitlist.promises():
            if promise.later and self._store.has_volume(promise.volume_id):
                with not_fatal("a volume that is filled later can't be written to"):
                    await self._fill_or_tell(promise)

    async def _fill_or_tell(self, promise: Promise) -> None:
        try:
            line = await self._fill(promise)
        except CacheAgentError as error:
            line = str(error)
        volume_id, lines = promise.volume_id, self._waitlist.lines
        if not line or lines.get(volume_id) == line:
            return
        async with self._waitlist.turn:
            if self._waitlist.promise(volume_id) is not None:
                await in_thread(partial(self._store.write_progress, volume_id, f"{promise.model}: {line}"))
                lines[volume_id] = line

    async def _fill(self, promise: Promise) -> str:
        """Fill it if its version is here; else why not, a sentence. Raises what `Store.fill_volume` raises."""
        assignment = self._versions.assignment
        assigned = assignment.find(promise.model)
        if (lease := self._store.find_lease(promise.volume_id)) is not None:  # an earlier try began with this version
            promise = replace(promise, digest=lease.digest)
        record = self._store.record(promise.digest) if promise.digest else None
        if record is None and assigned is not None and not promise.exactly:
            if not assigned.permits(promise.namespace):  # of that name, but maybe another model than it was then
                return f"namespace {promise.namespace!r} may not mount model {promise.model!r} any more"
            digest = self._versions.current(assigned, "")
            record = self._store.record(digest) if digest else None
            promise = replace(promise, digest=digest)
        if record is not None:
            require_view(record, promise.view)
            await self._link(promise, record)
            return ""
        if assigned is not None:
            self._waitlist.miss(promise.volume_id)
            return self._versions.wait(promise, assigned).message
        for refused in assignment.refusals:
            if refused.namespace == promise.namespace and refused.model == (promise.uri or promise.model):
                return refused.error.message
        return self._asking()

    async def _link(self, promise: Promise, record: Record) -> None:
        async with self._waitlist.turn:
            if self._waitlist.promise(promise.volume_id) is None:  # removed meanwhile
                return
            whole = f"all {size_text(record.size_bytes)} are here"
            await in_thread(partial(self._store.write_progress, promise.volume_id, f"{promise.model}: {whole}"))
            await in_thread(partial(self._store.fill_volume, promise))
        self._kept(promise, record)


@contextmanager
def not_fatal(what: str) -> Iterator[None]:
    """A full or faulty disk must not end the agent: others can be mounted. It is tried again with the next news."""
    try:
        yield
    except CacheAgentError as error:
        LOG.warning("%s: %s", what, error)
