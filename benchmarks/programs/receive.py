"""Receives objects and throws them away: what server and network give to anybody. Settings: JSON in REQUEST.

Blocking sockets, one large receive call a buffer: the cheapest way to read bytes from Python. Prints the seconds
that it took from the first connection to the last byte.
"""

import json
import os
import socket
import ssl
import sys
import threading
import time
from multiprocessing import Process, Queue
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

BUFFER_BYTES = 2 << 20
RANGE_BYTES = 16 << 20

request = json.loads(os.environ["REQUEST"])


def connect(url: SplitResult) -> socket.socket:
    """One connection to the server, TLS when the URL says so."""
    plain = socket.create_connection((url.hostname, url.port))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if url.scheme == "http":
        return plain
    return ssl.create_default_context(cafile=request["ca_bundle"]).wrap_socket(plain, server_hostname=url.hostname)


def receive_range(connection: socket.socket, buffer: memoryview, url: SplitResult, start: int, end: int) -> None:
    """Fetch one range [start, end) into the buffer, over and over."""
    head = f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nRange: bytes={start}-{end - 1}\r\n\r\n"
    connection.sendall(head.encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(4096)
    head_part, _, body = answer.partition(b"\r\n\r\n")
    if b" 206 " not in head_part.split(b"\r\n")[0]:
        fail(f"expected 206, got {head_part[:200]!r}")
    left = end - start - len(body)
    while left:
        wanted = min(left, BUFFER_BYTES)
        if isinstance(connection, ssl.SSLSocket):
            got = connection.recv_into(buffer, wanted)
        else:
            got = connection.recv_into(buffer, wanted, socket.MSG_WAITALL)
        if not got:
            fail(f"the connection ended {left} bytes early")
        left -= got


def fail(message: str) -> NoReturn:
    """End the process from any of its threads."""
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


def receive_all(ranges: "Queue[tuple[str, int, int] | None]") -> None:
    """Take ranges until there are none."""

    def work() -> None:
        connection, buffer = connect(urlsplit(request["files"][0][0])), memoryview(bytearray(BUFFER_BYTES))
        while (each := ranges.get()) is not None:
            url, start, end = each
            receive_range(connection, buffer, urlsplit(url), start, end)

    threads = [threading.Thread(target=work) for _ in range(request["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    queue: "Queue[tuple[str, int, int] | None]" = Queue()
    for url, size in request["files"]:
        for start in range(0, size, RANGE_BYTES):
            queue.put((url, start, min(size, start + RANGE_BYTES)))
    for _ in range(request["processes"] * request["threads"]):
        queue.put(None)
    workers = [Process(target=receive_all, args=(queue,)) for _ in range(request["processes"])]
    started_s = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(time.monotonic() - started_s)
    sys.exit(max(abs(worker.exitcode or 0) for worker in workers))
