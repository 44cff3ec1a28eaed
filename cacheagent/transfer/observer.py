"""What the data plane tells whoever counts: metrics. Every method does nothing here; override what you count."""

from __future__ import annotations


class TransferObserver:
    """Called on the event loop; must return at once. `source_kind` as `Source.kind`."""

    def piece_done(self, source_kind: str, size_bytes: int, seconds: float) -> None:
        """Bytes that travelled and are on disk: a piece, a piece of a stream (seconds 0), or a batch of small files."""

    def retry(self, source_kind: str, reason: str) -> None:
        """Something is asked for again; `reason` is one of `cacheagent.transfer.retry.Reason`."""

    def throttled(self, source_kind: str, pause_s: float) -> None:
        """The origin asked us to slow down (429, 503); nobody asks it for `pause_s`."""

    def hedge(self, source_kind: str, *, won: bool) -> None:
        """A late piece was asked for twice, and the second answer came first, or not."""

    def worker_lost(self) -> None:
        """A worker ended that should not have; its orders are given to others."""

    def worker_abandoned(self) -> None:
        """A worker hangs in the kernel and can't be ended."""

    def fallback_buffered(self, size_bytes: int) -> None:
        """Bytes written through the page cache because a filesystem refuses O_DIRECT."""
