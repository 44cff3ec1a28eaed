"""A reference reader of locations: the fewest lines that do what a location promises, with nothing but the standard
library."""

from __future__ import annotations

import http.client
import os
import ssl
from urllib.parse import urlsplit

from cacheagent.errors import OriginForbidden, OriginNotFound, SourceChanged
from cacheagent.location import HttpLocation, Location

_REFUSALS = {403: OriginForbidden, 404: OriginNotFound, 412: SourceChanged}


def read_range(location: Location, offset: int, length: int) -> bytes:
    """Bytes of a range. Raises SourceChanged, OriginNotFound, OriginForbidden."""
    if isinstance(location, HttpLocation):
        return _get(location, {"Range": f"bytes={offset}-{offset + length - 1}"}, expected=206)[0]
    with open(location.path, "rb") as stream:
        status = os.fstat(stream.fileno())
        if (status.st_size, status.st_mtime_ns) != (location.size_bytes, location.mtime_ns):
            raise SourceChanged(location.path)
        stream.seek(offset)
        return stream.read(length)


def read_whole(location: Location) -> tuple[bytes, dict[str, str]]:
    """All bytes and the answer's headers, asked for without Range."""
    if isinstance(location, HttpLocation):
        return _get(location, {}, expected=200)
    return read_range(location, 0, location.size_bytes), {}


def _get(location: HttpLocation, headers: dict[str, str], *, expected: int) -> tuple[bytes, dict[str, str]]:
    parts = urlsplit(location.url)
    assert parts.hostname is not None
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=location.ca_bundle or None)
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=60, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    try:
        connection.request(
            "GET", f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=location.headers | headers
        )
        answer = connection.getresponse()
        body, answered = answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()
    if answer.status in _REFUSALS:
        raise _REFUSALS[answer.status](f"{parts.path}: {answer.status}")
    assert answer.status == expected, f"{parts.path}: {answer.status} instead of {expected}: {body[:200]!r}"
    if location.etag and answered.get("etag") != location.etag:
        raise SourceChanged(f"{parts.path}: ETag {answered.get('etag')} instead of {location.etag}")
    return body, answered
