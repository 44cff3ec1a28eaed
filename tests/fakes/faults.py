"""The ways in which an HTTP server misbehaves; each is a value for `HttpServer.inject`.

Positions count bytes of one answer's body.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from tests.fakes.content import Content
from tests.fakes.exchange import Answer, Exchange

ENDLESS_BYTES = 64 << 20
"""Where an endless header ends after all, should nobody stop it."""


class Fault(Protocol):
    """Answers one request in its own way."""

    def play(self, exchange: Exchange) -> None:
        """Do it, on the connection's thread."""


@dataclass(frozen=True)
class Status:
    """Another status, with a body of its own; `retry_after` is seconds or an HTTP date."""

    status: int
    retry_after: str = ""
    body: bytes = b"<Error><Code>Injected</Code><Message>a fault of the test</Message></Error>"

    def play(self, exchange: Exchange) -> None:
        headers = {"Retry-After": self.retry_after} if self.retry_after else {}
        exchange.answer = Answer(status=self.status, content=Content(self.body, etag=""), headers=headers)
        exchange.play()


@dataclass(frozen=True)
class Redirect:
    """To another URL."""

    location: str
    status: int = 302

    def play(self, exchange: Exchange) -> None:
        exchange.answer = Answer(status=self.status, headers={"Location": self.location})
        exchange.play()


@dataclass(frozen=True)
class Reset:
    """RST once the client's kernel has the first `after_bytes` of the body."""

    after_bytes: int = 0

    def play(self, exchange: Exchange) -> None:
        exchange.send_head()
        exchange.send_body(self.after_bytes)
        exchange.reset()


@dataclass(frozen=True)
class Truncate:
    """A clean close after `after_bytes` of a body that was promised whole."""

    after_bytes: int = 0

    def play(self, exchange: Exchange) -> None:
        exchange.send_head()
        exchange.send_body(self.after_bytes)
        exchange.close()


@dataclass(frozen=True)
class WrongBytes:
    """The right length, and `count` bytes from `at` inverted."""

    at: int = 0
    count: int = 1

    def play(self, exchange: Exchange) -> None:
        exchange.send_head()
        exchange.send_body(self.at)
        first = exchange.answer.start + self.at
        right = exchange.answer.content.read(first, min(first + self.count, exchange.answer.span[1]))
        exchange.send_instead(bytes(byte ^ 0xFF for byte in right))
        exchange.send_body()


@dataclass(frozen=True)
class Stall:
    """Silence after `after_bytes`, until `release()`, `heal()`, the client's leaving or the time is over."""

    after_bytes: int = 0
    seconds: float = math.inf

    def play(self, exchange: Exchange) -> None:
        exchange.send_head()
        exchange.send_body(self.after_bytes)
        if exchange.wait(self.seconds):
            exchange.send_body()
        else:
            exchange.close()


@dataclass(frozen=True)
class SlowFirstByte:
    """Silence before the first byte of the answer."""

    seconds: float = math.inf

    def play(self, exchange: Exchange) -> None:
        if exchange.wait(self.seconds):
            exchange.play()
        else:
            exchange.close()


@dataclass(frozen=True)
class Drip:
    """The right bytes at `bytes_per_s`, a few at a time, so that the connection is never silent for long."""

    bytes_per_s: int
    after_bytes: int = 0

    def play(self, exchange: Exchange) -> None:
        exchange.send_head()
        exchange.send_body(self.after_bytes)
        step = max(1, self.bytes_per_s // 20)
        for stop in range(self.after_bytes + step, exchange.body_length + step, step):
            if not exchange.wait(step / self.bytes_per_s):
                exchange.close()
                return
            exchange.send_body(stop)


@dataclass(frozen=True)
class Replace:
    """The object becomes `content` before this request is answered, or once `after_bytes` of the old one are out.

    `mixed`: the rest of the answer is the new object's bytes at the same offsets, as when a file is written in place.
    """

    content: Content
    after_bytes: int | None = None
    mixed: bool = False

    def play(self, exchange: Exchange) -> None:
        if self.after_bytes is None:
            exchange.server.replace(exchange.request.path, self.content)
            exchange.answer_again()
            exchange.play()
            return
        exchange.send_head()
        exchange.send_body(self.after_bytes)
        exchange.server.replace(exchange.request.path, self.content)
        if self.mixed:
            exchange.answer.content = self.content
        exchange.send_body()


@dataclass(frozen=True)
class NoLength:
    """No Content-Length: the body ends where the connection does."""

    def play(self, exchange: Exchange) -> None:
        exchange.close()
        exchange.send_head(without=("Content-Length",))
        exchange.send_body()


@dataclass(frozen=True)
class Chunked:
    """Transfer-Encoding: chunked instead of Content-Length."""

    def play(self, exchange: Exchange) -> None:
        exchange.send_head(without=("Content-Length",), Transfer_Encoding="chunked")
        exchange.send_raw(f"{exchange.body_length:x}\r\n".encode() if exchange.body_length else b"")
        exchange.send_body()
        exchange.send_raw(b"\r\n0\r\n\r\n" if exchange.body_length else b"0\r\n\r\n")


@dataclass(frozen=True)
class WrongRange:
    """Content-Range claims other bytes than were asked for; the body has the right length."""

    shift: int = 1

    def play(self, exchange: Exchange) -> None:
        start, stop = exchange.answer.span
        size = exchange.answer.content.size_bytes
        exchange.send_head(Content_Range=f"bytes {start + self.shift}-{stop + self.shift - 1}/{size}")
        exchange.send_body()


@dataclass(frozen=True)
class IgnoreRange:
    """200 with the whole object, whatever was asked for."""

    def play(self, exchange: Exchange) -> None:
        exchange.request.headers.pop("range", None)
        exchange.answer_again()
        exchange.play()


@dataclass(frozen=True)
class EndlessHeader:
    """A header section that does not end (until 64 MiB)."""

    def play(self, exchange: Exchange) -> None:
        exchange.close()
        exchange.send_raw(b"HTTP/1.1 206 Partial Content\r\n")
        line = b"X-Filler: " + b"x" * 1000 + b"\r\n"
        for _ in range(ENDLESS_BYTES // len(line)):
            exchange.send_raw(line)


@dataclass(frozen=True)
class NotHttp:
    """Bytes that are no HTTP answer."""

    data: bytes = b"SSH-2.0-OpenSSH_9.2\r\n"

    def play(self, exchange: Exchange) -> None:
        exchange.send_raw(self.data)
        exchange.close()
