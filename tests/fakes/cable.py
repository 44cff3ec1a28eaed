"""A connection to somebody else's real server that does one thing to what comes back, once."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from tests.fakes.loopback import Loopback


class Cable(Loopback):
    """Connects to the port `to`. What crosses the byte `at` of all that the server sends goes through `act`, once."""

    def __init__(self, to: int) -> None:
        super().__init__()
        self._to = to
        self._lock = threading.Lock()
        self._left = 0
        self._act: Callable[[bytes], bytes] | None = None

    def arm(self, at: int, act: Callable[[bytes], bytes]) -> None:
        """Count from now."""
        with self._lock:
            self._left, self._act = at, act

    @property
    def acted(self) -> bool:
        """Whether it has done what it was armed with."""
        return self._act is None

    def serve(self, sock: socket.socket) -> None:
        far = socket.create_connection(("127.0.0.1", self._to))
        self.sockets.append(far)
        threading.Thread(target=_relay, args=(sock, far, bytes), daemon=True).start()
        _relay(far, sock, self._pass)

    def _pass(self, data: bytes) -> bytes:
        with self._lock:
            self._left -= len(data)
            act = self._act
            if act is None or self._left > 0:
                return data
            self._act = None
        return act(data)


def invert_a_byte(data: bytes) -> bytes:
    """The right length, and one bit that nobody sent."""
    return bytes([data[0] ^ 1]) + data[1:]


def _relay(one: socket.socket, other: socket.socket, through: Callable[[bytes], bytes]) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(256 * 1024):
            other.sendall(through(data))
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_WR)
