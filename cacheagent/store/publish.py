"""Publish: make a verified version visible with one rename, in steps of which each can be done again.

Seal the blobs (read-only, fsynced), write the record, move the blobs, build the tree beside, rename it. Once the record
is written everything it names is durable, so recovery goes forward from there; before, there is nothing to undo.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from cacheagent.errors import CorruptModel, ModelInUse
from cacheagent.model import FileHashes, Manifest
from cacheagent.store.durable import sync_all, sync_directory, write_whole
from cacheagent.store.record import Record, encode_record
from cacheagent.store.staging import SEALED
from cacheagent.store.state import State
from cacheagent.store.tree import READ_ONLY, build_tree


class Publisher:
    """One publish at a time: versions share blobs, and what one moves another must find."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.turn = threading.Lock()

    def proved_hashes(
        self, manifest: Manifest, blobs: Sequence[str], hashes: Mapping[str, FileHashes]
    ) -> dict[str, FileHashes]:
        """Hashes by path, if they are what this store knows its bytes to be. Raises CorruptModel."""
        by_path = {}
        for file, blob in zip(manifest.files, blobs, strict=True):
            claimed, published = hashes.get(blob), self._state.index.blobs.get(blob)
            known = published.hashes if published else self._state.staging.proved.get(blob)
            if claimed is None or known is None or claimed.pieces != known.pieces:
                raise CorruptModel(
                    f"{file.path} can't be published: its bytes on disk were not verified to be what the record says"
                )
            by_path[file.path] = claimed
        return by_path

    def publish(self, record: Record, blobs: tuple[str, ...]) -> None:
        """All steps. `blobs`: one for each file, in the order of the manifest. Raises ModelInUse, OSError."""
        state = self._state
        staged = [blob for blob in dict.fromkeys(blobs) if blob not in state.index.blobs]
        self._clear_way(record.digest)
        seal(state, staged)
        write_whole(state.layout.record(record.digest), encode_record(record), mtime=record.last_used)
        finish(state, record, blobs, staged)
        with state.lock:
            state.index.add(record, blobs)
            state.staging.left(staged)

    def _clear_way(self, digest: str) -> None:
        """A tree without a record is left where a record was damaged. It is no version; but it may be mounted."""
        state = self._state
        with state.lock:
            if os.path.lexists(state.layout.model(digest)):
                if digest in state.leases.digests():
                    raise ModelInUse(
                        f"{digest} is mounted from a tree whose record was lost",
                        hint="it can be published again when its volumes are released",
                    )
                with state.trash.bin() as bin_:
                    bin_.take(state.layout.model(digest))


def seal(state: State, blobs: Sequence[str]) -> None:
    """Make verified blobs read-only and durable, both inside and in their directories. Where that fails nothing of them
    is kept: a page that could not be written counts as clean from then on, and the next fsync would say that all is
    well."""
    paths = [_make_read_only(state, blob) for blob in blobs]
    try:
        sync_all([*paths, *{os.path.dirname(path) for path in paths}], state.layout.root)
    except OSError:
        for blob in blobs:
            with suppress(OSError):  # it is forgotten in any case
                state.staging.discard(blob)
        raise


def finish(state: State, record: Record, blobs: tuple[str, ...], staged: Iterable[str]) -> None:
    """The steps after the record: they can begin again after a crash at any of them."""
    layout, digest = state.layout, record.digest
    for blob in staged:
        with suppress(FileNotFoundError):  # moved already, by a publish that failed later; if not, no link can be made
            os.rename(state.staging.place(blob), layout.blob(blob))
    sync_directory(layout.blobs)
    if os.path.exists(layout.tree(digest)):
        with state.trash.bin() as bin_:
            bin_.take(layout.tree(digest))
    build_tree(layout, record.manifest, blobs)
    os.rename(layout.tree(digest), layout.model(digest))
    os.chmod(layout.model(digest), READ_ONLY)
    sync_directory(layout.models)


def _make_read_only(state: State, blob: str) -> str:
    """Returns where it is: in staging, or in `blobs/` where a publish that failed later has moved it."""
    path = state.staging.place(blob)
    try:
        os.chmod(path, SEALED)
    except FileNotFoundError:
        path = state.layout.blob(blob)
        os.chmod(path, SEALED)
    return path
