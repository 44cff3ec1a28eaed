"""Carries out what was planned: most urgent first, within a rate, each object's failures backed off by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from cacheagent.kube.api import (
    PODS,
    KubeApi,
    KubeConflict,
    KubeError,
    KubeNotFound,
    KubeRefused,
    Object,
)
from cacheagent.kube.plan import Change, Unused
from cacheagent.kube.plan.changes import Key
from cacheagent.kube.plan.views import claims_of
from cacheagent.kube.plan.world import InUse

LOG: Final = logging.getLogger(__name__)

AT_ONCE: Final = 8
"""Requests in flight. Chosen: one answer takes some milliseconds, so the rate is what limits."""
FIRST_RETRY_S: Final = 0.25
LONGEST_RETRY_S: Final = 60.0
REFUSED_RETRY_S: Final = 2.0
"""What was refused once is asked for again after this, then after twice that: somebody may have mended a right."""
NEWS_IN: Final = 5
"""One write in so many is a status, if such wait: what people see must not stand still while thousands of nodes are
written. Chosen."""
OVER: Final = frozenset({"Succeeded", "Failed"})


class Listener(Protocol):
    """Who wants to know what became of changes. Called from the event loop; quick; does not raise."""

    def written(self, change: Change, item: Object | None) -> None:
        """It is done. `item`: the object as it is now; None for a deleted one."""

    def found_in_use(self, what: frozenset[InUse]) -> None:
        """It was not done: these are used."""

    def failed(self, change: Change, error: KubeError) -> None:
        """It was not done; it is tried again later if it is still wanted then."""


class Writer:
    """`want` says what has to be written now, and replaces everything that was wanted before and has not begun.

    `may_write` is asked right before each request that changes anything. One event loop.
    """

    def __init__(
        self,
        api: KubeApi,
        listener: Listener,
        *,
        may_write: Callable[[], bool],
        per_second: float,
    ) -> None:
        self._api = api
        self._listener = listener
        self._may_write = may_write
        self._pace = Pace(per_second)
        self._waiting: dict[Key, Change] = {}
        self._flying: set[Key] = set()
        self._failures: dict[Key, tuple[type[KubeError], int]] = {}
        self._not_before: dict[Key, float] = {}
        self._written_at: dict[Key, float] = {}
        self._news = asyncio.Event()
        self._begun = 0
        """How many writes were begun."""

    def want(self, changes: Iterable[Change]) -> None:
        """In order of urgency."""
        self._waiting = {change.key: change for change in changes}
        for memory in (self._not_before, self._failures):
            for key in [key for key in memory if key not in self._waiting and key not in self._flying]:
                del memory[key]
        long_ago = time.monotonic() - LONGEST_RETRY_S
        self._written_at = {key: at for key, at in self._written_at.items() if at > long_ago}
        self._news.set()

    @property
    def backlog(self) -> int:
        """Changes that are wanted and not done."""
        return len(self._waiting.keys() | self._flying)

    async def run(self) -> None:
        """Until cancelled; what is in flight then may have been carried out."""
        async with asyncio.TaskGroup() as group:
            for number in range(AT_ONCE):
                group.create_task(self._work(), name=f"writer {number}")

    async def _work(self) -> None:
        while True:
            change = await self._next()
            try:
                await self._carry_out(change)
            finally:
                self._flying.discard(change.key)
                # What was planned while this was in flight did not know its outcome: its outcome has it planned again.
                self._waiting.pop(change.key, None)
                self._news.set()

    async def _next(self) -> Change:
        while True:
            change, soonest = self._pick(time.monotonic())
            if change is None:
                await self._wait(soonest - time.monotonic())
            elif (pause_s := self._pace.take()) > 0:
                await asyncio.sleep(pause_s)
            else:
                self._begun += 1
                del self._waiting[change.key]
                self._flying.add(change.key)
                return change

    def _pick(self, now: float) -> tuple[Change | None, float]:
        """The most urgent one that is due, now and then the most urgent of statuses; else when the next one will be."""
        soonest, first = float("inf"), None
        is_for_news = self._begun % NEWS_IN == 0
        for key, change in self._waiting.items():
            if key in self._flying:
                continue
            due = self._due(key, change)
            if due > now:
                soonest = min(soonest, due)
            elif change.subresource or not is_for_news:
                return change, now
            else:
                first = first or change
        return first, now if first is not None else soonest

    def _due(self, key: Key, change: Change) -> float:
        lazy = self._written_at.get(key, -LONGEST_RETRY_S) + change.lazy_s if change.lazy_s else 0.0
        return max(lazy, self._not_before.get(key, 0.0))

    async def _wait(self, at_most_s: float) -> None:
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if at_most_s == float("inf") else max(0.0, at_most_s)):
                await self._news.wait()

    async def _carry_out(self, change: Change) -> None:
        try:
            if change.unless_used is not None and (used := await self._in_use(change.unless_used)):
                self._listener.found_in_use(used)
                return
            if not self._may_write():
                return
            item = await self._send(change)
        except KubeError as error:
            self._failed(change, error)
            return
        self._failures.pop(change.key, None)
        self._not_before.pop(change.key, None)
        if change.subresource or change.lazy_s:
            self._written_at[change.key] = time.monotonic()
        self._listener.written(change, item)

    async def _send(self, change: Change) -> Object | None:
        namespace, resource = change.namespace, change.resource
        match change.verb:
            case "create":
                return await self._api.create(resource, change.body, namespace=namespace)
            case "patch":
                return await self._api.patch(
                    resource, change.name, change.body, namespace=namespace, subresource=change.subresource
                )
            case "delete":
                await self._api.delete(resource, change.name, namespace=namespace, uid=change.uid)
                return None

    async def _in_use(self, unused: Unused) -> frozenset[InUse]:
        """Which of these claims some pod uses, as the API server knows it now."""
        if unused.node:
            pods = (await self._api.list(PODS, fields=f"spec.nodeName={unused.node}")).items
        else:
            spaces = sorted({namespace for namespace, _ in unused.claims})
            pods = [pod for space in spaces for pod in (await self._api.list(PODS, namespace=space)).items]
        used = {
            (pod["metadata"].get("namespace", ""), claim)
            for pod in pods
            if (pod.get("status") or {}).get("phase") not in OVER
            for claim in claims_of(pod)
        }
        return frozenset((unused.node, *claim) for claim in unused.claims & used)

    def _failed(self, change: Change, error: KubeError) -> None:
        kind, failures = self._failures.get(change.key, (type(error), 0))
        failures = failures if kind is type(error) else 0
        self._failures[change.key] = (type(error), failures + 1)
        first_s = REFUSED_RETRY_S if isinstance(error, KubeRefused) else FIRST_RETRY_S
        pause_s = min(first_s * 2.0 ** min(failures, 10), LONGEST_RETRY_S) * random.uniform(0.5, 1)
        self._not_before[change.key] = time.monotonic() + pause_s
        # Somebody else was faster, or it is gone: the next plan knows. Anything else is for people, once.
        level = logging.DEBUG if isinstance(error, KubeConflict | KubeNotFound) or failures else logging.WARNING
        LOG.log(level, "%s %s was not done: %s", change.verb, change.key, error)
        self._listener.failed(change, error)


class Pace:
    """A token bucket: `per_second` writes, a burst of one second."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._tokens = per_second
        self._at = time.monotonic()

    def take(self) -> float:
        """Take one and return 0, or return how long to wait for it."""
        now = time.monotonic()
        self._tokens = min(max(self._per_second, 1.0), self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._per_second
        self._tokens -= 1
        return 0.0
