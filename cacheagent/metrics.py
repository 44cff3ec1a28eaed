"""Every metric there is: name, help, unit and labels. `docs/metrics.md` is generated from here.

Two kinds: counters and histograms that are told of events as they happen, and readings that are taken when somebody
scrapes. Labels are `model` (a configured or pulled name; after `MODEL_NAMES` of them the rest are `other`), `source`
(kind of source), `result` and `state`; never a file, a pod or a URL, which would grow without bound and may hold
secrets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cacheagent import __version__
from cacheagent.errors import CacheAgentError, CorruptModel, DiskFault, NoRoom, OriginWrong, TransferFailed
from cacheagent.progress import JobStatus
from cacheagent.transfer.observer import TransferObserver
from cacheagent.transfer.retry import Reason

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_JOB_SECONDS: Final = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
"""From a small model on a fast link to a terabyte on a slow one. Chosen."""
_WAIT_SECONDS: Final = (0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)
_KINDS: Final = {"http": "https", "file": "posix", "nfs": "posix"}
_PIECE_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SOURCES: Final = ("s3", "hf", "https", "posix")
_VERIFICATION_ERRORS: Final = frozenset({"checksum-mismatch", "corrupt"})
_STATES: Final = ("ready", "working", "waiting", "failed", "on-demand")

MODEL_NAMES: Final = 500
"""So many names the counters tell apart. Chosen: more models than a node's disk holds, few enough for Prometheus."""
OTHER: Final = "other"


def _codes(cause: type[CacheAgentError]) -> list[str]:
    return [cause.code, *(code for kind in cause.__subclasses__() for code in _codes(kind))]


ORIGIN_ERRORS: Final = tuple(sorted({*_codes(OriginWrong), *_codes(TransferFailed)}))
"""Codes of errors that an origin, or the way to it, is the cause of."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is read at a scrape. Bytes, counts since the start, parts of a whole."""

    capacity_bytes: int = 0
    free_bytes: int = 0
    used_bytes: int = 0
    reserved_bytes: int = 0
    evictable_bytes: int = 0
    floor_bytes: int = 0
    models: int = 0
    blobs: int = 0
    quarantined: int = 0
    leases: int = 0
    evictions: dict[str, int] = field(default_factory=dict)
    evicted_bytes: dict[str, int] = field(default_factory=dict)
    disk_writable: bool = True
    jobs_running: int = 0
    models_ready: dict[str, bool] = field(default_factory=dict)
    models_by_state: dict[str, int] = field(default_factory=dict)
    model_sizes: dict[str, int] = field(default_factory=dict)
    model_bytes_done: dict[str, int] = field(default_factory=dict)
    volumes_waiting: dict[str, int] = field(default_factory=dict)
    oldest_wait_s: float = 0.0
    listeners: int = 0
    workers: int = 0
    connections: int = 0
    ingress_cap_bytes_per_s: int = 0
    received_bytes: int = 0
    ingress_bytes_per_s: float = 0.0
    scrub_progress: float = 0.0
    scrubbed_bytes: int = 0
    scrub_pieces: dict[str, int] = field(default_factory=dict)
    scrub_blobs_lost: int = 0
    page_cache_reads: dict[str, int] = field(default_factory=dict)
    page_cache_bytes: int = 0
    page_cache_resident: dict[str, float] = field(default_factory=dict)


