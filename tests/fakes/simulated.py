"""The simplest complete source: objects in a dict, served by a real web server in this process.

    with SimulatedOrigin({"a.bin": data}) as origin:
        source = origin.source()
        origin.fail("list", OriginUnavailable("not today"), times=2)
        origin.inject(Reset(after_bytes=1000), path="a.bin")

Everything that a real origin can do to a transfer, `tests.fakes.origin` can do; what it can do to a listing is here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Self
from urllib.parse import quote

from cacheagent.errors import OriginForbidden, OriginNotFound, SourceChanged
from cacheagent.location import HttpLocation, Location
from cacheagent.model import RemoteFile, TrustDomain
from cacheagent.source.base import Listing
from tests.fakes.origin import Origin


class SimulatedOrigin(Origin):
    """Holds objects (`put`, `remove`), fails on request (`fail`), counts calls by name (`calls`)."""

    def __enter__(self) -> Self:
        self.calls: Counter[str] = Counter()
        self._failures: dict[str, list[Exception]] = {}
        super().__enter__()
        return self

    def source(self, *, credential: str = "") -> SimulatedSource:
        """A source of all objects; with a `token` on the server, whose name must be `credential`, only for those who
        name it."""
        return SimulatedSource(self, credential)

    def fail(self, call: str, error: Exception, *, times: int = 1) -> None:
        """Raise from the next calls of `list`, `describe`, `read` or `locate`."""
        self._failures.setdefault(call, []).extend([error] * times)

    def called(self, call: str) -> None:
        """Count a call and raise what was planned for it."""
        self.calls[call] += 1
        planned = self._failures.get(call)
        if planned:
            raise planned.pop(0)


class SimulatedSource:
    """See `cacheagent.source.base.Source`."""

    kind = "simulated"

    def __init__(self, origin: SimulatedOrigin, credential: str) -> None:
        self._origin = origin
        self._credential = credential
        self.trust_domain = TrustDomain(endpoint=origin.url, credential=credential)

    async def list(self) -> Listing:
        self._called("list")
        files = tuple(self._file(path) for path in self._origin.files)
        if not files:
            raise OriginNotFound(f"{self._origin.url} holds no objects", hint="put some")
        return Listing(files=files)

    async def describe(self, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
        self._called("describe")
        for file in files:
            self._check(file)
        return tuple(files)

    async def read(self, file: RemoteFile, limit_bytes: int) -> bytes:
        self._called("read")
        if file.size_bytes > limit_bytes:
            raise ValueError(f"{file.path} has {file.size_bytes} bytes, more than {limit_bytes}")
        self._check(file)
        return self._origin.files[file.path].read(0, file.size_bytes)

    async def locate(self, files: Sequence[RemoteFile]) -> Sequence[Location]:
        self._called("locate")
        headers = {"Authorization": f"Bearer {self._origin.token}"} if self._origin.token else {}
        return [
            HttpLocation(
                url=f"{self._origin.url}/{quote(file.path)}",
                headers={"If-Match": file.identity["etag"], **headers},
                etag=file.identity["etag"],
            )
            for file in files
        ]

    async def close(self) -> None:
        self._origin.calls["close"] += 1

    def _called(self, call: str) -> None:
        self._origin.called(call)
        if self._origin.token and not self._credential:
            raise OriginForbidden(f"{self._origin.url} wants a credential", hint="no credential was used")

    def _file(self, path: str) -> RemoteFile:
        content = self._origin.files[path]
        identity = {"endpoint": self._origin.url, "key": path, "etag": content.etag}
        return RemoteFile(path=path, size_bytes=content.size_bytes, identity=identity)

    def _check(self, file: RemoteFile) -> None:
        if file.path not in self._origin.files:
            raise OriginNotFound(f"{file.path} is gone")
        if self._file(file.path).identity != file.identity:
            raise SourceChanged(f"{file.path} is no longer the object that was listed")
