"""Volumes beside their leases: what a volume was promised before it has one, and directories that are filled later."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, Literal

import msgspec

from cacheagent.errors import UnsafeContent
from cacheagent.model import Value, canonical_json
from cacheagent.store.durable import open_temporary, sync_all, sync_directory, write_all, write_whole
from cacheagent.store.layout import Layout, digest_of, entries, is_volume_id
from cacheagent.store.tree import READ_ONLY, link_file

LOG: Final = logging.getLogger(__name__)

MARKS: Final = ".cacheagent"
"""Directory in a volume that is filled later: how far it is, and that it is whole."""
PROGRESS: Final = "progress"
READY: Final = "ready"
_PUBLIC_FILE: Final = 0o444
_PUBLIC_DIRECTORY: Final = 0o755


class Promise(Value, forbid_unknown_fields=False):
    """A volume was asked for and has no lease yet. `digest`: the version that it will get, empty while that is unknown;
    `exactly`: the request named it. `later`: the volume is mounted already and is filled when the version is here.
    `owner` is for people: which pod; `pod_uid` is that pod's. `since` in seconds since the epoch.
    """

    volume_id: str
    model: str
    namespace: str
    since: float
    uri: str = ""
    digest: str = ""
    exactly: bool = False
    owner: str = ""
    view: Literal["files", "hf"] = "files"
    later: bool = False
    page_cache: bool = False
    pod_uid: str = ""


class Promises:
    """All promises, in memory as on disk, and which volumes have a directory. The store's lock is held for every
    change. What can't be read is dropped: the kubelet asks again."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._promises: dict[str, Promise] = {}
        self.directories: set[str] = set()

    def scan(self) -> None:
        """Read what is there."""
        for entry in entries(self._layout.promises):
            try:
                with open(entry.path, "rb") as file:
                    promise = msgspec.json.decode(file.read(), type=Promise)
            except (msgspec.MsgspecError, ValueError):
                promise = None
            if promise is None or promise.volume_id != entry.name or not is_volume_id(entry.name):
                LOG.warning("a volume's promise can't be read and was removed", extra={"volume": entry.name})
                os.unlink(entry.path)
                continue
            self._promises[promise.volume_id] = promise
        self.directories = {entry.name for entry in entries(self._layout.volumes) if is_volume_id(entry.name)}

    def all(self) -> list[Promise]:
        """Every one."""
        return list(self._promises.values())

    def get(self, volume_id: str) -> Promise | None:
        """What a volume was promised."""
        return self._promises.get(volume_id)

    def put(self, promise: Promise) -> None:
        """Write it down; on return it has survived a power cut."""
        if self._promises.get(promise.volume_id) != promise:
            content = canonical_json(msgspec.to_builtins(promise)) + b"\n"
            write_whole(self._layout.promise(promise.volume_id), content)
            self._promises[promise.volume_id] = promise

    def drop(self, volume_id: str) -> None:
        """It is kept, or nobody waits for it any more. Absent is fine."""
        if self._promises.pop(volume_id, None) is not None:
            os.unlink(self._layout.promise(volume_id))
            sync_directory(self._layout.promises)

    def make_directory(self, volume_id: str) -> None:
        """The directory to be filled later; one that is there is fine."""
        if volume_id in self.directories:
            return
        top = self._layout.volume(volume_id)
        for directory in (top, f"{top}/{MARKS}"):
            try:
                os.mkdir(directory)
            except FileExistsError:
                continue
            os.chmod(directory, _PUBLIC_DIRECTORY)
        sync_all([top, self._layout.volumes], self._layout.root)
        self.directories.add(volume_id)


def write_progress(layout: Layout, volume_id: str, line: str) -> None:
    """Replace the line that says how far a volume is. Not durable: the next one comes. One that is whole keeps its last
    line: it is read-only."""
    if filled_with(layout, volume_id):
        return
    _replace(f"{layout.volume(volume_id)}/{MARKS}/{PROGRESS}", line.encode() + b"\n")


def fill(layout: Layout, volume_id: str, digest: str, view: str) -> None:
    """Link every file of the view into the volume's directory, durably, then set the mark. May be done again after a
    crash at any point. Raises UnsafeContent, OSError."""
    if filled_with(layout, volume_id) != digest:
        _fill(layout, volume_id, digest, view)
    top = layout.volume(volume_id)
    os.chmod(f"{top}/{MARKS}", READ_ONLY)
    os.chmod(top, READ_ONLY)


def _fill(layout: Layout, volume_id: str, digest: str, view: str) -> None:
    source, top = f"{layout.model(digest)}/{view}", layout.volume(volume_id)
    if os.path.lexists(f"{source}/{MARKS}"):
        raise UnsafeContent(
            f"the model holds a file below {MARKS}/, where a volume that is filled later has its marks",
            hint="mount it with `wait: mount`, or exclude that path from the source",
        )
    made = [top]
    for directory, names in _walk(source):
        target = top + directory.removeprefix(source)
        if target != top:
            _make(target)
            made.append(target)
        for name in names:
            try:
                link_file(f"{directory}/{name}", f"{target}/{name}")
            except FileExistsError:  # by an earlier try: nobody else writes here
                continue
    sync_all(made, layout.root)
    for directory in made[1:]:
        os.chmod(directory, READ_ONLY)
    mark = f"{top}/{MARKS}/{READY}"
    write_whole(mark, msgspec.json.encode({"digest": digest}) + b"\n", mode=_PUBLIC_FILE)


def filled_with(layout: Layout, volume_id: str) -> str:
    """The digest that a volume's mark names; empty when there is no mark."""
    try:
        with open(f"{layout.volume(volume_id)}/{MARKS}/{READY}", "rb") as file:
            content: Any = msgspec.json.decode(file.read())
    except (OSError, msgspec.MsgspecError):
        return ""
    digest = content.get("digest", "") if isinstance(content, dict) else ""
    return digest if isinstance(digest, str) else ""


def mounted_digest(layout: Layout, volume_id: str, path: str) -> str:
    """The version that a mounted path, relative to the root, belongs to; empty for one that is not filled yet, or that
    is not there any more."""
    parts = path.strip("/").split("/")
    if parts[0] == "models" and len(parts) > 1:
        digest = digest_of(parts[1]) or ""
        return digest if digest and os.path.isdir(layout.model(digest)) else ""
    if parts[0] == "volumes" and len(parts) > 1 and is_volume_id(parts[1]):
        digest = filled_with(layout, parts[1])
        return digest if digest and os.path.isdir(layout.model(digest)) else ""
    LOG.warning("a mount is nothing of ours", extra={"volume": volume_id, "path": path[:200]})
    return ""


def _walk(top: str) -> Iterator[tuple[str, list[str]]]:
    for directory, _, names in os.walk(top, onerror=_raise):
        yield directory, names


def _raise(error: OSError) -> None:
    raise error


def _make(directory: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(directory)
    os.chmod(directory, _PUBLIC_DIRECTORY)


def _replace(path: str, content: bytes) -> None:
    directory, name = os.path.split(path)
    temporary = f"{directory}/.{name}.tmp"
    fd = open_temporary(temporary)
    try:
        write_all(fd, content)
        os.fchmod(fd, _PUBLIC_FILE)
    finally:
        os.close(fd)
    os.rename(temporary, path)