class RateSinceLast:
    """Turns a growing total into a rate over the time since the call before, of a second at least."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._at, self._total, self._rate = now(), 0, 0.0

    def __call__(self, total: int) -> float:
        """Per second."""
        passed_s = self._now() - self._at
        if passed_s >= 1:
            self._rate = (total - self._total) / passed_s
            self._at, self._total = self._now(), total
        return self._rate


class Names:
    """Keeps a label bounded: the first `limit` names are themselves, later ones `other`."""

    def __init__(self, limit: int = MODEL_NAMES) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """What the name is called."""
        if name not in self._known and len(self._known) >= self._limit:
            return OTHER
        self._known.add(name)
        return name


class Metrics(TransferObserver):
    """The agent's own registry. Used from the event loop only."""

    def __init__(self) -> None:
        # One more series for each counter, of use to nobody. The function has no types.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        count = partial(Counter, registry=self.registry)
        self.ensures = count(
            "cacheagent_ensure_requests", "Requests for a model: hit (it was here) or miss", ["model", "result"]
        )
        self.mounts = count(
            "cacheagent_volume_mounts",
            "Volumes that got their model: hit (it was here when they first asked) or miss",
            ["model", "result"],
        )
        self.volume_wait_seconds = Histogram(
            "cacheagent_volume_wait_seconds",
            "From a volume's first request until its model was here and its lease taken",
            ["result"],
            buckets=_WAIT_SECONDS,
            registry=self.registry,
        )
        self.volume_bytes = count(
            "cacheagent_volume_bytes",
            "Size of the models that volumes got, each time anew: hit (nobody waited for these bytes) or miss",
            ["result"],
        )
        self.model_bytes = count(
            "cacheagent_model_bytes",
            "Bytes of models: fetched from the origin, from a peer, kept of an interrupted job, or linked (were here)",
            ["source", "result"],
        )
        self.jobs = count("cacheagent_jobs", "Jobs that ended: ready, or the code of the error", ["source", "result"])
        self.job_seconds = Histogram(
            "cacheagent_job_duration_seconds",
            "How long jobs took, from asking the origin to the published model, or to the failure",
            ["source", "result"],
            buckets=_JOB_SECONDS,
            registry=self.registry,
        )
        self.transfer_bytes = count("cacheagent_transfer_bytes", "Bytes that travelled and are on disk", ["source"])
        self.piece_seconds = Histogram(
            "cacheagent_transfer_piece_duration_seconds",
            "From the request of a piece (16 MiB) to its last write; serial streams and small files are not in it",
            ["source"],
            buckets=_PIECE_SECONDS,
            registry=self.registry,
        )
        self.retries = count("cacheagent_transfer_retries", "Things asked for again, by why", ["source", "result"])
        self.throttles = count(
            "cacheagent_transfer_throttled", "Answers that asked us to slow down (429, 503)", ["source"]
        )
        self.throttled_seconds = count("cacheagent_transfer_throttled_seconds", "How long we did", ["source"])
        self.hedges = count(
            "cacheagent_transfer_hedges",
            "Late pieces asked for twice: the second answer won, or lost",
            ["source", "result"],
        )
        self.workers_lost = count("cacheagent_transfer_workers_lost", "Transfer processes that died and were replaced")
        self.workers_abandoned = count(
            "cacheagent_transfer_workers_abandoned",
            "Transfer processes that hang in the kernel (a mount that stopped answering) and were replaced",
        )
        self.buffered_bytes = count(
            "cacheagent_transfer_buffered_bytes",
            "Bytes written through the page cache because the filesystem refuses O_DIRECT",
        )
        self.peer_received_bytes = count("cacheagent_peer_received_bytes", "Bytes of pieces that came from other nodes")
        self.peer_crossed_bytes = count(
            "cacheagent_peer_crossed_bytes", "Bytes of pieces that came from nodes in another zone"
        )
        self.peer_sent_bytes = count("cacheagent_peer_sent_bytes", "Bytes of pieces that were sent to other nodes")
        self.peer_yields = count(
            "cacheagent_peer_yields", "Times that other nodes got less because a pod read from this node's disk"
        )
        self.peer_refusals = count(
            "cacheagent_peer_refusals", "Connections of peers that were sent away, by why", ["result"]
        )
        self.peer_rehomed_pieces = count(
            "cacheagent_peer_rehomed_pieces",
            "Pieces that were asked of somebody else than at first, because a peer was slow, dead or no help",
        )
        self.peer_faults = count(
            "cacheagent_peer_faults",
            "Connections that ended by a peer's fault: mismatch (its bytes were not those of their seal), forged "
            "(nobody had signed it), protocol",
            ["result"],
        )
        self.peer_lies = count(
            "cacheagent_peer_lies", "Peers that vouched for bytes which the origin does not have, and were left out"
        )
        self.verification_failures = count(
            "cacheagent_verification_failures",
            "Bytes that were not what they should be: checksum-mismatch from an origin, corrupt at rest",
            ["source", "result"],
        )
        self.reloads = count(
            "cacheagent_config_reloads",
            "Orders to read the configuration again: applied, or refused because the file was wrong",
            ["result"],
        )
        self.spans = count(
            "cacheagent_tracing_spans",
            "Spans by what became of them: sent, failed (not taken by the receiver), dropped (no room in the queue)",
            ["result"],
        )
        self._readings = _Readings()
        self.registry.register(self._readings)
        for result in ("applied", "refused"):  # at zero from the start, so that the first one is seen as an increase
            self.reloads.labels(result)
        self.verification_failures.labels("disk", "corrupt")
        for source in _SOURCES:
            self.verification_failures.labels(source, "checksum-mismatch")
            for metric in (self.transfer_bytes, self.piece_seconds, self.throttles, self.throttled_seconds):
                metric.labels(source)
            for result in ("fetched", "kept", "linked", "peer"):
                self.model_bytes.labels(source, result)
            for result in ("ready", "failed"):
                self.job_seconds.labels(source, result)
            for result in ("won", "lost"):
                self.hedges.labels(source, result)
            for result in get_args(Reason):
                self.retries.labels(source, result)
            for result in ("ready", NoRoom.code, DiskFault.code, CorruptModel.code, *ORIGIN_ERRORS):
                self.jobs.labels(source, result)
        for result in ("version", "member", "signature", "time", "nonce", "busy", "wants", "tls"):
            self.peer_refusals.labels(result)
        for result in ("mismatch", "forged", "protocol"):
            self.peer_faults.labels(result)
        for result in ("hit", "miss"):
            self.volume_bytes.labels(result)
            self.volume_wait_seconds.labels(result)
        self._names = Names()
        self._seen: dict[tuple[str, str], JobStatus] = {}

    def count_ensure(self, name: str, *, hit: bool) -> None:
        """Somebody asked for a model."""
        self.ensures.labels(self._names.label(name), "hit" if hit else "miss").inc()

    def count_mount(self, model: str, *, hit: bool, waited_s: float, size_bytes: int) -> None:
        """A volume got its lease."""
        result = "hit" if hit else "miss"
        self.mounts.labels(self._names.label(model), result).inc()
        self.volume_wait_seconds.labels(result).observe(waited_s)
        self.volume_bytes.labels(result).inc(size_bytes)

    def count_reload(self, result: str) -> None:
        """`applied` or `refused`."""
        self.reloads.labels(result).inc()

    def count_spans(self, result: str, count: int) -> None:
        """From any thread."""
        self.spans.labels(result).inc(count)

    def count_corrupt(self) -> None:
        """A model at rest was not what was recorded."""
        self.verification_failures.labels("disk", "corrupt").inc()

    def follow(self, status: JobStatus) -> None:
        """Count what is new in a job's state; every state of every job passes here, in order."""
        source, key = source_kind(status.uri), (status.name, status.uri)
        before = self._seen.pop(key, None)
        for result in ("fetched", "kept", "linked", "peer"):
            now, then = (_bytes(state, result) if state else 0 for state in (status, before))
            self.model_bytes.labels(source, result).inc(max(0, now - then))
        if not status.finished:
            self._seen[key] = status
            return
        self.jobs.labels(source, status.error or "ready").inc()
        self.job_seconds.labels(source, "failed" if status.error else "ready").observe(status.elapsed_s)
        if status.error in _VERIFICATION_ERRORS:
            self.verification_failures.labels(source, status.error).inc()

    def piece_done(self, source_kind: str, size_bytes: int, seconds: float) -> None:
        self.transfer_bytes.labels(source_kind).inc(size_bytes)
        if seconds > 0:
            self.piece_seconds.labels(source_kind).observe(seconds)

    def retry(self, source_kind: str, reason: str) -> None:
        self.retries.labels(source_kind, reason).inc()

    def throttled(self, source_kind: str, pause_s: float) -> None:
        self.throttles.labels(source_kind).inc()
        self.throttled_seconds.labels(source_kind).inc(pause_s)

    def hedge(self, source_kind: str, *, won: bool) -> None:
        self.hedges.labels(source_kind, "won" if won else "lost").inc()

    def peer_received(self, size_bytes: int, *, crosses: bool) -> None:
        """Bytes from other nodes, in this zone or another."""
        self.peer_received_bytes.inc(size_bytes)
        if crosses:
            self.peer_crossed_bytes.inc(size_bytes)

    def peer_sent(self, size_bytes: int) -> None:
        """Bytes to other nodes."""
        self.peer_sent_bytes.inc(size_bytes)

    def peer_yielded(self, times: int) -> None:
        """Other nodes get less for a while."""
        self.peer_yields.inc(times)

    def peer_refused(self, reason: str) -> None:
        """This node sent a peer away."""
        self.peer_refusals.labels(reason).inc()

    def peer_rehomed(self, pieces: int) -> None:
        """Pieces are asked of somebody else."""
        self.peer_rehomed_pieces.inc(pieces)

    def peer_at_fault(self, kind: str) -> None:
        """A peer gave what could be told to be wrong at once."""
        self.peer_faults.labels(kind).inc()

    def peer_lied(self) -> None:
        """A peer is left out."""
        self.peer_lies.inc()

    def worker_lost(self) -> None:
        self.workers_lost.inc()

    def worker_abandoned(self) -> None:
        self.workers_abandoned.inc()

    def fallback_buffered(self, size_bytes: int) -> None:
        self.buffered_bytes.inc(size_bytes)

    def render(self, now: Reading) -> bytes:
        """The text that Prometheus scrapes."""
        for name in now.models_ready:  # at zero before its first mount
            for result in ("hit", "miss"):
                self.mounts.labels(self._names.label(name), result)
        self._readings.now = now
        return generate_latest(self.registry)


