"""Events of Kubernetes: what people read in `kubectl describe`. A courtesy: nothing waits for them or fails by them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from typing import Final, Literal, NamedTuple

from cacheagent.kube.api import EVENTS, KubeApi, KubeError, KubeNotFound, KubeUnavailable, Object
from cacheagent.kube.convert import now_text

LOG: Final = logging.getLogger(__name__)

QUEUE: Final = 1000
"""Events that may wait. Beyond it they are dropped and counted: an API server in trouble needs no more of them."""
REMEMBERED: Final = 4096
"""Different events whose repetition is counted instead of written anew; as client-go."""
FORGOTTEN_AFTER_S: Final = 600.0
"""After that a repetition is news again; client-go's interval. (The API server forgets events after an hour.)"""
PER_SECOND: Final = 20.0
BURST: Final = 50
"""Writes of one process. Chosen: 2,000 waiting pods are told within two minutes, and the API server hardly notices."""
TRIES: Final = 3
RETRY_S: Final = 2.0
LONGEST_MESSAGE: Final = 1024
"""The newer events API takes no more."""


class Told(NamedTuple):
    """One thing to say about an object. `about`: a reference to it."""

    about: Object
    type: Literal["Normal", "Warning"]
    reason: str
    message: str

    @property
    def namespace(self) -> str:
        """Where the event lives: events about cluster-scoped objects are in `default`."""
        return self.about.get("namespace") or "default"

    @property
    def key(self) -> str:
        """What makes two of them the same."""
        return "\n".join([*(f"{k}={v}" for k, v in sorted(self.about.items())), self.type, self.reason, self.message])


class Series(NamedTuple):
    """An event that was written, and how often it came."""

    name: str
    times: int
    at: float


class Events:
    """Posts core/v1 Events about objects. `component`: who speaks (`cacheagent-controller`); `instance`: its pod."""

    def __init__(self, api: KubeApi, *, component: str, instance: str = "") -> None:
        self._api = api
        self._component = component
        self._instance = instance
        self._queue: asyncio.Queue[Told] = asyncio.Queue(QUEUE)
        self._known: OrderedDict[str, Series] = OrderedDict()
        self._allowance = float(BURST)
        self._allowed_at = time.monotonic()
        self.dropped = 0
        """Events that nobody will see: the queue was full, or the API server would not take them."""

    def post(self, about: Object, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:  # noqa: A002
        """Have it said soon. `about`: the object, or what is known of it (apiVersion, kind, metadata.name, namespace
        and uid: without the uid `kubectl describe` does not find the event). Returns at once and never fails.
        """
        try:
            self._queue.put_nowait(Told(_reference(about), type, reason, message[:LONGEST_MESSAGE]))
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        """Until cancelled: write what was posted, in order."""
        while True:
            told = await self._queue.get()
            await self._wait_for_allowance()
            try:
                await self._persist(told)
            except KubeError as error:
                self.dropped += 1
                LOG.warning("an event was not written: %s", error, extra={"reason": told.reason})
            finally:
                self._queue.task_done()

    async def written(self) -> None:
        """Return once all that was posted is written or dropped."""
        await self._queue.join()

    async def _persist(self, told: Told) -> None:
        for tries in range(1, TRIES + 1):
            try:
                return await self._write(told)
            except KubeUnavailable:
                if tries == TRIES:
                    raise
                await asyncio.sleep(RETRY_S * tries)
        return None

    async def _write(self, told: Told) -> None:
        key = told.key
        known = self._known.pop(key, None)
        now = time.monotonic()
        if known is not None and now - known.at < FORGOTTEN_AFTER_S:
            count = known.times + 1
            try:
                await self._api.patch(
                    EVENTS,
                    known.name,
                    {"count": count, "lastTimestamp": now_text()},
                    namespace=told.namespace,
                )
            except KubeNotFound:
                pass  # the API server forgot it: say it anew
            else:
                self._remember(key, Series(known.name, count, now))
                return
        name = f"{told.about['name'][:200]}.{hashlib.sha256(f'{key} {time.time_ns()}'.encode()).hexdigest()[:16]}"
        await self._api.create(EVENTS, self._body(told, name), namespace=told.namespace)
        self._remember(key, Series(name, 1, now))

    def _remember(self, key: str, series: Series) -> None:
        self._known[key] = series
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _body(self, told: Told, name: str) -> Object:
        now = now_text()
        return {
            "metadata": {"name": name, "namespace": told.namespace},
            "involvedObject": told.about,
            "type": told.type,
            "reason": told.reason,
            "message": told.message,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
        }

    async def _wait_for_allowance(self) -> None:
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + (now - self._allowed_at) * PER_SECOND)
        self._allowed_at = now
        if self._allowance < 1:
            await asyncio.sleep((1 - self._allowance) / PER_SECOND)
        self._allowance -= 1


def _reference(item: Object) -> Object:
    metadata = item["metadata"]
    found = {"apiVersion": item.get("apiVersion"), "kind": item.get("kind")}
    found |= {name: metadata.get(name) for name in ("name", "namespace", "uid")}
    return {name: value for name, value in found.items() if value}
