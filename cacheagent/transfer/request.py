"""Turning a location into the bytes of a GET, and into the words that may be said about it. Pure."""

from __future__ import annotations

from functools import lru_cache
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
    refused_networks: tuple[str, ...] = ()


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
            values += [value, *value.split()[1:]]
        return tuple(sorted({value for value in values if len(value) >= _SHORTEST_SECRET}, key=len, reverse=True))

    def whole(self) -> bytes:
        """The request for all bytes."""
        return self.start + b"\r\n"

    def range(self, offset: int, length: int) -> bytes:
        """The request for a range."""
        return b"%sRange: bytes=%d-%d\r\n\r\n" % (self.start, offset, offset + length - 1)


def make_request(location: HttpLocation) -> Request:
    """Raises OrderFailed("protocol") for a URL or header that can't be sent."""
    scheme, _, rest = location.url.partition("://")
    cut = min(at if (at := rest.find(mark)) >= 0 else len(rest) for mark in "/?#")
    target = rest[cut:].partition("#")[0]
    if not target.startswith("/"):
        target = "/" + target
    origin = _origin(scheme, rest[:cut], location.ca_bundle, location.refused_networks, tuple(location.headers))
    for name, value in location.headers.items():
        if not _can_be_sent(value):
            raise _unfit_header(origin.authority, name)
    shown = f"{scheme}://{origin.authority}" + target.partition("?")[0]
    if not _can_be_sent(target) or " " in target:
        raise OrderFailed("protocol", f"{shown!a}: a URL with characters that a request can't carry")
    own = "".join(f"{name}: {value}\r\n" for name, value in location.headers.items())
    return Request(origin.endpoint, f"GET {target} HTTP/1.1\r\n{origin.lines}{own}".encode(), shown, location)


class _Origin(NamedTuple):
    """What all requests to one server have in common. `lines`: the headers that a location doesn't give itself."""

    endpoint: Endpoint
    authority: str
    lines: str


@lru_cache(maxsize=64)
def _origin(
    scheme: str,
    authority: str,
    ca_bundle: str,
    refused_networks: tuple[str, ...],
    given: tuple[str, ...],
) -> _Origin:
    """`given`: names of headers. Their values are no part of it: S3's `If-Match` is another one for each object."""
    authority = authority.rpartition("@")[2]
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):  # no port, maybe an IPv6 address
        host, port = authority, ""
    if scheme not in _PORTS or not host or not (port.isdecimal() or not port) or not _can_be_sent(authority):
        raise OrderFailed("protocol", f"not an http or https URL: {scheme[:10]!a}, {authority[:80]!a}")
    for name in given:
        if not _can_be_sent(name):
            raise _unfit_header(authority, name)
    common = {"Host": authority, "User-Agent": f"cacheagent/{__version__}", "Accept-Encoding": "identity"}
    lower = {name.lower() for name in given}
    lines = "".join(f"{name}: {value}\r\n" for name, value in common.items() if name.lower() not in lower)
    endpoint = Endpoint(scheme, host.strip("[]"), int(port or _PORTS[scheme]), ca_bundle, refused_networks)
    return _Origin(endpoint, authority, lines)


def _unfit_header(authority: str, name: str) -> OrderFailed:
    return OrderFailed("protocol", f"{authority}: header {name!a} has characters that a request can't carry")


def _can_be_sent(text: str) -> bool:
    """No line ends above all: they would begin another header, or another request."""
    return text.isascii() and text.isprintable()


def describe(location: HttpLocation | PathLocation) -> str:
    """How messages name a location."""
    return location.path if isinstance(location, PathLocation) else make_request(location).shown
