"""The same connection over TLS, by Python's `ssl`: 16 KiB a call, 1.4-1.5 CPU-s/GB in all.

The kernel's receive limit does nothing here (OpenSSL reads in its own loop), so Python's time-out is used and the
rate is watched over whole idle periods: a server that drips a byte at a time is as stalled as a silent one.
"""

from __future__ import annotations

import ssl
import time
from functools import lru_cache

from cacheagent.transfer.connection import SLOWEST_BYTES, Connection
from cacheagent.transfer.failure import OrderFailed
from cacheagent.transfer.request import Endpoint

_sessions: dict[Endpoint, ssl.SSLSession] = {}
"""The latest session of each endpoint: a handshake that resumes one costs a third."""


@lru_cache(maxsize=16)
def _context(ca_bundle: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_bundle or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class TlsConnection(Connection):
    """As Connection; the constructor also raises OrderFailed("tls")."""

    def _prepare(self) -> None:
        plain = self._socket
        self._running.detach(plain)
        try:
            context = _context(self.endpoint.ca_bundle)
            session = _sessions.get(self.endpoint)
            self._tls = context.wrap_socket(
                plain, server_hostname=self.endpoint.host, do_handshake_on_connect=False, session=session
            )
            self._socket = self._tls
            self._running.attach(self._socket)
            self._tls.do_handshake()
        except TimeoutError as error:
            raise self._too_slow(0) from error
        except ssl.SSLError as error:
            raise OrderFailed("tls", f"{self.endpoint.host}:{self.endpoint.port}: {_reason(error)}") from error
        except OSError as error:
            raise self._broken(error, 0) from error

    def rest(self) -> None:
        if self._tls.session is not None:
            _sessions[self.endpoint] = self._tls.session
        super().rest()

    def fill(self, view: memoryview) -> None:
        receive, clock = self._tls.recv_into, time.monotonic
        missing = len(view)
        period_began, period_bytes = clock(), 0
        while missing:
            try:
                count = receive(view[-missing:])
            except OSError as error:
                raise self._broken(error, period_bytes) from error
            if count == 0:
                raise self._ended()
            missing -= count
            period_bytes += count
            if clock() - period_began >= self._idle_timeout_s:
                if missing and period_bytes < SLOWEST_BYTES:
                    raise self._too_slow(period_bytes)
                period_began, period_bytes = clock(), 0


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return f"the TLS handshake failed: {error.reason or error}"
