"""The agent: everything put together, in the order in which it starts. It ends in the opposite order.

own the directory and start the workers  (node.py)
  keep the configured models here        (warming.py, reload.py)
  answer on the unix socket              (api/)
  answer probes and Prometheus           (api/health.py)
    until SIGTERM or SIGINT, or until a root task ends, which none ever should
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from aiohttp import web

from cacheagent import __version__
from cacheagent.api.answers import Answers
from cacheagent.api.health import health_routes
from cacheagent.api.listen import listen_tcp, listen_unix
from cacheagent.api.server import make_api
from cacheagent.config import AgentConfig, StoreSettings, TransferSettings
from cacheagent.config_file import load_config
from cacheagent.desired import Desired
from cacheagent.disk_watch import DiskWatch
from cacheagent.errors import ConfigError
from cacheagent.events import EventHub
from cacheagent.flights import source_key
from cacheagent.kube.api import KubeApi
from cacheagent.kube.node_agent import NodeAgent
from cacheagent.kube.node_models import NodePolicy, spell_uri
from cacheagent.logs import JobLog, start_logging
from cacheagent.member import Member
from cacheagent.metrics import Metrics
from cacheagent.node import Node, no_peers, open_node
from cacheagent.page_cache import PageCache
from cacheagent.progress import JobStatus
from cacheagent.readings import Readings
from cacheagent.refetch import Refetch
from cacheagent.reload import LiveConfig
from cacheagent.running import Orders, allow_descriptors, until_stopped
from cacheagent.scrub import Scrub, ScrubPolicy
from cacheagent.source import open_source
from cacheagent.spec import ModelSpec
from cacheagent.store import Store, StorePolicy
from cacheagent.tracing_node import NodeTraces
from cacheagent.tracing_switch import open_tracing
from cacheagent.transfer.pool import TransferConfig
from cacheagent.upkeep import keep_scrubbed, keep_trimmed
from cacheagent.volumes import Volumes
from cacheagent.warming import Warming

if TYPE_CHECKING:
    from cacheagent.peers.swarm import NodePeers

LOG: Final = logging.getLogger(__name__)

STOP_WITHIN_S: Final = 4.5
"""After this long from the order to stop, the process ends as it is: what is proved is on disk at any instant. The
agent promises 5 s; the kubelet waits 30 s by default."""


class Cluster(NamedTuple):
    """The Kubernetes cluster that this agent is in, its node's name there, and where other nodes' agents reach this one
    (empty: what `peers.listen` says)."""

    api: KubeApi
    node: str
    peer_host: str = ""


def run(config_path: Path, node_name: str = "", kubeconfig: Path | None = None, peer_host: str = "") -> int:
    """Run an agent until it is told to stop; returns the exit code: 0 after SIGTERM, 130 after SIGINT. With the name of
    a Kubernetes node it follows that node's ModelCacheNode; `peer_host`: see `Cluster`.

    Raises ConfigError, StoreBusy, UnknownLayout, DiskFault before anything has started.
    """
    config = load_config(config_path)
    start_logging(config.logs)
    allow_descriptors()
    return asyncio.run(_run(config_path, config, kubeconfig, (node_name, peer_host)))


async def _run(config_path: Path, config: AgentConfig, kubeconfig: Path | None, place: tuple[str, str]) -> int:
    orders = Orders(STOP_WITHIN_S)
    with orders.from_signals():
        async with AsyncExitStack() as stack:
            cluster = None
            if place[0]:
                from cacheagent.kube.client import open_client

                cluster = Cluster(await stack.enter_async_context(open_client(kubeconfig)), *place)
            await serve(config_path, config, orders, cluster)
    LOG.info("stopped", extra={"by": orders.stopped_by})
    return 128 + signal.SIGINT if orders.stopped_by == "SIGINT" else 0


async def serve(config_path: Path, config: AgentConfig, orders: Orders, cluster: Cluster | None = None) -> None:
    """An agent from its start to its end; returns when `orders.stop` is set."""
    hub, jobs = EventHub(), JobLog()
    metrics = Metrics()
    listeners = [hub.publish, metrics.follow, jobs.follow]

    def tell(status: JobStatus) -> None:
        for listener in listeners:
            listener(status)

    peers = _peers(config, metrics, cluster)
    async with AsyncExitStack() as stack:
        name = cluster.node if cluster else ""
        send = await stack.enter_async_context(open_tracing(config.tracing, "agent", metrics.count_spans, node=name))
        traces = NodeTraces(send) if send else None
        node = await stack.enter_async_context(
            open_node(
                config.root,
                store_policy=_policy(config.store),
                transfer=_transfer(config.transfer),
                on_event=tell,
                observer=metrics,
                watcher=traces,
                open_peers=peers.open if peers is not None else no_peers,
            )
        )
        warming = Warming(node.flights, config.models, keep=node.store.keep_warm)
        listeners.append(warming.heard)
        page_cache = PageCache(
            node.store,
            min_memory_bytes=int(config.page_cache.min_memory_bytes),
            keep_available=float(config.page_cache.keep_available),
        )
        volumes = Volumes(
            node.store,
            node.flights,
            demand=warming.demand,
            counts=metrics,
            spell=spell_uri if cluster else str,
            read_ahead=page_cache.ask,
            traces=traces,
        )
        listeners.append(volumes.heard)
        desired = Desired(warming, volumes)
        desired.configure(config.models)
        roots: dict[str, Coroutine[Any, Any, None]] = {"keeping models warm": warming.run(), "volumes": volumes.run()}
        if cluster is not None:
            member = NodeAgent(
                cluster.api,
                cluster.node,
                store=node.store,
                flights=node.flights,
                warming=warming,
                volumes=volumes,
                desired=desired,
                policy=NodePolicy(
                    file_roots=tuple(map(str, config.file_roots)),
                    on_demand_roots=tuple(map(str, config.on_demand_roots)),
                    refused_networks=config.refused_networks,
                ),
                me=_me(peers, cluster),
            )
            if peers is not None and member.peers is not None:
                peers.membership, peers.sharers = member.peers, member.peers.sharers
                member.peers.told, member.liars = peers.look, peers.liars
            member.start()
            volumes.asking = member.asking
            listeners.append(member.heard)
            roots["following the cluster"] = member.run()
        live = LiveConfig(config_path, config, node, warming, desired, on_reload=metrics.count_reload)
        if peers is not None:
            roots["serving peers"] = peers.run()
            peers.is_private = partial(_is_private, lambda: live.config.models)
        disk = DiskWatch(config.root)
        scrub = _scrub(node, live)
        answers = Answers(config.root, node.store, node.flights, live, volumes=volumes, counts=metrics, traces=traces)
        health = health_routes(
            live={"disk": disk.check},
            ready={"workers": lambda: "" if node.transport.running_workers else "none runs"},
            scrape=partial(_scrape, metrics, Readings(node, scrub, warming, volumes, hub, page_cache, disk=disk.check)),
        )

        api = make_api(answers, hub)
        api.add_routes(health)
        await stack.enter_async_context(listen_unix(api, config.socket))
        address = ""
        if config.listen:
            probes = web.Application()
            probes.add_routes(health)
            where = await stack.enter_async_context(listen_tcp(probes, config.listen.host, config.listen.port))
            address = f"{where[0]}:{where[1]}"
        stack.callback(hub.close)  # first of all at the end: streams would otherwise hold up the server
        for warning in node.store.warnings():
            LOG.warning(warning)
        LOG.info(
            "ready",
            extra={
                "version": __version__,
                "models": len(node.store.records()),
                "socket": str(config.socket),
                "listen": address,
            },
        )
        await until_stopped(
            roots
            | {
                "reloading": live.run(orders.reload),
                "watching the disk": disk.run(),
                "reading ahead": page_cache.run(),
                "trimming": keep_trimmed(node.store),
                "scrubbing": keep_scrubbed(scrub),
            },
            orders.stop,
        )


async def _scrape(metrics: Metrics, readings: Readings) -> bytes:
    return metrics.render(await readings.take())


def _peers(config: AgentConfig, metrics: Metrics, cluster: Cluster | None) -> NodePeers | None:
    """Nothing of peers is imported where there are none. In a cluster the node's name is its name among peers."""
    if not config.peers.listen:
        return None
    from cacheagent.peers.swarm import NodePeers

    settings = msgspec.structs.replace(config.peers, name=cluster.node, members=()) if cluster else config.peers
    return NodePeers(settings, config.root, metrics, partial(_is_private, lambda: config.models))