def _bytes(status: JobStatus, result: str) -> int:
    match result:
        case "fetched":
            return status.bytes_fetched - status.bytes_from_peers
        case "kept":
            return status.bytes_kept
        case "linked":
            return status.bytes_linked
        case _:
            return status.bytes_from_peers


def source_kind(uri: str) -> str:
    """The label of a URI: s3, hf, https or posix; `other` for anything else, so that no URI invents a label."""
    scheme = uri.partition("://")[0].lower()
    kind = _KINDS.get(scheme, scheme)
    return kind if kind in _SOURCES else "other"


@dataclass(frozen=True)
class _Read:
    """One metric that is read: `get` gives a number, or numbers by the value of the one label."""

    name: str
    help: str
    get: Callable[[Reading], float | dict[str, int] | dict[str, bool] | dict[str, float]]
    label: str = ""

    def family(self, now: Reading) -> Metric:
        kind = CounterMetricFamily if self.name.endswith("_total") else GaugeMetricFamily
        family = kind(self.name, self.help, labels=[self.label] if self.label else [])
        value = self.get(now)
        values = {(label,): number for label, number in value.items()} if isinstance(value, dict) else {(): value}
        for labels, number in values.items():
            family.add_metric(labels, number)
        return family


def _cap_utilisation(now: Reading) -> float:
    return now.ingress_bytes_per_s / now.ingress_cap_bytes_per_s if now.ingress_cap_bytes_per_s else 0.0


