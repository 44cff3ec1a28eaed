"""The arithmetic of a link: how a token bucket is set so that it is a link of that rate, and nothing else. Pure."""

from __future__ import annotations

import msgspec

MTU_BYTES = 9000
"""Jumbo frames, as in data centres: headers are 0.7 % of the wire."""
BURST_BYTES = 128 << 10
"""The kernel hands over packets of up to 64 KiB at once; a bucket that is smaller would cut them up again."""
PACKETS_OF_EACH = 24
"""What one sender may have in the queue: its first window is 10 packets, and it doubles before it hears of a loss."""
LEAST_QUEUE_S = 0.4
"""One sender has many connections; with 0.1 s their slow start lost 3 % of a short download, all sent twice."""


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One direction of a link: bytes a second, and bytes that may wait."""

    rate_bytes_per_s: float
    queue_bytes: int

    def arguments(self) -> list[str]:
        """For `tc qdisc add ... root`."""
        rate = f"{int(self.rate_bytes_per_s * 8)}bit"
        return ["tbf", "rate", rate, "burst", str(BURST_BYTES), "limit", str(self.queue_bytes)]


def shape(rate_bytes_per_s: float, senders: int) -> Shape:
    """A link on which so many senders may meet.

    A queue that does not hold a few packets of each loses whole windows: retransmission time-outs, and lost ARP.
    """
    wanted = max(senders * PACKETS_OF_EACH * MTU_BYTES, LEAST_QUEUE_S * rate_bytes_per_s)
    return Shape(rate_bytes_per_s=rate_bytes_per_s, queue_bytes=int(wanted) + BURST_BYTES)
