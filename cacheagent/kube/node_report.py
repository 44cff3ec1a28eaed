"""When a node reports on itself: changes of state at once, progress now and then, and nothing at rest."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from cacheagent.errors import CacheAgentError, StoreError
from cacheagent.kube.api import MODEL_CACHE_NODES, KubeApi, KubeError, KubeNotFound, KubeRefused
from cacheagent.kube.convert import to_json
from cacheagent.kube.names import FIELD_MANAGER_AGENT
from cacheagent.kube.node_status import progress_of, state_of
from cacheagent.kube.objects import ModelCacheNodeStatus
from cacheagent.news import News

LOG: Final = logging.getLogger(__name__)

PACE_S: Final = 1.0
"""Changes within this time are one report: a restart of many pods is not as many writes."""
PROGRESS_EVERY_S: Final = 15.0
"""Progress is for people and for printer columns; metrics have it to the second. 5,000 nodes that all download are 333
writes a second then. Chosen."""
FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0


class Reporter:
    """One event loop. `look` makes the whole status; it is asked for at every `tell`, and every `PROGRESS_EVERY_S`. It
    may raise StoreError, and is tried again then."""

    def __init__(self, api: KubeApi, name: str, look: Callable[[], Awaitable[ModelCacheNodeStatus]]) -> None:
        self._api = api
        self._name = name
        self._look = look
        self._news = News()
        self._there = False
        self._sent: ModelCacheNodeStatus | None = None
        self._sent_at = float("-inf")
        self.error: KubeError | None = None
        """Why the last report was not taken."""

    def tell(self) -> None:
        """Something may have changed."""
        self._news.tell()

    def forget(self, *, there: bool) -> None:
        """The object is new, so everything is reported again; or it is gone, and there is nothing to write to."""
        self._there = there
        self._sent = None
        self._news.tell()

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            ticket = self._news.ticket
            due_s = PROGRESS_EVERY_S
            if self._there:
                try:
                    await self._report()
                    failures = 0
                except (KubeError, StoreError) as error:
                    self._failed(error)
                    due_s = _pause_s(failures, error)
                    failures += 1
                    await asyncio.sleep(due_s)
                    continue
            if await self._news.wait(ticket, due_s):
                await asyncio.sleep(max(0.0, self._sent_at + PACE_S - time.monotonic()))

    async def _report(self) -> None:
        status = await self._look()
        sent = self._sent
        if sent is not None and state_of(sent) == state_of(status):
            is_due = time.monotonic() >= self._sent_at + PROGRESS_EVERY_S
            if not is_due or progress_of(sent) == progress_of(status):
                return
        body = {"metadata": {"name": self._name}, "status": to_json(status)}
        self._sent_at = time.monotonic()
        await self._api.apply(
            MODEL_CACHE_NODES, body, manager=FIELD_MANAGER_AGENT, subresource="status", answer="metadata"
        )
        if self.error is not None:
            LOG.info("the API server takes reports again")
        self._sent, self.error = status, None

    def _failed(self, error: KubeError | StoreError) -> None:
        if isinstance(error, StoreError):  # it may come back, and who has a volume needs no report
            LOG.warning("this node's report can't be made: %s", error)
            return
        if isinstance(error, KubeNotFound):
            self._there = False  # it is told of when it comes back
        if self.error is None or type(self.error) is not type(error):
            level = logging.ERROR if isinstance(error, KubeRefused) else logging.WARNING
            LOG.log(level, "this node's report was not taken: %s", error)
        self.error = error


def _pause_s(failures: int, error: CacheAgentError) -> float:
    if isinstance(error, KubeRefused):  # somebody must change a rule
        return LONGEST_RETRY_S
    return min(FIRST_RETRY_S * 2.0 ** min(failures, 10), LONGEST_RETRY_S) * random.uniform(0.5, 1)
