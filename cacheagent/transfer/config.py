"""How the worker pool behaves. Numbers without another source are chosen, not measured."""

from __future__ import annotations

import os
from typing import Final

from cacheagent.model import Value

MOST_WORKERS: Final = 8
SPARE_THREADS: Final = 4
"""Per worker beyond its share of the connections: while those are busy, two re-hash what is on disk, and two files are
hashed as their pieces come from elsewhere."""


class TransferConfig(Value):
    """Fields end in their unit; seconds, bytes and connections."""

    workers: int = 0
    """Processes per group (one group for HTTP, one per mounted file system); 0: one for each CPU, at most 8."""
    connections: int = 0
    """To one origin, fixed; 0: adapted to the measured goodput, between 1 and `max_connections`."""
    initial_connections: int = 8
    """More give a fast origin nothing (8 and 16 measured), and a thin link as many pieces that all end late."""
    max_connections: int = 64
    """About 4 MB of kernel memory and 4 MiB of buffer each."""
    ingress_cap_bytes_per_s: int = 0
    """Over all workers together; 0: none."""
    idle_timeout_s: float = 30.0
    """A connection that brings nothing, or next to nothing, for so long is given up and its piece asked for again."""
    give_up_after_s: float = 300.0
    """Without one more piece from an origin for so long, what waits for it fails. A rolling restart takes less."""
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 10.0
    """Full jitter between 0 and base x 2^n, at most the cap: an origin that is back is noticed within seconds."""
    retry_after_cap_s: float = 120.0
    """What an origin may ask for at most by Retry-After."""
    fresh_location_s: float = 60.0
    """A 401 or 403 within this time of asking where a file is, is meant; later, a signed URL may have expired."""
    answer_limit_s: float = 5.0
    """How long a worker may take to answer a Cancel before it counts as hung and is killed."""
    tick_s: float = 0.5
    """How often goodput is measured and late pieces are looked for."""

    def worker_count(self) -> int:
        """Processes of one group."""
        return self.workers or min(len(os.sched_getaffinity(0)), MOST_WORKERS)

    def threads_per_worker(self) -> int:
        """Enough for all connections that one origin may get, and some for the disk."""
        return -(-(self.connections or self.max_connections) // self.worker_count()) + SPARE_THREADS
