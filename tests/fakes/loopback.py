"""A listener on loopback whose connections each have a thread: what fakes of peers have in common."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Self


class Loopback:
    """Listens inside `with`; on a free port where `port` is 0. `sockets`: closed at the end."""

    def __init__(self, port: int = 0) -> None:
        self._listening = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listening.getsockname()[1]
        self.sockets: list[socket.socket] = []

    def serve(self, sock: socket.socket) -> None:
        """One connection, in a thread of its own."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes `accept`, which would take one more after the end
        self._listening.close()
        for sock in self.sockets:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self.sockets.append(sock)
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()
