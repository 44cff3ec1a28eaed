"""The receiver's end of one connection: reached within a limit, read to the byte, ended from another thread."""

from __future__ import annotations

import select
import socket
from typing import Final

from cacheagent.peers import protocol
from cacheagent.peers.orders import EndKind

_KEEPALIVE: Final = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}


def settle_socket(sock: socket.socket) -> None:
    """Messages go at once, and whoever vanishes is noticed within half a minute, also while nothing is said. Raises
    OSError."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


class ConnectionOver(Exception):
    """Why a connection ended."""

    def __init__(self, kind: EndKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Line:
    """`connect`, `exactly` and `fill` are for one thread, the rest for any."""

    channel: bytes = b""
    """See `protocol.Session`."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._poll = select.poll()
        self._ahead = memoryview(bytearray(protocol.HEAD.size))
        self._here = 0
        """How many bytes of `_ahead` have come and were not asked for yet."""
        self._limit_ms: float | None = protocol.GREETING_S * 1000

    def connect(self, host: str, port: int) -> None:
        """Raises ConnectionOver."""
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, kind, number, _, address = addresses[0]
            self._socket.close()
            self._socket = socket.socket(family, kind, number)
            self._socket.settimeout(protocol.HANDSHAKE_S)
            self._socket.connect(address)
            self._socket.settimeout(None)
            settle_socket(self._socket)
        except OSError as error:
            raise ConnectionOver("connect", f"{host}:{port}: no connection: {error}") from error
        self._poll.register(self._socket, select.POLLIN)

    def be_patient(self) -> None:
        """From now on silence is no fault."""
        self._limit_ms = None

    def send(self, data: bytes) -> bool:
        """All of it at once, or False."""
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT) == len(data)
        except OSError:
            return False

    def shut(self) -> None:
        """Whoever reads sees its end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # not connected yet, or over

    def close(self) -> None:
        """It is not used any more."""
        self._socket.close()

    def exactly(self, length: int) -> bytes:
        """So many bytes. Raises as `fill`."""
        data = bytearray(length)
        self.fill(memoryview(data))
        return bytes(data)

    def fill(self, view: memoryview) -> None:
        """One wake-up for all that is missing, not one for each packet: the kernel tells of less only at the end, or
        when its buffers are full. The next head is taken along if it is here: it costs no wake-up of its own then.
        Raises ConnectionOver, OSError.

        `recv` itself must not wait, as it would with MSG_WAITALL: what it had taken would count against the mark, and
        the rest never reach it.
        """
        missing = len(view) - self._take_ahead(view)
        while missing:
            try:
                buffers = [view[-missing:], self._ahead]
                count, *_ = self._socket.recvmsg_into(buffers, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(missing)
                continue
            if count == 0:
                raise ConnectionOver("reset", "the connection ended")
            self._here = max(0, count - missing)
            missing -= count - self._here
            if missing:
                self._wait(missing)

    def _take_ahead(self, view: memoryview) -> int:
        """What came with the bytes before."""
        count = min(len(view), self._here)
        if count:
            view[:count] = self._ahead[:count]
            self._here -= count
            self._ahead[: self._here] = bytes(self._ahead[count : count + self._here])
        return count

    def _wait(self, least: int) -> None:
        """For so many bytes, or the end."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
        if not self._poll.poll(self._limit_ms):
            raise ConnectionOver("timeout", f"no answer within {protocol.GREETING_S:g} s")
