"""An origin as slow as a test needs it: passes connections on to a real server, and what comes back at a set rate."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import urllib.parse
from collections.abc import Iterator

from tests.fakes.pace import Pace

CHUNK_BYTES = 64 * 1024


class PacedOrigin:
    """Made by `paced_origin`. Its rate is shared by all connections, and may be changed at any time; None is unlimited.

    S3's signatures hold: they are of the address that the client knows, and that is this one's.
    """

    def __init__(self, endpoint: str, pace: Pace) -> None:
        self.endpoint = endpoint
        self.bytes_sent = 0
        self._pace = pace
        self._lock = threading.Lock()

    @property
    def bytes_per_s(self) -> float | None:
        return self._pace.bytes_per_s

    @bytes_per_s.setter
    def bytes_per_s(self, rate: float | None) -> None:
        self._pace.bytes_per_s = rate

    def send(self, target: socket.socket, chunk: bytes) -> None:
        """Slice by slice, each when it is its turn."""
        position = 0
        while position < len(chunk):
            stop = self._pace.next_stop(position, len(chunk))
            target.sendall(chunk[position:stop])
            with self._lock:
                self.bytes_sent += stop - position
            position = stop


@contextlib.contextmanager
def paced_origin(endpoint: str, bytes_per_s: float | None) -> Iterator[PacedOrigin]:
    """Serve what `endpoint` serves, at another port of its address, until the block ends."""
    parsed = urllib.parse.urlsplit(endpoint)
    address, port = str(parsed.hostname), int(parsed.port or 80)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((address, port)) as server:
                threading.Thread(target=_pass_on, args=(self.request, server), daemon=True).start()
                with contextlib.suppress(OSError):  # either side may leave at any time
                    while chunk := server.recv(CHUNK_BYTES):
                        origin.send(self.request, chunk)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128

    with Server((address, 0), Handler) as listening:
        origin = PacedOrigin(f"http://{address}:{listening.server_address[1]}", Pace(bytes_per_s))
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        try:
            yield origin
        finally:
            origin.bytes_per_s = None
            listening.shutdown()


def _pass_on(client: socket.socket, server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := client.recv(CHUNK_BYTES):
            server.sendall(chunk)
        server.shutdown(socket.SHUT_WR)
