"""What every client of a server shares: its address in one spelling, how long to wait for it, whom it is trusted by.

Apart from `web`, because the HTTP client there takes a third of a second to import and S3 does without it.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from cacheagent.errors import OriginWrong

CONNECT_TIMEOUT_S = 10.0
"""Chosen: longer than three SYN retransmissions (1 + 2 + 4 s)."""
IDLE_TIMEOUT_S = 30.0
"""The same as for weight bytes (`TransferConfig.idle_timeout_s`)."""


def origin_of(url: str) -> str:
    """scheme://host:port in one spelling, the port always there: what two URLs must share to be the same server."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme.lower()}://{host}:{parts.port or {'http': 80, 'https': 443}.get(parts.scheme.lower(), 0)}"


def untrusted_certificate(origin: str, ca_bundle: str) -> OriginWrong:
    """The same sentence whichever client met the certificate."""
    trusted = f"the authorities in {ca_bundle}" if ca_bundle else "this system's authorities"
    return OriginWrong(
        f"the TLS certificate of {origin} is not signed by {trusted}, or is for another name",
        hint="set ca_bundle to the PEM file of the authority that signed it",
    )
