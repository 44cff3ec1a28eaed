"""What a fake server gives: bytes in memory or a file on disk, sent without copying where the kernel can."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

SLICE_BYTES = 1 << 20
"""The most that is handed to the kernel at once: what was sent is counted after each. Chosen."""


class Content:
    """One version of one object. Without an `etag` it is the content's hash, or mtime and size of a file on disk.

    `headers` go along with every answer (`x-amz-checksum-crc64nvme`, say). `etag=""` means: none is shown.
    """

    def __init__(
        self,
        source: bytes | Path,
        *,
        etag: str | None = None,
        last_modified_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._source = source
        self._facts = os.stat(source) if isinstance(source, Path) else None
        self.size_bytes = self._facts.st_size if self._facts else len(bytes_of(source))
        self.etag = self._make_etag() if etag is None else etag
        self.last_modified = formatdate(self._mtime_s() if last_modified_s is None else last_modified_s, usegmt=True)
        self.headers = headers or {}

    def _mtime_s(self) -> float:
        return self._facts.st_mtime if self._facts else 1_700_000_000.0  # any moment, the same at each run

    def _make_etag(self) -> str:
        if self._facts:
            return f'"{self._facts.st_mtime_ns:x}-{self._facts.st_size:x}"'
        return f'"{hashlib.sha256(bytes_of(self._source)).hexdigest()[:32]}"'

    def sha256(self) -> str:
        """Hex."""
        if isinstance(self._source, bytes):
            return hashlib.sha256(self._source).hexdigest()
        with self._source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self, start: int, stop: int) -> bytes:
        """Bytes from `start` up to `stop`."""
        if isinstance(self._source, bytes):
            return self._source[start:stop]
        with self._source.open("rb") as file:
            return os.pread(file.fileno(), stop - start, start)

    def send(self, connection: socket.socket, start: int, stop: int, on_sent: Callable[[int], None]) -> None:
        """Send a range; `on_sent` hears the length of each part that the kernel took. Raises OSError like `send`."""
        if isinstance(self._source, bytes):
            send_bytes(connection, memoryview(self._source)[start:stop], on_sent)
            return
        with self._source.open("rb") as file:
            while start < stop:
                length = min(SLICE_BYTES, stop - start)
                if isinstance(connection, ssl.SSLSocket):  # the kernel can't encrypt
                    part = os.pread(file.fileno(), length, start)
                    send_bytes(connection, memoryview(part), on_sent)
                    sent = len(part)
                else:
                    sent = os.sendfile(connection.fileno(), file.fileno(), start, length)
                    on_sent(sent)
                if not sent:
                    raise EOFError(f"{self._source} ended at {start}, expected {stop}")
                start += sent


def bytes_of(source: bytes | Path) -> bytes:
    """The source as what it is known to be."""
    assert isinstance(source, bytes)
    return source


def send_bytes(connection: socket.socket, view: memoryview, on_sent: Callable[[int], None]) -> None:
    """`sendall` that counts as it goes."""
    while view:
        sent = connection.send(view[:SLICE_BYTES])
        on_sent(sent)
        view = view[sent:]
