"""A link of its own between server and client: a network namespace, a veth pair and, if wanted, a speed limit.

The limit is a token bucket on the server's end, so it paces the *sum* of all connections, as a real uplink does;
nginx's `limit_rate` would be per connection. Nothing outside the namespace is shaped. The link's own counter tells
what arrived.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator

import msgspec

# RFC 2544's range for benchmarks: never routed.
SERVER_ADDRESS = "198.18.77.1"
CLIENT_ADDRESS = "198.18.77.2"

# The kernel hands packets of up to 64 KiB to a veth, each with 66 bytes of headers: wire and payload agree to 0.2 %.
BURST_BYTES = 1 << 20
QUEUE_BYTES = 32 << 20


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the server must run, and the client's network interface."""

    namespace: str
    interface: str
    server_address: str


@contextlib.contextmanager
def link(rate_bytes_per_s: float | None) -> Iterator[Link]:
    """A link on which packets reach us at no more than the rate (None: as fast as they can); removed at the end."""
    name = f"bench{os.getpid()}"
    ours, theirs = f"b{os.getpid()}c", f"b{os.getpid()}s"
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        _run("ip", "address", "add", f"{CLIENT_ADDRESS}/30", "dev", ours)
        _run("ip", "link", "set", ours, "mtu", "65535", "up")
        _run("ip", "-n", name, "address", "add", f"{SERVER_ADDRESS}/30", "dev", theirs)
        _run("ip", "-n", name, "link", "set", theirs, "mtu", "65535", "up")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        if rate_bytes_per_s is not None:
            _shape(name, theirs, rate_bytes_per_s)
        yield Link(namespace=name, interface=ours, server_address=SERVER_ADDRESS)
    finally:
        # Both ends go at once with ours; those of a namespace that is deleted only some time later, and the next link
        # has the same names.
        subprocess.run(("ip", "link", "del", ours), check=False)
        _run("ip", "netns", "del", name)


def _shape(namespace: str, interface: str, rate_bytes_per_s: float) -> None:
    rate = f"{int(rate_bytes_per_s * 8)}bit"
    bucket = ["tbf", "rate", rate, "burst", str(BURST_BYTES), "limit", str(QUEUE_BYTES)]
    _run("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", *bucket)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