_READINGS: Final = (
    _Read("cacheagent_build_info", "1; the label is the version", lambda _: {__version__: 1}, "version"),
    _Read("cacheagent_store_capacity_bytes", "Size of the cache's filesystem", lambda now: now.capacity_bytes),
    _Read("cacheagent_store_free_bytes", "Free space of the cache's filesystem", lambda now: now.free_bytes),
    _Read("cacheagent_store_used_bytes", "Bytes of all blobs", lambda now: now.used_bytes),
    _Read(
        "cacheagent_store_reserved_bytes", "Bytes that running jobs still will write", lambda now: now.reserved_bytes
    ),
    _Read("cacheagent_store_evictable_bytes", "Bytes that could be freed now", lambda now: now.evictable_bytes),
    _Read("cacheagent_store_floor_bytes", "Free space that is never used", lambda now: now.floor_bytes),
    _Read("cacheagent_store_models", "Published versions", lambda now: now.models),
    _Read("cacheagent_store_blobs", "Files at rest, each counted once", lambda now: now.blobs),
    _Read(
        "cacheagent_store_quarantined_blobs",
        "Files that rotted beyond repair and are kept",
        lambda now: now.quarantined,
    ),
    _Read("cacheagent_leases", "Mounted volumes", lambda now: now.leases),
    _Read("cacheagent_evictions_total", "Versions that were removed, by why", lambda now: now.evictions, "result"),
    _Read(
        "cacheagent_evicted_bytes_total",
        "Bytes that evictions gave back, by why",
        lambda now: now.evicted_bytes,
        "result",
    ),
    _Read(
        "cacheagent_disk_writable",
        "1 if the cache's filesystem takes writes, 0 if it refuses them or hangs",
        lambda now: now.disk_writable,
    ),
    _Read("cacheagent_model_ready", "1 if a configured model is here, else 0", lambda now: now.models_ready, "model"),
    _Read(
        "cacheagent_models_wanted",
        "Configured models by state: ready, working, waiting, failed, on-demand (nobody here has asked yet)",
        lambda now: {state: now.models_by_state.get(state, 0) for state in _STATES},
        "state",
    ),
    _Read(
        "cacheagent_model_size_bytes",
        "Size of a configured model, once it is known here",
        lambda now: now.model_sizes,
        "model",
    ),
    _Read(
        "cacheagent_model_done_bytes",
        "Bytes of it that are proved on this node",
        lambda now: now.model_bytes_done,
        "model",
    ),
    _Read(
        "cacheagent_volumes_waiting",
        "Volumes of pods that wait for their model now (after a pod was deleted, for up to 5 minutes more)",
        lambda now: now.volumes_waiting,
        "model",
    ),
    _Read(
        "cacheagent_volume_oldest_wait_seconds",
        "How long the volume has waited that waits the longest; 0 without one",
        lambda now: now.oldest_wait_s,
    ),
    _Read("cacheagent_jobs_running", "Jobs in flight", lambda now: now.jobs_running),
    _Read("cacheagent_event_listeners", "Clients that follow the event stream", lambda now: now.listeners),
    _Read("cacheagent_transfer_workers", "Transfer processes that run", lambda now: now.workers),
    _Read(
        "cacheagent_transfer_connections",
        "Connections in use, mounted file systems included",
        lambda now: now.connections,
    ),
    _Read(
        "cacheagent_ingress_bytes_total",
        "Bytes off the network and mounted sources, hedges and repeated pieces included",
        lambda now: now.received_bytes,
    ),
    _Read(
        "cacheagent_ingress_cap_bytes_per_second",
        "What may be read from the network; 0: no limit",
        lambda now: now.ingress_cap_bytes_per_s,
    ),
    _Read(
        "cacheagent_ingress_bytes_per_second",
        "What was read a second, since the scrape before",
        lambda now: now.ingress_bytes_per_s,
    ),
    _Read(
        "cacheagent_ingress_cap_utilisation_ratio",
        "Part of the cap that was used since the scrape before; 0 without one",
        _cap_utilisation,
    ),
    _Read(
        "cacheagent_scrub_progress_ratio",
        "Part of all files at rest that was re-read within the last period",
        lambda now: now.scrub_progress,
    ),
    _Read("cacheagent_scrub_bytes_total", "Bytes at rest that were re-read", lambda now: now.scrubbed_bytes),
    _Read(
        "cacheagent_scrub_bad_pieces_total",
        "Pieces at rest that were found wrong, and that were repaired",
        lambda now: now.scrub_pieces,
        "result",
    ),
    _Read(
        "cacheagent_page_cache_reads_total",
        "Models that were to be read into memory after a mount: read, resident (they were there), no-memory, failed",
        lambda now: now.page_cache_reads,
        "result",
    ),
    _Read("cacheagent_page_cache_read_bytes_total", "Bytes read for that", lambda now: now.page_cache_bytes),
    _Read(
        "cacheagent_page_cache_resident_ratio",
        "Part of a model that was read into memory and still is there",
        lambda now: now.page_cache_resident,
        "model",
    ),
    _Read(
        "cacheagent_scrub_lost_blobs_total", "Files at rest that were beyond repair", lambda now: now.scrub_blobs_lost
    ),
)


class _Readings(Collector):
    def __init__(self) -> None:
        self.now = Reading()

    def collect(self) -> Iterable[Metric]:
        return [read.family(self.now) for read in _READINGS]


Row = tuple[str, str, str, str, str]
"""Name, type, unit, labels and help of a metric."""


def table() -> list[Row]:
    """Of every metric of an agent, for the documentation."""
    read = [(each, each.family(Reading())) for each in _READINGS]
    rows = [(each.name, family.type, unit_of(each.name), each.label or "-", each.help) for each, family in read]
    return sorted([*rows, *rows_of(Metrics())])


def rows_of(holder: object) -> list[Row]:
    """Of the metrics that are its attributes."""
    rows = []
    for metric in vars(holder).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            (family,) = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append((name, family.type, unit_of(name), ", ".join(metric._labelnames) or "-", family.documentation))
    return rows


def unit_of(name: str) -> str:
    """By the name's end."""
    base = name.removesuffix("_total")
    for ending, unit in (("bytes_per_second", "bytes/s"), ("bytes", "bytes"), ("seconds", "s"), ("ratio", "0-1")):
        if base.endswith(f"_{ending}"):
            return unit
    return "-"
