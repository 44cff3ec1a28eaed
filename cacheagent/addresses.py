"""Which addresses nothing is fetched from on somebody's say-so: looked at after a name is resolved. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

LOCAL_NETWORKS: Final = (
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "::/127",
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::254/128",
    "100.100.100.200/32",
)
"""Loopback, link-local and multicast; the clouds' metadata services are at link-local addresses and at the last two."""


def is_refused(address: str, networks: Iterable[str]) -> bool:
    """Whether an IP address (as a resolver or a URL gives it) lies in one of these networks. What is no address is
    not."""
    try:
        parsed = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in _network(network) for network in networks)


@lru_cache(maxsize=256)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)
