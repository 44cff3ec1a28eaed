"""What an agent tells of pods' starts: how long a volume waited for its model, what was done meanwhile, and the mount.

A job belongs to nobody, since many pods may wait for it, or none. It has a trace of its own; in the trace of each pod
that waited, its steps stand again as far as the pod waited for them, each with a link to the real one.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeVar

from cacheagent.api.schema import MountTimes
from cacheagent.metrics import source_kind
from cacheagent.progress import JobStatus
from cacheagent.store import Promise, Record
from cacheagent.tracing import Attributes, Pod, Ref, Send, Span, child_of, new_trace, start_of
from cacheagent.tracking import Tracker

LOG: Final = logging.getLogger(__name__)

JOBS_KEPT: Final = 200
"""Ended jobs that a pod's wait is compared with. Chosen: as many as are told of otherwise."""
VOLUMES_KEPT: Final = 10_000
"""Volumes that were asked for and have nothing yet. Chosen: more than a node has pods."""

STEPS: Final = {
    "resolving": "resolve",
    "reserving": "reserve",
    "fetching": "fetch",
    "verifying": "verify",
    "publishing": "publish",
}
"""Names of spans by what the job calls its steps."""

F = TypeVar("F", bound=Callable[..., None])


def _harmless(tell: F) -> F:
    """A defect here costs a span, and nobody a model."""

    @functools.wraps(tell)
    def told(*arguments: Any, **named: Any) -> None:
        try:
            tell(*arguments, **named)
        except Exception:
            LOG.exception("a defect in tracing; a span is missing")

    return told  # type: ignore[return-value]  # the same signature


class _Step(NamedTuple):
    name: str
    ref: Ref
    began_at: float
    ended_at: float
    error: str = ""


class _Job(NamedTuple):
    """A job that ended, or one that runs as far as it is."""

    root: Ref
    status: JobStatus
    steps: tuple[_Step, ...]

    @property
    def attributes(self) -> dict[str, str | int | float | bool]:
        """No URI: paths and addresses of a source are for those who may see it."""
        status = self.status
        facts: Attributes = {
            "cacheagent.model": status.name,
            "cacheagent.source": source_kind(status.uri),
            "cacheagent.digest": status.digest,
            "cacheagent.bytes": status.bytes_total,
            "cacheagent.bytes_fetched": status.bytes_fetched,
            "cacheagent.bytes_kept": status.bytes_kept,
            "cacheagent.bytes_linked": status.bytes_linked,
        }
        return {key: value for key, value in facts.items() if value != ""}

    def spans(self) -> Iterator[Span]:
        """Its own trace."""
        if not self.steps:
            return
        yield Span(
            name="bring model",
            ref=self.root,
            parent=None,
            began_at=self.steps[0].began_at,
            ended_at=self.steps[-1].ended_at,
            attributes=self.attributes,
            error=self.status.error,
        )
        for step in self.steps:
            yield Span(
                name=step.name,
                ref=step.ref,
                parent=self.root,
                began_at=step.began_at,
                ended_at=step.ended_at,
                attributes={"cacheagent.model": self.status.name},
                error=step.error,
            )

    def copies(self, wait: Span) -> Iterator[Span]:
        """Its steps below a pod's wait, cut to it: what went on before nobody waited for."""
        for step in self.steps:
            began_at, ended_at = max(step.began_at, wait.began_at), min(step.ended_at, wait.ended_at)
            if began_at < ended_at:
                yield Span(
                    name=step.name,
                    ref=child_of(wait.ref),
                    parent=wait.ref,
                    began_at=began_at,
                    ended_at=ended_at,
                    attributes={**self.attributes, "cacheagent.began_before": step.began_at < wait.began_at},
                    links=(step.ref,),
                    error=step.error,
                )


class NodeTraces:
    """One event loop. A `flights.Watcher`; nothing here raises."""

    def __init__(self, send: Send, now: Callable[[], float] = time.time) -> None:
        self._send = send
        self._now = now
        self._running: dict[Tracker, Ref] = {}
        self._ended: deque[_Job] = deque(maxlen=JOBS_KEPT)
        self._asked: OrderedDict[str, float] = OrderedDict()

    # --- jobs

    @_harmless
    def began(self, tracker: Tracker) -> None:
        """A job begins."""
        self._running[tracker] = new_trace()

    @_harmless
    def ended(self, tracker: Tracker) -> None:
        """It has ended, however it did."""
        job = self._job(tracker, self._running.pop(tracker))
        self._ended.append(job)
        for span in job.spans():
            self._send(span)

    def _job(self, tracker: Tracker, root: Ref) -> _Job:
        status, began = tracker.status(), tracker.steps
        ends = [*(at for _, at in began[1:]), self._now()] if began else []  # it may have failed before its first step
        steps = [
            _Step(STEPS[name], Ref(root.trace_id, (root.span_id + number) % 2**64 or 1), at, end)
            for number, ((name, at), end) in enumerate(zip(began, ends, strict=True), start=1)
            if name in STEPS and end > at
        ]
        if steps and status.error:
            steps[-1] = steps[-1]._replace(error=status.error)
        return _Job(root, status, tuple(steps))

    # --- volumes

    @_harmless
    def asked(self, volume_id: str) -> None:
        """A volume is asked for, perhaps before anybody knows whether it may have its model."""
        self._asked.setdefault(volume_id, self._now())
        while len(self._asked) > VOLUMES_KEPT:
            self._asked.popitem(last=False)

    @_harmless
    def kept(self, promise: Promise, record: Record, *, hit: bool) -> None:
        """A volume got its lease. `hit`: at its first request."""
        asked_at = self._asked.pop(promise.volume_id, promise.since)
        if not promise.pod_uid:
            return
        pod = Pod(promise.pod_uid, promise.namespace, promise.owner.partition("/")[2])
        start = start_of(pod.uid)
        wait = Span(
            name="wait",
            ref=child_of(start),
            parent=start,
            began_at=min(asked_at, promise.since),
            ended_at=self._now(),
            attributes={
                **pod.attributes,
                "cacheagent.volume": promise.volume_id,
                "cacheagent.model": promise.model,
                "cacheagent.digest": record.digest,
                "cacheagent.bytes": record.size_bytes,
                "cacheagent.hit": hit,
            },
        )
        self._send(wait)
        for job in [*self._ended, *(self._job(tracker, root) for tracker, root in self._running.items())]:
            if record.digest == job.status.digest or promise.model == job.status.name:
                for span in job.copies(wait):
                    self._send(span)

    @_harmless
    def mounted(self, volume_id: str, times: MountTimes) -> None:
        """The CSI driver has mounted it."""
        start = start_of(times.pod_uid)
        self._send(
            Span(
                name="mount",
                ref=child_of(start),
                parent=start,
                began_at=times.began_at,
                ended_at=times.ended_at,
                attributes={
                    **Pod(times.pod_uid, times.namespace, times.pod).attributes,
                    "cacheagent.volume": volume_id,
                    "cacheagent.digest": times.digest,
                },
            )
        )
