"""The TLS context that the webhook serves with: its certificate can change while connections are open."""

from __future__ import annotations

import os
import ssl
from typing import Final

from cacheagent.kube.webhook.certificates import Pair


class ServingContext:
    """`context` is one object for the server's life; `load` changes what new handshakes show, and open connections go
    on.

    The key never touches a disk: OpenSSL reads it from an anonymous file in memory. One event loop.
    """

    def __init__(self) -> None:
        self.context: Final = _fresh()
        self.loaded: Pair | None = None

    def load(self, pair: Pair) -> bool:
        """Show this certificate from now on; False when it was shown already. Raises ssl.SSLError for a pair that
        doesn't work, and then the one before stays."""
        if pair == self.loaded:
            return False
        _load_into(_fresh(), pair)  # a context that refused half of a pair would serve nothing
        _load_into(self.context, pair)
        self.loaded = pair
        return True


def _fresh() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _load_into(context: ssl.SSLContext, pair: Pair) -> None:
    descriptor = os.memfd_create("serving-certificate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(pair.key + b"\n" + pair.certificate)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
