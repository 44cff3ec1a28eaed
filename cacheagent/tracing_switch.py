"""The one place where tracing is switched on: nothing of OpenTelemetry is imported unless an endpoint is set."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal

from cacheagent.config import TracingSettings
from cacheagent.errors import ConfigError
from cacheagent.tracing import Count, Send

SERVICE: Final = "cacheagent"


@asynccontextmanager
async def open_tracing(
    settings: TracingSettings, component: Literal["agent", "controller"], count: Count, *, node: str = ""
) -> AsyncIterator[Send | None]:
    """What spans are sent with for the length of the block, None where tracing is off. At the end what waits is sent,
    within a second. `node`: the Kubernetes node that all of it happens on. Raises ConfigError."""
    if not settings.endpoint:
        yield None
        return
    try:
        from cacheagent.tracing_otlp import Exporter
    except ImportError as error:
        raise ConfigError(
            f"tracing.endpoint is set, and {error.name} is not installed", hint="install cacheagent[tracing]"
        ) from error
    here = {"service.name": f"{SERVICE}-{component}", "service.namespace": SERVICE}
    exporter = Exporter(settings.endpoint, {**here, "k8s.node.name": node} if node else here, count)
    try:
        yield exporter.send
    finally:
        await exporter.close()
