"""What every client of a server shares: its address in one spelling, how long to wait for it, whom it is trusted by.

Apart from `web`, because the HTTP client there takes a third of a second to import and S3 does without it.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from cacheagent.errors import OriginWrong, UsageError

CONNECT_TIMEOUT_S = 10.0
"""Chosen: longer than three SYN retransmissions (1 + 2 + 4 s)."""
IDLE_TIMEOUT_S = 30.0
"""The same as for weight bytes (`TransferConfig.idle_timeout_s`)."""
RETRY_DELAYS_S = (0.2, 0.8)
"""Between tries of one small request. Chosen. Longer trouble is for the wrapper around the whole source."""
PASSING = frozenset({429, 500, 502, 503, 504})
"""Statuses that may be another one in a moment."""


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


def check_web_url(url: str, what: str) -> str:
    """The URL without a trailing slash, if it is http(s), has a host, and hides no secret. Raises UsageError."""
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port != 0
    except ValueError:
        raise UsageError(f"{what} is not a URL") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"{what} holds a user or password", hint="name a credential instead; URIs are shown in logs")
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise UsageError(f"{what} {shown(url)!r} is not http(s)://host[:port]/path")
    if parts.query or parts.fragment:
        raise UsageError(
            f"{what} {shown(url)!r} has a query or fragment", hint="signed URLs are not sources; name a credential"
        )
    return url.rstrip("/")


def shown(url: str) -> str:
    """A URL as messages may show it: without user, query and fragment, at most 200 characters."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]
