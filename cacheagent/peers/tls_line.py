"""The receiver's end of one connection over TLS: as `line`, decrypted in memory as in `cacheagent.transfer.tls`."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, cast

from cacheagent.peers.contexts import client_context
from cacheagent.peers.line import ConnectionOver, Line
from cacheagent.transfer.tls import shake_hands

_READ_BYTES: Final = 256 * 1024
_RECORD_BYTES: Final = 17 * 1024
"""More than a record has: so much may wait inside of OpenSSL for its end."""
_PLAIN: Final = "it does not speak TLS, and this node does: peers.tls must be the same on all members"


class TlsLine(Line):
    """To the member of that name, which shows what one of these raw public keys has issued. `_lock`: one thread reads
    while another one asks for more."""

    def __init__(self, name: str, keys: tuple[bytes, ...]) -> None:
        super().__init__()
        self._name = name
        self._keys = keys
        self._lock = threading.Lock()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._encrypted = memoryview(bytearray(_READ_BYTES))
        self._tls: ssl.SSLObject | None = None

    def connect(self, host: str, port: int) -> None:
        """Also raises ConnectionOver("tls"), and ("key") for a server that is not the member."""
        super().connect(host, port)
        try:
            tls = client_context(self._name, self._keys).wrap_bio(self._incoming, self._outgoing)
            shake_hands(tls, self._flush, partial(self._pull, 1))
        except ssl.SSLCertVerificationError as error:
            what = f"{host}:{port}: its certificate does not show that it is {self._name}: {error.verify_message}"
            raise ConnectionOver("key", what) from error
        except ssl.SSLError as error:
            raise ConnectionOver("tls", f"{host}:{port}: {_reason(error)}") from error
        certificate = tls.getpeercert(binary_form=True)
        assert certificate is not None
        self.channel = hashlib.sha256(certificate).digest()
        self._tls = tls

    def send(self, data: bytes) -> bool:
        if self._tls is None:
            return False
        with self._lock:  # also while it is sent: what two threads encrypt goes out in that order
            try:
                self._tls.write(data)
            except ssl.SSLError:
                return False
            return super().send(self._outgoing.read())

    def fill(self, view: memoryview) -> None:
        assert self._tls is not None
        decrypt = cast("Callable[[int, memoryview], int]", self._tls.read)  # with a buffer: how many bytes
        missing = len(view)
        while missing:
            try:
                with self._lock:
                    count = decrypt(missing, view[-missing:])
            except ssl.SSLWantReadError:
                self._pull(missing - _RECORD_BYTES)
            except ssl.SSLError as error:
                raise ConnectionOver("reset", f"the TLS connection broke: {error.reason or error}") from error
            else:
                if count == 0:  # close_notify
                    raise ConnectionOver("reset", "the connection ended")
                missing -= count

    def _flush(self) -> None:
        """A few hundred bytes on a connection that has carried nothing else. Its end is seen by reading."""
        if self._outgoing.pending:
            super().send(self._outgoing.read())

    def _pull(self, least: int) -> None:
        """What comes next, when so many bytes of it are here."""
        while True:
            try:
                count = self._socket.recv_into(self._encrypted, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(min(max(1, least), _READ_BYTES))
                continue
            if count == 0:
                raise ConnectionOver("reset", "the connection ended")
            with self._lock:
                self._incoming.write(self._encrypted[:count])
            return


def _reason(error: ssl.SSLError) -> str:
    if error.reason == "WRONG_VERSION_NUMBER":
        return _PLAIN
    return f"the TLS handshake failed: {error.reason or error}"
