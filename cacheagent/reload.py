"""The configuration as it is in force, and how a changed file comes into force while the agent runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from cacheagent.api.schema import Wanted
from cacheagent.config import AgentConfig
from cacheagent.config_file import load_config
from cacheagent.desired import Desired
from cacheagent.errors import ConfigError
from cacheagent.node import Node
from cacheagent.spec import ModelSpec, SourceSpec
from cacheagent.threads import in_thread
from cacheagent.warming import Warming

LOG: Final = logging.getLogger(__name__)

_ONLY_AT_START: Final = (
    "root",
    "socket",
    "listen",
    "store",
    "transfer",
    "logs",
    "file_roots",
    "on_demand_roots",
    "refused_networks",
    "tracing",
    "page_cache",
    "peers",
)


class LiveConfig:
    """What the configuration says now. A file that is wrong changes nothing but `config_error`."""

    def __init__(
        self,
        path: Path,
        config: AgentConfig,
        node: Node,
        warming: Warming,
        desired: Desired,
        *,
        on_reload: Callable[[str], None],
    ) -> None:
        self.config = config
        self.config_error = ""
        self._path = path
        self._node = node
        self._warming = warming
        self._desired = desired
        self._on_reload = on_reload

    def model(self, name: str) -> ModelSpec | None:
        """The configured or assigned model of that name."""
        return self._desired.model(name)

    def sources(self) -> Iterator[SourceSpec]:
        """Of every configured or assigned model."""
        return self._desired.sources()

    def wanted(self) -> tuple[Wanted, ...]:
        """The state of every configured model."""
        return self._warming.wanted()

    async def run(self, order: asyncio.Event) -> None:
        """Read the file again whenever `order` is set; until cancelled."""
        await self.pin_what_is_here()
        while True:
            await order.wait()
            order.clear()
            await self.reload()

    async def pin_what_is_here(self) -> None:
        """A model may be configured as pinned after it came; one that comes is pinned as it is published. What is no
        longer configured as pinned stays so until somebody unpins it: nobody knows who pinned it.
        """
        for spec in self.config.models:
            record = self._node.flights.find(spec) if spec.pin else None
            if record is not None and not record.pin:
                await in_thread(partial(self._node.store.pin, record.digest))

    async def reload(self) -> None:
        """Read the file again and put its models into force."""
        try:
            new = await in_thread(partial(load_config, self._path))
        except ConfigError as error:
            self.config_error = str(error)
            self._on_reload("refused")
            LOG.error("the configuration is not changed: %s", error)  # noqa: TRY400 - a sentence, not a defect
            return
        for key in _ONLY_AT_START:
            if getattr(new, key) != getattr(self.config, key):
                LOG.warning("a change of %s takes effect at the next start", key)
        before, after = set(self.config.models), set(new.models)
        self.config, self.config_error = new, ""
        self._desired.configure(new.models)
        await self.pin_what_is_here()
        self._on_reload("applied")
        LOG.info(
            "the configuration is read again",
            extra={
                "models": len(after),
                "new_or_changed": sorted(spec.name for spec in after - before),
                "removed": sorted({spec.name for spec in before} - {spec.name for spec in after}),
            },
        )
