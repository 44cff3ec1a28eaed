"""Turning a location into the bytes of a GET, and into the words that may be said about it. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import unquote

from cacheagent import __version__
from cacheagent.location import HttpLocation, PathLocation
from cacheagent.transfer.failure import OrderFailed

_PORTS: Final = {"http": 80, "https": 443}
_SHORTEST_SECRET: Final = 6  # shorter values ("1", "GET") would blacken ordinary words


class Endpoint(NamedTuple):
    """What a connection is made to; connections are shared between orders with the same one."""

    scheme: str
    host: str
    port: int
    ca_bundle: str


class Request(NamedTuple):
    """A GET of one location. `shown` names it in messages: no query, no user info."""

    endpoint: Endpoint
    start: bytes
    shown: str
    location: HttpLocation

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may repeat: values of the query and of headers."""
        values = [field.partition("=")[2] for field in self.location.url.partition("?")[2].split("&")]
        values += [unquote(value) for value in values]
        for value in self.location.headers.values():
            values += [value, *value.split()]
        return tuple(sorted({value for value in values if len(value) >= _SHORTEST_SECRET}, key=len, reverse=True))

    def whole(self) -> bytes:
        """The request for all bytes."""
        return self.start + b"\r\n"

    def range(self, offset: int, length: int) -> bytes:
        """The request for a range."""
        return b"%sRange: bytes=%d-%d\r\n\r\n" % (self.start, offset, offset + length - 1)


def make_request(location: HttpLocation) -> Request:
    """Raises OrderFailed("protocol") for a URL or header that can't be sent."""
    endpoint, authority, target = _split(location)
    path = target.partition("?")[0]
    headers = {"Host": authority, "User-Agent": f"cacheagent/{__version__}", "Accept-Encoding": "identity"}
    given = {name.lower() for name in location.headers}
    lines = [f"GET {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() not in given]
    lines += [f"{name}: {value}" for name, value in location.headers.items()]
    text = "\r\n".join(lines)
    shown = f"{endpoint.scheme}://{authority}{path}"
    if text.count("\r") != len(lines) - 1 or text.count("\n") != len(lines) - 1 or " " in target or not text.isascii():
        raise OrderFailed("protocol", f"{shown!a}: its URL or a header holds characters that a request can't carry")
    return Request(endpoint, text.encode() + b"\r\n", shown, location)


def _split(location: HttpLocation) -> tuple[Endpoint, str, str]:
    scheme, _, rest = location.url.partition("://")
    rest = rest.partition("#")[0]
    cut = min(at if (at := rest.find(mark)) >= 0 else len(rest) for mark in "/?")
    authority, target = rest[:cut].rpartition("@")[2], rest[cut:]
    if not target.startswith("/"):
        target = "/" + target
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):  # no port, maybe an IPv6 address
        host, port = authority, ""
    if scheme not in _PORTS or not host or not (port.isdecimal() or not port):
        raise OrderFailed("protocol", f"not an http or https URL: {scheme[:10]}://{authority[:80]}")
    endpoint = Endpoint(scheme, host.strip("[]"), int(port or _PORTS[scheme]), location.ca_bundle)
    return endpoint, authority, target


def describe(location: HttpLocation | PathLocation) -> str:
    """How messages name a location."""
    return location.path if isinstance(location, PathLocation) else make_request(location).shown
