"""Every metric of a controller: name, help, unit and labels. No label grows with nodes, pods or models."""

from __future__ import annotations

from collections import Counter as Tally
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from cacheagent import __version__
from cacheagent.kube.plan import Change, World
from cacheagent.kube.webhook.server import Result

_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_CONDITIONS: Final = ("Resolved", "Ready", "Degraded")
_STATES: Final = ("assigned", "ready", "downloading", "failed")


class ControllerMetrics:
    """A replica's own registry. Used from the event loop only."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        count = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry, buckets=_SECONDS)
        gauge("cacheagent_controller_build_info", "1; the label is the version", ["version"]).labels(__version__).set(1)
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
        self._models = gauge(
            "cacheagent_controller_models",
            "ModelCaches by condition: how many have it",
            ["condition"],
        )
        self._placements = gauge(
            "cacheagent_controller_placements",
            "Models on nodes, summed over all models",
            ["state"],
        )
        self._nodes = gauge("cacheagent_controller_cache_nodes", "Cache nodes whose Node is there")
        self._reviews = count("cacheagent_webhook_reviews", "Reviews answered, by how they ended", ["result"])
        self._review_seconds = histogram("cacheagent_webhook_review_duration_seconds", "How long reviews took")

    def planned(self, seconds: float, changes: int) -> None:
        """A plan was made."""
        self._plan_seconds.observe(seconds)
        self._planned.set(changes)

    def follow(self, world: World) -> None:
        """What the last plan looked at."""
        have: Tally[str] = Tally()
        states: Tally[str] = Tally()
        for model in world.models.values():
            have.update(each.type for each in model.status.conditions if each.status == "True")
            for state in _STATES:
                states[state] += getattr(model.status.nodes, state)
        for condition in _CONDITIONS:
            self._models.labels(condition.lower()).set(have[condition])
        for state in _STATES:
            self._placements.labels(state).set(states[state])
        self._nodes.set(sum(name in world.nodes for name in world.cache_nodes))

    def wrote(self, change: Change, result: str) -> None:
        """A change was carried out, or could not be."""
        self._writes.labels(change.resource.plural, result).inc()

    def requested(self, verb: str, plural: str, status: int) -> None:
        """The API server was asked; see `client.OnRequest`."""
        self._requests.labels(verb, plural, str(status)).inc()

    def reviewed(self, result: Result, seconds: float) -> None:
        """See `webhook.server.Counts`."""
        self._reviews.labels(result).inc()
        self._review_seconds.observe(seconds)

    def render(self, *, leads: bool, backlog: int) -> bytes:
        """The text that Prometheus scrapes."""
        self._leader.set(leads)
        self._backlog.set(backlog)
        return generate_latest(self.registry)
