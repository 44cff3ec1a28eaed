"""Whoever connects to an agent's peer port, and says what the test wants."""

from __future__ import annotations

import os
import socket
import time
from contextlib import AbstractContextManager

import msgspec

from cacheagent.peers import protocol
from tests.fakes.peer_agents import PeerAgents

PATIENCE_S = 90.0


class Caller(AbstractContextManager["Caller"]):
    """A connection to n0's peer port, by whoever says what."""

    def __init__(self, fleet: PeerAgents) -> None:
        self.fleet = fleet
        self.socket = socket.create_connection(("127.0.0.1", fleet.ports["n0"]), PATIENCE_S)
        hello = self.note()
        assert isinstance(hello, protocol.Hello)
        self.hello = hello

    def ask(self, digest: str, *, wants: set[int] | None = None, pieces: int = 2, **changes: object) -> protocol.Ask:
        """What n1 would say, signed with n1's key after the changes."""
        plain = protocol.Ask(
            version=1,
            digest=digest,
            client="n1",
            server="n0",
            time_s=int(time.time()),
            server_nonce=self.hello.nonce,
            client_nonce=os.urandom(32),
            pieces=pieces,
            wants=protocol.pack_set(wants or {0, 1}),
            adopt=b"",
            signature=b"",
        )
        changed = msgspec.structs.replace(plain, **changes)
        return protocol.signed(changed, self.fleet.keys["n1"].sign(protocol.ask_to_sign(changed)))

    def say(self, request: protocol.Request) -> None:
        self.socket.sendall(protocol.request(request))

    def message(self) -> tuple[int, int, int, bytes]:
        """Kind, piece, offset and body of the next one."""
        kind, piece, offset, length = protocol.HEAD.unpack(self._exactly(protocol.HEAD.size))
        return kind, piece, offset, self._exactly(length)

    def note(self) -> protocol.Note:
        """The next message, which is a note."""
        kind, _, _, body = self.message()
        assert kind == protocol.NOTE
        return protocol.read_note(body)

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def is_closed(self) -> bool:
        """Whether the server has hung up, without one more byte."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data
