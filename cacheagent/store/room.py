"""Room on the disk: promised before the first byte, made by eviction, never below the floor."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Final, Literal

from cacheagent.errors import ModelInUse, NoRoom
from cacheagent.eviction import Eviction, Held, Resident, Residents, evictable_bytes, no_room_sentence, plan_eviction
from cacheagent.model import Value
from cacheagent.store.staging import on_disk
from cacheagent.store.state import Reservation, State

OVERHEAD_BYTES: Final = 2**20
"""Beyond the files' own blocks a version takes a record, directories and journals: this much, and
OVERHEAD_PER_BLOB_BYTES for each blob. Measured on ext4: 60-100 bytes of directory a name, 250 of record."""
OVERHEAD_PER_BLOB_BYTES: Final = 1024

FREEING_TAKES_S: Final = 10.0
"""How long deleted files may take to show up as free space (XFS frees them in the background). Chosen."""

Why = Literal["room", "watermark", "asked"]
"""What a version was evicted for: another one, the next one, or because somebody said so."""


class Usage(Value):
    """Room in bytes. `capacity`: of the filesystem. `free`: of it now. `used`: by blobs, published or on their way.
    `reserved`: promised and not yet taken. `evictable`: could be freed now. `floor`: is never used. `quarantined`:
    blobs that could not be repaired and are kept for the operator.
    """

    capacity: int
    free: int
    used: int
    reserved: int
    evictable: int
    floor: int
    models: int
    blobs: int
    quarantined: int


class Room:
    """Reservations and evictions of one store."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._turn = threading.Lock()

    def reserve(self, digest: str, blobs: Mapping[str, int], priority: int) -> Reservation:
        """Promise room for what is not here yet, evicting what must go for it. Raises NoRoom, having removed nothing.

        One caller at a time: what one has freed must not be promised to another. Takes as long as deleting takes.
        """
        reservation = Reservation(digest, dict(blobs), self._release)
        with self._turn:
            with self._state.lock:  # first of all, so that what is here of it already is not evicted for it
                self._state.reservations.append(reservation)
            try:
                while self._make_room(reservation, priority):
                    self._wait_until_deleted()
            except BaseException:
                reservation.release()
                raise
        return reservation

    def trim(self) -> int:
        """Evict down to the low watermark if the cache is fuller than the high one, and empty the trash in any case;
        returns the bytes given back."""
        with self._turn, self._state.lock:
            plan = self._trimming()
            freed = sum(self.take_away(victim, "watermark") for victim in plan.digests) if plan else 0
        self._state.trash.sweep()
        return freed

    def evict(self, digest: str) -> int:
        """Remove one version; returns the bytes given back. Raises NotCached, ModelInUse."""
        state = self._state
        with state.lock:
            record = state.index.get(digest)
            held = self._held(digest, priority=None)
            if not held and digest in state.holds.volumes:
                held = "in a PersistentVolume"
                state.holds.announce([digest])
            if held and held != "under repair":
                how = {
                    "pinned": "`cacheagent unpin` it first",
                    "mounted": "its pods must end first",
                    "about to be mounted": "its pods must end first",
                    "in a PersistentVolume": "the controller was asked to let go of it; try again in a moment",
                }
                raise ModelInUse(
                    f"{record.name or digest} is {held} and stays", hint=how.get(held, "try again when that is over")
                )
            freed = self.take_away(digest, "asked")
        state.trash.sweep()
        return freed

    def take_away(self, digest: str, why: Why) -> int:
        """The eviction itself, with the lock held: the tree is gone with one rename; what a version on its way needs
        goes back to staging; then the record goes, then what nobody names. Recovery undoes it before the record is
        gone, and completes it after."""
        state = self._state
        blobs = state.index.remove(digest)
        unnamed = {blob: known for blob, known in blobs.items() if not known.versions}
        with state.trash.bin() as bin_:
            bin_.take(state.layout.model(digest))
            for blob in unnamed.keys() & state.wanted():
                known = unnamed.pop(blob)
                state.staging.take_back(blob, known.size_bytes, known.hashes)
            bin_.take(state.layout.record(digest))
            for blob in unnamed:
                bin_.take(state.layout.blob(blob))
        state.resolutions.drop(digest)
        state.holds.forget(digest)
        freed = sum(known.size_bytes for known in unnamed.values())
        state.evictions[why] += 1
        state.evicted_bytes[why] += freed
        return freed

    def usage(self) -> Usage:
        """The numbers now."""
        state = self._state
        with state.lock:
            disk = os.statvfs(state.layout.root)
            return Usage(
                capacity=disk.f_blocks * disk.f_frsize,
                free=disk.f_bavail * disk.f_frsize,
                used=self._used_bytes(),
                reserved=self._promised_bytes(),
                evictable=evictable_bytes(self.residents()) + self._idle_bytes(),
                floor=state.policy.floor_bytes,
                models=len(state.index.records),
                blobs=len(state.index.blobs),
                quarantined=len(os.listdir(state.layout.quarantine)),
            )

    def residents(self, priority: int | None = None, *, if_let_go: bool = False) -> Residents:
        """What the rule of eviction looks at; `priority` is that of whoever needs the room. `if_let_go`: as if the
        controller held nothing for PersistentVolumes."""
        index, holds = self._state.index, self._state.holds
        at_all: Held = "mounted before the boot" if self._state.grace.left_s() else ""
        if not holds.mounts_known:
            at_all = "mounted, for all that is known"
        versions = [
            Resident(
                digest=digest,
                priority=holds.priority(digest, record.priority),
                last_used=record.last_used,
                blobs=index.blob_set(digest),
                held=self._held(digest, priority)
                or ("" if if_let_go or digest not in holds.volumes else "in a PersistentVolume")
                or self._kept_warm(digest, priority)
                or at_all,
            )
            for digest, record in index.records.items()
        ]
        return Residents(versions=versions, sizes=index.sizes, wanted=self._state.wanted())

    def _held(self, digest: str, priority: int | None) -> Held:
        state = self._state
        record = state.index.records[digest]
        if record.pin or digest in state.holds.pinned:
            return "pinned"
        if digest in state.leases.digests():
            return "mounted"
        if any(digest == reservation.digest for reservation in state.reservations):
            return "being fetched"
        if digest in state.holds.promised:
            return "about to be mounted"
        if record.suspect:
            return "under repair"
        if priority is not None and state.holds.priority(digest, record.priority) > priority:
            return "more important"
        return ""

    def _kept_warm(self, digest: str, priority: int | None) -> Held:
        """Evicting it by order is something else: then somebody wants it gone."""
        if digest not in self._state.holds.kept_warm:
            return ""
        own = self._state.holds.priority(digest, self._state.index.records[digest].priority)
        more_important = priority is not None and priority > own
        return "" if more_important else "kept warm"

    def _trimming(self) -> Eviction | None:
        policy, used = self._state.policy, self._used_bytes()
        budget = used + max(0, self._free_bytes() - policy.floor_bytes)
        if used <= policy.high_watermark * budget:
            return None
        residents = self.residents()
        too_much = int(used - policy.low_watermark * budget)
        return plan_eviction(residents, min(too_much, evictable_bytes(residents)))

    def _make_room(self, reservation: Reservation, priority: int) -> bool:
        """Move to the trash what must go; False when nothing must. What nobody resumes goes before what somebody may
        open."""
        with self._state.lock:
            short = self._short_by()
            if short <= 0:
                return False
            idle_bytes = self._idle_bytes()
            residents = self.residents(priority)
            plan = plan_eviction(residents, short - idle_bytes)
            if plan is None:
                asked = self._announce(priority, short - idle_bytes)
                raise self._no_room(reservation, residents, evictable_bytes(residents) + idle_bytes, asked=asked)
            for blob in self._idle():
                if short <= 0:
                    break
                short -= self._state.staging.allocated(blob)
                self._state.staging.discard(blob)
            for victim in plan.digests:
                self.take_away(victim, "room")
            return True

    def _announce(self, priority: int, needed_bytes: int) -> int:
        """If versions that only PersistentVolumes hold would give the room: say so; returns how many."""
        holds = self._state.holds
        plan = plan_eviction(self.residents(priority, if_let_go=True), needed_bytes)
        held = [digest for digest in plan.digests if digest in holds.volumes] if plan else []
        holds.announce(held)
        return len(held)

    def _no_room(self, reservation: Reservation, residents: Residents, freeable: int, *, asked: int) -> NoRoom:
        needed = OVERHEAD_BYTES + self._missing_bytes(reservation.blobs)
        sentence = no_room_sentence(
            residents, needed_bytes=needed, usable_bytes=needed - self._short_by(), freeable_bytes=freeable
        )
        return NoRoom(
            f"{reservation.digest} {sentence}",
            hint=f"{self._later(asked)}unpin or evict models, lower the floor, or use a larger disk",
        )

    def _later(self, asked: int) -> str:
        """What may mend it without anybody's doing."""
        grace_s = self._state.grace.left_s()
        if not self._state.holds.mounts_known:
            return "nothing is evicted before the csi container has reported what is mounted; or "
        if grace_s:
            return f"nothing is evicted for another {grace_s:.0f} s after the boot; or "
        if asked:
            return f"the controller is asked to let go of {asked} version(s) that PersistentVolumes point at; or "
        return ""

    def _short_by(self) -> int:
        """Bytes that are missing for everything promised and the floor."""
        return self._promised_bytes() + self._state.policy.floor_bytes - self._free_bytes()

    def _promised_bytes(self) -> int:
        """Bytes that reservations will still take; a blob that several need counts once."""
        wanted: dict[str, int] = {}
        for reservation in self._state.reservations:
            wanted.update(reservation.blobs)
        return len(self._state.reservations) * OVERHEAD_BYTES + self._missing_bytes(wanted)

    def _missing_bytes(self, blobs: Mapping[str, int]) -> int:
        """Disk that blobs will still take. What is preallocated is no longer free, so it must not count again."""
        published, staging = self._state.index.blobs, self._state.staging
        return sum(
            max(0, on_disk(size) - staging.allocated(blob)) + OVERHEAD_PER_BLOB_BYTES
            for blob, size in blobs.items()
            if blob not in published
        )

    def _idle(self) -> list[str]:
        """Blobs on their way that no reservation is for, the oldest first: interrupted, and nobody has come back."""
        wanted = self._state.wanted()
        return [blob for blob in self._state.staging.blobs() if blob not in wanted]

    def _idle_bytes(self) -> int:
        return sum(self._state.staging.allocated(blob) for blob in self._idle())

    def _used_bytes(self) -> int:
        staging = self._state.staging
        staged = sum(staging.allocated(blob) for blob in staging.blobs())
        return staged + sum(self._state.index.sizes.values())

    def _free_bytes(self) -> int:
        disk = os.statvfs(self._state.layout.root)
        return disk.f_bavail * disk.f_frsize

    def _wait_until_deleted(self) -> None:
        self._state.trash.sweep()
        deadline = time.monotonic() + FREEING_TAKES_S
        while time.monotonic() < deadline:
            with self._state.lock:
                if self._short_by() <= 0:
                    return
            time.sleep(0.05)

    def _release(self, reservation: Reservation) -> None:
        with self._state.lock:
            if reservation in self._state.reservations:
                self._state.reservations.remove(reservation)
