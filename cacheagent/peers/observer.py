"""What the exchange tells whoever counts: metrics. Every method does nothing here; override what you count."""

from __future__ import annotations

from typing import Protocol


class PeerObserver(Protocol):
    """Called on the event loop; must return at once."""

    def peer_received(self, size_bytes: int, *, crosses: bool) -> None:
        """Bytes from other members, of pieces that were asked for twice too. `crosses`: from one in another zone."""

    def peer_sent(self, size_bytes: int) -> None:
        """Bytes to other members."""

    def peer_yielded(self, times: int) -> None:
        """Serving members stepped back, because somebody on this node reads from the same disk."""

    def peer_refused(self, reason: str) -> None:
        """This node sent somebody away."""

    def peer_rehomed(self, pieces: int) -> None:
        """Pieces were asked of somebody else than first, or of the origin."""

    def peer_at_fault(self, kind: str) -> None:
        """A member gave what could be told to be wrong at once: see `standing.FAULTS`."""

    def peer_lied(self) -> None:
        """A member vouched for bytes that the origin does not have."""
