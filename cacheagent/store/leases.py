"""Leases: one file for each mounted volume, written before the mount is answered. The file is the lease."""

from __future__ import annotations

import logging
import os
from typing import Final

import msgspec

from cacheagent.errors import ModelInUse
from cacheagent.model import Value, canonical_json
from cacheagent.store.durable import sync_directory, write_whole
from cacheagent.store.layout import Layout, entries, is_volume_id

LOG: Final = logging.getLogger(__name__)


class Lease(Value):
    """Somebody has this version mounted. `owner` is for people; `since` in seconds since the epoch."""

    volume_id: str
    digest: str
    owner: str
    since: float


class Leases:
    """All leases, in memory as on disk. The store's lock is held for every change."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._leases: dict[str, Lease] = {}
        self.unreadable: list[str] = []

    def scan(self) -> None:
        """Read what is there. A file that is no lease protects nothing, is left alone and told of."""
        for entry in entries(self._layout.leases):
            try:
                with open(entry.path, "rb") as file:
                    lease = msgspec.json.decode(file.read(), type=Lease)
            except (msgspec.MsgspecError, OSError, ValueError) as error:
                LOG.warning("a lease can't be read", extra={"volume": entry.name, "reason": str(error)})
                self.unreadable.append(entry.name)
                continue
            if lease.volume_id == entry.name and is_volume_id(entry.name):
                self._leases[lease.volume_id] = lease
            else:
                LOG.warning("a lease names another volume than its file", extra={"volume": entry.name})
                self.unreadable.append(entry.name)

    def all(self) -> list[Lease]:
        """Every lease."""
        return list(self._leases.values())

    def digests(self) -> set[str]:
        """Every version that is mounted."""
        return {lease.digest for lease in self.all()}

    def get(self, volume_id: str) -> Lease | None:
        """The lease of a volume."""
        return self._leases.get(volume_id)

    def take(self, lease: Lease) -> None:
        """Write it down; on return it has survived a power cut. Raises ModelInUse if the volume uses another version:
        a mounted volume never changes."""
        known = self._leases.get(lease.volume_id)
        if known is not None and known.digest == lease.digest:
            return
        if known is not None:
            raise ModelInUse(
                f"volume {lease.volume_id} is mounted from {known.digest}, not from {lease.digest}",
                hint="a volume keeps its version for life; release it first",
            )
        write_whole(self._layout.lease(lease.volume_id), canonical_json(msgspec.to_builtins(lease)) + b"\n")
        self._leases[lease.volume_id] = lease

    def renew(self, volume_id: str, now: float, older_than_s: float) -> bool:
        """It is about to be mounted again, so its time begins anew if it is older than that; false without a lease."""
        known = self._leases.get(volume_id)
        if known is not None and abs(now - known.since) > older_than_s:
            renewed = msgspec.structs.replace(known, since=now)
            write_whole(self._layout.lease(volume_id), canonical_json(msgspec.to_builtins(renewed)) + b"\n")
            self._leases[volume_id] = renewed
        return known is not None

    def release(self, volume_id: str) -> None:
        """Absent is fine, and so is a file that was no lease."""
        path = self._layout.lease(volume_id)
        try:
            os.unlink(path)
            sync_directory(self._layout.leases)
        except FileNotFoundError:
            pass
        self._leases.pop(volume_id, None)