def _is_private(models: Callable[[], Iterable[ModelSpec]], store: Store, digest: str) -> bool:
    """Whether a configured model with this version, now or before, is not for peers."""
    never = [spec for spec in models() if spec.peers == "never"]
    record = store.record(digest) if never else None
    return (record is not None and record.name in {spec.name for spec in never}) or any(
        store.resolution(source_key(spec)) == digest for spec in never
    )


def _me(peers: NodePeers | None, cluster: Cluster) -> Member | None:
    """This node as its peers are to know it. Raises ConfigError."""
    if peers is None or peers.service is None or peers.keys is None:
        return None
    bound, _, port = peers.service.address.rpartition(":")
    host = (cluster.peer_host or bound).strip("[]")
    if host in {"0.0.0.0", "::"}:
        raise ConfigError(
            "peers.listen says nothing about where other nodes reach this one", hint="give its address with --peer-host"
        )
    return Member(
        name=cluster.node, address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}", key=peers.keys.public_text
    )


def _scrub(node: Node, live: LiveConfig) -> Scrub:
    config = live.config
    refetch = Refetch(
        config.root,
        node.store,
        node.transport.fetch_piece,
        open_source,
        configured=live.sources,
    )
    return Scrub(node.store, node.transport, refetch, ScrubPolicy(period_s=float(config.store.scrub_period_s)))


def _policy(settings: StoreSettings) -> StorePolicy:
    """Plain numbers from here on: the configuration's own types know how to be parsed, not how to be encoded."""
    return StorePolicy(
        floor_bytes=int(settings.floor_bytes),
        high_watermark=float(settings.high_watermark),
        low_watermark=float(settings.low_watermark),
        boot_grace_s=float(settings.boot_grace_s),
        quarantine_bytes=int(settings.quarantine_bytes),
    )


def _transfer(settings: TransferSettings) -> TransferConfig:
    return TransferConfig(
        workers=settings.workers,
        connections=settings.connections,
        max_connections=settings.max_connections,
        ingress_cap_bytes_per_s=int(settings.ingress_cap_bytes_per_s),
        idle_timeout_s=float(settings.idle_timeout_s),
        give_up_after_s=float(settings.give_up_after_s),
    )
