"""What a crash left is finished or undone, once, when a store is opened.

* A record without its tree: a publish, or the first half of an eviction. If every blob is there (in `blobs/`, or sealed
  in staging), the publish is finished; if not, the record goes and the blobs that are there become claims.
* A tree without a record: the second half of an eviction, or a damaged record. It goes, unless it is mounted.
* A blob that no record names: likewise.
* What is in `staging/trees`, and temporaries of single files: they go.

Nothing is hashed. 1,000 records of 1 TB take well under a second.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable
from typing import Final

from cacheagent.errors import CorruptModel
from cacheagent.store.index import blobs_of_files
from cacheagent.store.layout import digest_of, entries, is_hex_name
from cacheagent.store.publish import finish
from cacheagent.store.record import Record, decode_record
from cacheagent.store.staging import is_sealed
from cacheagent.store.state import State
from cacheagent.store.tree import READ_ONLY

LOG: Final = logging.getLogger(__name__)


def recover(state: State) -> None:
    """Fill the index from disk and put the disk in order. Raises OSError."""
    for path, mode in state.layout.directories.items():
        _make_directory(path, mode)
    _remove_temporaries(state)
    state.leases.scan()
    state.promises.scan()
    state.resolutions.scan()
    state.staging.scan()
    trees = {digest for entry in entries(state.layout.models) if (digest := digest_of(entry.name))}
    blobs = {entry.name for entry in entries(state.layout.blobs) if is_hex_name(entry.name)}
    unfinished = []
    for record in _read_records(state):
        named = blobs_of_files(record.manifest, record.domain)
        published = record.digest in trees
        if _adopt(state, record, named, blobs) if published else _finish_publish(state, record, named, blobs):
            state.index.add(record, named)
        else:
            unfinished.append((record, named))
    for record, named in unfinished:  # last, when it is known which of their blobs others name
        if record.digest not in trees:  # a tree has the same inodes and may be mounted: they are not to be written to
            _take_back(state, record, named, blobs)
        _give_up(state, record)
    _throw_away_strays(state, trees, blobs)
    for resolution in state.resolutions.all():
        if resolution.digest not in state.index.records:
            state.resolutions.drop(resolution.digest)


def _make_directory(path: str, mode: int) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        return
    os.chmod(path, mode)


def _remove_temporaries(state: State) -> None:
    layout = state.layout
    for directory in (layout.root, layout.records, layout.resolved, layout.leases, layout.promises, layout.small):
        for entry in entries(directory):
            if entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)
    left = [entry.path for entry in entries(layout.trees)]
    _throw_away(state, left)


def _read_records(state: State) -> list[Record]:
    records = []
    for entry in entries(state.layout.records):
        digest = digest_of(entry.name.removesuffix(".json"))
        if digest is None:
            continue
        with open(entry.path, "rb") as file:
            content, mtime = file.read(), os.fstat(file.fileno()).st_mtime
        try:
            records.append(decode_record(content, digest, mtime))
        except CorruptModel as error:
            LOG.warning("a damaged record was put into quarantine", extra={"digest": digest, "reason": error.message})
            os.rename(entry.path, f"{state.layout.quarantine}/{entry.name}")
    return records


def _adopt(state: State, record: Record, named: tuple[str, ...], blobs: set[str]) -> bool:
    """A published version, as it is; a blob that somebody removed is linked back from the tree."""
    model = state.layout.model(record.digest)
    if stat.S_IMODE(os.stat(model).st_mode) != READ_ONLY:  # a crash between the rename and the chmod
        os.chmod(model, READ_ONLY)
    for file, blob in zip(record.manifest.files, named, strict=True):
        if blob not in blobs:
            try:
                os.link(f"{model}/files/{file.path}", state.layout.blob(blob))
            except FileNotFoundError:
                return False
            blobs.add(blob)
    return True


def _finish_publish(state: State, record: Record, named: tuple[str, ...], blobs: set[str]) -> bool:
    sizes = dict(zip(named, (file.size_bytes for file in record.manifest.files), strict=True))
    staged = [blob for blob in sizes if blob not in blobs]
    if not all(is_sealed(state.staging.place(blob), sizes[blob]) for blob in staged):
        return False
    finish(state, record, named, staged)
    state.staging.left(staged)
    blobs.update(staged)
    return True


def _give_up(state: State, record: Record) -> None:
    LOG.warning("a version was given up: some of its blobs are gone", extra={"digest": record.digest})
    os.unlink(state.layout.record(record.digest))


def _take_back(state: State, record: Record, named: tuple[str, ...], blobs: set[str]) -> None:
    for file, blob in zip(record.manifest.files, named, strict=True):
        if blob in blobs and blob not in state.index.blobs:
            state.staging.take_back(blob, file.size_bytes, record.hashes[file.path])
            blobs.discard(blob)


def _throw_away_strays(state: State, trees: set[str], blobs: set[str]) -> None:
    mounted = state.leases.digests()
    strays = [digest for digest in trees if digest not in state.index.records]
    for digest in strays:
        if digest in mounted:
            LOG.warning("a mounted tree has no record; it stays until it is released", extra={"digest": digest})
    unnamed = blobs - state.index.blobs.keys()
    paths = [state.layout.model(digest) for digest in strays if digest not in mounted]
    _throw_away(state, paths + [state.layout.blob(blob) for blob in unnamed])


def _throw_away(state: State, paths: Iterable[str]) -> None:
    paths = list(paths)
    if paths:
        with state.trash.bin() as bin_:
            for path in paths:
                bin_.take(path)
