"""What somebody who waits for a model is told: one sentence, with a next step when a person must act. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cacheagent.progress import JobStatus
from cacheagent.quantity import size_text

_PASSING = frozenset({"transfer-failed", "origin-unavailable", "origin-throttled", "location-expired"})
"""Failures that end by themselves."""


def describe_wait(job: JobStatus | None, retry_in_s: float, running: Sequence[JobStatus]) -> str:
    """How far a model is. `job`: the work on it, if there was any; `retry_in_s`: when it is tried again after a
    failure; `running`: all jobs that run on this node.
    """
    if job is None:
        return "it is about to be fetched"
    if job.phase == "failed":
        return _failed(job, retry_in_s)
    if job.phase in {"queued", "resolving"}:
        return "its source is being listed"
    if job.phase == "reserving":
        return f"room is being made for {size_text(job.bytes_total)}"
    if job.phase == "publishing":
        return f"all {size_text(job.bytes_total)} are here and are being made visible"
    if job.phase == "ready":
        return "it was here and is gone again; it is about to be fetched"
    return _fetching(job, running) + _limit(job)


def _fetching(job: JobStatus, running: Sequence[JobStatus]) -> str:
    others = [other for other in running if other.name != job.name and other.phase == "fetching"]
    ahead = [other for other in others if other.rate_bytes_per_s > 0]
    if job.rate_bytes_per_s <= 0 and ahead:
        count = len(ahead)
        return f"{_share(job)}, queued behind {ahead[0].name} ({count} download{'s run' if count > 1 else ' runs'})"
    if job.eta_s >= 0:
        return f"{_share(job)}, about {duration_text(job.eta_s)} left"
    if job.rate_bytes_per_s > 0:
        return f"{_share(job)}, too early to say how long it takes"
    return f"{_share(job)}, no piece complete in the last seconds"


def _limit(job: JobStatus) -> str:
    """Who asks why it is so slow."""
    return f"; its warm-up lets this node take {size_text(job.limit_bytes_per_s)}/s" if job.limit_bytes_per_s else ""


def duration_text(seconds: float) -> str:
    """`80 s`, `5 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _share(job: JobStatus) -> str:
    percent = int(100 * job.bytes_done / job.bytes_total) if job.bytes_total else 0
    done, total = size_text(job.bytes_done), size_text(job.bytes_total)
    if done.partition(" ")[2] == total.partition(" ")[2]:
        done = done.partition(" ")[0]
    return f"{percent} %, {done} of {total}"


def _failed(job: JobStatus, retry_in_s: float) -> str:
    again = f"tried again in {duration_text(retry_in_s)}" if retry_in_s >= 1 else "being tried again"
    hint = f" ({job.hint})" if job.hint and job.error not in _PASSING else ""
    return f"the last try failed: {job.message}{hint}; {again}"
