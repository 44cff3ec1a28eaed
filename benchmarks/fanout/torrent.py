"""What BitTorrent needs beside a client: a torrent of the dataset, and a tracker. Nothing of ours is measured here."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from benchmarks.datasets import Dataset

PIECE_BYTES = 256 << 10
"""A thousand pieces of 256 MB, two of 512 MB, as the convention is."""
ANNOUNCE_S = 2


def bencode(value: object) -> bytes:
    """BEP 3."""
    match value:
        case int():
            return b"i%de" % value
        case bytes():
            return b"%d:%s" % (len(value), value)
        case str():
            return bencode(value.encode())
        case list():
            return b"l" + b"".join(map(bencode, value)) + b"e"
        case dict():
            items = sorted((key.encode(), item) for key, item in value.items())
            return b"d" + b"".join(bencode(key) + bencode(item) for key, item in items) + b"e"
        case _:
            raise TypeError(f"{type(value).__name__} is no value of a torrent")


def make_torrent(dataset: Dataset, announce_url: str) -> bytes:
    """All files in their order, with the SHA-1 of every piece."""
    hashes, rest = [], b""
    for file in dataset.files:
        with (dataset.root / file.path).open("rb") as source:
            while block := source.read(PIECE_BYTES):
                rest += block
                while len(rest) >= PIECE_BYTES:
                    hashes.append(hashlib.sha1(rest[:PIECE_BYTES], usedforsecurity=False).digest())
                    rest = rest[PIECE_BYTES:]
    if rest:
        hashes.append(hashlib.sha1(rest, usedforsecurity=False).digest())
    info = {
        "name": dataset.root.name,
        "piece length": PIECE_BYTES,
        "pieces": b"".join(hashes),
        "files": [{"length": file.size_bytes, "path": list(file.path.split("/"))} for file in dataset.files],
    }
    return bencode({"announce": announce_url, "info": info})


class Swarm:
    """Who has announced, in order."""

    def __init__(self) -> None:
        self._peers: dict[bytes, None] = {}
        self._lock = threading.Lock()

    def announce(self, address: str, query: str) -> bytes:
        """Remember the peer; the answer tells it of all others."""
        asked = parse_qs(query, encoding="latin-1")
        own = socket.inet_aton(address) + struct.pack(">H", int(asked["port"][0]))
        with self._lock:
            if asked.get("event") == ["stopped"]:
                self._peers.pop(own, None)
            else:
                self._peers[own] = None
            others = [peer for peer in self._peers if peer != own]
        return bencode({"interval": ANNOUNCE_S, "min interval": ANNOUNCE_S, "peers": b"".join(others)})


@contextlib.contextmanager
def tracker(address: str) -> Iterator[str]:
    """The announce URL of a tracker that runs in a thread of ours."""
    swarm = Swarm()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802, RUF100  # the name that the base class looks for
            body = swarm.announce(self.client_address[0], urlsplit(self.path).query)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
            """Nobody reads it."""

    with ThreadingHTTPServer((address, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="tracker")
        thread.start()
        try:
            yield f"http://{address}:{server.server_port}/announce"
        finally:
            server.shutdown()
            thread.join()
