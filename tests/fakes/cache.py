"""Models made of bytes in memory, brought into a store without sources or workers; and looks at what is on its disk."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from cacheagent.model import (
    SMALL_FILE_BYTES,
    FileHashes,
    Manifest,
    RemoteFile,
    TrustDomain,
    blob_id,
    piece_count,
    piece_range,
)
from cacheagent.store import Record, Reservation, Store, StorePolicy
from tests.privileges import make_removable

DOMAIN = TrustDomain(endpoint="memory://origin")
NO_FLOOR = StorePolicy(floor_bytes=0)


def content_of(seed: str, size_bytes: int) -> bytes:
    """Bytes that differ for every seed."""
    return blake3(seed.encode()).digest(length=size_bytes)


def hashes_of(content: bytes) -> FileHashes:
    """What a worker would report."""
    spans = [piece_range(len(content), index) for index in range(piece_count(len(content)))]
    return FileHashes(pieces=tuple(blake3(content[at : at + length]).hexdigest() for at, length in spans))


def file_of(path: str, content: bytes) -> RemoteFile:
    """A file whose identity is its content, so that equal files of two models share a blob."""
    identity = {"blob_id": blake3(content).hexdigest()}
    return RemoteFile(path=path, size_bytes=len(content), identity=identity)


def manifest_of(files: Mapping[str, bytes], *, repo_id: str = "", revision: str = "") -> Manifest:
    """A tree of these files."""
    listed = tuple(file_of(path, files[path]) for path in sorted(files))
    return Manifest(kind="tree", source_kind="simulated", files=listed, repo_id=repo_id, revision=revision)


def blobs_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Blob id to bytes."""
    return {blob_id(DOMAIN, file_of("any", content)): content for content in files.values()}


def reserve(store: Store, files: Mapping[str, bytes], *, priority: int = 0) -> Reservation:
    """Room for a model of these files."""
    sizes = {blob: len(content) for blob, content in blobs_of(files).items()}
    return store.reserve(manifest_of(files).digest, sizes, priority=priority)


def stage(store: Store, files: Mapping[str, bytes]) -> None:
    """Bring every blob that isn't here to disk, verified."""
    for blob, content in blobs_of(files).items():
        if store.blob_hashes(blob) is not None:
            continue
        if len(content) >= SMALL_FILE_BYTES:
            staged = store.stage(blob, len(content))
            with open(staged.path, "r+b") as target:
                target.write(content)
            for index, name in enumerate(hashes_of(content).pieces):
                staged.append(index, name)
            staged.verified(hashes_of(content))
        elif not store.prove_small([blob]):
            Path(store.small_path(blob)).write_bytes(content)
            store.small_done([(blob, len(content), hashes_of(content))])


def publish(
    store: Store,
    files: Mapping[str, bytes],
    *,
    name: str = "m",
    pin: bool = False,
    priority: int = 0,
    repo_id: str = "",
) -> Record:
    """Make staged files visible."""
    hashes = {blob: hashes_of(content) for blob, content in blobs_of(files).items()}
    return store.publish(
        manifest_of(files, repo_id=repo_id),
        DOMAIN,
        hashes,
        uri="memory://origin/m",
        name=name,
        pin=pin,
        priority=priority,
    )


def bring(
    store: Store,
    files: Mapping[str, bytes],
    *,
    name: str = "m",
    pin: bool = False,
    priority: int = 0,
    repo_id: str = "",
) -> Record:
    """The whole life of a model up to its publication."""
    reservation = reserve(store, files, priority=priority)
    try:
        stage(store, files)
        return publish(store, files, name=name, pin=pin, priority=priority, repo_id=repo_id)
    finally:
        reservation.release()


def files_under(path: Path) -> dict[str, bytes]:
    """Every file below, by its relative path."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def names_in(root: Path, *directories: str) -> set[str]:
    """Every file and directory below these, relative to the root."""
    return {str(path.relative_to(root)) for name in directories for path in (root / name).rglob("*")}


def remove_cache(root: Path) -> None:
    """All of a cache directory."""
    make_removable(root)
    shutil.rmtree(root)


def assert_nothing_unverified(root: Path, models: Mapping[str, Mapping[str, bytes]]) -> None:
    """I1 and I2: what is under models/ is, byte for byte and mode by mode, a subset of these versions (by digest)."""
    for tree in (root / "models").iterdir():
        digest = tree.name.replace("-", ":", 1)
        assert digest in models, f"{tree} is nobody's"
        assert files_under(tree / "files") == models[digest]
        for path in [tree, *tree.rglob("*")]:
            expected = 0o555 if path.is_dir() else 0o444
            assert stat.S_IMODE(path.lstat().st_mode) == expected, path
    for blob in (root / "blobs").iterdir():
        assert stat.S_IMODE(blob.stat().st_mode) == 0o444, blob


class Crash(BaseException):
    """The process is gone."""


_MUTATIONS = ("mkdir", "rename", "link", "unlink", "rmdir", "chmod", "fchmod", "utime", "fsync", "posix_fallocate")


class Doom:
    """Counts the changes that a process makes to the disk and ends it before the n-th; a write is torn in its middle.
    From then on it changes nothing any more, whatever its `finally` blocks try.
    """

    def __init__(self, at: int) -> None:
        self.left = at
        self.trace: list[str] = []

    @property
    def came(self) -> bool:
        return self.left < 0

    def step(self, name: str, *arguments: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash
        self.trace.append(" ".join([name, *map(str, arguments)]))


@contextmanager
def doomed(at: int) -> Iterator[Doom]:
    """Run the block as a process that dies before its change number `at` (from 0); the block sees no exception then.
    Nothing waits for the disk."""
    doom = Doom(at)
    with pytest.MonkeyPatch.context() as patch:
        for name in _MUTATIONS:
            real = getattr(os, name)

            def mutate(*args: object, _name: str = name, _real: object = real, **kwargs: object) -> object:
                doom.step(_name, *args)
                return None if _name == "fsync" else _real(*args, **kwargs)  # type: ignore[operator]

            patch.setattr(os, name, mutate)
        patch.setattr(os, "open", _mutating_open(doom, os.open))
        patch.setattr(os, "write", _torn_write(doom, os.write))
        patch.setattr("cacheagent.store.durable._sync_filesystem", lambda root: doom.step("syncfs", root))
        try:
            yield doom
        except Crash:
            assert doom.came


@contextmanager
def immortal() -> Iterator[None]:
    """Run the block without waiting for the disk: what a power cut does is not what these tests are about."""
    with doomed(sys.maxsize):
        yield


def _mutating_open(doom: Doom, real: object) -> object:
    def opened(path: object, flags: int, *args: object, **kwargs: object) -> object:
        if flags & (os.O_CREAT | os.O_TRUNC):
            doom.step("open", path)
        return real(path, flags, *args, **kwargs)  # type: ignore[operator]

    return opened


def _torn_write(doom: Doom, real: object) -> object:
    def write(fd: int, content: bytes) -> object:
        try:
            doom.step("write")
        except Crash:
            if doom.left == -1:
                real(fd, content[: len(content) // 2])  # type: ignore[operator]
            raise
        return real(fd, content)  # type: ignore[operator]

    return write
