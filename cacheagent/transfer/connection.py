"""One blocking connection, with as few calls a byte as Python allows.

Measured on two cores: `recv_into(view, n, MSG_WAITALL)` costs 0.4 CPU-s/GB, `http.client` twice that. A Python
time-out would make the socket non-blocking and MSG_WAITALL useless, so the limit is the kernel's SO_RCVTIMEO. It ends
a call with what has come so far; after a reset the kernel gives a short count, then an error, then 0, which looks like
an orderly end: so bytes are counted, and 0 always means that the connection broke.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import Final

from cacheagent.addresses import is_refused
from cacheagent.transfer.answer import find_end
from cacheagent.transfer.failure import OrderFailed
from cacheagent.transfer.request import Endpoint
from cacheagent.transfer.running import Running

SLOWEST_BYTES: Final = 64 * 1024
"""A connection that brings less than this within the idle limit counts as stalled. Chosen, not measured."""

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER, on, 0 seconds."""


class Connection:
    """A plain connection, used by one order at a time. Not thread-safe, but `Running.stop` of its order ends any wait.

    Raises OrderFailed: "connect" (from the constructor), "reset", "timeout".
    """

    def __init__(self, endpoint: Endpoint, idle_timeout_s: float, running: Running) -> None:
        self.endpoint = endpoint
        self.reused = False
        self.silent = True
        self.idle_since = 0.0
        self._idle_timeout_s = idle_timeout_s
        self._running = running
        self._socket = _connect(endpoint, idle_timeout_s, running)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """May be called twice."""
        self._running.detach(self._socket)
        self._socket.close()

    def abandon(self) -> None:
        """Close in the middle of an answer, by a reset: an orderly end behind a full window would leave the origin
        waiting to send the rest for a minute. May be called twice.
        """
        with contextlib.suppress(OSError):  # closed before
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    def rest(self) -> None:
        """Leave the order; the connection waits for the next one."""
        self._running.detach(self._socket)
        self.reused = True
        self.idle_since = time.monotonic()

    def serve(self, running: Running) -> None:
        """Belong to another order. Raises OrderFailed("cancelled")."""
        self._running = running
        running.attach(self._socket)

    def send(self, request: bytes) -> None:
        """All of it. `silent` is true until the first byte of an answer."""
        self.silent = True
        self._send(request)

    def receive_some(self, view: memoryview) -> int:
        """At least one byte, into the front of `view`."""
        count = self._receive(view)
        self.silent = False
        return count

    def receive_head(self, memory: memoryview, filled: int) -> tuple[int, int]:
        """Go on filling `memory` until it begins with the head of an answer. Returns the head's end and how far memory
        is filled. A head that drips is given up like a body that does.
        """
        began = time.monotonic()
        while (end := find_end(memory, filled)) < 0:
            if time.monotonic() - began >= self._idle_timeout_s:
                raise self._too_slow(filled)
            filled += self.receive_some(memory[filled:])
        return end, filled

    def fill(self, view: memoryview) -> None:
        """Exactly `len(view)` bytes."""
        receive = self._socket.recv_into
        missing = len(view)
        while missing:
            started = time.monotonic()
            try:
                count = receive(view[-missing:], missing, socket.MSG_WAITALL)
            except OSError as error:
                raise self._broken(error, 0) from error
            missing -= count
            if count == 0:
                raise self._ended()
            if missing and count < SLOWEST_BYTES and time.monotonic() - started >= self._idle_timeout_s:
                raise self._too_slow(count)
            self._running.sign()

    def _prepare(self) -> None:
        """Blocking, with the kernel's limits: they count for a whole call."""
        self._socket.settimeout(None)
        seconds = int(self._idle_timeout_s)
        limit = struct.pack("ll", seconds, int((self._idle_timeout_s - seconds) * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._broken(error, 0) from error

    def _receive(self, view: memoryview) -> int:
        try:
            count = self._socket.recv_into(view)
        except OSError as error:
            raise self._broken(error, 0) from error
        if count == 0:
            raise self._ended()
        return count

    def _broken(self, error: OSError, count: int) -> OrderFailed:
        if isinstance(error, BlockingIOError | TimeoutError):
            return self._too_slow(count)
        return OrderFailed("reset", f"{_name(self.endpoint)}: the connection broke: {error}", errno=error.errno or 0)

    def _too_slow(self, count: int) -> OrderFailed:
        limit = f"{self._idle_timeout_s:g} s"
        return OrderFailed("timeout", f"{_name(self.endpoint)}: {count} bytes came within {limit}")

    def _ended(self) -> OrderFailed:
        return OrderFailed("reset", f"{_name(self.endpoint)}: the connection ended before the last byte")


def _connect(endpoint: Endpoint, timeout_s: float, running: Running) -> socket.socket:
    """The first address that answers. The socket is attached to the order and still has a Python time-out."""
    failure: OSError = OSError("it has no address")
    try:
        addresses = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:  # also names that IDNA can't say, which are UnicodeError
        raise _no_connection(endpoint, error) from error
    for family, kind, protocol, _, address in addresses:
        if is_refused(str(address[0]), endpoint.refused_networks):
            raise OrderFailed("protocol", f"{_name(endpoint)} is at {address[0]}, where nothing may be fetched from")
        sock = socket.socket(family, kind, protocol)
        try:
            running.attach(sock)
            sock.settimeout(timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
        except OSError as error:
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
        running.detach(sock)
        sock.close()
    raise _no_connection(endpoint, failure) from failure


def _no_connection(endpoint: Endpoint, error: OSError) -> OrderFailed:
    return OrderFailed("connect", f"{_name(endpoint)}: no connection: {error}", errno=error.errno or 0)


def _name(endpoint: Endpoint) -> str:
    return f"{endpoint.host}:{endpoint.port}"
