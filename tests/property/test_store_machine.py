"""Any sequence of pulls, interruptions, leases, pins, evictions, crashes, decay and clock changes, beside a reference.

After each step the real directory is walked: I1 to I6 hold, and what is published is what the reference says.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cacheagent.errors import ModelInUse, NoRoom, NotCached
from cacheagent.model import SMALL_FILE_BYTES, Manifest
from cacheagent.scrub import Scrub, ScrubPolicy
from cacheagent.store import Boot, Store, StorePolicy
from tests.fakes.cache import (
    assert_nothing_unverified,
    blobs_of,
    bring,
    content_of,
    doomed,
    immortal,
    manifest_of,
    reserve,
    stage,
)
from tests.fakes.memory import MemoryTransport

MIB = 2**20
CONTENTS = {
    "empty": b"",
    "config": b"{}",
    "tokenizer": content_of("tokenizer", 70_000),
    "shard-1": content_of("1", SMALL_FILE_BYTES),
    "shard-2": content_of("2", SMALL_FILE_BYTES + 1),
    "shard-2b": content_of("2b", SMALL_FILE_BYTES + 1),
    "shard-3": content_of("3", 3 * SMALL_FILE_BYTES),
}
MODELS: dict[str, dict[str, bytes]] = {
    name: {f"dir/{part}": CONTENTS[part] for part in parts}
    for name, parts in {
        "base": ("empty", "config", "shard-1", "shard-2"),
        "revised": ("empty", "config", "shard-1", "shard-2b"),
        "merged": ("config", "tokenizer", "shard-1", "shard-2", "shard-2b"),
        "large": ("shard-3", "tokenizer"),
        "tiny": ("empty", "config"),
    }.items()
}
MANIFESTS: dict[str, Manifest] = {name: manifest_of(files) for name, files in MODELS.items()}
BY_DIGEST = {MANIFESTS[name].digest: files for name, files in MODELS.items()}
ALL_BLOBS = {blob: content for files in MODELS.values() for blob, content in blobs_of(files).items()}
CAPACITY, FLOOR = 6 * MIB, MIB
"""Not enough for everything at once, enough for any one model."""
POLICY = StorePolicy(floor_bytes=FLOOR, high_watermark=0.8, low_watermark=0.5)

names = st.sampled_from(sorted(MODELS))
volumes = st.sampled_from(["v1", "v2"])


@dataclass
class Published:
    """What the reference knows of a version."""

    pin: bool
    priority: int


class StoreMachine(RuleBasedStateMachine):
    """The store beside a dict."""

    @initialize()
    def begin(self) -> None:
        self.exits = ExitStack()
        self.root = Path(self.exits.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))) / "cache"
        self.exits.enter_context(immortal())
        patch = self.exits.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(os, "statvfs", self.statvfs)
        self.time = 1_700_000_000.0
        self.boot = Boot(id="first", seconds=100.0)
        self.strangers_bytes = 0
        self.published: dict[str, Published] = {}
        self.leases: dict[str, str] = {}
        self.held: set[str] = set()
        self.ever_held: set[str] = set()
        self.promised: set[str] = set()
        self.open()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.exits.close()

    def open(self) -> None:
        self.store = Store.open(self.root, POLICY, now=lambda: self.time, boot=lambda: self.boot)
        self.store.hold(self.held)  # an agent does so before anything else
        self.store.hold_promised(self.promised)

    def used_bytes(self) -> int:
        inodes = {}
        for path in self.root.rglob("*"):
            if not path.is_dir():
                found = path.stat()
                inodes[found.st_ino] = found.st_blocks * 512
        return sum(inodes.values())

    def statvfs(self, path: str) -> SimpleNamespace:
        free = CAPACITY - self.used_bytes() - self.strangers_bytes
        return SimpleNamespace(f_bavail=free, f_blocks=CAPACITY, f_frsize=1)

    # --- what happens

    @rule(name=names, pin=st.booleans(), priority=st.integers(0, 2))
    def pull(self, *, name: str, pin: bool, priority: int) -> None:
        before = dict(self.published)
        possible = self.could_fit(name, priority)
        refused = self.bring_or_refusal(name, pin=pin, priority=priority)
        if refused is not None:
            event("pull: no room")
            assert not possible, refused
            assert "can be freed" in refused.message
            assert {record.digest for record in self.store.records()} == self.digests()
            return
        known = before.get(name, Published(pin=pin, priority=priority))
        here = {record.digest for record in self.store.records()}
        for other, facts in before.items():
            if MANIFESTS[other].digest not in here:
                assert not facts.pin, other
                assert facts.priority <= priority, other
                assert MANIFESTS[other].digest not in self.kept(), other
                assert not self.in_grace(), other
                del self.published[other]
                event("pull: evicted another")
        self.published[name] = Published(pin=known.pin or pin, priority=known.priority)

    @rule(order=st.permutations(sorted(MODELS)))
    def pull_everything(self, order: list[str]) -> None:
        """More than there is room for."""
        for name in order:
            self.pull(name=name, pin=False, priority=0)

    @rule(name=names, count=st.integers(0, 4))
    def pull_interrupted(self, name: str, count: int) -> None:
        """Some blobs arrive, then the job ends; other versions may have gone for its room."""
        try:
            reservation = reserve(self.store, MODELS[name])
        except NoRoom:
            return
        self.forget_evicted()
        stage(self.store, dict(itertools.islice(MODELS[name].items(), count)))
        reservation.release()

    @rule(name=names, volume=volumes)
    def lease(self, name: str, volume: str) -> None:
        digest = MANIFESTS[name].digest
        try:
            path = self.store.lease(volume, digest, owner="pod")
        except NotCached:
            assert name not in self.published
        except ModelInUse:
            assert self.leases[volume] != digest
        else:
            assert self.leases.get(volume, digest) == digest
            assert path.is_dir()
            self.leases[volume] = digest

    @rule(held=st.sets(names, max_size=2), promised=st.sets(names, max_size=2))
    def hold(self, held: set[str], promised: set[str]) -> None:
        """PersistentVolumes point at some, pods wait for others."""
        self.held = {MANIFESTS[name].digest for name in held}
        self.ever_held |= self.held
        self.promised = {MANIFESTS[name].digest for name in promised}
        self.store.hold(self.held)
        self.store.hold_promised(self.promised)
        assert set(self.store.evicting()) <= self.ever_held

    @rule(mounted=st.dictionaries(volumes, names))
    def report_mounts(self, mounted: dict[str, str]) -> None:
        """Whole and true: what is mounted is leased, what is not was granted long ago."""
        paths = {volume: f"models/{MANIFESTS[name].digest.replace(':', '-')}/files" for volume, name in mounted.items()}
        self.store.reconcile(paths, grant_s=0.0)
        for volume in [volume for volume in self.leases if volume not in mounted]:
            if self.store.find_lease(volume) is None:  # else it was granted this very instant
                del self.leases[volume]
        for volume, name in mounted.items():
            if name in self.published:
                self.leases[volume] = MANIFESTS[name].digest

    @rule(volume=volumes)
    def release(self, volume: str) -> None:
        self.store.release(volume)
        self.leases.pop(volume, None)

    @rule(name=names, pin=st.booleans())
    def pin(self, *, name: str, pin: bool) -> None:
        digest = MANIFESTS[name].digest
        try:
            self.store.pin(digest) if pin else self.store.unpin(digest)
        except NotCached:
            assert name not in self.published
        else:
            self.published[name].pin = pin

    @rule(name=names)
    def touch(self, name: str) -> None:
        latest = max((record.last_used for record in self.store.records()), default=0.0)
        record = self.store.touch(MANIFESTS[name].digest)
        assert (record is not None) == (name in self.published)
        assert record is None or record.last_used > latest

    @rule(name=names)
    def evict(self, name: str) -> None:
        digest = MANIFESTS[name].digest
        before = self.used_bytes()
        try:
            freed = self.store.evict(digest)
        except NotCached:
            assert name not in self.published
        except ModelInUse:
            assert self.published[name].pin or digest in self.kept()
            if digest in self.held and not self.published[name].pin and digest not in self.leases.values():
                assert digest in self.store.evicting() or digest in self.promised, "whoever holds it is told"
        else:
            assert freed <= before - self.used_bytes()
            assert not self.published.pop(name).pin
            assert digest not in self.kept()

    @rule()
    def trim(self) -> None:
        self.store.trim()
        self.forget_evicted()

    @rule(seconds=st.sampled_from([-1e9, -60.0, 3600.0, 1e9]))
    def set_clock(self, seconds: float) -> None:
        self.time = max(1.0, self.time + seconds)

    @rule(seconds=st.sampled_from([10.0, 700.0]))
    def wait(self, seconds: float) -> None:
        self.boot = Boot(id=self.boot.id, seconds=self.boot.seconds + seconds)

    @rule()
    def reboot(self) -> None:
        self.store.close()
        self.boot = Boot(id=self.boot.id + "'", seconds=1.0)
        self.open()
        self.grace_ends = 601.0

    @rule(size=st.sampled_from([0, 0, MIB, 20 * MIB]))
    def somebody_else_uses_the_disk(self, size: int) -> None:
        self.strangers_bytes = size

    @rule()
    def crash(self) -> None:
        """Without a word, and start again: whatever was verified is still here."""
        before = {blob for blob in ALL_BLOBS if self.store.blob_hashes(blob) is not None}
        self.store.close()
        self.open()
        assert all(self.is_kept(blob) for blob in before)

    @rule(name=names, at=st.integers(0, 120), evicting=st.booleans())
    def crash_in(self, *, name: str, at: int, evicting: bool) -> None:
        """Die in the middle of a pull or an eviction: it is finished or undone."""
        digest = MANIFESTS[name].digest
        was_here = name in self.published
        with doomed(at) as doom, suppress(NoRoom, NotCached, ModelInUse):
            self.store.evict(digest) if evicting else bring(self.store, MODELS[name], name=name)
        event(f"crash in {'an eviction' if evicting else 'a pull'}: {doom.came}")
        self.store.close()
        self.open()
        self.forget_evicted()
        if self.store.record(digest) is not None and not was_here:
            assert not evicting
            self.published[name] = Published(pin=False, priority=0)
        elif not evicting and not doom.came and was_here:
            assert name in self.published

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def decay_and_scrub(self, data: st.DataObject) -> None:
        """A published blob goes bad; the scrub restores it."""
        blobs = sorted(blob for name in self.published for blob, content in blobs_of(MODELS[name]).items() if content)
        blob = data.draw(st.sampled_from(blobs))
        path = self.store.blob_path(blob)
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.write(b"\xff")
        path.chmod(0o444)
        refetched = []

        async def refetch(blob: str, index: int) -> bytes:
            refetched.append(blob)
            return ALL_BLOBS[blob]

        async def rest(seconds: float) -> None:
            pass

        scrub = Scrub(self.store, MemoryTransport(), refetch, ScrubPolicy(), now=lambda: self.time, sleep=rest)
        assert asyncio.run(scrub.scrub_blob(blob))
        assert refetched == [blob]

    # --- what must hold

    @invariant()
    def the_directory_is_right(self) -> None:
        if not hasattr(self, "store"):
            return
        assert_nothing_unverified(self.root, BY_DIGEST)  # I1, I2
        trees = {path.name.replace("-", ":") for path in (self.root / "models").iterdir()}
        records = {path.stem.replace("-", ":") for path in (self.root / "records").iterdir()}
        assert trees == records == self.digests() == {record.digest for record in self.store.records()}
        assert set(self.leases.values()) <= trees  # I3
        assert {lease.volume_id: lease.digest for lease in self.store.leases()} == self.leases
        if self.strangers_bytes <= MIB:
            assert self.statvfs("").f_bavail >= FLOOR - MIB * bool(self.strangers_bytes)  # I4
        assert self.store.usage().models == len(self.published)

    @invariant()
    def every_blob_is_stored_once(self) -> None:
        if not hasattr(self, "store"):
            return
        named = {blob: files for name in self.published for blob, files in blobs_of(MODELS[name]).items()}
        assert {path.name for path in (self.root / "blobs").iterdir()} == named.keys()  # I6
        for name in self.published:
            for path, content in MODELS[name].items():
                (blob,) = blobs_of({path: content})
                linked = self.store.path(MANIFESTS[name].digest) / "files" / path
                assert linked.samefile(self.root / "blobs" / blob)
        staged = {path.name for place in ("staging", "staging/small") for path in (self.root / place).iterdir()}
        assert staged.isdisjoint(named)

    def bring_or_refusal(self, name: str, *, pin: bool, priority: int) -> NoRoom | None:
        try:
            record = bring(self.store, MODELS[name], name=name, pin=pin, priority=priority)
        except NoRoom as refused:
            return refused
        assert record.digest == MANIFESTS[name].digest
        return None

    # --- the reference's own arithmetic

    def digests(self) -> set[str]:
        return {MANIFESTS[name].digest for name in self.published}

    def kept(self) -> set[str]:
        """What nobody may take away."""
        return {*self.leases.values(), *self.held, *self.promised}

    def in_grace(self) -> bool:
        return self.boot.id != "first" and self.boot.seconds < self.grace_ends

    def forget_evicted(self) -> None:
        """What went for room: it was nobody's to keep."""
        here = {record.digest for record in self.store.records()}
        for name in [name for name in self.published if MANIFESTS[name].digest not in here]:
            facts = self.published.pop(name)
            assert not facts.pin
            assert MANIFESTS[name].digest not in self.kept()

    def could_fit(self, name: str, priority: int) -> bool:
        """Whether there is certainly room once everything that may go is gone: 200 KB more than the rule needs."""

        def may_go(other: str, facts: Published) -> bool:
            held = facts.pin or facts.priority > priority or self.in_grace()
            return not held and other != name and MANIFESTS[other].digest not in self.kept()

        staying = [other for other, facts in self.published.items() if not may_go(other, facts)]
        blobs = {blob: content for other in [*staying, name] for blob, content in blobs_of(MODELS[other]).items()}
        needed = sum(-(-len(content) // 4096) * 4096 for content in blobs.values())
        return needed + FLOOR + MIB + 200_000 + self.strangers_bytes <= CAPACITY

    def is_kept(self, blob: str) -> bool:
        if self.store.blob_hashes(blob) is not None or self.store.prove_small([blob]):
            return True
        staged = self.root / "staging" / blob
        journal = (staged / "journal").read_text().splitlines()
        return (staged / "data").read_bytes() == ALL_BLOBS[blob] and len(set(filter(None, journal))) > 1


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
