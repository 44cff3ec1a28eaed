"""Whoever connects to an agent's peer port, and says what the test wants."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from cacheagent.peers import protocol
from cacheagent.peers.keys import NodeKey

PATIENCE_S = 90.0


class Fleet(Protocol):
    """Nodes by name: their peer ports on loopback, and their keys."""

    @property
    def ports(self) -> Mapping[str, int]: ...
    @property
    def keys(self) -> Mapping[str, NodeKey]: ...


class NotGreeted(Exception):
    """The server's first word was no greeting."""

    def __init__(self, note: protocol.Note) -> None:
        super().__init__(note)
        assert isinstance(note, protocol.Refusal)
        self.note = note


class Caller(AbstractContextManager["Caller"]):
    """A connection to n0's peer port, or another one's, by whoever says what; over TLS with a context."""

    def __init__(self, fleet: Fleet, context: ssl.SSLContext | None = None, *, to: str = "n0") -> None:
        self.fleet = fleet
        self.to = to
        self.channel = b""
        self.socket = socket.create_connection(("127.0.0.1", fleet.ports[to]), PATIENCE_S)
        if context is not None:
            try:
                self.socket = wrapped = context.wrap_socket(self.socket)
            except BaseException:
                self.socket.close()
                raise
            self.channel = hashlib.sha256(wrapped.getpeercert(binary_form=True) or b"").digest()
        try:
            hello = self.note()
        except BaseException:
            self.socket.close()
            raise
        if not isinstance(hello, protocol.Hello):
            self.socket.close()
            raise NotGreeted(hello)
        self.hello = hello

    def ask(
        self,
        digest: str,
        *,
        wants: set[int] | None = None,
        pieces: int = 2,
        key: NodeKey | None = None,
        channel: bytes | None = None,
        **changes: object,
    ) -> protocol.Ask:
        """What n1 would say on this channel, signed with its key after the changes; or with another one, or for
        another one."""
        plain = protocol.Ask(
            version=1,
            digest=digest,
            client="n1",
            server=self.to,
            time_s=int(time.time()),
            server_nonce=self.hello.nonce,
            client_nonce=os.urandom(32),
            pieces=pieces,
            wants=protocol.pack_set(wants or {0, 1}),
            adopt=b"",
            signature=b"",
        )
        changed = msgspec.structs.replace(plain, **changes)
        bound = protocol.ask_to_sign(changed, self.channel if channel is None else channel)
        return protocol.signed(changed, (key or self.fleet.keys["n1"]).sign(bound))

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
