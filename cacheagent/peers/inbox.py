"""What comes in from a client of the server process, whoever it is."""

from __future__ import annotations

import os
import socket

from cacheagent.peers import protocol


class Inbox:
    """Cuts what a client sends into requests."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._data = bytearray()

    def read(self) -> list[protocol.Request]:
        """What is complete now. Raises ProtocolError, and EOFError when the client is gone."""
        try:
            data = self._socket.recv(64 * 1024, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        self._data += data
        requests = []
        while len(self._data) >= protocol.LENGTH.size:
            (length,) = protocol.LENGTH.unpack_from(self._data)
            if length > protocol.ASK_LIMIT_BYTES:
                raise protocol.ProtocolError(f"a request of {length} bytes")
            end = protocol.LENGTH.size + length
            if len(self._data) < end:
                break
            requests.append(protocol.read_request(bytes(self._data[protocol.LENGTH.size : end])))
            del self._data[:end]
        return requests


class Pending:
    """A connection that nobody knows yet."""

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.socket = sock
        self.deadline = now + protocol.HANDSHAKE_S
        self.nonce = os.urandom(protocol.NONCE_BYTES)
        self.inbox = Inbox(sock)
        self.ask: protocol.Ask | None = None
