"""The controller: everything put together, in the order in which it starts. It ends in the opposite order.

talk to the API server, keep copies of its objects   (client.py, copies.py)
  answer the webhook, with certificates              (webhook/)
  choose who leads; the leader plans and writes      (leader.py, controller.py)
  answer probes and Prometheus                       (api/health.py)
    until SIGTERM or SIGINT, or until a root task ends, which none ever should
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from cacheagent import __version__
from cacheagent.api.health import health_routes
from cacheagent.api.listen import listen_tcp
from cacheagent.errors import ConfigError
from cacheagent.kube.access import SERVICE_ACCOUNT
from cacheagent.kube.api import KubeApi
from cacheagent.kube.client import open_client
from cacheagent.kube.controller import Controller
from cacheagent.kube.controller_config import ControllerConfig, load_controller_config
from cacheagent.kube.copies import Copies
from cacheagent.kube.events import Events
from cacheagent.kube.leader import TIMES, Leader, Times
from cacheagent.kube.metrics import ControllerMetrics
from cacheagent.kube.names import FIELD_MANAGER_CONTROLLER
from cacheagent.kube.start_traces import StartTraces
from cacheagent.kube.webhook.catalog import MirrorCatalog
from cacheagent.kube.webhook.keeper import CertificateKeeper
from cacheagent.kube.webhook.server import DRAIN_S, LAST_REQUESTS_S, make_webhook_app, serve_webhook
from cacheagent.kube.webhook.serving import ServingContext
from cacheagent.logs import start_logging
from cacheagent.running import Orders, until_stopped
from cacheagent.tracing_switch import open_tracing

LOG: Final = logging.getLogger(__name__)

STOP_WITHIN_S: Final = DRAIN_S + LAST_REQUESTS_S + 10.0
"""The webhook drains, the lease is given back. The chart's grace period is longer."""
LOOK_AGAIN_S: Final = 0.1
"""While the first certificate is on its way."""


def run(config_path: Path, namespace: str, identity: str) -> int:
    """Run a controller until it is told to stop; returns the exit code: 0 after SIGTERM, 130 after SIGINT.

    `namespace`: of Lease, Secret and agents; empty is the pod's own. `identity`: this replica's name; empty is the
    host's. Raises ConfigError before anything has started.
    """
    config = load_controller_config(config_path)
    start_logging(config.logs)
    place = Place(namespace=namespace or own_namespace(), identity=identity or socket.gethostname())
    return asyncio.run(_run(config, place))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this replica runs. `drain_s`: how long the webhook goes on answering after the order to stop."""

    namespace: str
    identity: str
    drain_s: float = DRAIN_S
    times: Times = TIMES


def own_namespace(account: Path = SERVICE_ACCOUNT) -> str:
    """The pod's. Raises ConfigError outside of one."""
    if named := os.environ.get("POD_NAMESPACE"):
        return named
    try:
        return (account / "namespace").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError("the namespace is not known", hint="give it with --namespace") from error


async def _run(config: ControllerConfig, place: Place) -> int:
    orders, metrics = Orders(STOP_WITHIN_S), ControllerMetrics()
    with orders.from_signals():
        async with open_client(on_request=metrics.requested, on_received=metrics.received) as api:
            await serve(api, config, place, orders.stop, metrics)
    LOG.info("stopped", extra={"by": orders.stopped_by})
    return 128 + signal.SIGINT if orders.stopped_by == "SIGINT" else 0


async def serve(
    api: KubeApi, config: ControllerConfig, place: Place, stop: asyncio.Event, metrics: ControllerMetrics
) -> None:
    """A controller from its start to its end; returns when `stop` is set."""
    async with open_tracing(config.tracing, "controller", metrics.count_spans) as send:
        await _serve(api, config, place, stop, metrics, StartTraces(send) if send else None)


async def _serve(
    api: KubeApi,
    config: ControllerConfig,
    place: Place,
    stop: asyncio.Event,
    metrics: ControllerMetrics,
    traces: StartTraces | None,
) -> None:
    copies = Copies(api, place.namespace)
    leader = Leader(
        api,
        namespace=place.namespace,
        name=config.lease,
        identity=place.identity,
        on_change=lambda leads: controller.lead(leads),  # noqa: PLW0108 - each needs the other; this one is made later
        times=place.times,
    )
    events = Events(api, component=FIELD_MANAGER_CONTROLLER, instance=place.identity)
    controller = Controller(
        api,
        copies,
        config.plan_settings,
        is_leader=leader.is_leader,
        events=events,
        metrics=metrics,
        on_starts=traces.started if traces else lambda _: None,
        writes_per_second=config.writes_per_second,
    )
    serving = ServingContext()
    keeper = CertificateKeeper(api, config.keeper_settings(place.namespace), serving, leader.is_leader)
    webhook = Webhook(config, place, copies, keeper, serving, metrics)

    def not_ready() -> str:
        if stop.is_set():
            return "stopping"
        return webhook.missing() or (keeper.untrusted() if config.webhook.listen else "")

    async def scrape() -> bytes:
        return metrics.render(
            leads=leader.is_leader(), backlog=controller.writer.backlog, certificate_ends_at=keeper.expires_at
        )

    drained = asyncio.Event()
    roots = {**copies.roots(), "events": events.run(), "leading": leader.run(), "planning": controller.run()}
    if config.webhook.listen:
        roots["certificates"] = keeper.run()
    roots["webhook"] = webhook.run(stop, drained)
    async with AsyncExitStack() as stack:
        if config.listen:
            probes = web.Application()
            probes.add_routes(health_routes(live={}, ready={"webhook": not_ready}, scrape=scrape))
            await stack.enter_async_context(listen_tcp(probes, config.listen.host, config.listen.port))
        LOG.info("started", extra={"version": __version__, "namespace": place.namespace, "identity": place.identity})
        await until_stopped(roots, drained, who="the controller")


class Webhook:
    """The webhook's life beside the controller's: it answers as long as anybody may ask, which is longer than the rest
    works."""

    def __init__(
        self,
        config: ControllerConfig,
        place: Place,
        copies: Copies,
        keeper: CertificateKeeper,
        serving: ServingContext,
        metrics: ControllerMetrics,
    ) -> None:
        self._config = config
        self._place = place
        self._copies = copies
        self._keeper = keeper
        self._serving = serving
        self._metrics = metrics

    def missing(self) -> str:
        """Why pods can't be judged yet; empty when they can."""
        if missing := self._copies.missing():
            return f"not listed yet: {missing}"
        return self._keeper.missing() if self._config.webhook.listen else ""

    async def run(self, stop: asyncio.Event, drained: asyncio.Event) -> None:
        """Serve until `stop`, drain, set `drained`, and wait for the end: a root task does not end by itself."""
        listen = self._config.webhook.listen
        if listen:
            while self._keeper.missing() and not stop.is_set():
                await _sleep_until(stop, LOOK_AGAIN_S)
        if listen and not stop.is_set():
            catalog = MirrorCatalog(self._copies.models.mirror.items, self._copies.namespaces.mirror.items)
            app = make_webhook_app(catalog, self._config.webhook_settings, self._metrics, ready=self.missing)
            context = self._serving.context
            async with serve_webhook(app, context, listen.host, listen.port, drain_s=self._place.drain_s) as (
                host,
                port,
            ):
                LOG.info("the webhook answers", extra={"listen": f"{host}:{port}"})
                await stop.wait()
        else:
            await stop.wait()
        drained.set()
        await asyncio.Event().wait()


async def _sleep_until(event: asyncio.Event, at_most_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(at_most_s):
            await event.wait()
