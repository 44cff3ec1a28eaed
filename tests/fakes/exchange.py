"""One request to a fake server and its answer, in steps that a fault may take in its own way."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.fakes.content import Content, send_bytes

if TYPE_CHECKING:
    from tests.fakes.http_server import HttpServer

LONGEST_WAIT_S = 120.0
"""Chosen: nothing in a test waits longer, so that a broken one ends by itself."""

REASONS = {200: "OK", 206: "Partial Content", 302: "Found", 404: "Not Found", 412: "Precondition Failed"}


@dataclass(kw_only=True, eq=False)
class Request:
    """What a client asked, and what became of it. `path` is decoded; header names are lower-case."""

    number: int
    connection: int
    method: str
    path: str
    query: str
    headers: dict[str, str]
    started_s: float = field(default_factory=time.monotonic)
    status: int = 0
    body_bytes_sent: int = 0
    """Taken by the kernel; a client that was reset may have received less."""
    fault: str = ""
    finished: bool = False

    @property
    def range(self) -> tuple[int, int | None] | None:
        """First byte and one after the last (None: to the end) of `Range: bytes=first-last`."""
        unit, _, span = self.headers.get("range", "").partition("=")
        first, _, last = span.partition("-")
        return (int(first), int(last) + 1 if last else None) if unit == "bytes" and first else None


@dataclass(kw_only=True)
class Answer:
    """Status, headers and the part of a content that follows them; Content-Length is made from it."""

    status: int
    content: Content = field(default_factory=lambda: Content(b"", etag=""))
    start: int = 0
    stop: int | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def span(self) -> tuple[int, int]:
        """Which bytes of the content are the body."""
        return self.start, self.content.size_bytes if self.stop is None else self.stop


class Exchange:
    """The connection from the request to the end of its answer. Positions count from the body's start."""

    def __init__(self, server: HttpServer, request: Request, answer: Answer, connection: socket.socket) -> None:
        self.server = server
        self.request = request
        self.answer = answer
        self.connection = connection
        self.keep_alive = "close" not in request.headers.get("connection", "").lower()
        self._position = 0

    @property
    def body_length(self) -> int:
        """Bytes that the whole body would have."""
        start, stop = self.answer.span
        return stop - start

    def send_head(self, *, without: tuple[str, ...] = (), **replaced: str) -> None:
        """Status line and headers. `without` names headers to leave out; keywords replace values (`_` for `-`)."""
        headers = {"Content-Length": str(self.body_length), **self.answer.headers}
        headers |= {name.replace("_", "-"): value for name, value in replaced.items()}
        if not self.keep_alive:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {self.answer.status} {REASONS.get(self.answer.status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in headers.items() if name not in without]
        self.request.status = self.answer.status
        self.send_raw("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def send_body(self, stop: int | None = None) -> None:
        """Continue the body up to `stop` (None: its end), at the server's pace."""
        stop = self.body_length if stop is None else min(stop, self.body_length)
        while self._position < stop and self.request.method != "HEAD":
            upto = self.server.pace.next_stop(self._position, stop)
            first = self.answer.start
            self.answer.content.send(self.connection, first + self._position, first + upto, self._count)
            self._position = upto

    def send_instead(self, body: bytes) -> None:
        """Continue the body with other bytes."""
        send_bytes(self.connection, memoryview(body), self._count)
        self._position += len(body)

    def send_raw(self, data: bytes) -> None:
        """Bytes that are not the body's."""
        self.connection.sendall(data)

    def play(self) -> None:
        """The answer as it should be."""
        self.send_head()
        self.send_body()

    def answer_again(self) -> None:
        """Ask the server what it answers now."""
        self.answer = self.server.respond(self.request)

    def reset(self) -> None:
        """End the connection by RST, after the client's side has taken in everything sent before (or has left)."""
        deadline = time.monotonic() + LONGEST_WAIT_S
        while _unacknowledged_bytes(self.connection) and time.monotonic() < deadline:
            if _hung_up(self.connection):
                break
            time.sleep(0.001)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """End the connection after this answer."""
        self.keep_alive = False

    def wait(self, seconds: float) -> bool:
        """Do nothing; True after `seconds` or `release()`, False when the client went away or the server stops."""
        deadline = time.monotonic() + min(seconds, LONGEST_WAIT_S)
        generation = self.server.releases
        while time.monotonic() < deadline and self.server.releases == generation:
            if self.server.stopping.wait(0.01) or _hung_up(self.connection):
                return False
        return True

    def _count(self, sent: int) -> None:
        self.server.count(self.request, sent)


def _hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def _unacknowledged_bytes(connection: socket.socket) -> int:
    answer: int = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
    return answer
