"""A node's report on itself: the status of its ModelCacheNode. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from cacheagent import __version__
from cacheagent.assignment import Assignment
from cacheagent.cohorts import COHORT
from cacheagent.errors import CacheAgentError
from cacheagent.kube.node_models import UNDECIDED, Found, version_of
from cacheagent.kube.objects import (
    ModelCacheNodeSpec,
    ModelCacheNodeStatus,
    NodeModel,
    NodeModelStatus,
    NodeUsage,
    Wanted,
)
from cacheagent.outlook import describe_wait
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec
from cacheagent.store import Lease, Record, Usage

LONGEST_MESSAGE: Final = 500
MOST_LIARS: Final = COHORT
"""With more than these no node exchanges at a time."""
AT_DEMAND: Final = "when a pod here asks for it"
"""When a model is fetched that nobody wants here in advance."""
FREE_STEPS: Final = 50
"""Free space is news when it has changed by a fiftieth of the disk: others write there too, all the time."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Everything that a report is made of, at one moment. `found`, `errors`: answers to the controller's questions by
    token; `wrong`: models that can't be understood or are refused, by name; `job`, `retry_in_s`: of a model's spec.
    `public_key`, `peer_address`: how peers know and reach this node; empty without any. `liars`: names of peers that
    were caught.
    """

    spec: ModelCacheNodeSpec
    generation: int
    assignment: Assignment
    found: Mapping[str, Found]
    errors: Mapping[str, CacheAgentError]
    wrong: Mapping[str, CacheAgentError]
    records: Sequence[Record]
    leases: Sequence[Lease]
    job: Callable[[ModelSpec], JobStatus | None]
    retry_in_s: Callable[[ModelSpec], float]
    running: Sequence[JobStatus]
    wanted: Sequence[tuple[str, str, str]]
    evicting: tuple[str, ...]
    usage: Usage
    incarnation: str
    reported_at: str
    public_key: str = ""
    peer_address: str = ""
    liars: Collection[str] = ()


def status_of(seen: Seen) -> ModelCacheNodeStatus:
    """The whole status. An assigned model has an entry for the version that it is to have, one for the controller's
    open question (`resolved_for`, or a failure without digest), and one for each older version on disk."""
    here = {record.digest: record for record in seen.records}
    mounted = Counter(lease.digest for lease in seen.leases)
    entries: dict[tuple[str, str], NodeModelStatus] = {}
    for model in seen.spec.models:
        for entry in _entries(seen, model, here):
            entries.setdefault((entry.name, entry.digest), entry)
        for digest in model.versions:
            if digest in here:
                entries.setdefault((model.name, digest), _ready(model.name, here[digest]))
    told = {digest for _, digest in entries}
    for digest, record in here.items():
        if digest not in told:
            entries[record.name, digest] = _ready(record.name, record)
    models = [replace(entry, mounted=mounted[entry.digest]) for _, entry in sorted(entries.items())]
    return ModelCacheNodeStatus(
        observed_generation=seen.generation,
        agent_version=__version__,
        incarnation=seen.incarnation,
        reported_at=seen.reported_at,
        usage=_usage(seen.usage),
        models=tuple(models),
        wanted=tuple(Wanted(model=model, namespace=namespace, uri=uri) for model, namespace, uri in seen.wanted),
        evicting=seen.evicting,
        public_key=seen.public_key,
        peer_address=seen.peer_address,
        liars=tuple(sorted(seen.liars)[:MOST_LIARS]),
    )


def state_of(status: ModelCacheNodeStatus) -> ModelCacheNodeStatus:
    """What is reported at once when it changes: everything but figures that move, and sentences that hold some."""
    models = tuple(
        replace(model, bytes_done=0, rate_bytes_per_s=0, message=model.message if model.phase == "failed" else "")
        for model in status.models
    )
    return replace(status, models=models, usage=NodeUsage(), reported_at="")


def progress_of(status: ModelCacheNodeStatus) -> tuple[object, ...]:
    """What is reported from time to time while it changes. Equal at rest."""
    usage = status.usage
    free_steps = usage.free_bytes * FREE_STEPS // max(1, usage.capacity_bytes)
    done = tuple((model.name, model.digest, model.bytes_done) for model in status.models)
    return done, usage.used_bytes, usage.reserved_bytes, usage.evictable_bytes, free_steps


def _entries(seen: Seen, model: NodeModel, here: Mapping[str, Record]) -> list[NodeModelStatus]:
    if (wrong := seen.wrong.get(model.name)) is not None:
        return [_failed(model.name, wrong)]
    found = seen.found.get(model.resolve) if model.resolve else None
    target = version_of(model, found)
    entries = []
    if target:
        entry = _version(seen, model, target, here.get(target))
        if found is not None and found.digest == target:
            entry = _with(entry, found, model.resolve)
        entries.append(entry)
    if found is not None and found.digest != target:
        record = here.get(found.digest)
        entry = _ready(model.name, record) if record else NodeModelStatus(name=model.name, phase="pending")
        entries.append(_with(replace(entry, digest=found.digest), found, model.resolve))
    elif found is None and model.resolve:
        error = seen.errors.get(model.resolve)
        entries.append(_failed(model.name, error) if error else NodeModelStatus(name=model.name, phase="resolving"))
    elif not target:
        entries.append(NodeModelStatus(name=model.name, phase="pending", message=UNDECIDED))
    return entries


def _with(entry: NodeModelStatus, found: Found, token: str) -> NodeModelStatus:
    return replace(
        entry,
        resolved_for=token,
        revision=found.revision,
        repo_id=found.repo_id,
        files=found.files,
        size_bytes=found.size_bytes,
    )


def _version(seen: Seen, model: NodeModel, digest: str, record: Record | None) -> NodeModelStatus:
    if record is not None:
        return _ready(model.name, record)
    assigned = seen.assignment.find(model.name)
    job = seen.job(assigned.spec) if assigned is not None else None
    retry_in_s = seen.retry_in_s(assigned.spec) if assigned is not None else 0.0
    held = assigned.pending if assigned is not None else ""
    on_demand = assigned is not None and not assigned.spec.keep_warm
    absent = f"it is fetched {AT_DEMAND}" if on_demand else "others go first"
    entry = NodeModelStatus(name=model.name, phase="pending", digest=digest, message=held or absent)
    if job is None:
        return entry
    entry = replace(
        entry,
        phase="failed" if job.phase == "failed" else "fetching",
        revision=job.revision,
        files=job.files_total,
        size_bytes=job.bytes_total,
        bytes_done=job.bytes_done,
        rate_bytes_per_s=int(job.rate_bytes_per_s) if not job.finished else 0,
        code=job.error,
    )
    if job.phase == "failed":
        return replace(entry, message=_cut(f"{job.message} ({job.hint})" if job.hint else job.message))
    if job.phase == "ready":  # and evicted since
        when = AT_DEMAND if on_demand else "later"
        return replace(entry, phase="pending", bytes_done=0, message=f"it was evicted, and is fetched again {when}")
    return replace(entry, message=_cut(describe_wait(job, retry_in_s, seen.running)))


def _ready(name: str, record: Record) -> NodeModelStatus:
    return NodeModelStatus(
        name=name,
        phase="ready",
        digest=record.digest,
        revision=record.manifest.revision,
        content_digest=record.content_digest,
        repo_id=record.manifest.repo_id,
        files=len(record.manifest.files),
        size_bytes=record.size_bytes,
        bytes_done=record.size_bytes,
        message=_cut(record.withdrawn),
    )


def _failed(name: str, error: CacheAgentError) -> NodeModelStatus:
    return NodeModelStatus(name=name, phase="failed", code=error.code, message=_cut(str(error)))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 1] + "…"


def _usage(usage: Usage) -> NodeUsage:
    return NodeUsage(
        capacity_bytes=usage.capacity,
        free_bytes=usage.free,
        used_bytes=usage.used,
        reserved_bytes=usage.reserved,
        evictable_bytes=usage.evictable,
    )
