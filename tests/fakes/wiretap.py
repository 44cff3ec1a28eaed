"""Whoever can read the network between two nodes: a relay that keeps all that goes by."""

from __future__ import annotations

import contextlib
import socket
import threading

from tests.fakes.loopback import Loopback


class Wiretap(Loopback):
    """Connects to the port `to`. `heard`: what each way of each connection has carried, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.to = 0
        self._heard: list[bytearray] = []

    @property
    def heard(self) -> bytes:
        return b"".join(self._heard)

    def serve(self, sock: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self.to))
        except OSError:
            sock.close()
            return
        self.sockets.append(far)
        threading.Thread(target=self._relay, args=(far, sock), daemon=True).start()
        self._relay(sock, far)

    def _relay(self, one: socket.socket, other: socket.socket) -> None:
        kept = bytearray()
        self._heard.append(kept)
        try:
            while data := one.recv(256 * 1024):
                kept += data
                other.sendall(data)
        except OSError:
            pass
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)
