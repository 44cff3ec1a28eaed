"""The parts of an open store that its operations share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from cacheagent.model import Value
from cacheagent.store.boot import BootGrace
from cacheagent.store.durable import write_whole
from cacheagent.store.holds import Holds
from cacheagent.store.index import Index
from cacheagent.store.layout import Layout
from cacheagent.store.leases import Leases
from cacheagent.store.record import Record, encode_record
from cacheagent.store.resolutions import Resolutions
from cacheagent.store.staging import Staging
from cacheagent.store.trash import Trash
from cacheagent.store.volumes import Promises


class StorePolicy(Value):
    """How much of the disk is used. All defaults are chosen, not measured.

    `floor_bytes`: free space of the filesystem that is never used by us.

    `high_watermark`, `low_watermark`: parts of what may be used (what the cache holds, plus what is free above the
    floor). `trim` brings a cache that is fuller than the high one down to the low one.

    `boot_grace_s`: how long after a boot nothing is evicted to make room.

    `quarantine_bytes`: how much is kept of blobs that could not be repaired; the oldest go first.
    """

    floor_bytes: int = 10 * 2**30
    high_watermark: float = 0.95
    low_watermark: float = 0.90
    boot_grace_s: float = 600.0
    quarantine_bytes: int = 10 * 2**30


class Reservation:
    """Room promised to one version on its way. `release` is idempotent; it may be called from any thread."""

    def __init__(self, digest: str, blobs: dict[str, int], release: Callable[[Reservation], None]) -> None:
        self.digest = digest
        self.blobs = blobs
        self._release = release

    def release(self) -> None:
        """What it needed is published, or isn't needed any more. Raises DiskFault."""
        self._release(self)


@dataclass(frozen=True, kw_only=True)
class State:
    """`lock` is held for every change of what is published, leased or reserved, and never while waiting for much:
    look-ups from an event loop wait for it.
    """

    layout: Layout
    policy: StorePolicy
    now: Callable[[], float]
    trash: Trash
    staging: Staging
    index: Index
    leases: Leases
    promises: Promises
    resolutions: Resolutions
    grace: BootGrace
    lock: threading.RLock = field(default_factory=threading.RLock)
    reservations: list[Reservation] = field(default_factory=list)
    holds: Holds = field(default_factory=Holds)
    evictions: Counter[str] = field(default_factory=Counter)
    evicted_bytes: Counter[str] = field(default_factory=Counter)

    def rewrite(self, record: Record, **changes: str | bool | int) -> None:
        """Change what is known of a version, on disk and in memory; its last use stays."""
        changed = msgspec.structs.replace(record, **changes)
        write_whole(self.layout.record(record.digest), encode_record(changed), mtime=record.last_used)
        self.index.replace(changed)

    def wanted(self) -> set[str]:
        """Blobs that a version on its way needs."""
        return {blob for reservation in self.reservations for blob in reservation.blobs}
