"""Reading the head of an HTTP/1.1 answer, strictly, and judging whether it is the one that was asked for. Pure.

"Strictly": what two readers could understand differently (two lengths, folded headers, a length beside chunks) is
refused, not guessed.
"""

from __future__ import annotations

import base64
import re
from typing import Final, NamedTuple

from cacheagent.model import Algorithm, Checksum
from cacheagent.transfer.failure import OrderFailed

HEAD_LIMIT_BYTES: Final = 16 * 1024
"""Of status line and headers. S3 and the Hub send 0.3 to 2 KB; other clients stop at 8 to 100 KB. Chosen."""

HEADER_LIMIT: Final = 100
"""Number of header lines. `http.client` has the same limit."""

_AMZ: Final[tuple[Algorithm, ...]] = ("crc32", "crc32c", "crc64nvme", "sha1", "sha256")
_END: Final = b"\r\n\r\n"
_STATUS_LINE: Final = re.compile(r"HTTP/1\.(?P<version>[01]) (?P<code>[0-9]{3})(?: (?P<reason>.*))?")


class Head(NamedTuple):
    """Status and headers (names in lower case) of one answer. `length`: Content-Length in bytes, None without one."""

    status: int
    reason: str
    headers: dict[str, str]
    length: int | None
    keep_alive: bool


def find_end(data: memoryview, filled: int) -> int:
    """Index just after the head, or -1 while it is incomplete. OrderFailed("protocol") when it grows too long."""
    end = bytes(data[: min(filled, HEAD_LIMIT_BYTES)]).find(_END)
    if end >= 0:
        return end + len(_END)
    if filled >= HEAD_LIMIT_BYTES:
        raise _refused(f"its head is longer than {HEAD_LIMIT_BYTES} bytes")
    return -1


def parse_head(data: bytes) -> Head:
    """`data` ends with the empty line. Raises OrderFailed("protocol")."""
    first, *lines = data[: -len(_END)].decode("latin-1").split("\r\n")
    found = _STATUS_LINE.fullmatch(first)
    if found is None:
        raise _refused(f"it begins with {first[:40]!r}")
    if len(lines) > HEADER_LIMIT:
        raise _refused(f"it has {len(lines)} headers, more than {HEADER_LIMIT}")
    headers = _parse_headers(lines)
    connection = headers.get("connection", "" if found["version"] == "1" else "close")
    return Head(
        int(found["code"]), found["reason"] or "", headers, _parse_length(headers), "close" not in connection.lower()
    )


def _parse_headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip() or "\r" in line or "\n" in line:
            raise _refused(f"a header line is {line[:40]!r}")
        headers[name.lower()] = value.strip(" \t")
    if len(headers) != len(lines):
        values = {line.partition(":")[2].strip() for line in lines if line.lower().startswith("content-length:")}
        if len(values) > 1:
            raise _refused(f"it has several lengths, {', '.join(sorted(values))[:60]}")
    return headers


def _parse_length(headers: dict[str, str]) -> int | None:
    value = headers.get("content-length")
    if "transfer-encoding" in headers and value is not None:
        raise _refused("it has a Content-Length and a Transfer-Encoding")
    if value is None:
        return None
    if not (value.isdecimal() and value.isascii() and len(value) < 19):
        raise _refused(f"Content-Length is {value[:40]!r}")
    return int(value)


def require_range(head: Head, *, offset: int, length: int, file_size: int) -> None:
    """The answer brings exactly these bytes of a file of this size: a 206, or a 200 where all bytes were wanted.
    Raises OrderFailed: "changed" when the file has another size, else "protocol".
    """
    if head.status == 200:
        if length != file_size:
            raise _refused(f"the server ignored Range (status 200 for {length} of {file_size} bytes)")
        require_length(head, file_size)
        return
    if head.length is None:
        raise _refused("a 206 without Content-Length")
    unit, _, rest = head.headers.get("content-range", "").partition(" ")
    span, _, total = rest.partition("/")
    if total.isdecimal() and int(total) != file_size:
        raise OrderFailed("changed", f"has {total} bytes now, not {file_size}")
    if (unit, span) != ("bytes", f"{offset}-{offset + length - 1}"):
        found = head.headers.get("content-range", "none")[:60]
        raise _refused(f"Content-Range is {found!r}, wanted bytes {offset}-{offset + length - 1}/{file_size}")
    if head.length != length:
        raise _refused(f"Content-Length is {head.length}, wanted {length}")


def require_length(head: Head, size_bytes: int) -> None:
    """A 200 with the whole file, of the size that was listed. Raises OrderFailed."""
    if head.length is None:
        raise _refused("a 200 without Content-Length")
    if head.length != size_bytes:
        raise OrderFailed("changed", f"has {head.length} bytes now, not {size_bytes}")


def require_same(head: Head, etag: str) -> None:
    """The answer is about the object that was listed. Raises OrderFailed("changed").

    Content-Encoding is no matter: S3 repeats what an object was stored with, and a server that compresses on the way
    changes the length, which is checked.
    """
    if etag and _bare(head.headers.get("etag", "")) != _bare(etag):
        raise OrderFailed("changed", f"ETag is {head.headers.get('etag', 'missing')[:80]}, was {etag[:80]}")


def offered_checksums(head: Head) -> tuple[Checksum, ...]:
    """What S3's `x-amz-checksum-*` headers promise about a whole object. Composites of several parts are left out: an
    answer doesn't say how long its parts are.
    """
    found = []
    for algorithm in _AMZ:
        value, _, parts = head.headers.get(f"x-amz-checksum-{algorithm}", "").partition("-")
        if value and parts in {"", "1"}:
            runs = ((head.length or 0, 1),) if parts else ()
            found.append(Checksum(algorithm=algorithm, value=_unbase64(value), parts=runs))
    return tuple(found)


def retry_after_s(head: Head, now: float) -> float:
    """Seconds that the server asks for, -1 where it doesn't say. `now`: seconds since the epoch."""
    value = head.headers.get("retry-after", "")
    if value.isdecimal() and len(value) < 9:
        return float(value)
    if not value:
        return -1.0
    from email.utils import parsedate_to_datetime  # seldom needed, and slow to import

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return -1.0


def excerpt(body: bytes, secrets: tuple[str, ...]) -> str:
    """What an error's body says to a person: S3's code and message, or the beginning; at most 200 characters, without
    control characters and without anything that the request had to keep secret.
    """
    text = body.decode("utf-8", "replace")
    for secret in secrets:
        text = text.replace(secret, "***")
    code, message = _element(text, "Code"), _element(text, "Message")
    said = f"{code}: {message}" if code else text
    return " ".join("".join(char if char.isprintable() else " " for char in said).split())[:200]


def _element(text: str, name: str) -> str:
    _, found, rest = text.partition(f"<{name}>")
    return rest.partition(f"</{name}>")[0] if found else ""


def _unbase64(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).hex()
    except ValueError as error:
        raise _refused(f"a checksum header is {value[:40]!r}") from error


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _refused(what: str) -> OrderFailed:
    return OrderFailed("protocol", f"the answer can't be used: {what}")
