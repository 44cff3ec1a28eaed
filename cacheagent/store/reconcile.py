"""Leases and volumes against what is really mounted. The store's lock is held."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from cacheagent.model import Value
from cacheagent.store.leases import Lease
from cacheagent.store.state import State
from cacheagent.store.volumes import mounted_digest

LOG: Final = logging.getLogger(__name__)

OBSERVED: Final = "pv-"
"""Volumes of this prefix are never asked for, only seen mounted (local PersistentVolumes): unseen, they are gone."""


class Reconciled(Value):
    """Volumes whose lease was made, and that were removed."""

    made: tuple[str, ...]
    removed: tuple[str, ...]


def reconcile(state: State, mounts: Mapping[str, str], grant_s: float) -> Reconciled:
    """See `Store.reconcile`."""
    made = []
    for volume_id, path in mounts.items():
        digest = mounted_digest(state.layout, volume_id, path)
        if digest and _take(state, volume_id, digest):
            made.append(volume_id)
    state.holds.mounts_known = True
    removed = [lease.volume_id for lease in state.leases.all() if _is_over(state, lease, mounts, grant_s)]
    known = {lease.volume_id for lease in state.leases.all()} | {promise.volume_id for promise in state.promises.all()}
    removed += [volume_id for volume_id in state.promises.directories if volume_id not in known | mounts.keys()]
    for volume_id in removed:
        remove_volume(state, volume_id)
    if made or removed:
        LOG.info("leases were reconciled with what is mounted", extra={"made": made, "removed": removed})
    return Reconciled(made=tuple(made), removed=tuple(removed))


def remove_volume(state: State, volume_id: str) -> None:
    """The directory first: without the lease its links would hold the room of a version that can be evicted."""
    path = state.layout.volume(volume_id)
    if volume_id in state.promises.directories:
        with state.trash.bin() as bin_:
            bin_.take(path)
        state.promises.directories.discard(volume_id)
    state.promises.drop(volume_id)
    state.leases.release(volume_id)


def _take(state: State, volume_id: str, digest: str) -> bool:
    """What is mounted is leased, whatever was believed."""
    known = state.leases.get(volume_id)
    if known is not None and known.digest == digest:
        return False
    if known is not None:
        LOG.error(
            "a volume is mounted from another version than its lease says",
            extra={"volume": volume_id, "mounted": digest, "leased": known.digest},
        )
        state.leases.release(volume_id)
    state.leases.take(Lease(volume_id=volume_id, digest=digest, owner="found mounted", since=state.now()))
    return True


def _is_over(state: State, lease: Lease, mounts: Mapping[str, str], grant_s: float) -> bool:
    """By the clock of the wall, since a grant outlives the process: one from the far future was given before the clock
    was set back."""
    if lease.volume_id in mounts:
        return False
    return lease.volume_id.startswith(OBSERVED) or abs(state.now() - lease.since) > grant_s
