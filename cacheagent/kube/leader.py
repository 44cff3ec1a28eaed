"""One leader among several replicas, by a Lease, as client-go does it: with the same times and the same cautions.

Nobody compares clocks of two machines: a replica that wants to lead waits until the lease has not changed for its whole
duration *as it saw it*; one that leads stops believing so some seconds earlier, whatever the network does.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from cacheagent.kube.api import LEASES, KubeApi, KubeConflict, KubeError, KubeNotFound, Object
from cacheagent.kube.convert import micro_time

LOG: Final = logging.getLogger(__name__)


class Times(NamedTuple):
    """Seconds. client-go's defaults: 15 of lease, of which the leader counts on 10, and a try every 2."""

    lease_s: float = 15.0
    renew_s: float = 10.0
    retry_s: float = 2.0


TIMES: Final = Times()


class Leader:
    """`identity`: this replica, its pod's name. `on_change(leads)` is called when it begins and when it ends.

    A write may be sent only while `is_leader()` says so at that moment: the answer is local and costs nothing. Stop the
    writers before `run` is cancelled: it gives the lease away.
    """

    def __init__(
        self,
        api: KubeApi,
        *,
        namespace: str,
        name: str,
        identity: str,
        on_change: Callable[[bool], None] | None = None,
        times: Times = TIMES,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._on_change = on_change
        self._times = times
        self._until = 0.0
        self._seen: Object | None = None
        """The lease as last seen."""
        self._seen_at = 0.0
        """When its content was first seen."""
        self._told = False
        self._failing: type[Exception] | None = None
        """What kind of failure was logged last: an API server that is away is worth one line, not one a try."""

    def is_leader(self) -> bool:
        """Whether this replica leads at this moment."""
        return time.monotonic() < self._until

    @property
    def holder(self) -> str:
        """Who leads as far as known; for people."""
        return "" if self._seen is None else str(self._seen["spec"].get("holderIdentity") or "")

    async def run(self) -> None:
        """Until cancelled; then the lease is given back, so that another need not wait for its end."""
        try:
            while True:
                await self._try()
                self._tell()
                # Jitter only for those who wait: two of them should not meet at the same moment for ever.
                await asyncio.sleep(self._times.retry_s * (1 if self.is_leader() else random.uniform(1, 1.2)))
                self._tell()
        finally:
            led, self._until = self.is_leader(), 0.0
            self._tell()
            if led:
                await self._release()

    async def _try(self) -> None:
        begin = time.monotonic()
        try:
            async with asyncio.timeout(self._times.renew_s):
                done = await self._renew_or_acquire(begin)
        except KubeConflict:
            done, self._seen = False, None  # somebody was faster: look before the next try
        except (KubeError, TimeoutError) as error:
            if type(error) is not self._failing:
                self._failing = type(error)
                why = "no answer in time" if isinstance(error, TimeoutError) else error
                LOG.warning("the lease could not be looked at or renewed: %s", why, extra={"lease": self._name})
            return
        self._failing = None
        # Counted from before the question: the lease is at least as young as that.
        self._until = begin + self._times.renew_s if done else min(self._until, begin)

    async def _renew_or_acquire(self, now: float) -> bool:
        if not (self.is_leader() and self._seen is not None):
            try:
                self._see(await self._api.get(LEASES, self._name, namespace=self._namespace), now)
            except KubeNotFound:
                body = {"metadata": {"name": self._name, "namespace": self._namespace}, "spec": self._spec(None)}
                self._see(await self._api.create(LEASES, body, namespace=self._namespace), now)
                return True
        seen = self._seen
        assert seen is not None
        if self.holder not in {"", self._identity} and now < self._seen_at + self._lease_s(seen):
            return False
        body = {**seen, "spec": self._spec(seen["spec"])}
        self._see(await self._api.replace(LEASES, body, namespace=self._namespace), now)
        return True

    def _see(self, lease: Object, now: float) -> None:
        if self._seen is None or self._seen["spec"] != lease["spec"]:
            self._seen_at = now
        self._seen = lease

    def _lease_s(self, lease: Object) -> float:
        return float(lease["spec"].get("leaseDurationSeconds") or self._times.lease_s)

    def _spec(self, old: Object | None) -> Object:
        now = micro_time()
        mine = old is not None and old.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._times.lease_s)),
            "acquireTime": old["acquireTime"] if mine and old and old.get("acquireTime") else now,
            "renewTime": now,
            "leaseTransitions": (old.get("leaseTransitions") or 0) + (not mine) if old is not None else 0,
        }

    def _tell(self) -> None:
        leads = self.is_leader()
        if leads is self._told:
            return
        self._told = leads
        LOG.info("this replica leads" if leads else "this replica no longer leads", extra={"lease": self._name})
        if self._on_change is not None:
            self._on_change(leads)

    async def _release(self) -> None:
        seen = self._seen
        if seen is None:
            return
        spec = {**seen["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": micro_time()}
        try:
            async with asyncio.timeout(self._times.retry_s):
                await self._api.replace(LEASES, {**seen, "spec": spec}, namespace=self._namespace)
        except (KubeError, TimeoutError) as error:
            LOG.info("the lease was not given back, it ends by itself: %s", error, extra={"lease": self._name})
