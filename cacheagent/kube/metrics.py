"""Every metric of a controller: name, help, unit and labels. No label grows with nodes or pods.

A replica that does not lead says nothing of the cluster, so that a sum over replicas counts nothing twice.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cacheagent import __version__
from cacheagent.kube.names import COLD_SINCE, COLD_TAINT
from cacheagent.kube.plan import Change, World
from cacheagent.kube.plan.times import seconds_of
from cacheagent.kube.plan.views import Model, Pod
from cacheagent.kube.pod_waits import PodWaits, Waits
from cacheagent.kube.webhook.server import Result
from cacheagent.metrics import Row, rows_of, unit_of

_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_START_SECONDS: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
"""From a warm node to a terabyte over a slow link. Chosen."""
_CONDITIONS: Final = ("Resolved", "Ready", "Degraded")
_STATES: Final = ("assigned", "ready", "downloading", "failed")
_DEGRADED_NAMED: Final = 100
"""So many degraded models are named at most; all are counted."""


class ControllerMetrics:
    """A replica's own registry. Used from the event loop only."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        count = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry, buckets=_SECONDS)
        self._build = gauge("cacheagent_controller_build_info", "1; the label is the version", ["version"])
        self._build.labels(__version__).set(1)
        self._leader = gauge("cacheagent_controller_leader", "1 if this replica leads, else 0")
        self._plan_seconds = histogram("cacheagent_controller_plan_duration_seconds", "How long one plan took")
        self._backlog = gauge("cacheagent_controller_backlog_changes", "Changes that are wanted and not written yet")
        self._planned = gauge("cacheagent_controller_planned_changes", "Changes that the last plan asked for")
        self._writes = count(
            "cacheagent_controller_writes",
            "Objects written: done, or the code of the error",
            ["resource", "result"],
        )
        self._requests = count(
            "cacheagent_controller_api_requests",
            "Requests to the API server, watches included; result is the status, 0 for none",
            ["verb", "resource", "result"],
        )
        self._received = count(
            "cacheagent_controller_api_received_bytes",
            "Bytes of the API server's answers, watches included, after decompression",
            ["verb", "resource"],
        )
        self._start_seconds = Histogram(
            "cacheagent_pod_weights_ready_seconds",
            "From a pod's creation until its weights were mounted, in the kubelet's words; counted by the leader",
            buckets=_START_SECONDS,
            registry=self.registry,
        )
        self._started_gpus = count("cacheagent_pod_gpus", "GPUs of the pods that got their weights")
        self._gpu_seconds = count(
            "cacheagent_pod_gpu_wait_seconds",
            "GPU-seconds that pods held GPUs of a node until their weights were mounted",
        )
        self._reviews = count("cacheagent_webhook_reviews", "Reviews answered, by how they ended", ["result"])
        self._review_seconds = histogram("cacheagent_webhook_review_duration_seconds", "How long reviews took")
        self._certificate = gauge(
            "cacheagent_webhook_certificate_expiry_timestamp_seconds",
            "When the webhook's certificate that this replica shows ends; 0 without one",
        )
        self._spans = count(
            "cacheagent_controller_tracing_spans",
            "Spans by what became of them: sent, failed (not taken by the receiver), dropped (no room in the queue)",
            ["result"],
        )
        for result in get_args(Result):  # at zero from the start, so that the first one is seen as an increase
            self._reviews.labels(result)
        self._cluster = _Cluster()
        self.registry.register(self._cluster)
        self._waits = PodWaits()

    def lead(self) -> None:
        """This replica begins or ends to lead: what it knew of the cluster is of no use any more."""
        self._cluster.seen = None
        self._waits = PodWaits()

    def planned(self, seconds: float, changes: int) -> None:
        """A plan was made."""
        self._plan_seconds.observe(seconds)
        self._planned.set(changes)

    def follow(self, world: World) -> tuple[Pod, ...]:
        """What the last plan looked at. Returns the pods that got their weights since the one before."""
        waits = self._waits.look(world.pods.values())
        self._cluster.seen = _Seen(world, waits)
        for start in waits.started:
            self._start_seconds.observe(start.waited_s)
            self._started_gpus.inc(start.gpus)
            self._gpu_seconds.inc(start.held_s * start.gpus)
        return waits.started_pods

    def wrote(self, change: Change, result: str) -> None:
        """A change was carried out, or could not be."""
        self._writes.labels(change.resource.plural, result).inc()

    def requested(self, verb: str, plural: str, status: int) -> None:
        """The API server was asked; see `client.OnRequest`."""
        self._requests.labels(verb, plural, str(status)).inc()

    def received(self, verb: str, plural: str, size: int) -> None:
        """A part of an answer was read; see `client.OnReceived`."""
        self._received.labels(verb, plural).inc(size)

    def reviewed(self, result: Result, seconds: float) -> None:
        """See `webhook.server.Counts`."""
        self._reviews.labels(result).inc()
        self._review_seconds.observe(seconds)

    def count_spans(self, result: str, count: int) -> None:
        """From any thread."""
        self._spans.labels(result).inc(count)

    def render(self, *, leads: bool, backlog: int, certificate_ends_at: float = 0.0) -> bytes:
        """The text that Prometheus scrapes."""
        self._leader.set(leads)
        self._backlog.set(backlog)
        self._certificate.set(certificate_ends_at)
        self._cluster.leads = leads
        return generate_latest(self.registry)


