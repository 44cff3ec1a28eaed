"""What comes in from a client of the server process, whoever it is."""

from __future__ import annotations

import os

from cacheagent.peers import protocol
from cacheagent.peers.server_line import ServerLine


class Inbox:
    """Cuts what a client sends into requests."""

    def __init__(self, line: ServerLine) -> None:
        self._line = line
        self._data = bytearray()

    def read(self) -> list[protocol.Request]:
        """What is complete now. Raises ProtocolError, and EOFError when the client is gone."""
        try:
            self._data += self._line.receive()
        except BlockingIOError:
            return []
        requests = []
        while len(self._data) >= protocol.LENGTH.size:
            (length,) = protocol.LENGTH.unpack_from(self._data)
            if self._data.startswith(protocol.TLS_CLIENT_HELLO):
                raise protocol.SpeaksTls(protocol.NO_TLS_HERE)
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

    def __init__(self, line: ServerLine, now: float) -> None:
        self.line = line
        self.socket = line.socket
        self.deadline = now + protocol.HANDSHAKE_S
        self.nonce = os.urandom(protocol.NONCE_BYTES)
        self.inbox = Inbox(line)
        self.is_greeted = False
        self.ask: protocol.Ask | None = None
