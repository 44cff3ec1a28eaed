"""One piece of a published blob, fetched again from where it came from: what the scrub repairs with."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from cacheagent.errors import OriginWrong
from cacheagent.fetch import OpenSource
from cacheagent.location import Location
from cacheagent.model import RemoteFile, blob_id, piece_range
from cacheagent.source.base import Source
from cacheagent.spec import SourceSpec
from cacheagent.store import Record, Store
from cacheagent.threads import in_thread
from cacheagent.transfer.base import BlobOrder, Locate

FetchPiece = Callable[[BlobOrder, int, Locate], Awaitable[object]]
"""Brings one piece to its place in the order's target, which has the whole file's size."""

SCRATCH_PREFIX = ".repair-"
"""Hidden files in the cache directory itself are what the store removes after a crash."""


class Refetch:
    """Called with a blob and the index of a piece. `configured`: the sources that the configuration names, of which one
    may know better than the record how to reach the origin (its own certificates, its region).

    Raises what sources and transfers raise, NotCached for a blob that was evicted. The caller compares the bytes with
    what is recorded: nothing here believes them.
    """

    def __init__(
        self,
        root: Path,
        store: Store,
        fetch_piece: FetchPiece,
        open_source: OpenSource,
        configured: Callable[[], Iterator[SourceSpec]],
    ) -> None:
        self._root = root
        self._store = store
        self._fetch_piece = fetch_piece
        self._open_source = open_source
        self._configured = configured

    async def __call__(self, blob: str, index: int) -> bytes:
        record, file = self._find(blob)
        source = await self._open(record)

        async def locate() -> Location:
            return (await source.locate([file]))[0]

        try:
            with tempfile.NamedTemporaryFile(dir=self._root, prefix=SCRATCH_PREFIX) as scratch:
                os.truncate(scratch.name, file.size_bytes)  # sparse: it takes the room of one piece
                order = BlobOrder(
                    blob_id=blob, size_bytes=file.size_bytes, target=scratch.name, source_kind=source.kind
                )
                await self._fetch_piece(order, index, locate)
                offset, length = piece_range(file.size_bytes, index)
                return await in_thread(partial(os.pread, scratch.fileno(), length, offset))
        finally:
            await source.close()

    def _find(self, blob: str) -> tuple[Record, RemoteFile]:
        for digest in self._store.versions_of(blob):
            record = self._store.record(digest)
            for file in record.manifest.files if record is not None else ():
                if record is not None and blob_id(record.domain, file) == blob:
                    return record, file
        raise OriginWrong(f"no version names blob {blob} any more", hint="nothing is lost: nobody needs it")

    async def _open(self, record: Record) -> Source:
        """The first way to the same origin with the same credential: bytes of another one are not these."""
        for spec in self._candidates(record):
            source = self._open_source(_pinned(spec, record))
            if source.trust_domain == record.domain:
                return source
            await source.close()
        raise OriginWrong(
            f"{record.name}: nothing here reaches {record.uri} as it was reached when it was fetched",
            hint="evict it and pull it again",
        )

    def _candidates(self, record: Record) -> Iterator[SourceSpec]:
        yield from (spec for spec in self._configured() if spec.uri == record.uri)
        bare = SourceSpec(uri=record.uri, credential=record.domain.credential)
        yield bare
        yield msgspec.structs.replace(bare, endpoint=record.domain.endpoint)


def _pinned(spec: SourceSpec, record: Record) -> SourceSpec:
    """A branch may have moved on; a commit has not."""
    if record.manifest.source_kind != "hf":
        return spec
    scheme, _, repo = spec.uri.partition("://")
    return msgspec.structs.replace(spec, uri=f"{scheme}://{repo.partition('@')[0]}", revision=record.manifest.revision)
