"""What the controller tells of pods' starts: the whole, its admission, and the way to a node.

A pod has no UID while the webhook judges it: the API server gives it one after the mutating webhooks. So the webhook
writes on the pod when it was judged, and whoever leads makes a span of that once the pod has its weights, when the rest
of its start is known too. Both times of the rest are Kubernetes' own, in whole seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from cacheagent.kube.names import ADMITTED
from cacheagent.kube.plan.times import seconds_of
from cacheagent.kube.plan.views import Pod
from cacheagent.tracing import Attributes, Send, Span, child_of, start_of
from cacheagent.tracing import Pod as Whose

LOG: Final = logging.getLogger(__name__)

PLAUSIBLE_S: Final = 60.0
"""How far the review and the pod's creation may lie apart. Chosen: the API server waits for webhooks for 30 s at most,
and clocks differ. What is further away came with a pod that was copied."""


class Review(NamedTuple):
    """When the webhook judged a pod, in seconds since the epoch."""

    began_at: float
    ended_at: float


def written_review(review: Review) -> str:
    """As it stands on the pod: an interval of ISO 8601."""
    return "/".join(datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds") for at in review)


def admission(review: Review) -> dict[str, Any]:
    """The operation of a JSON patch that writes it on a pod which has annotations."""
    path = "/metadata/annotations/" + ADMITTED.replace("~", "~0").replace("/", "~1")
    return {"op": "add", "path": path, "value": written_review(review)}


def find_review(pod: Pod) -> Review | None:
    """What the webhook wrote; None for what can't be true of this pod."""
    began, _, ended = pod.meta.annotations.get(ADMITTED, "").partition("/")
    review = Review(seconds_of(began), seconds_of(ended))
    near = abs(review.ended_at - pod.meta.created_at) < PLAUSIBLE_S
    return review if near and 0 <= review.ended_at - review.began_at < PLAUSIBLE_S else None


def spans_of(pod: Pod, now: float) -> Iterator[Span]:
    """Of a pod that has its weights since just now."""
    start, review = start_of(pod.meta.uid), find_review(pod)
    began_at = review.began_at if review else pod.meta.created_at
    # Kubernetes cuts the fraction off; we see it a moment later.
    ended_at = max(pod.weights_at, min(now, pod.weights_at + 1.0))
    whose = Whose(pod.meta.uid, pod.meta.namespace, pod.meta.name).attributes
    facts: Attributes = {**whose, "k8s.node.name": pod.node, "cacheagent.gpus": pod.gpus}
    yield Span(name="start", ref=start, parent=None, began_at=began_at, ended_at=ended_at, attributes=facts)
    parts = [("admission", review.began_at, review.ended_at)] if review else []
    if pod.scheduled_at:
        since = review.ended_at if review else began_at
        parts.append(("schedule", since, max(since, pod.scheduled_at)))
    for name, began, ended in parts:
        yield Span(name=name, ref=child_of(start), parent=start, began_at=began, ended_at=ended, attributes=whose)


class StartTraces:
    """Sends them. Raises nothing."""

    def __init__(self, send: Send, now: Callable[[], float] = time.time) -> None:
        self._send = send
        self._now = now

    def started(self, pods: Iterable[Pod]) -> None:
        """These have their weights since the look before."""
        try:
            for pod in pods:
                for span in spans_of(pod, self._now()):
                    self._send(span)
        except Exception:
            LOG.exception("a defect in tracing; spans are missing")
