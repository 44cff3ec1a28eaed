"""What can be said of a model's way into the cache, as values: the API, the bars and the metrics all speak these."""

from __future__ import annotations

from typing import Literal

from cacheagent.model import Value

Phase = Literal["queued", "resolving", "reserving", "fetching", "publishing", "ready", "failed"]


PieceOrigin = Literal["fetched", "kept", "peer"]
"""Travelled just now, was claimed by a journal and proved, or came from another node."""


class JobStatus(Value, forbid_unknown_fields=False):
    """One model's state at one moment. Bytes are of the whole model; `bytes_linked` were already on this node,
    `bytes_fetched` travelled in this job (`bytes_from_peers` of them from other nodes), `bytes_kept` were proved from
    an earlier, interrupted one. `eta_s` is -1 while unknown. `limit_bytes_per_s`: what a warm-up lets it take from the
    origin; 0: no limit. An older client ignores fields that a newer agent adds.
    """

    name: str
    uri: str
    phase: Phase
    digest: str = ""
    revision: str = ""
    files_total: int = 0
    bytes_total: int = 0
    bytes_linked: int = 0
    bytes_kept: int = 0
    bytes_fetched: int = 0
    bytes_from_peers: int = 0
    rate_bytes_per_s: float = 0.0
    eta_s: float = -1.0
    limit_bytes_per_s: int = 0
    elapsed_s: float = 0.0
    message: str = ""
    error: str = ""
    """`code` of the error when the phase is `failed`."""
    hint: str = ""
    path: str = ""
    """Directory of the published tree when the phase is `ready`."""

    @property
    def bytes_done(self) -> int:
        """Bytes of the model that are proved on this node."""
        return self.bytes_linked + self.bytes_kept + self.bytes_fetched

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen in this job."""
        return self.phase in ("ready", "failed")
