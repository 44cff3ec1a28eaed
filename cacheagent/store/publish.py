"""Publish: make a verified version visible with one rename, in steps of which each can be done again.

Seal the blobs (read-only, fsynced), build the tree beside, write the record, move the blobs, rename the tree. Once the
record is written everything it names is durable, so recovery goes forward from there; before, there is nothing to undo
but the tree, which recovery throws away and makes anew.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

from cacheagent.errors import CorruptModel, ModelInUse
from cacheagent.model import FileHashes, Manifest
from cacheagent.store.durable import FSYNCS_AT_MOST, sync_all, sync_directory, write_whole
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
        _throw_tree_away(state, record.digest)
        places = {blob: _make_read_only(state, blob) for blob in staged}
        try:
            with _meanwhile(partial(_make_durable, state, places), beside=len(places) > FSYNCS_AT_MOST):
                content = encode_record(record)
                now_at = [places.get(blob) or state.layout.blob(blob) for blob in blobs]
                build_tree(state.layout, record.manifest, now_at)
            write_whole(state.layout.record(record.digest), content, mtime=record.last_used)
        except OSError:
            with suppress(OSError):  # its names would keep blobs that were discarded, and it takes room
                _throw_tree_away(state, record.digest)
                state.trash.sweep()
            raise
        _move(state, places)
        _show(state, record)
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


def finish(state: State, record: Record, blobs: tuple[str, ...], staged: Iterable[str]) -> None:
    """The steps after the record: they can begin again after a crash at any of them."""
    _move(state, {blob: state.staging.place(blob) for blob in staged})
    _throw_tree_away(state, record.digest)
    build_tree(state.layout, record.manifest, [state.layout.blob(blob) for blob in blobs])
    _show(state, record)


@contextmanager
def _meanwhile(work: Callable[[], None], *, beside: bool) -> Iterator[None]:
    """`work` is done when the block ends: before it, or `beside` it in a thread, whose error counts before the block's.
    A disk takes half a second for 20,000 small files, and their names take a CPU a third of one."""
    if not beside:
        work()
        yield
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="cacheagent-sync") as pool:
        done = pool.submit(work)
        try:
            yield
        finally:
            done.result()


def _make_durable(state: State, places: Mapping[str, str]) -> None:
    """Make sealed blobs durable, both inside and in their directories. Where that fails nothing of them is kept: a page
    that could not be written counts as clean from then on, and the next fsync would say that all is well."""
    try:
        sync_all([*places.values(), *{os.path.dirname(path) for path in places.values()}], state.layout.root)
    except OSError:
        for blob in places:
            with suppress(OSError):  # it is forgotten in any case
                state.staging.discard(blob)
        raise


def _move(state: State, places: Mapping[str, str]) -> None:
    for blob, place in places.items():
        with suppress(FileNotFoundError):  # moved already, by a publish that failed later; if not, no link can be made
            os.rename(place, state.layout.blob(blob))
    sync_directory(state.layout.blobs)


def _show(state: State, record: Record) -> None:
    layout, digest = state.layout, record.digest
    os.rename(layout.tree(digest), layout.model(digest))
    os.chmod(layout.model(digest), READ_ONLY)
    sync_directory(layout.models)


def _throw_tree_away(state: State, digest: str) -> None:
    """What an earlier try built."""
    if os.path.exists(state.layout.tree(digest)):
        with state.trash.bin() as bin_:
            bin_.take(state.layout.tree(digest))


def _make_read_only(state: State, blob: str) -> str:
    """Seal a verified blob. Returns where it is: in staging, or in `blobs/` where a publish that failed later has moved
    it."""
    path = state.staging.place(blob)
    try:
        os.chmod(path, SEALED)
    except FileNotFoundError:
        path = state.layout.blob(blob)
        os.chmod(path, SEALED)
    return path
