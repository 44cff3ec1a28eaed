"""How peers speak TLS: 1.3 and nothing else, no session is resumed, and one member's keys are all that is trusted.

The server shows a certificate; the client proves itself by its signed `Ask`, which is bound to that certificate.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime

from cacheagent.peers.certificates import Shown, anchors, issue
from cacheagent.peers.keys import NodeKey


def server_context(shown: Shown) -> ssl.SSLContext:
    """For connections that are accepted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # each connection is judged by the list as it is now
    file = os.memfd_create("certificate")  # `ssl` takes keys from files only; this one is on no disk
    try:
        os.write(file, shown.pem)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    return context


def client_context(name: str, keys: tuple[bytes, ...]) -> ssl.SSLContext:
    """For a connection to the member of that name. Who shows a certificate that one of its keys issued is that member,
    so there is no other name to be checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    assert context.verify_mode == ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN  # a chain ends at what we trust
    context.load_verify_locations(cadata=anchors(name, keys))
    return context


class Papers:
    """What this node's peer port shows at any time. For one thread."""

    def __init__(self, node: NodeKey, name: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._node = node
        self._name = name
        self._now = now
        self._shown: tuple[Shown, ssl.SSLContext] | None = None

    def current(self) -> tuple[ssl.SSLContext, bytes]:
        """For one connection: the context, and the SHA-256 of its certificate."""
        now = self._now()
        if self._shown is None or now >= self._shown[0].replace_at:
            shown = issue(self._node, self._name, now)
            self._shown = shown, server_context(shown)
        return self._shown[1], self._shown[0].sha256