class _Seen:
    """The figures of one look."""

    def __init__(self, world: World, waits: Waits) -> None:
        conditions: Tally[str] = Tally()
        states: Tally[str] = Tally()
        for model in world.models.values():
            conditions.update(each.type for each in model.status.conditions if each.status == "True")
            for state in _STATES:
                states[state] += getattr(model.status.nodes, state)
        self.models = {condition.lower(): conditions[condition] for condition in _CONDITIONS}
        self.placements = {state: states[state] for state in _STATES}
        self.degraded = dict.fromkeys(sorted(filter(None, map(_degraded, world.models.values())))[:_DEGRADED_NAMED], 1)
        self.nodes = sum(name in world.nodes for name in world.cache_nodes)
        cold = [
            seconds_of(node.meta.annotations.get(COLD_SINCE, "")) or node.meta.created_at
            for node in world.nodes.values()
            if any(taint.get("key") == COLD_TAINT for taint in node.taints)
        ]
        self.cold_nodes, self.cold_since = len(cold), min(cold, default=0.0)
        self.waiting_pods, self.waiting_gpus = waits.pods, waits.gpus_held


def _degraded(model: Model) -> str:
    return (
        model.name if any(each.type == "Degraded" and each.status == "True" for each in model.status.conditions) else ""
    )


_READS: Final[tuple[tuple[str, str, str, Callable[[_Seen], float | dict[str, int]]], ...]] = (
    (
        "cacheagent_controller_models",
        "ModelCaches by condition: how many have it",
        "condition",
        lambda seen: seen.models,
    ),
    (
        "cacheagent_controller_placements",
        "Models on nodes, summed over all models",
        "state",
        lambda seen: seen.placements,
    ),
    (
        "cacheagent_controller_model_degraded",
        "1 for each ModelCache that is Degraded; others are not listed",
        "model",
        lambda seen: seen.degraded,
    ),
    ("cacheagent_controller_cache_nodes", "Cache nodes whose Node is there", "", lambda seen: seen.nodes),
    ("cacheagent_controller_cold_nodes", "Nodes with the cold taint", "", lambda seen: seen.cold_nodes),
    (
        "cacheagent_controller_cold_since_timestamp_seconds",
        "Since when the node is cold that is so the longest; 0 without one",
        "",
        lambda seen: seen.cold_since,
    ),
    (
        "cacheagent_controller_waiting_pods",
        "Pods without their weights yet: behind our gate, without a node, or on their node",
        "stage",
        lambda seen: seen.waiting_pods,
    ),
    (
        "cacheagent_controller_waiting_gpus",
        "GPUs that pods hold on a node while they wait for their weights",
        "",
        lambda seen: seen.waiting_gpus,
    ),
)


class _Cluster(Collector):
    """Read only from the replica that leads."""

    def __init__(self) -> None:
        self.seen: _Seen | None = None
        self.leads = False

    def collect(self) -> Iterable[Metric]:
        for name, text, label, get in _READS:
            family = GaugeMetricFamily(name, text, labels=[label] if label else [])
            value = get(self.seen) if self.seen is not None and self.leads else {}
            for key, number in value.items() if isinstance(value, dict) else [("", value)]:
                family.add_metric([key] if label else [], number)
            yield family


def table() -> list[Row]:
    """Of every metric, for the documentation."""
    reads = [(name, "gauge", unit_of(name), label or "-", text) for name, text, label, _ in _READS]
    return sorted([*rows_of(ControllerMetrics()), *reads])
