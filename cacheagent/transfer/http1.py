"""HTTP/1.1 as a downloader needs it: GET of a range or of everything, on connections that are kept.

Redirects and proxies are not followed here, and chunked bodies are refused: sources give final addresses, and every
answer must say its length before its first byte is believed.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import Final, Self

from cacheagent.location import HttpLocation
from cacheagent.transfer.answer import (
    HEAD_LIMIT_BYTES,
    Head,
    excerpt,
    parse_head,
    require_range,
    require_same,
    retry_after_s,
)
from cacheagent.transfer.connection import Connection
from cacheagent.transfer.failure import OrderFailed
from cacheagent.transfer.rate import Meter
from cacheagent.transfer.request import Endpoint, Request, make_request
from cacheagent.transfer.running import Running

STEP_BYTES: Final = 512 * 1024
"""Received by one call: small enough to be hashed while it is in the cache of its CPU. Measured: with 1 MiB a download
takes a sixth longer, with 256 KiB Python needs half as much CPU again."""
KEPT_S: Final = 15.0
"""Idle connections older than this are not used again. Servers close theirs after 5 s (Apache) to 75 s (nginx); one
that died is noticed and replaced at the cost of a round trip. Chosen, not measured."""

ERROR_BODY_BYTES: Final = 8 * 1024
"""Of an error's body, what is read to tell a person about it."""


class Connections:
    """The connections of one process. Thread-safe."""

    def __init__(self, idle_timeout_s: float) -> None:
        self._idle_timeout_s = idle_timeout_s
        self._lock = threading.Lock()
        self._idle: defaultdict[Endpoint, list[Connection]] = defaultdict(list)

    def borrow(self, endpoint: Endpoint, running: Running) -> Connection:
        """The one that was used last (its window is open), or a new one. Raises OrderFailed."""
        while True:
            with self._lock:
                kept = self._idle[endpoint]
                connection = kept.pop() if kept else None
            if connection is None:
                return self.fresh(endpoint, running)
            if time.monotonic() - connection.idle_since < KEPT_S:
                connection.serve(running)
                return connection
            connection.close()

    def fresh(self, endpoint: Endpoint, running: Running) -> Connection:
        """A new one. Raises OrderFailed."""
        if endpoint.scheme == "http":
            return Connection(endpoint, self._idle_timeout_s, running)
        from cacheagent.transfer.tls import TlsConnection  # 3 MB and 20 ms that plain HTTP need not pay

        return TlsConnection(endpoint, self._idle_timeout_s, running)

    def give_back(self, connection: Connection) -> None:
        """Its answer has been read to the last byte."""
        connection.rest()
        with self._lock:
            self._idle[connection.endpoint].append(connection)

    def close(self) -> None:
        """All that rest; for the end of the process, or of a test."""
        with self._lock:
            for kept in self._idle.values():
                while kept:
                    kept.pop().close()

    def close_idle(self) -> None:
        """Those that nobody has used for a while."""
        with self._lock:
            oldest = time.monotonic() - KEPT_S
            for endpoint, kept in self._idle.items():
                for connection in kept:
                    if connection.idle_since <= oldest:
                        connection.close()
                self._idle[endpoint] = [connection for connection in kept if connection.idle_since > oldest]


class HttpBody:
    """The bytes of one range, while they arrive. Leaving the block early closes the connection."""

    step_bytes = STEP_BYTES

    def __init__(self, connections: Connections, location: HttpLocation, running: Running, meter: Meter) -> None:
        self._connections = connections
        self._request = make_request(location)
        self._running = running
        self._meter = meter
        self._connection: Connection | None = None
        self._keep_alive = False
        self._early = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._connection is not None:
            self._connection.abandon()

    def open(self, offset: int, length: int, file_size: int) -> None:
        """Ask, and judge the answer's head. Raises OrderFailed."""
        head = self._ask(self._request.range(offset, length))
        try:
            require_same(head, self._request.location.etag)
            require_range(head, offset=offset, length=length, file_size=file_size)
        except OrderFailed as failure:
            raise failure.about(self._request.shown) from None

    def receive(self, view: memoryview) -> None:
        """Exactly the next `len(view)` bytes, as fast as the ingress cap allows. Raises OrderFailed."""
        for part in self._meter.pace(view, self._running.sleep):
            self._fill(part)

    def finish(self) -> None:
        """All bytes are here: the connection serves the next order."""
        connection, self._connection = self._connection, None
        assert connection is not None
        if self._keep_alive:
            self._connections.give_back(connection)
        else:
            connection.close()

    def _ask(self, request: bytes) -> Head:
        spare = memoryview(bytearray(HEAD_LIMIT_BYTES))
        self._connection, head, self._early = ask(self._connections, self._request, request, self._running, spare)
        self._keep_alive = head.keep_alive
        if head.status not in {200, 206}:
            raise refusal(self._connection, self._request, head, self._early)
        return head

    def _fill(self, view: memoryview) -> None:
        assert self._connection is not None
        if self._early:
            taken = self._early[: len(view)]
            view[: len(taken)] = taken
            self._early = self._early[len(taken) :]
            view = view[len(taken) :]
        self._connection.fill(view)


def ask(
    connections: Connections, request: Request, sent: bytes, running: Running, spare: memoryview
) -> tuple[Connection, Head, memoryview]:
    """Send and read the head into `spare`; what of the body came along is returned beside it. A kept connection that
    turns out to be dead before the first byte of an answer is replaced once, silently. Raises OrderFailed; then no
    connection is left open.
    """
    connection = connections.borrow(request.endpoint, running)
    try:
        return connection, *_exchange(connection, sent, spare)
    except OrderFailed as failure:
        connection.close()
        if not (connection.reused and connection.silent and failure.kind == "reset"):
            raise
    running.require_wanted()
    connection = connections.fresh(request.endpoint, running)
    try:
        return connection, *_exchange(connection, sent, spare)
    except OrderFailed:
        connection.close()
        raise


def _exchange(connection: Connection, sent: bytes, spare: memoryview) -> tuple[Head, memoryview]:
    connection.send(sent)
    end, filled = connection.receive_head(spare, 0)
    return parse_head(bytes(spare[:end])), spare[end:filled]


def refusal(connection: Connection, request: Request, head: Head, early: memoryview) -> OrderFailed:
    """What an answer that brings no bytes of ours means, with the beginning of what it says."""
    said = excerpt(_error_body(connection, head, early), request.secrets)
    message = f"GET {request.shown}: {head.status} {head.reason}".rstrip() + (f": {said}" if said else "")
    if head.status in {412, 416}:
        return OrderFailed("changed", message, status=head.status)
    return OrderFailed("status", message, status=head.status, retry_after_s=retry_after_s(head, time.time()))


def _error_body(connection: Connection, head: Head, early: memoryview) -> bytes:
    """As much as is cheap to have: the status is what counts."""
    missing = min(head.length or 0, ERROR_BODY_BYTES) - len(early)
    if missing <= 0:
        return bytes(early[:ERROR_BODY_BYTES])
    rest = bytearray(missing)
    try:
        connection.fill(memoryview(rest))
    except OrderFailed:
        return bytes(early)
    return bytes(early) + rest
