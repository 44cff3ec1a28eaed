"""The store: the one door to the cache directory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from cacheagent.errors import CorruptModel
from cacheagent.model import FileHashes, Manifest, TrustDomain
from cacheagent.store.boot import Boot, BootGrace, this_boot
from cacheagent.store.durable import disk_faults, write_whole
from cacheagent.store.identity import make_incarnation, read_incarnation, read_or_empty
from cacheagent.store.index import Index, blobs_of_files
from cacheagent.store.layout import Layout
from cacheagent.store.leases import Lease, Leases
from cacheagent.store.owner import Owner
from cacheagent.store.publish import Publisher
from cacheagent.store.reconcile import Reconciled, reconcile, remove_volume
from cacheagent.store.record import Record, Resolution, content_digest
from cacheagent.store.recovery import recover
from cacheagent.store.repair import get_blob, quarantine, read_scrubbed, repair_piece, write_scrubbed
from cacheagent.store.resolutions import Resolutions
from cacheagent.store.room import Room, Usage
from cacheagent.store.staging import StagedBlob, Staging
from cacheagent.store.state import Reservation, State, StorePolicy
from cacheagent.store.trash import Trash
from cacheagent.store.tree import check_tree
from cacheagent.store.volumes import Promise, Promises, fill, write_progress


class Store:
    """One cache directory, owned by this process. All methods may be called from any thread. Look-ups (`record`,
    `blob_hashes`, `resolution`, paths) do no I/O; `touch`, `pin`, `lease` and their opposites write one small file;
    `reserve`, `stage`, `prove_small`, `publish`, `evict`, `trim`, `sweep_trash`, `repair_piece` and `quarantine` may
    take long: call them in a thread. Whatever touches the disk may raise DiskFault.
    """

    def __init__(self, state: State, owner: Owner) -> None:
        self._state = state
        self._owner = owner
        self._room = Room(state)
        self._publisher = Publisher(state)

    @classmethod
    def open(
        cls,
        root: Path,
        policy: StorePolicy | None = None,
        *,
        now: Callable[[], float] = time.time,
        boot: Callable[[], Boot] = this_boot,
    ) -> Self:
        """Make or adopt a cache directory; finish or undo what a crash left. Raises StoreBusy, UnknownLayout (nothing
        was touched), DiskFault."""
        layout = Layout(root)
        with disk_faults(f"the cache directory {root} can't be opened"):
            owner = Owner.take(layout)
            try:
                trash = Trash(layout)
                state = State(
                    layout=layout,
                    policy=policy or StorePolicy(),
                    now=now,
                    trash=trash,
                    staging=Staging(layout, trash),
                    index=Index(),
                    leases=Leases(layout),
                    promises=Promises(layout),
                    resolutions=Resolutions(layout),
                    grace=BootGrace(layout, (policy or StorePolicy()).boot_grace_s, boot),
                )
                recover(state)
                state.grace.begin()
                make_incarnation(layout)
            except BaseException:
                owner.release()
                raise
        return cls(state, owner)

    def close(self) -> None:
        """Give the directory up. May be called twice; nothing else may be called after."""
        self._owner.release()

    @property
    def root(self) -> Path:
        """The cache directory."""
        return Path(self._state.layout.root)

    # --- what is published

    def record(self, digest: str) -> Record | None:
        """The published version."""
        return self._state.index.records.get(digest)

    def records(self) -> list[Record]:
        """Every published version."""
        return list(self._state.index.records.values())

    def path(self, digest: str) -> Path:
        """Where a version is, or would be, published: `files/` in it is the plain view, `hf/` a Hugging Face cache."""
        return Path(self._state.layout.model(digest))

    def resolution(self, key: str) -> str | None:
        """The digest that a request was last resolved to; it may be evicted meanwhile."""
        return self._state.resolutions.find(key)

    def resolutions(self) -> list[Resolution]:
        """Every request that was resolved."""
        return self._state.resolutions.all()

    def set_resolution(self, key: str, name: str, uri: str, digest: str) -> None:
        """From now on this request means this version."""
        with disk_faults("what a request means can't be written down"), self._state.lock:
            self._state.resolutions.put(Resolution(key=key, name=name, uri=uri, digest=digest))

    def warnings(self) -> list[str]:
        """What a person should look at: sentences."""
        return [
            f"leases/{name} can't be read and protects nothing; it goes when its volume is released"
            for name in self._state.leases.unreadable
        ]

    # --- bytes on their way

    def reserve(self, digest: str, blobs: Mapping[str, int], *, priority: int) -> Reservation:
        """Promise room for everything the model needs (blob to size), evicting what must go; models of a higher
        priority stay. Until it is released, no blob of it is removed. Raises NoRoom with the numbers, having removed
        nothing."""
        with disk_faults("room can't be made"):
            return self._room.reserve(digest, blobs, priority)

    def is_on_its_way(self, digest: str) -> bool:
        """Whether a job has room for it, which it gives back after its publish, or when it has failed."""
        return any(digest == each.digest for each in tuple(self._state.reservations))

    def blob_hashes(self, blob: str) -> FileHashes | None:
        """Hashes of a blob that is published, or on its way and verified in this process."""
        known = self._state.index.blobs.get(blob)
        return known.hashes if known else self._state.staging.proved.get(blob)

    def blob_path(self, blob: str) -> Path:
        """Where the bytes of a blob are that `blob_hashes` knows. A publish may move them a moment later: use
        `open_blob` for what may not be published yet."""
        published = blob in self._state.index.blobs
        return Path(self._state.layout.blob(blob) if published else self._state.staging.place(blob))

    def open_blob(self, blob: str) -> BinaryIO:
        """Open a blob that `blob_hashes` knows for reading."""
        with disk_faults("a blob can't be opened"):
            try:
                return open(self._state.staging.place(blob), "rb")
            except FileNotFoundError:
                return open(self._state.layout.blob(blob), "rb")

    def stage(self, blob: str, size_bytes: int) -> StagedBlob:
        """Preallocate a blob, or take up what an earlier try left of it. Call it under a reservation that names it:
        without one the room may be given to somebody else."""
        with disk_faults("room for a file can't be allocated"):
            return self._state.staging.stage(blob, size_bytes)

    def doubt(self, blob: str, pieces: Mapping[int, str]) -> bool:
        """A large blob that was verified is so no more if it has one of these pieces (index -> BLAKE3): the next
        `stage` claims the others only. False if it has none of them, or is published: nothing changes then."""
        with disk_faults("the journal of a file can't be written"), self._publisher.turn:
            return self._state.staging.doubt(blob, pieces)

    def small_path(self, blob: str) -> str:
        """Where a small file is to be written, under a reservation."""
        return self._state.layout.staged_small(blob)

    def small_done(self, results: Sequence[tuple[str, int, FileHashes]]) -> None:
        """Small files (blob, size in bytes, hashes) are on disk and agree with their origin."""
        with disk_faults("the journal of small files can't be written"):
            self._state.staging.small_done(results)

    def prove_small(self, blobs: Iterable[str]) -> set[str]:
        """Read back what an earlier try left of small files; returns those that are right. Others are removed."""
        with disk_faults("small files can't be read back"):
            return self._state.staging.prove_small(blobs)

    def publish(  # noqa: PLR0913 - each is one fact of the record
        self,
        manifest: Manifest,
        domain: TrustDomain,
        hashes: Mapping[str, FileHashes],
        *,
        uri: str,
        name: str,
        pin: bool,
        priority: int,
    ) -> Record:
        """Make the version visible, whole, with one rename. `hashes` by blob. A version that is published already is
        returned as it is (`pin` is honoured). Raises UnsafeContent, CorruptModel when a blob was not verified."""
        check_tree(manifest)
        state, digest = self._state, manifest.digest
        with disk_faults("the model can't be published"), self._publisher.turn:
            if digest not in state.index.records:
                blobs = blobs_of_files(manifest, domain)
                by_path = self._publisher.proved_hashes(manifest, blobs, hashes)
                now = state.index.next_use(state.now())
                record = Record(
                    manifest=manifest,
                    digest=digest,
                    domain=domain,
                    uri=uri,
                    name=name,
                    hashes=by_path,
                    content_digest=content_digest(manifest, by_path),
                    published_at=now,
                    last_used=now,
                    pin=pin,
                    priority=priority,
                )
                self._publisher.publish(record, blobs)
            elif pin:
                self.pin(digest)
            return state.index.get(digest)

    # --- who uses it

    def touch(self, digest: str) -> Record | None:
        """It was used just now; the record says so. None when it was evicted meanwhile."""
        state = self._state
        with disk_faults("a use can't be written down"), state.lock:
            record = state.index.records.get(digest)
            if record is not None:
                now = state.index.next_use(state.now())
                os.utime(state.layout.record(digest), (now, now))
                record = msgspec.structs.replace(record, last_used=now)
                state.index.replace(record)
            return record

    def pin(self, digest: str) -> None:
        """Never evict it. Raises NotCached."""
        self._change(digest, pin=True)

    def unpin(self, digest: str) -> None:
        """It may be evicted again. Raises NotCached."""
        self._change(digest, pin=False)

    def lease(self, volume_id: str, digest: str, *, owner: str = "") -> Path:
        """The version is about to be mounted: from the return of this call on it stays. Asking again is fine. Raises
        NotCached, CorruptModel for a version under repair, ModelInUse if the volume uses another version."""
        state = self._state
        with disk_faults("a lease can't be written"), state.lock:
            record = state.index.get(digest)
            if record.suspect and volume_id not in {lease.volume_id for lease in state.leases.all()}:
                raise CorruptModel(
                    f"{record.name or digest} takes no new volumes: {record.withdrawn}",
                    hint="its bytes are being repaired; try again in a minute",
                )
            state.leases.take(Lease(volume_id=volume_id, digest=digest, owner=owner, since=state.now()))
            self.touch(digest)
        return self.path(digest)

    def renew_lease(self, volume_id: str, *, older_than_s: float) -> bool:
        """A volume that was granted that long ago is asked for again: its grant begins anew. False without a lease."""
        with disk_faults("a lease can't be renewed"), self._state.lock:
            return self._state.leases.renew(volume_id, self._state.now(), older_than_s)

    def release(self, volume_id: str) -> None:
        """The volume is unmounted. One that has no lease is fine."""
        with disk_faults("a lease can't be removed"), self._state.lock:
            self._state.leases.release(volume_id)

    def leases(self) -> list[Lease]:
        """Every mounted volume."""
        return self._state.leases.all()

    def find_lease(self, volume_id: str) -> Lease | None:
        """The lease of a volume."""
        return self._state.leases.get(volume_id)

    # --- volumes before their lease, and those that are filled later

    def promises(self) -> list[Promise]:
        """Every volume that was asked for and has no lease yet."""
        return self._state.promises.all()

    def promise(self, promise: Promise) -> None:
        """Remember what a volume will get; one that has its lease already has got it. Raises UsageError for an id that
        can't be a name."""
        with disk_faults("a volume's promise can't be written"), self._state.lock:
            if self._state.leases.get(promise.volume_id) is None:
                self._state.promises.put(promise)

    def forget_promise(self, volume_id: str) -> None:
        """It has its lease, or nobody waits for it any more. Absent is fine."""
        with disk_faults("a volume's promise can't be removed"), self._state.lock:
            self._state.promises.drop(volume_id)

    def make_volume(self, volume_id: str) -> None:
        """The directory of a volume that is filled later. The same again is fine."""
        with disk_faults("a volume's directory can't be made"), self._state.lock:
            self._state.promises.make_directory(volume_id)

    def has_volume(self, volume_id: str) -> bool:
        """Whether a volume has a directory of its own. No I/O."""
        return volume_id in self._state.promises.directories

    def volume_path(self, volume_id: str) -> Path:
        """That directory. Raises UsageError for an id that can't be a name."""
        return Path(self._state.layout.volume(volume_id))

    def write_progress(self, volume_id: str, line: str) -> None:
        """One line for people, in the directory of a volume that is filled later."""
        with disk_faults("a volume's progress can't be written"):
            write_progress(self._state.layout, volume_id, line)

    def fill_volume(self, promise: Promise) -> None:
        """Take the lease, link the files of `promise.digest` into the volume's directory, set the mark, forget the
        promise: each durable before the next. May be done again. Raises what `lease` raises, UnsafeContent."""
        self.lease(promise.volume_id, promise.digest, owner=promise.owner)
        with disk_faults("a volume can't be filled"):
            fill(self._state.layout, promise.volume_id, promise.digest, promise.view)
        self.forget_promise(promise.volume_id)

    def remove_volume(self, volume_id: str) -> None:
        """Its directory, its promise and its lease go. Absent is fine. Raises UsageError."""
        with disk_faults("a volume can't be removed"), self._state.lock:
            remove_volume(self._state, volume_id)

    def reconcile(self, mounts: Mapping[str, str], *, grant_s: float) -> Reconciled:
        """What is mounted, whole: volume ids and the mounted paths below the root. Leases that are missing are made;
        those of volumes that are not mounted and were granted more than `grant_s` seconds ago go."""
        with disk_faults("leases can't be reconciled"), self._state.lock:
            return reconcile(self._state, mounts, grant_s)

    def expect_mounts(self) -> None:
        """Somebody will `reconcile`; until then nothing is evicted."""
        self._state.holds.mounts_known = False

    # --- who else keeps what

    def hold(self, volumes: Collection[str], pinned: Collection[str] = ()) -> bool:
        """From now on PersistentVolumes point at these, which are announced before they go, and those are pinned.
        Returns whether some were let go of. Forgotten at the end of this process."""
        with self._state.lock:
            return self._state.holds.hold(volumes, pinned)

    def rank(self, priorities: Mapping[str, int]) -> bool:
        """From now on these versions are as important as that, and all others are nobody's; returns whether one is less
        important than before. Forgotten at the end of this process."""
        with self._state.lock:
            return self._state.holds.rank(priorities)

    def hold_promised(self, digests: Collection[str]) -> None:
        """From now on pods wait for these: they stay. Waits for nothing."""
        self._state.holds.promised = frozenset(digests)

    def evicting(self) -> tuple[str, ...]:
        """Versions that are or were held for PersistentVolumes, and whose room is needed."""
        with self._state.lock:
            return self._state.holds.announced()

    def incarnation(self) -> str:
        """A name for this cache directory that a new one would not have."""
        return read_incarnation(self._state.layout)

    def assignment(self) -> bytes:
        """What was last written by `set_assignment`, empty for nothing."""
        with disk_faults("the assignment can't be read"):
            return read_or_empty(self._state.layout.assignment)

    def set_assignment(self, content: bytes) -> None:
        """Keep for the next process what this node is to have."""
        with disk_faults("the assignment can't be written"):
            write_whole(self._state.layout.assignment, content)

    # --- room

    def evict(self, digest: str) -> int:
        """Remove one version; returns the bytes given back (blobs that others share stay). Raises NotCached,
        ModelInUse for one that is pinned, mounted or being fetched."""
        with disk_faults("the model can't be evicted"):
            return self._room.evict(digest)

    def keep_warm(self, digests: Collection[str]) -> None:
        """From now on these go only for something more important, or by order: whoever names them would fetch them
        again at once. Forgotten at the end of this process. Waits for nothing."""
        self._state.holds.kept_warm = frozenset(digests)

    def evictions(self) -> dict[str, int]:
        """How many versions were evicted since this process began, by why: `room`, `watermark` or `asked`."""
        return {why: self._state.evictions[why] for why in ("room", "watermark", "asked")}

    def evicted_bytes(self) -> dict[str, int]:
        """How many bytes they gave back."""
        return {why: self._state.evicted_bytes[why] for why in ("room", "watermark", "asked")}

    def trim(self) -> int:
        """Evict down to the low watermark if the cache is fuller than the high one, and delete what is in the trash;
        returns the bytes given back. To be called from time to time."""
        with disk_faults("room can't be made"):
            return self._room.trim()

    def sweep_trash(self) -> None:
        """Delete what evictions, or a crash among them, left to be deleted."""
        with disk_faults("the trash can't be emptied"):
            self._state.trash.sweep()

    def usage(self) -> Usage:
        """The room that there is."""
        with disk_faults("the disk can't be looked at"):
            return self._room.usage()

    # --- bytes at rest, and those that turned out wrong

    def published_blobs(self) -> dict[str, float]:
        """Every published blob, and when (in seconds since the epoch) the first version with it was published."""
        with self._state.lock:
            index = self._state.index
            return {
                blob: min(index.records[digest].published_at for digest in known.versions)
                for blob, known in index.blobs.items()
            }

    def blob_size(self, blob: str) -> int:
        """Size in bytes of a published blob. Raises NotCached."""
        return get_blob(self._state, blob).size_bytes

    def scrubbed(self) -> dict[str, float]:
        """When each blob was last read back, as `set_scrubbed` was told; what can't be read was never written."""
        with disk_faults("the scrub's notes can't be read"):
            return read_scrubbed(self._state)

    def set_scrubbed(self, read_at: Mapping[str, float]) -> None:
        """Keep for the next process when each blob was last read back."""
        with disk_faults("the scrub's notes can't be written"):
            write_scrubbed(self._state, read_at)

    def withdraw(self, digest: str, reason: str) -> None:
        """Bytes of it are wrong: no new leases until `reinstate`. Raises NotCached."""
        self._change(digest, withdrawn=reason)

    def reinstate(self, digest: str) -> None:
        """All its bytes are right again. Raises NotCached."""
        self._change(digest, withdrawn="")

    def versions_of(self, blob: str) -> list[str]:
        """Digests of the versions that contain a blob. Raises NotCached."""
        with self._state.lock:
            return sorted(get_blob(self._state, blob).versions)

    def blobs_of(self, digest: str) -> list[str]:
        """Blobs of a version, each once. Raises NotCached."""
        with self._state.lock:
            self._state.index.get(digest)
            return list(dict.fromkeys(self._state.index.blobs_of(digest)))

    def repair_piece(self, blob: str, index: int, data: bytes) -> None:
        """Write a piece over the same range of the same inode: open readers and mappings heal. Only the recorded bytes
        can be restored. Raises ChecksumMismatch, NotCached."""
        with disk_faults("a piece can't be repaired"):
            repair_piece(self._state, blob, index, data)

    def quarantine(self, blob: str) -> Path | None:
        """Keep a copy of a blob that can't be repaired; None when there is no room for it. Raises NotCached."""
        with disk_faults("a blob can't be put into quarantine"):
            copy = quarantine(self._state, blob, self._state.now())
            return Path(copy) if copy else None

    def _change(self, digest: str, **changes: str | bool) -> None:
        with disk_faults("the record can't be written"), self._state.lock:
            record = self._state.index.get(digest)
            if any(getattr(record, field) != value for field, value in changes.items()):
                self._state.rewrite(record, **changes)
