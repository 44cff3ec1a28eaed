"""Who waits: volumes with a promise and without a lease, and questions for models that are not assigned here."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Final, NamedTuple

from cacheagent.api.schema import GRANT_S, VolumeRequest
from cacheagent.store import Promise, Store

ALIVE_S: Final = 300.0
"""Whoever asked for a volume in this time still waits for it: the kubelet asks again within 5 minutes."""


class Asked(NamedTuple):
    """A model that somebody here wants and that is not assigned."""

    model: str
    namespace: str
    uri: str


class _Question(NamedTuple):
    """`since` and `heard_at`: when, of the monotonic clock, it was asked first and last."""

    asked: Asked
    since: float
    heard_at: float


class Waitlist:
    """One event loop. In memory; the promises are what the store has on disk, and their versions are held there."""

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self.turn = asyncio.Lock()
        """Held by whoever changes what is on disk of a volume."""
        self.lines: dict[str, str] = {}
        """The last line that was written into a volume that is filled later."""
        self._store = store
        self._now = now
        self._promises = {promise.volume_id: promise for promise in store.promises()}
        self.heard_of: dict[str, float] = dict.fromkeys(self._promises, time.monotonic())
        """When (of the monotonic clock) a volume with a promise was last asked for."""
        self._asked: dict[str, _Question] = {}
        self._missed = set(self._promises)
        self._troubles: defaultdict[str, set[str]] = defaultdict(set)
        self._hold()

    # --- promises

    def promise(self, volume_id: str) -> Promise | None:
        """What a volume will get."""
        return self._promises.get(volume_id)

    def promises(self) -> list[Promise]:
        """All of them."""
        return list(self._promises.values())

    def put(self, promise: Promise) -> None:
        """From now on it will get that."""
        self._promises[promise.volume_id] = promise
        self._hold()

    def kept(self, volume_id: str) -> None:
        """It has its lease."""
        self._promises.pop(volume_id, None)

    def forget(self, volume_id: str) -> None:
        """It has what it wanted, or nobody waits for it any more."""
        self._promises.pop(volume_id, None)
        self.heard_of.pop(volume_id, None)
        self._asked.pop(volume_id, None)
        self.lines.pop(volume_id, None)
        self._troubles.pop(volume_id, None)
        self._missed.discard(volume_id)
        self._hold()

    # --- what happened while it waited

    def hear(self, volume_id: str) -> None:
        """It is asked for just now."""
        self.heard_of[volume_id] = time.monotonic()

    def miss(self, volume_id: str) -> None:
        """Its version was not here when it was asked for."""
        self._missed.add(volume_id)

    def was_missed(self, volume_id: str) -> bool:
        """Whether it had to wait."""
        return volume_id in self._missed

    def is_new_trouble(self, volume_id: str, trouble: str) -> bool:
        """Whether to end a hold for it. A code counts once: each refusal doubles the kubelet's pause."""
        if not trouble or trouble in self._troubles[volume_id]:
            return False
        self._troubles[volume_id].add(trouble)
        return True

    # --- questions

    def ask(self, volume_id: str, request: VolumeRequest) -> bool:
        """Its model is not assigned here. Whether that is new."""
        before, now = self._asked.get(volume_id), time.monotonic()
        asked = Asked(request.model, request.namespace, request.uri)
        self._asked[volume_id] = _Question(asked, before.since if before is not None else now, now)
        return before is None

    def answered(self, volume_id: str) -> None:
        """Its model is assigned here now."""
        self._asked.pop(volume_id, None)

    def asked(self) -> list[Asked]:
        """What was asked for lately and is not assigned."""
        oldest = time.monotonic() - GRANT_S
        self._asked = {volume_id: each for volume_id, each in self._asked.items() if each.heard_at > oldest}
        return [each.asked for each in self._asked.values()]

    def waiting(self) -> dict[str, list[float]]:
        """Since when (seconds since the epoch) volumes wait, by model. One whose model is not assigned here is filed
        under the name that was asked for, or under `uri`. Those that nobody has asked for lately are left out: their
        pods are gone, and the kubelet says nothing of that."""
        since: defaultdict[str, list[float]] = defaultdict(list)
        now = time.monotonic()
        for promise in self._promises.values():
            if now - self.heard_of.get(promise.volume_id, now) <= ALIVE_S:
                since[promise.model].append(promise.since)
        for question in self._asked.values():
            if now - question.heard_at <= ALIVE_S:
                since[question.asked.model or "uri"].append(question.since + self._now() - now)
        return dict(since)

    def _hold(self) -> None:
        self._store.hold_promised({promise.digest for promise in self._promises.values() if promise.digest})
