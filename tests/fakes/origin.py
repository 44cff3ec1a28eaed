"""A web server over a dict of files, with ranges, conditions and checksum lists, on which any misfortune can be played.

with Origin({"a.bin": data}) as origin:
    origin.add_sums()
    origin.inject(Reset(after_bytes=1000), path="a.bin", nth=2)
    ...
    assert origin.body_bytes_sent("a.bin") == len(data) + 1000
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Self

from tests.fakes.content import Content
from tests.fakes.exchange import Answer, Request
from tests.fakes.http_server import HttpServer


class Origin(HttpServer):
    """Files by path (no leading slash). GET and HEAD with one range, If-Match, If-None-Match, If-Unmodified-Since.

    `token`: everybody must show it as a bearer token: 401 without, 403 with another.
    """

    def __init__(
        self,
        files: Mapping[str, bytes | Path | Content] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        bytes_per_s: float | None = None,
        token: str = "",
        host: str = "127.0.0.1",
    ) -> None:
        super().__init__(tls=tls, bytes_per_s=bytes_per_s, host=host)
        self.files: dict[str, Content] = {}
        self.token = token
        for path, source in (files or {}).items():
            self.put(path, source)

    @classmethod
    def of_directory(cls, root: Path, *, tls: ssl.SSLContext | None = None, bytes_per_s: float | None = None) -> Self:
        """A server of every file below a directory, as they are now."""
        files = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}
        return cls(files, tls=tls, bytes_per_s=bytes_per_s)

    def put(self, path: str, source: bytes | Path | Content) -> None:
        """Make or replace a file."""
        self.files[path.lstrip("/")] = source if isinstance(source, Content) else Content(source)

    def replace(self, path: str, content: Content) -> None:
        self.put(path, content)

    def remove(self, path: str) -> None:
        """It answers 404 from now on."""
        del self.files[path.lstrip("/")]

    def add_sums(self, directory: str = "", *, paths: Iterable[str] | None = None) -> None:
        """Make `SHA256SUMS` in a directory over what is below it now (or over `paths`, relative to it)."""
        prefix = f"{directory.strip('/')}/" if directory else ""
        below = (
            [path.removeprefix(prefix) for path in self.files if path.startswith(prefix)] if paths is None else paths
        )
        lines = [f"{self.files[prefix + path].sha256()}  {path}\n" for path in below]
        self.put(f"{prefix}SHA256SUMS", "".join(lines).encode())

    def respond(self, request: Request) -> Answer:
        refused = self._refusal(request)
        if refused:
            return _plain(refused)
        content = self.files.get(request.path.lstrip("/"))
        if content is None:
            return _plain(404)
        return answer_with(content, request)

    def _refusal(self, request: Request) -> int | None:
        """The status for those who may not ask; None for those who may."""
        shown = request.headers.get("authorization", "")
        if not self.token or shown == f"Bearer {self.token}":
            return None
        return 403 if shown else 401


def answer_with(content: Content, request: Request) -> Answer:
    """The whole content or the range that was asked for, if the request's conditions hold."""
    headers = {"Accept-Ranges": "bytes", "Last-Modified": content.last_modified, **content.headers}
    if content.etag:
        headers["ETag"] = content.etag
    if not _conditions_hold(content, request):
        return Answer(status=412, headers=headers)
    if content.etag and request.headers.get("if-none-match") == content.etag:
        return Answer(status=304, headers=headers)
    if request.range is None:
        return Answer(status=200, content=content, headers=headers)
    first, stop = request.range
    stop = content.size_bytes if stop is None else min(stop, content.size_bytes)
    if first >= stop:
        return Answer(status=416, headers={"Content-Range": f"bytes */{content.size_bytes}"})
    headers["Content-Range"] = f"bytes {first}-{stop - 1}/{content.size_bytes}"
    return Answer(status=206, content=content, start=first, stop=stop, headers=headers)


def _conditions_hold(content: Content, request: Request) -> bool:
    wanted = request.headers.get("if-match")
    if wanted is not None:
        return wanted == "*" or content.etag in [each.strip() for each in wanted.split(",")]
    unmodified_since = request.headers.get("if-unmodified-since")
    if unmodified_since is None:
        return True
    return parsedate_to_datetime(content.last_modified) <= parsedate_to_datetime(unmodified_since)


def _plain(status: int) -> Answer:
    return Answer(status=status, content=Content(f"{status}\n".encode(), etag=""))
