"""A member with a right key that gives bytes of its own making, or none, or no end of them."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from typing import Final

from blake3 import blake3

from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers import protocol
from cacheagent.peers.contexts import Papers
from cacheagent.peers.keys import NodeKey
from tests.fakes.loopback import Loopback

STEP: Final = 1024 * 1024
Forge = Callable[[int, int], bytes]
"""The bytes of a piece, by its number and length."""


class LyingPeer(Loopback):
    """Listens inside `with`. `lengths`: of all pieces of the digest. `seal_with`: whose key signs its seals. `papers`:
    of the certificate that it shows, with TLS. `failures`: of TLS with whoever came."""

    def __init__(
        self,
        port: int,
        name: str,
        key: NodeKey,
        lengths: list[int],
        forge: Forge,
        *,
        seal_with: NodeKey | None = None,
        papers: Papers | None = None,
    ) -> None:
        super().__init__(port)
        self.asks: list[protocol.Ask] = []
        self.failures: list[ssl.SSLError] = []
        self._tls = papers.current() if papers is not None else None
        self._name = name
        self._key = key
        self._seal_key = seal_with or key
        self._lengths = lengths
        self._forge = forge

    def serve(self, sock: socket.socket) -> None:
        try:
            channel = b""
            if self._tls is not None:
                context, channel = self._tls
                sock = context.wrap_socket(sock, server_side=True)
                self.sockets.append(sock)
            hello = protocol.Hello(versions=protocol.VERSIONS, nonce=os.urandom(32))
            sock.sendall(protocol.note(hello))
            ask = self._request(sock)
            assert isinstance(ask, protocol.Ask)
            self.asks.append(ask)
            session = protocol.session_of(ask, channel)
            welcome = protocol.Welcome(complete=False, have=b"", homes=(), signature=b"")
            signature = self._key.sign(protocol.welcome_to_sign(session, welcome))
            sock.sendall(protocol.note(protocol.signed(welcome, signature)))
            wants = protocol.unpack_set(ask.wants, ask.pieces)
            while True:
                for piece in wants:
                    self._send(sock, ask.digest, piece)
                more = self._request(sock)
                assert isinstance(more, protocol.More)
                wants = protocol.unpack_set(more.wants, ask.pieces)
        except ssl.SSLError as error:
            self.failures.append(error)
        except (OSError, EOFError):
            return

    def _send(self, sock: socket.socket, digest: str, piece: int) -> None:
        data = self._forge(piece, self._lengths[piece])
        for at in range(0, len(data), STEP):
            part = data[at : at + STEP]
            sock.sendall(protocol.HEAD.pack(protocol.CHUNK, piece, at, len(part)) + part)
        digested = blake3(data).digest()
        signature = self._seal_key.sign(protocol.seal_to_sign(digest, piece, len(data), digested))
        sock.sendall(protocol.seal(piece, digested, signature, self._name))

    @staticmethod
    def _request(sock: socket.socket) -> protocol.Request:
        (length,) = protocol.LENGTH.unpack(_exactly(sock, 4))
        return protocol.read_request(_exactly(sock, length))


def lengths_of(*sizes: int) -> list[int]:
    """Of the pieces of files of these sizes."""
    return [min(PIECE_SIZE_BYTES, size - at) for size in sizes for at in range(0, size, PIECE_SIZE_BYTES)]


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = sock.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return data
