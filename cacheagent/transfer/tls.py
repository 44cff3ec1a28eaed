"""The same connection over TLS: the socket is read in large calls, OpenSSL decrypts from memory, record by record.

Measured, receive to nowhere: `SSLSocket.recv_into` 1.7 CPU-s/GB (two system calls and three Python calls for each
record of 16 KiB, and a window update to the sender after each), this way 1.3, of which AES-256 is 0.75. The kernel's
receive limit works as on plain sockets, and so does stopping.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final, cast

from cacheagent.transfer.connection import SLOWEST_BYTES, Connection
from cacheagent.transfer.failure import OrderFailed
from cacheagent.transfer.request import Endpoint

_READ_BYTES: Final = 256 * 1024
"""Encrypted bytes a call: 64 KiB costs a tenth more, 1 MiB gains little and every connection holds twice as much."""

_sessions: dict[Endpoint, tuple[ssl.SSLContext, ssl.SSLSession]] = {}
"""The latest session of each endpoint: a handshake that resumes one needs no certificates. It goes on in the context
that it began in and in no other: threads that connect at once for the first time may have made one each."""


@lru_cache(maxsize=16)
def _context(ca_bundle: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_bundle or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class TlsConnection(Connection):
    """As Connection; the constructor also raises OrderFailed("tls")."""

    def rest(self) -> None:
        if self._tls.session is not None:
            _sessions[self.endpoint] = self._tls.context, self._tls.session
        super().rest()

    def send(self, request: bytes) -> None:
        self.silent = True
        self._tls.write(request)
        self._flush()

    def receive_some(self, view: memoryview) -> int:
        while True:
            try:
                count = self._decrypt(len(view), view)
            except ssl.SSLWantReadError:
                self._pull()
            except ssl.SSLError as error:
                raise self._broken(error, 0) from error
            else:
                if count == 0:  # close_notify
                    raise self._ended()
                self.silent = False
                return count

    def fill(self, view: memoryview) -> None:
        """The rate is watched over whole idle periods: a server that drips bytes is as stalled as a silent one.

        The loop is written out because it runs 61,000 times a GB.
        """
        decrypt = self._decrypt
        missing = len(view)
        began, before = time.monotonic(), missing
        while missing:
            try:
                count = decrypt(missing, view[-missing:])
                missing -= count
            except ssl.SSLWantReadError:
                self._pull()
                if time.monotonic() - began >= self._idle_timeout_s:
                    if before - missing < SLOWEST_BYTES:
                        raise self._too_slow(before - missing) from None
                    began, before = time.monotonic(), missing
                    self._running.sign()
            except ssl.SSLError as error:
                raise self._broken(error, 0) from error
            else:
                if count == 0:  # close_notify
                    raise self._ended()
        self._running.sign()

    def _prepare(self) -> None:
        super()._prepare()
        self._encrypted = memoryview(bytearray(_READ_BYTES))
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            context = _context(self.endpoint.ca_bundle)
            begun_in, session = _sessions.get(self.endpoint, (None, None))
            self._tls = context.wrap_bio(
                self._incoming,
                self._outgoing,
                server_hostname=self.endpoint.host,
                session=session if begun_in is context else None,
            )
            self._decrypt = cast("Callable[[int, memoryview], int]", self._tls.read)  # with a buffer: how many bytes
            shake_hands(self._tls, self._flush, self._pull)
        except OSError as error:  # ssl's own errors, and a CA bundle that can't be read
            raise OrderFailed("tls", f"{self.endpoint.host}:{self.endpoint.port}: {_reason(error)}") from error

    def _pull(self) -> None:
        self._incoming.write(self._encrypted[: self._receive(self._encrypted)])

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._send(self._outgoing.read())


def shake_hands(tls: ssl.SSLObject, flush: Callable[[], None], pull: Callable[[], None]) -> None:
    """The client's part of it, in memory. `flush` sends what there is to send, `pull` waits for what comes next. Raises
    ssl.SSLError."""
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            flush()
            pull()
        except ssl.SSLError:
            flush()  # the alert that tells the server why
            raise
        else:
            flush()
            return


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"the TLS handshake failed: {error.reason or error}"
    return f"TLS can't be set up: {error}"
