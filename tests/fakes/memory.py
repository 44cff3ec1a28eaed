"""An origin and a transport in memory, for tests of the main path that need no process and no network.

`MemoryOrigin` is a Source over a dict; `MemoryTransport` writes that dict's bytes to the targets, piece by piece, and
can be held at any file, made to fail, or asked what it fetched.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
from blake3 import blake3

from cacheagent.errors import OriginNotFound, SourceChanged
from cacheagent.location import HttpLocation, Location
from cacheagent.model import FileHashes, RemoteFile, TrustDomain, piece_count, piece_range
from cacheagent.source.base import Listing
from cacheagent.transfer.base import BlobOrder, Locate, OnPiece, OnSmall, Share, SmallOrder, SmallResult


class MemoryOrigin:
    """Objects by path. Changing `objects` changes what the next listing shows; an ETag is the content's hash."""

    kind = "simulated"

    def __init__(self, objects: dict[str, bytes], *, endpoint: str = "memory://origin", credential: str = "") -> None:
        self.objects = objects
        self.trust_domain = TrustDomain(endpoint=endpoint, credential=credential)
        self.listings = 0
        self.closed = 0
        self.fail_listing: Exception | None = None

    def _file(self, path: str) -> RemoteFile:
        content = self.objects[path]
        identity = {"endpoint": self.trust_domain.endpoint, "key": path, "etag": hashlib.md5(content).hexdigest()}
        return RemoteFile(path=path, size_bytes=len(content), identity=identity)

    async def list(self) -> Listing:
        self.listings += 1
        if self.fail_listing is not None:
            raise self.fail_listing
        return Listing(files=tuple(self._file(path) for path in self.objects))

    async def describe(self, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
        return tuple(files)

    async def read(self, file: RemoteFile, limit_bytes: int) -> bytes:
        return self.bytes_of(file.path, file.identity["etag"])

    async def locate(self, files: Sequence[RemoteFile]) -> Sequence[Location]:
        return [HttpLocation(url=file.path, etag=file.identity["etag"]) for file in files]

    async def close(self) -> None:
        self.closed += 1

    def bytes_of(self, path: str, etag: str) -> bytes:
        """The object if it still is the one that was listed."""
        if path not in self.objects:
            raise OriginNotFound(f"{path}: gone")
        if hashlib.md5(self.objects[path]).hexdigest() != etag:
            raise SourceChanged(f"{path}: changed")
        return self.objects[path]


class MemoryTransport:
    """Brings bytes of a MemoryOrigin to disk. `hold(path)` keeps a file from arriving until `release(path)`."""

    def __init__(self, *origins: MemoryOrigin) -> None:
        self.origins = origins
        self.fetches: Counter[str] = Counter()
        self.pieces: Counter[str] = Counter()
        self.priorities: dict[str, int] = {}
        self.raised: list[tuple[int, int]] = []
        self.caps: dict[str, int] = {}
        self.failures: dict[str, list[Exception]] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._started: dict[str, asyncio.Event] = {}

    def hold(self, path: str) -> None:
        self._gates[path] = asyncio.Event()

    def release(self, path: str) -> None:
        self._gates[path].set()

    async def wait_until_started(self, path: str) -> None:
        await self._started.setdefault(path, asyncio.Event()).wait()

    async def fetch(
        self, order: BlobOrder, locate: Locate, on_piece: OnPiece, share: Share | None = None
    ) -> FileHashes:
        location = await locate()
        content = await self._arrive(location)
        self.priorities[str(location.url if isinstance(location, HttpLocation) else "")] = order.priority
        pieces = []
        with open(order.target, "r+b") as target:
            for index in range(piece_count(order.size_bytes)):
                offset, length = piece_range(order.size_bytes, index)
                part = content[offset : offset + length]
                name = blake3(part).hexdigest()
                claimed = order.claimed.get(index) == name
                if not claimed:
                    target.seek(offset)
                    target.write(part)
                    self.pieces[self._path(location)] += 1
                pieces.append(name)
                on_piece(index, name, length, "kept" if claimed else "fetched")
        return FileHashes(pieces=tuple(pieces))

    async def fetch_piece(self, order: BlobOrder, index: int, locate: Locate) -> str:
        raise NotImplementedError

    async def fetch_small(
        self, orders: Sequence[SmallOrder], source_kind: str, on_done: OnSmall, *, priority: int = 0, cap: str = ""
    ) -> None:
        for order in orders:
            content = await self._arrive(order.location)
            Path(order.target).write_bytes(content)
            pieces = (blake3(content).hexdigest(),) if content else ()
            on_done([SmallResult(blob_id=order.blob_id, hashes=FileHashes(pieces=pieces))])

    def raise_priority(self, blobs: Collection[str], priority: int) -> None:
        self.raised.append((len(blobs), priority))

    def set_cap(self, name: str, bytes_per_s: int) -> None:
        self.caps[name] = bytes_per_s

    async def rehash(self, target: str, size_bytes: int, indexes: Sequence[int]) -> dict[int, str]:
        content = Path(target).read_bytes()
        spans = {index: piece_range(size_bytes, index) for index in indexes}
        return {index: blake3(content[at : at + length]).hexdigest() for index, (at, length) in spans.items()}

    async def close(self) -> None:
        pass

    @staticmethod
    def _path(location: Location) -> str:
        assert isinstance(location, HttpLocation)
        return location.url

    async def _arrive(self, location: Location) -> bytes:
        assert isinstance(location, HttpLocation), msgspec.to_builtins(location)
        path = location.url
        self.fetches[path] += 1
        self._started.setdefault(path, asyncio.Event()).set()
        if path in self._gates:
            await self._gates[path].wait()
        if self.failures.get(path):
            raise self.failures[path].pop(0)
        for origin in self.origins:
            if path in origin.objects:
                return origin.bytes_of(path, location.etag)
        raise OriginNotFound(f"{path}: nowhere")
