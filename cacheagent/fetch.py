"""The life of a model, top to bottom: resolve, plan, reserve, fetch, verify, publish.

Every step is one function or one module; rules are pure and raise, this file only walks through them. Nothing is
visible under `models/` before the last step, and whatever happens in between leaves verified pieces for the next try.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from cacheagent.blobs import BlobFlights
from cacheagent.errors import ChecksumMismatch, VersionMoved
from cacheagent.model import FileHashes, Manifest, TrustDomain, blob_id
from cacheagent.plan import Plan, make_plan
from cacheagent.resolve import resolve
from cacheagent.safetensors_header import LENGTH_BYTES, check_header, header_length
from cacheagent.source.base import Source
from cacheagent.spec import ModelSpec, SourceSpec
from cacheagent.store import Record, Store, content_digest
from cacheagent.threads import in_thread
from cacheagent.tracking import Tracker
from cacheagent.transfer.base import Transport

OpenSource = Callable[[SourceSpec], Source]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What fetching needs: where bytes rest, what moves them, where they come from, and who is fetching what
    already.
    """

    store: Store
    transport: Transport
    open_source: OpenSource
    blobs: BlobFlights


async def fetch_model(engine: Engine, spec: ModelSpec, tracker: Tracker) -> Record:
    """Bring one model into the store and return its record; a model that is there already is only found.

    Raises whatever the steps raise (`cacheagent.errors`), with the disk as it was but for verified pieces. Cancelling
    stops the transfer, waits until no worker writes any more, and keeps what is proved.
    """
    source = engine.open_source(spec.source)
    try:
        tracker.enter("resolving")
        manifest = await resolve(source, spec)
        require_version(spec, manifest)
        tracker.resolved(manifest)
        record = engine.store.record(manifest.digest)
        if record is None:
            record = await _bring(engine, spec, source, manifest, tracker)
        return record
    finally:
        await source.close()


def require_version(spec: ModelSpec, manifest: Manifest) -> None:
    """Raise VersionMoved if one version is asked for and the source holds another."""
    if spec.digest and manifest.digest != spec.digest:
        raise VersionMoved(
            f"{spec.name}: version {spec.digest} is asked for, and its source now holds {manifest.digest}",
            hint="put the old version back, or accept the new one (`cacheagent refresh`, or the model's digest)",
        )


async def _bring(engine: Engine, spec: ModelSpec, source: Source, manifest: Manifest, tracker: Tracker) -> Record:
    domain = source.trust_domain
    plan = make_plan(manifest, domain, engine.store.blob_hashes)

    tracker.enter("reserving")
    reservation = await in_thread(
        partial(engine.store.reserve, manifest.digest, plan.sizes(), priority=tracker.priority)
    )
    try:
        # What was here a moment ago may have gone for somebody else's room; what is here now is promised and stays.
        plan = plan.renewed(engine.store.blob_hashes)
        tracker.enter("fetching")
        tracker.linked(plan.linked_bytes)
        await engine.blobs.bring(plan, source, tracker, share_as=manifest.digest if spec.peers == "auto" else "")

        tracker.enter("publishing")
        tracker.step("verifying")
        hashes = await in_thread(partial(_verify, engine.store, spec, manifest, domain, plan))
        tracker.step("publishing")
        return await in_thread(partial(_publish, engine.store, spec, manifest, domain, hashes))
    finally:
        reservation.release()


def _verify(
    store: Store, spec: ModelSpec, manifest: Manifest, domain: TrustDomain, plan: Plan
) -> dict[str, FileHashes]:
    """Look at every header once more where the bytes now lie; every byte was proved as it came."""
    hashes: dict[str, FileHashes] = {}
    for blob, file in plan.blobs.items():
        known = store.blob_hashes(blob)
        assert known is not None, f"{file.path} was brought and is not there"
        hashes[blob] = known
    for blob, file in plan.blobs.items():
        if file.path.endswith(".safetensors"):
            with store.open_blob(blob) as stream:
                check_safetensors_file(file.path, file.size_bytes, stream)
    if not spec.content_digest:
        return hashes
    found = content_digest(manifest, {file.path: hashes[blob_id(domain, file)] for file in manifest.files})
    if found != spec.content_digest:
        raise ChecksumMismatch(
            f"{spec.name}: its files come to the content digest {found}, and {spec.content_digest} is demanded",
            hint="the source does not hold what somebody once verified: look at it before you accept the new digest",
        )
    return hashes


def _publish(
    store: Store, spec: ModelSpec, manifest: Manifest, domain: TrustDomain, hashes: dict[str, FileHashes]
) -> Record:
    """Make the model visible with one rename."""
    return store.publish(
        manifest, domain, hashes, uri=spec.source.uri, name=spec.name, pin=spec.pin, priority=spec.priority
    )


def check_safetensors_file(name: str, size_bytes: int, stream: BinaryIO) -> None:
    """Read and judge one file's header. Raises UnsafeContent naming `name`."""
    length = header_length(name, size_bytes, stream.read(LENGTH_BYTES))
    check_header(name, size_bytes, stream.read(length))
