"""Answers the controller's questions: what does this source hold now? Each question (token) is answered once."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from cacheagent.errors import CacheAgentError
from cacheagent.kube.node_models import Found, NodePolicy, source_spec
from cacheagent.kube.objects import NodeModel
from cacheagent.model import Manifest
from cacheagent.spec import ModelSpec

LOG: Final = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 5.0
LONGEST_RETRY_S: Final = 60.0
"""A source that can't be listed is asked again after 5, 10, 20 … seconds, at most a minute: nobody has the model
before, and one node at a time asks. Chosen."""


class Lookups:
    """One event loop. `look_up` lists a source; `changed` is called with every answer and every failure."""

    def __init__(
        self,
        look_up: Callable[[ModelSpec], Awaitable[Manifest]],
        policy: NodePolicy,
        *,
        changed: Callable[[], None],
        found: Mapping[str, Found] = {},
        first_retry_s: float = FIRST_RETRY_S,
    ) -> None:
        self._look_up = look_up
        self._policy = policy
        self._changed = changed
        self._first_retry_s = first_retry_s
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.found: dict[str, Found] = dict(found)
        """By token."""
        self.errors: dict[str, CacheAgentError] = {}
        """Why a question has no answer yet, by token."""

    def want(self, models: Iterable[NodeModel]) -> None:
        """From now on these questions are open; others are dropped, with their answers."""
        asked = {model.resolve: model for model in models if model.resolve}
        for token in self._tasks.keys() - asked.keys():
            self._tasks.pop(token).cancel()
        self.found = {token: found for token, found in self.found.items() if token in asked}
        self.errors = {token: error for token, error in self.errors.items() if token in asked}
        for token, model in asked.items():
            if token not in self.found and token not in self._tasks:
                self._tasks[token] = asyncio.create_task(self._answer(token, model), name=f"look up {model.name}")

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, token: str, model: NodeModel) -> None:
        failures = 0
        while True:
            try:
                manifest = await self._look_up(source_spec(model, self._policy))
            except CacheAgentError as error:
                LOG.warning("a source can't be listed: %s", error, extra={"model": model.name})
                self.errors[token] = error
            except Exception as error:
                LOG.exception("a defect ended a look-up", extra={"model": model.name})
                self.errors[token] = CacheAgentError(f"{model.name}: a defect: {error!r}"[:500])
            else:
                self.errors.pop(token, None)
                self.found[token] = Found(
                    digest=manifest.digest,
                    revision=manifest.revision,
                    repo_id=manifest.repo_id,
                    files=len(manifest.files),
                    size_bytes=manifest.size_bytes,
                )
                del self._tasks[token]
                self._changed()
                return
            self._changed()
            pause_s = min(self._first_retry_s * 2.0 ** min(failures, 10), LONGEST_RETRY_S)
            failures += 1
            await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))
