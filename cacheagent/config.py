"""What can be set for an agent, as frozen values; `config_file` reads them from `models.yaml`.

Keys in the file have no units because their values carry them (`floor: 10GiB`); the fields here have them because
plain numbers don't.
"""

from __future__ import annotations

import ipaddress
import re
import socket as sockets
from pathlib import Path
from typing import Final, Literal, Self

import msgspec

from cacheagent.member import Member
from cacheagent.model import Value
from cacheagent.quantity import Duration, Fraction, Rate, Size
from cacheagent.spec import ModelSpec

_ENDPOINT: Final = re.compile(r"https?://[^\s/@?#]+(/[^\s?#]*)?")
_ADDRESS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):(\d{1,5})")


class Address(str):
    """`host:port` to listen on, or empty for none."""

    __slots__ = ()

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read `127.0.0.1:9471`, `[::1]:9471` or an empty string. Raises ValueError that says what is expected."""
        if isinstance(written, str) and (not written or cls._valid(written)):
            return cls(written)
        raise ValueError(f"expected host:port such as 127.0.0.1:9471, or '' for none, got {written!r}")

    @staticmethod
    def _valid(written: str) -> bool:
        match = _ADDRESS.fullmatch(written)
        return match is not None and int(match[1]) <= 65535

    @property
    def host(self) -> str:
        """Name or address, without brackets."""
        return self.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """TCP port; 0 lets the system choose."""
        return int(self.rpartition(":")[2])


class StoreSettings(Value):
    """How much of the disk is used.

    `floor_bytes` (`floor`, bytes, default 10GiB): free space of the filesystem that is never used. Where the cache
    shares a filesystem with the kubelet it must be above the kubelet's own eviction thresholds (10 % of the node's
    filesystem, 15 % of the image filesystem by default). Chosen: enough for logs and images on a disk of its own.

    `high_watermark` (part of what may be used, default 95%): when the cache is fuller than this, it is brought down
    to `low_watermark` (default 90%) in the background, so that the next model need not wait for an eviction. Chosen.

    `scrub_period_s` (`scrub_period`, seconds, default 7d, 0 = never): how long one re-reading of everything at rest
    takes. Disks lose bits silently; a week bounds how long a lost bit stays unseen. Chosen.

    `boot_grace_s` (`boot_grace`, seconds, default 10m): how long after a boot nothing is evicted to make room: nobody
    knows yet what is mounted. The kubelet takes at most 5 minutes between two calls for a volume.

    `quarantine_bytes` (`quarantine`, bytes, default 10GiB): how much is kept, for the operator, of files that rotted
    beyond repair; the oldest go first. Chosen: a few shards.
    """

    floor_bytes: Size = msgspec.field(default=Size(10 * 2**30), name="floor")
    high_watermark: Fraction = Fraction(0.95)
    low_watermark: Fraction = Fraction(0.90)
    scrub_period_s: Duration = msgspec.field(default=Duration(7 * 86400), name="scrub_period")
    boot_grace_s: Duration = msgspec.field(default=Duration(600), name="boot_grace")
    quarantine_bytes: Size = msgspec.field(default=Size(10 * 2**30), name="quarantine")

    def __post_init__(self) -> None:
        if self.low_watermark > self.high_watermark:
            raise ValueError("expected low_watermark to be at most high_watermark")


class TransferSettings(Value):
    """How bytes travel.

    `workers` (processes, default 0 = one for each CPU, at most 8): more CPUs than one are only used by more workers.

    `connections` (to one origin, default 0 = adapted to the measured goodput): a fixed number, for experiments.

    `max_connections` (to one origin, default 64): the most that adapting goes up to. Each costs about 4 MB of kernel
    memory and 2 MiB of buffer. Chosen.

    `ingress_cap_bytes_per_s` (`ingress_cap`, bytes a second, default 0 = none): the most that all downloads together
    read from the network, for nodes that share their link with traffic that matters more.

    `idle_timeout_s` (`idle_timeout`, seconds, default 30s): a connection that brings nothing for so long is given up
    and its piece asked for again. Longer than any healthy origin pauses. Chosen.

    `give_up_after_s` (`give_up_after`, seconds, default 5m): a job fails when its origin brings nothing at all for so
    long; a configured model is tried again later by itself. Longer than a rolling restart of a store. Chosen.
    """

    workers: int = 0
    connections: int = 0
    max_connections: int = 64
    ingress_cap_bytes_per_s: Rate = msgspec.field(default=Rate(0), name="ingress_cap")
    idle_timeout_s: Duration = msgspec.field(default=Duration(30), name="idle_timeout")
    give_up_after_s: Duration = msgspec.field(default=Duration(300), name="give_up_after")

    def __post_init__(self) -> None:
        for key, least in (("workers", 0), ("connections", 0), ("max_connections", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"expected {key} to be {least} or more, got {getattr(self, key)}")
        if self.idle_timeout_s <= 0 or self.give_up_after_s <= 0:
            raise ValueError("expected idle_timeout and give_up_after to be longer than 0")


class PageCacheSettings(Value):
    """Reading models into memory when they are mounted, for those that ask for it.

    `min_memory_bytes` (`min_memory`, bytes, default 32GiB): nodes with less memory never do. Chosen: there the pages
    would push out what runs.

    `keep_available` (part of the node's memory, default 10%): so much stays available to others; a model that does not
    fit beside it is not read. Chosen.
    """

    min_memory_bytes: Size = msgspec.field(default=Size(32 * 2**30), name="min_memory")
    keep_available: Fraction = Fraction(0.10)


class PeersSettings(Value):
    """Nodes that bring a model from its origin once and give it to each other.

    `listen` (default empty = no peers at all): TCP address of the peer port. Nothing of peers runs without it.

    `name` (default: the host's name): this node among the members. Every member needs another one.

    `zone` (default none): where this node is, as its entry among `members` says.

    `egress_cap_bytes_per_s` (`egress_cap`, bytes a second, default 0 = none): the most that all peers get together.

    `origin_budget_bytes_per_s` (`origin_budget`, bytes a second, default 0 = none): the most that all nodes that want a
    version together take from its origin; each keeps to an equal part. All must be told the same.

    `tls` (default false): encrypt what members say to each other, with the keys that they know each other by. All must
    be told the same: who speaks TLS has nothing to say to who doesn't.

    `members` (default none): the nodes that exchange models, this one included, where no controller says who they are.
    See Member.
    """

    listen: Address = Address("")
    name: str = ""
    zone: str = ""
    egress_cap_bytes_per_s: Rate = msgspec.field(default=Rate(0), name="egress_cap")
    origin_budget_bytes_per_s: Rate = msgspec.field(default=Rate(0), name="origin_budget")
    tls: bool = False
    members: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        names = [member.name for member in self.members]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"expected each member once, {min(repeated)} is there several times")
        listed = {member.name: member.zone for member in self.members}
        if self.zone and listed.get(self.node_name, self.zone) != self.zone:
            raise ValueError(
                f"this node's zone is {self.zone!r} and {listed[self.node_name]!r} in its entry among `members`,"
                " which is what the others go by"
            )

    @property
    def node_name(self) -> str:
        """The configured name, or the host's."""
        return self.name or sockets.gethostname()


class LogSettings(Value):
    """What is written to standard error.

    `format` (default `auto`: `human` on a terminal, else `json`): one event a line in both.

    `level` (default `info`): the least important events that are written.
    """

    format: Literal["auto", "human", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class TracingSettings(Value):
    """Spans of how pods start.

    `endpoint` (default empty = none): URL of an OTLP receiver over HTTP (protobuf), such as
    `http://otel-collector.observability:4318`; `/v1/traces` is appended. Headers for it come from the environment
    (`OTEL_EXPORTER_OTLP_HEADERS`): a URL that holds a secret is refused.
    """

    endpoint: str = ""

    def __post_init__(self) -> None:
        if self.endpoint and not _ENDPOINT.fullmatch(self.endpoint):
            raise ValueError("expected endpoint to be http(s)://host:port without user, password or query, or empty")


class AgentConfig(Value):
    """One node's agent.

    `root` (required): the cache directory, on one filesystem; made if it is not there. A relative path here, for
    `socket` and for a model's `ca_bundle` is taken from the directory of the file.

    `socket` (default `<root>/agent.sock`): the unix socket of the API, mode 0660. Not longer than 107 bytes, which is
    what Linux allows.

    `listen` (default 127.0.0.1:9471, empty = none): TCP address of `/healthz`, `/readyz` and `/metrics`, and of
    nothing else. Loopback unless somebody says otherwise, because it has no authentication. The port is chosen.

    `store`, `transfer`, `logs`: see StoreSettings, TransferSettings, LogSettings.

    `file_roots` (default none): directories below which the `file://` sources of models must lie that the controller of
    a cluster assigns; without any, such sources are refused. Models in this file may lie anywhere.

    `on_demand_roots` (default: all `file_roots`): directories below which on-demand `file://` URIs must lie as well,
    links resolved.

    `refused_networks` (CIDRs, default none): networks, such as those of a cluster's pods and services, from which
    on-demand URIs fetch nothing. Loopback, link-local and metadata addresses are refused in any case.

    `page_cache`: see PageCacheSettings.

    `tracing`: see TracingSettings.

    `peers`: see PeersSettings.

    `models` (default none): what to keep warm, in any order; `priority` decides who goes first. See ModelSpec.
    """

    root: Path
    socket: Path
    listen: Address = Address("127.0.0.1:9471")
    store: StoreSettings = StoreSettings()
    transfer: TransferSettings = TransferSettings()
    logs: LogSettings = LogSettings()
    models: tuple[ModelSpec, ...] = ()
    file_roots: tuple[Path, ...] = ()
    on_demand_roots: tuple[Path, ...] = ()
    refused_networks: tuple[str, ...] = ()
    tracing: TracingSettings = TracingSettings()
    page_cache: PageCacheSettings = PageCacheSettings()
    peers: PeersSettings = PeersSettings()

    def __post_init__(self) -> None:
        for network in self.refused_networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"refused_networks: {error}") from error

    def model(self, name: str) -> ModelSpec | None:
        """The configured model of that name."""
        return next((spec for spec in self.models if spec.name == name), None)
