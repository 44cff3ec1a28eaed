"""What a store holds, in the words of the API: for the agent's server, and for commands that work without an agent."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Final

from cacheagent.api.schema import Lease, Model, Usage
from cacheagent.errors import NotCached, UsageError
from cacheagent.progress import JobStatus
from cacheagent.store import Record, Store

_DIGEST_PREFIX: Final = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")


def find_record(store: Store, ref: str) -> Record:
    """The published version that a name, a digest or the beginning of a digest means; of several versions of one name
    the one that was published last. Raises NotCached; UsageError for a prefix that fits several.
    """
    records = store.records()
    named = {resolution.digest for resolution in store.resolutions() if resolution.name == ref}
    found = [record for record in records if record.digest in named] or [
        record for record in records if record.name == ref
    ]
    if found:
        return max(found, key=lambda record: record.published_at)
    if prefix := _DIGEST_PREFIX.fullmatch(ref):
        found = [record for record in records if record.digest.startswith(f"sha256:{prefix[1]}")]
    if len(found) > 1:
        raise UsageError(f"{ref} is the beginning of {len(found)} digests", hint="give more digits, or the name")
    if not found:
        raise NotCached(f"no model {ref!r} is in this cache", hint="`cacheagent ls` shows what is")
    return found[0]


def model_of(store: Store, record: Record) -> Model:
    """One published version."""
    volumes = tuple(lease.volume_id for lease in store.leases() if lease.digest == record.digest)
    return _model(store, record, volumes)


def models_of(store: Store) -> tuple[Model, ...]:
    """All published versions, by name, the newest first."""
    volumes: defaultdict[str, list[str]] = defaultdict(list)
    for lease in store.leases():
        volumes[lease.digest].append(lease.volume_id)
    records = sorted(store.records(), key=lambda record: (record.name, -record.published_at))
    return tuple(_model(store, record, tuple(sorted(volumes[record.digest]))) for record in records)


def leases_of(store: Store) -> tuple[Lease, ...]:
    """All mounted volumes."""
    leases = sorted(store.leases(), key=lambda lease: lease.volume_id)
    return tuple(lease_of(store, lease.volume_id, lease.digest, lease.owner) for lease in leases)


def lease_of(store: Store, volume_id: str, digest: str, owner: str) -> Lease:
    """One mounted volume."""
    return Lease(volume_id=volume_id, digest=digest, path=str(store.path(digest)), owner=owner)


def usage_of(store: Store) -> Usage:
    """The room that there is."""
    usage = store.usage()
    return Usage(
        capacity_bytes=usage.capacity,
        free_bytes=usage.free,
        used_bytes=usage.used,
        reserved_bytes=usage.reserved,
        evictable_bytes=usage.evictable,
        floor_bytes=usage.floor,
        models=usage.models,
        blobs=usage.blobs,
    )


def ready_status(record: Record, path: Path, *, elapsed_s: float = 0.0) -> JobStatus:
    """The state of a request that found its model here."""
    return JobStatus(
        name=record.name,
        uri=record.uri,
        phase="ready",
        digest=record.digest,
        revision=record.manifest.revision,
        files_total=len(record.manifest.files),
        bytes_total=record.size_bytes,
        bytes_linked=record.size_bytes,
        elapsed_s=elapsed_s,
        path=str(path),
    )


def _model(store: Store, record: Record, volumes: tuple[str, ...]) -> Model:
    manifest = record.manifest
    return Model(
        name=record.name,
        digest=record.digest,
        uri=record.uri,
        kind=manifest.kind,
        files=len(manifest.files),
        size_bytes=record.size_bytes,
        published_at=record.published_at,
        last_used=record.last_used,
        path=str(store.path(record.digest)),
        revision=manifest.revision,
        repo_id=manifest.repo_id,
        content_digest=record.content_digest,
        pin=record.pin,
        priority=record.priority,
        suspect=record.suspect,
        leases=volumes,
    )
