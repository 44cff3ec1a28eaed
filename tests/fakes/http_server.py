"""An HTTP/1.1 server of threads and plain sockets, so that a test can decide about every byte.

It keeps a record of each request. What it answers is `respond`, which the origin and the hub write; how it misbehaves
is `tests.fakes.faults`.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote

from tests.fakes.content import Content
from tests.fakes.exchange import LONGEST_WAIT_S, Answer, Exchange, Request
from tests.fakes.pace import Pace

if TYPE_CHECKING:
    from tests.fakes.faults import Fault

HEAD_LIMIT_BYTES = 64 * 1024
HANDSHAKE_TIMEOUT_S = 10.0
_LIBC = ctypes.CDLL(None)


class HttpServer:
    """Listens on a free port of `host` inside its `with` block. All methods are thread-safe."""

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        bytes_per_s: float | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.host = host
        self.pace = Pace(bytes_per_s)
        self.requests: list[Request] = []
        self.peak_connections = 0
        self.stopping = threading.Event()
        self.releases = 0
        self._tls = tls
        self._faults: list[_PlannedFault] = []
        self._changed = threading.Condition()
        self._connections: dict[int, socket.socket] = {}
        self._accepted = 0
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def respond(self, request: Request) -> Answer:
        """What a healthy server says to this request. Called on the connection's thread."""
        raise NotImplementedError

    def replace(self, path: str, content: Content) -> None:
        """Let a path have another content from now on."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """Scheme, host and port, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    @property
    def port(self) -> int:
        """The same one from the start to the end, also while the server is gone."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def open_connections(self) -> int:
        """Accepted and not closed by either side."""
        with self._changed:
            return len(self._connections)

    def inject(
        self, fault: Fault, *, path: str | None = None, method: str = "GET", nth: int = 1, times: int | None = 1
    ) -> None:
        """Answer the `nth` request from now (of this path, if given) with a fault, and the following `times` - 1.

        `times=None`: all from then on. The first planned fault that is due wins.
        """
        path = None if path is None else "/" + path.lstrip("/")
        with self._changed:
            self._faults.append(_PlannedFault(fault=fault, path=path, method=method, skip=nth - 1, left=times))

    def heal(self) -> None:
        """Forget all planned faults and let go of whoever waits in one."""
        with self._changed:
            self._faults.clear()
        self.release()

    def release(self) -> None:
        """Let those who stall go on."""
        self.releases += 1

    def wait_until(self, holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Return once `holds()`, which is looked at whenever something was asked or sent."""
        with self._changed:
            assert self._changed.wait_for(holds, timeout_s), (
                f"did not happen within {timeout_s} s; asked: {self.requests}"
            )

    def wait_until_idle(self) -> None:
        """Return once every request is finished: a client may have its last byte before the server has counted it."""
        self.wait_until(lambda: all(request.finished for request in self.requests))

    def requests_for(self, path: str, method: str = "GET") -> list[Request]:
        """Those that came so far for one path, in their order."""
        return [each for each in list(self.requests) if each.path == "/" + path.lstrip("/") and each.method == method]

    def body_bytes_sent(self, path: str | None = None) -> int:
        """Bytes of bodies that went out so far, of all paths or one."""
        return sum(each.body_bytes_sent for each in (list(self.requests) if path is None else self.requests_for(path)))

    @contextlib.contextmanager
    def gone(self) -> Iterator[None]:
        """Refuse connections and reset the open ones until the block ends; the port stays ours meanwhile."""
        # A socket that is bound and does not listen refuses like a dead server, and nobody else can take its port.
        self._stop_listening()
        self._reset_connections()
        try:
            yield
        finally:
            self._listen()

    def __enter__(self) -> Self:
        # Only a port that was asked for by number stays ours when the socket stops listening.
        with socket.socket() as finder:
            finder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            finder.bind((self.host, 0))
            self._listener.bind(finder.getsockname())
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._stop_listening()
        self._reset_connections()
        for thread in self._threads:
            thread.join(LONGEST_WAIT_S)
        self._listener.close()

    def count(self, request: Request, sent: int) -> None:
        """Note bytes of a body that went out."""
        with self._changed:
            request.body_bytes_sent += sent
            self._changed.notify_all()

    def _listen(self) -> None:
        self._listener.listen(1024)
        self._start_thread(self._accept, "accept")

    def _stop_listening(self) -> None:
        with contextlib.suppress(OSError):  # it is gone already
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`, which closing alone does not

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start_thread(lambda mine=connection: self._serve_connection(mine), "connection")  # type: ignore[misc]

    def _start_thread(self, run: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=run, name=f"fake-http-{name}", daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        thread.start()

    def _reset_connections(self) -> None:
        # connect(2) to AF_UNSPEC sends RST and wakes the thread that uses the socket; closing under it would not.
        with self._changed:
            for connection in self._connections.values():
                _LIBC.connect(connection.fileno(), bytes(16), 16)

    def _serve_connection(self, connection: socket.socket) -> None:
        with self._changed:
            self._accepted += 1
            number = self._accepted
            self._connections[number] = connection
            self.peak_connections = max(self.peak_connections, len(self._connections))
        try:
            with contextlib.suppress(OSError, EOFError):  # the client left, or the test cut the connection
                if self._tls:
                    connection.settimeout(HANDSHAKE_TIMEOUT_S)
                    connection = self._tls.wrap_socket(connection, server_side=True)
                    connection.settimeout(None)
                    with self._changed:
                        self._connections[number] = connection
                with connection:
                    self._serve_requests(connection, number)
        finally:
            connection.close()
            with self._changed:
                del self._connections[number]
                self._changed.notify_all()

    def _serve_requests(self, connection: socket.socket, number: int) -> None:
        rest = b""
        while not self.stopping.is_set():
            request, rest = self._receive(connection, number, rest)
            exchange = Exchange(self, request, self.respond(request), connection)
            planned = self._take_fault(request)
            try:
                planned.play(exchange) if planned else exchange.play()
            finally:
                with self._changed:
                    request.finished = True
                    self._changed.notify_all()
            if not exchange.keep_alive:
                return

    def _receive(self, connection: socket.socket, number: int, rest: bytes) -> tuple[Request, bytes]:
        while b"\r\n\r\n" not in rest:
            received = connection.recv(HEAD_LIMIT_BYTES)
            if not received or len(rest) > HEAD_LIMIT_BYTES:
                raise EOFError("no further request")
            rest += received
        head, _, rest = rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        path, _, query = target.partition("?")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while len(rest) < int(headers.get("content-length", 0)):
            rest += connection.recv(HEAD_LIMIT_BYTES)
        rest = rest[int(headers.get("content-length", 0)) :]
        with self._changed:
            request = Request(
                number=len(self.requests) + 1,
                connection=number,
                method=method,
                path=unquote(path),
                query=query,
                headers=headers,
            )
            self.requests.append(request)
            self._changed.notify_all()
        return request, rest

    def _take_fault(self, request: Request) -> Fault | None:
        with self._changed:
            due = [planned.is_due(request) for planned in self._faults]
            chosen = next((planned for planned, is_due in zip(self._faults, due, strict=True) if is_due), None)
            if chosen is None:
                return None
            if chosen.left is not None:
                chosen.left -= 1
            request.fault = type(chosen.fault).__name__
            return chosen.fault


@dataclass(kw_only=True)
class _PlannedFault:
    fault: Fault
    path: str | None
    method: str
    skip: int
    left: int | None

    def is_due(self, request: Request) -> bool:
        """Whether it applies; counts down those that come before."""
        if request.method != self.method or self.path not in (None, request.path) or self.left == 0:
            return False
        self.skip -= 1
        return self.skip < 0
