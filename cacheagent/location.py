"""Where the bytes of one file can be had right now. Values; they may hold secrets and are never logged or stored."""

from __future__ import annotations

from typing import Any

from cacheagent.model import Value


class HttpLocation(Value, tag="http"):
    """Bytes that ranged GETs of one URL give. URL and headers may hold secrets: never logged.

    `etag`: every answer must carry this ETag (if any), else the object changed. `checksum_headers`: an answer to a GET
    without Range carries `x-amz-checksum-*` headers worth checking. `refused_networks`: see `spec.SourceSpec`.
    """

    url: str
    headers: dict[str, str] = {}
    etag: str = ""
    ca_bundle: str = ""
    checksum_headers: bool = False
    refused_networks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Without what may be secret: tracebacks and assertion messages show values."""
        return f"HttpLocation({self.url.partition('?')[0]!r}, …)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for rich's tracebacks."""
        return [("url", self.url.partition("?")[0])]


class PathLocation(Value, tag="path"):
    """Bytes of a file on a mounted filesystem, valid while size and mtime stay as they were."""

    path: str
    size_bytes: int
    mtime_ns: int


Location = HttpLocation | PathLocation
