"""The server's end of one connection, plain or TLS. What is read is read without waiting, by the main thread; what is
sent to a subscriber waits for it, in the subscriber's own thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Final

READ_BYTES: Final = 64 * 1024


class TlsFailed(Exception):
    """The other side does not speak TLS as this one does."""


class ServerLine:
    """In the clear."""

    channel: bytes = b""
    """What signatures on this connection are bound to beside the rest: the SHA-256 of the certificate; empty: none."""
    is_mute = False
    """Whether it waits for the client's first word, which has not come."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def is_ready(self) -> bool:
        """Whether words can be exchanged; asked again whenever the socket can be read. Raises TlsFailed, EOFError."""
        return True

    def receive(self) -> bytes:
        """What is here. Raises BlockingIOError if that is nothing, EOFError at the end."""
        try:
            data = self.socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        return data

    def send(self, data: bytes | memoryview) -> None:
        """All of it, as far as the socket waits. Raises OSError."""
        self.socket.sendall(data)

    def say_plainly(self, data: bytes) -> None:
        """In the clear whatever this is, if it can be sent at once: for whoever waits for a word in the clear."""
        with contextlib.suppress(OSError):
            self.socket.send(data)

    def send_file(self, head: bytes, file: int, offset: int, length: int, sent: Callable[[int], None]) -> None:
        """A head and a part of a file; `sent` is told of bytes of the file. Raises OSError."""
        self.socket.sendall(head, socket.MSG_MORE)
        while length:
            count = os.sendfile(self.socket.fileno(), file, offset, length)
            if count == 0:
                raise OSError(f"the file ends at {offset}")
            offset, length = offset + count, length - count
            sent(count)


class TlsServerLine(ServerLine):
    """Encrypted. OpenSSL works in memory, as `cacheagent.transfer.tls` has it. The main thread reads while a
    subscriber's sends: `_lock` is held for as long as 512 KiB take to be encrypted, never while a socket is waited
    for."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, channel: bytes) -> None:
        super().__init__(sock)
        self.channel = channel
        self.is_mute = True
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._lock = threading.Lock()
        self._is_ready = False
        self._room = bytearray()

    def is_ready(self) -> bool:
        if self._is_ready:
            return True
        try:
            self._incoming.write(super().receive())
            self.is_mute = False
            self._tls.do_handshake()
            self._is_ready = True
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except ssl.SSLError as error:
            self.say_plainly(self._outgoing.read())  # the alert that tells the client why
            raise TlsFailed(f"the TLS handshake failed: {error.reason or error}") from error
        if self._outgoing.pending:
            self.say_plainly(self._outgoing.read())
        return self._is_ready

    def receive(self) -> bytes:
        try:
            encrypted = super().receive()
        except BlockingIOError:
            encrypted = b""  # something may have come with the end of the handshake
        with self._lock:
            self._incoming.write(encrypted)
        data = bytearray()
        try:
            while True:  # all of it: no selector tells of what is held back here
                with self._lock:
                    part = self._tls.read(READ_BYTES)
                if not part:
                    break  # close_notify
                data += part
        except ssl.SSLWantReadError as error:
            if not data:
                raise BlockingIOError from error
        except ssl.SSLError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        return bytes(data)

    def send(self, data: bytes | memoryview) -> None:
        with self._lock:
            self._tls.write(data)
            encrypted = self._outgoing.read()
        self.socket.sendall(encrypted)

    def send_file(self, head: bytes, file: int, offset: int, length: int, sent: Callable[[int], None]) -> None:
        if len(self._room) < len(head) + length:
            self._room = bytearray(len(head) + length)
        room = memoryview(self._room)[: len(head) + length]
        room[: len(head)] = head
        missing = length
        while missing:
            count = os.preadv(file, [room[-missing:]], offset + length - missing)
            if count == 0:
                raise OSError(f"the file ends at {offset + length - missing}")
            missing -= count
        self.send(room)
        sent(length)
