"""Publishing, using, leasing, evicting; what a start makes of a directory that a person or a disk has damaged."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cacheagent.errors import CorruptModel, DiskFault, ModelInUse, NotCached
from cacheagent.model import PIECE_SIZE_BYTES, SMALL_FILE_BYTES, FileHashes
from cacheagent.store import Lease, Resolution, Store
from tests.fakes.cache import (
    NO_FLOOR,
    assert_nothing_unverified,
    blobs_of,
    bring,
    content_of,
    doomed,
    files_under,
    hashes_of,
    immortal,
    manifest_of,
    names_in,
    publish,
    reserve,
    stage,
)

SHARED = content_of("shared", SMALL_FILE_BYTES)
V1 = {"config.json": b"{}", "shared.bin": SHARED, "w.bin": content_of("1", SMALL_FILE_BYTES)}
V2 = {"config.json": b"{}", "shared.bin": SHARED, "w.bin": content_of("2", SMALL_FILE_BYTES)}
MODELS = {manifest_of(files).digest: files for files in (V1, V2)}


class Clock:
    """A wall clock that a person can set."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(root: Path, clock: Clock) -> Iterator[Store]:
    with immortal():
        opened = Store.open(root, NO_FLOOR, now=clock)
        yield opened
        opened.close()


@contextmanager
def reopened(store: Store, root: Path) -> Iterator[Store]:
    """Another process takes over: the lock is given back, nothing else."""
    store.close()
    again = Store.open(root, NO_FLOOR)
    try:
        yield again
    finally:
        again.close()


# --- publishing


def test_a_record_tells_everything_and_survives_a_restart(store: Store, root: Path) -> None:
    """Also that it is read from disk, and equal."""
    record = bring(store, V1, name="llama", pin=True, priority=7)
    assert (record.name, record.uri, record.pin, record.priority) == ("llama", "memory://origin/m", True, 7)
    assert record.size_bytes == 2 + 2 * SMALL_FILE_BYTES
    assert record.hashes["shared.bin"] == hashes_of(SHARED)
    assert not record.suspect
    with reopened(store, root) as again:
        assert again.records() == [record]
        assert all(again.blob_hashes(blob) == hashes_of(content) for blob, content in blobs_of(V1).items())


def test_the_content_digest_is_of_the_bytes_alone(store: Store) -> None:
    """Another repository id is another version with the same content; other bytes are other content."""
    plain, named, other = bring(store, V1), bring(store, V1, repo_id="org/x"), bring(store, V2)
    assert plain.digest != named.digest
    assert plain.content_digest == named.content_digest != other.content_digest


def test_publishing_again_is_a_hit_that_honours_a_pin(store: Store) -> None:
    """Nothing is moved; the pin is set and never lifted by it."""
    first = bring(store, V1)
    assert not first.pin
    assert bring(store, V1, pin=True).pin
    assert bring(store, V1).pin
    assert len(store.records()) == 1


def test_what_was_not_verified_is_never_published(store: Store, root: Path) -> None:
    """I1: neither a blob that never came, nor one whose hashes are other ones; then the honest one is."""
    manifest = manifest_of(V1)
    with pytest.raises(CorruptModel, match=r"config\.json can't be published: its bytes on disk were not verified"):
        publish(store, V1)
    reservation = reserve(store, V1)
    stage(store, {path: V1[path] for path in ("config.json", "shared.bin")})
    with pytest.raises(CorruptModel, match=r"w\.bin can't be published"):
        publish(store, V1)
    stage(store, V1)
    store._state.staging.proved[next(iter(blobs_of({"w": V1["w.bin"]})))] = FileHashes(pieces=("0" * 64,))
    with pytest.raises(CorruptModel, match=r"w\.bin can't be published"):
        publish(store, V1)
    assert names_in(root, "models", "records", "blobs", "staging/trees") == set()
    store._state.staging.proved[next(iter(blobs_of({"w": V1["w.bin"]})))] = hashes_of(V1["w.bin"])
    publish(store, V1)
    reservation.release()
    assert files_under(store.path(manifest.digest) / "files") == V1


def test_a_staged_blob_is_verified_only_whole(store: Store) -> None:
    """A file of another size, or hashes of fewer pieces, are refused."""
    staged = store.stage("a" * 64, PIECE_SIZE_BYTES + 1)
    with pytest.raises(CorruptModel, match=r"16777217 bytes and 1 piece hashes, expected 16777217 bytes and 2"):
        staged.verified(FileHashes(pieces=("0" * 64,)))
    os.truncate(staged.path, PIECE_SIZE_BYTES)
    with pytest.raises(CorruptModel, match="16777216 bytes and 2 piece hashes"):
        staged.verified(FileHashes(pieces=("0" * 64, "1" * 64)))
    assert store.blob_hashes("a" * 64) is None


def test_everything_is_durable_before_what_depends_on_it(store: Store) -> None:
    """Bytes and tree before the record, the record before the move, that before the tree is shown: the calls' order."""
    reservation = reserve(store, V1)
    stage(store, V1)
    with doomed(10**9) as doom:
        record = publish(store, V1)
    reservation.release()
    steps = [_without_root(step, store) for step in doom.trace]
    name = record.digest.replace(":", "-")

    def at(step: str) -> int:
        return next(number for number, done in enumerate(steps) if done.startswith(step))

    sealed = [number for number, step in enumerate(steps) if step.startswith("chmod staging/") and "trees" not in step]
    written = at(f"open records/.{name}.json.tmp")
    shown = at(f"rename staging/trees/{name} models/{name}")
    moved = [number for number, step in enumerate(steps) if step.startswith("rename staging/") and number != shown]
    linked = [number for number, step in enumerate(steps) if step.startswith("link")]
    synced = [number for number, step in enumerate(steps) if step.startswith("fsync")]
    named = at(f"rename records/.{name}.json.tmp records/{name}.json")
    assert len(sealed) == len(moved) == len(linked) == len(V1)
    blobs_synced = [number for number in synced if max(sealed) < number < min(linked)]
    assert len(blobs_synced) >= len(V1) + 1, "each blob and the directories"
    assert [number for number in synced if written < number < named]
    assert max(sealed) < min(linked) < max(linked) < written < named < min(moved) < max(moved) < shown
    for before, after in ((max(linked), written), (named, min(moved)), (max(moved), shown)):
        assert [number for number in synced if before < number < after], (before, after)
    assert synced[-1] > shown


def _without_root(step: str, store: Store) -> str:
    return step.replace(str(store.path("sha256:" + "0" * 64).parent.parent) + "/", "")


def test_many_small_files_are_made_durable_at_once(store: Store) -> None:
    """One syncfs instead of a thousand fsyncs."""
    files = {f"d{number % 7}/{number}": str(number).encode() for number in range(1000)}
    reservation = reserve(store, files)
    stage(store, files)
    with doomed(10**9) as doom:
        publish(store, files)
    reservation.release()
    assert sum(step.startswith("syncfs") for step in doom.trace) == 1
    assert sum(step.startswith("fsync") for step in doom.trace) < 40
    (record,) = store.records()
    assert files_under(store.path(record.digest) / "files") == files


def test_many_files_that_can_not_be_made_durable_are_not_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes none of them: neither blobs nor a tree with their names stay, and the next try succeeds."""
    files = {f"d/{number}": str(number).encode() for number in range(100)}
    reservation = reserve(store, files)
    stage(store, files)

    def fail(root: str) -> None:
        raise OSError(errno.EIO, "Input/output error", root)

    with monkeypatch.context() as patch:
        patch.setattr("cacheagent.store.durable._sync_filesystem", fail)
        with pytest.raises(DiskFault, match="Input/output error"):
            publish(store, files)
    root = store.path("sha256:" + "0" * 64).parent.parent
    assert list((root / "staging" / "trees").iterdir()) == []
    assert [path.name for path in (root / "staging" / "small").iterdir()] == ["journal"]
    assert not any(store.blob_hashes(blob) for blob in blobs_of(files))
    stage(store, files)
    record = publish(store, files)
    reservation.release()
    assert files_under(store.path(record.digest) / "files") == files


def test_many_files_whose_tree_can_not_be_made_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room for one more name: what is verified stays, and the next try publishes it."""
    files = {f"d/{number}": str(number).encode() for number in range(100)}
    reservation = reserve(store, files)
    stage(store, files)

    def fail(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", target)

    with monkeypatch.context() as patch:
        patch.setattr("cacheagent.store.tree.link_file", fail)
        with pytest.raises(DiskFault, match="No space left on device"):
            publish(store, files)
    assert all(store.blob_hashes(blob) for blob in blobs_of(files))
    assert store.records() == []
    record = publish(store, files)
    reservation.release()
    assert files_under(store.path(record.digest) / "files") == files


def test_two_versions_that_share_what_is_being_staged_are_published_by_two_threads(store: Store) -> None:
    """What one moves the other finds."""
    held = [reserve(store, V1), reserve(store, V2)]
    stage(store, V1 | {"other.bin": V2["w.bin"]})
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def run(files: dict[str, bytes]) -> None:
        start.wait()
        try:
            publish(store, files)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(files,)) for files in (V1, V2, V1, V2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for reservation in held:
        reservation.release()
    assert failures == []
    assert {record.digest for record in store.records()} == MODELS.keys()
    assert_nothing_unverified(store.path("sha256:" + "0" * 64).parent.parent, MODELS)


# --- staging


def test_claims_of_an_interrupted_blob_come_back(store: Store, root: Path) -> None:
    """A torn line is no claim, an index beyond the blob neither; another size begins anew."""
    size = 3 * PIECE_SIZE_BYTES
    staged = store.stage("a" * 64, size)
    staged.append(0, "3" * 64)
    staged.append(2, "2" * 64)
    with (root / "staging" / ("a" * 64) / "journal").open("ab") as journal:
        journal.write(b"7 " + b"7" * 64 + b"\n1 11111")
    with reopened(store, root) as again:
        resumed = again.stage("a" * 64, size)
        assert resumed.claimed == {0: "3" * 64, 2: "2" * 64}
        resumed.append(1, "1" * 64)
        assert again.stage("a" * 64, size).claimed == {0: "3" * 64, 1: "1" * 64, 2: "2" * 64}
        assert resumed.path.stat().st_blocks * 512 >= size
        assert again.stage("a" * 64, size + 1).claimed == {}
        again.stage("a" * 64, size + 1).discard()
        assert names_in(root, "staging", "trash") == {"staging/small", "staging/trees"}


def test_what_is_doubted_of_a_verified_blob_is_claimed_no_more(store: Store, root: Path) -> None:
    """Nor by the next process; the rest is. Whoever doubts another content doubts nothing of this one, and what is
    published stays."""
    files = {"w.bin": content_of("w", 2 * PIECE_SIZE_BYTES + 1)}
    ((blob, content),) = blobs_of(files).items()
    stage(store, files)
    known = store.blob_hashes(blob)
    assert known is not None
    assert not store.doubt(blob, {0: "1" * 64})
    assert not store.doubt("a" * 64, {0: "1" * 64})
    assert store.blob_hashes(blob) == known
    assert store.doubt(blob, {0: known.pieces[0]})
    assert store.blob_hashes(blob) is None
    claimed = dict(enumerate(known.pieces[1:], start=1))
    assert store.stage(blob, len(content)).claimed == claimed
    with reopened(store, root) as again:
        resumed = again.stage(blob, len(content))
        assert resumed.claimed == claimed
        resumed.append(0, known.pieces[0])
        assert again.stage(blob, len(content)).claimed == dict(enumerate(known.pieces))
        resumed.verified(known)
        publish(again, files)
        assert not again.doubt(blob, {0: known.pieces[0]})
        assert again.blob_hashes(blob) == known


def test_small_files_are_believed_after_they_were_read_again(store: Store, root: Path) -> None:
    """One that changed is removed, one that was never done too; the right one is kept without a fetch."""
    right, wrong, undone = "a" * 64, "b" * 64, "c" * 64
    for blob in (right, wrong, undone):
        Path(store.small_path(blob)).write_bytes(b"small")
    store.small_done([(blob, 5, hashes_of(b"small")) for blob in (right, wrong)])
    Path(store.small_path(wrong)).write_bytes(b"smalL")
    with reopened(store, root) as again:
        assert not Path(again.small_path(undone)).exists()
        assert again.blob_hashes(right) is None
        assert again.prove_small([right, wrong, undone]) == {right}
        assert again.blob_hashes(right) == hashes_of(b"small")
        assert again.blob_hashes(wrong) is None
        assert not Path(again.small_path(wrong)).exists()
        with again.open_blob(right) as file:
            assert file.read() == b"small"


# --- use, leases, pins


def test_uses_stay_in_order_when_the_clock_is_set_back(store: Store, root: Path, clock: Clock) -> None:
    """Last uses are as they happened, also after a restart, whatever the clock said."""
    one, two = bring(store, V1), bring(store, V2)
    clock.time = 5.0
    touched = store.touch(one.digest)
    assert touched is not None
    assert touched.last_used > two.last_used
    with reopened(store, root) as again:
        found = {record.digest: record.last_used for record in again.records()}
        assert found[one.digest] == pytest.approx(touched.last_used, abs=1e-6)
        assert found[one.digest] > found[two.digest]
    assert store.touch("sha256:" + "0" * 64) is None


def test_a_leased_or_pinned_version_stays(store: Store, root: Path) -> None:
    """I3; the lease outlives the process; once both are gone it goes."""
    digest = bring(store, V1, name="llama", pin=True).digest
    with pytest.raises(ModelInUse, match="llama is pinned and stays") as pinned:
        store.evict(digest)
    assert "unpin" in pinned.value.hint
    store.unpin(digest)
    assert store.lease("v", digest, owner="ns/pod") == store.path(digest)
    with reopened(store, root) as again:
        (lease,) = again.leases()
        assert (lease.volume_id, lease.digest, lease.owner) == ("v", digest, "ns/pod")
        with pytest.raises(ModelInUse, match="llama is mounted and stays"):
            again.evict(digest)
        assert files_under(again.path(digest) / "files") == V1
        again.release("v")
        again.release("v")
        assert again.evict(digest) == sum(map(len, V1.values()))
        assert names_in(root, "models", "records", "blobs", "trash", "leases") == set()
        with pytest.raises(NotCached, match="is not in this cache"):
            again.evict(digest)


def test_a_volume_never_changes_its_version(store: Store) -> None:
    """Asking again for the same is answered as before; another version is refused and the lease kept."""
    one, two = bring(store, V1).digest, bring(store, V2).digest
    assert store.lease("v", one) == store.lease("v", one)
    with pytest.raises(ModelInUse, match="volume v is mounted from"):
        store.lease("v", two)
    assert [lease.digest for lease in store.leases()] == [one]


def test_a_lease_that_can_not_be_read_is_kept_and_told_of(store: Store, root: Path) -> None:
    """It protects nothing, crashes nothing, and goes with its volume; its honest neighbour is a lease."""
    digest = bring(store, V1).digest
    store.lease("honest", digest)
    (root / "leases" / "garbled").write_bytes(b"\xff{")
    (root / "leases" / "renamed").write_bytes((root / "leases" / "honest").read_bytes())
    with reopened(store, root) as again:
        assert [lease.volume_id for lease in again.leases()] == ["honest"]
        assert sorted(warning.split()[0] for warning in again.warnings()) == ["leases/garbled", "leases/renamed"]
        again.release("garbled")
        assert not (root / "leases" / "garbled").exists()


def test_a_lease_and_an_eviction_at_once_end_one_way_or_the_other(store: Store) -> None:
    """I3 under races: whoever got a lease finds the tree, whoever evicted left none."""
    for number in range(20):
        digest = bring(store, V1).digest
        start = threading.Barrier(2)
        outcome: dict[str, object] = {}

        def run(name: str, call: Callable[[], object], start: threading.Barrier = start) -> None:
            start.wait()
            try:
                call()
                outcome[name] = True  # noqa: B023 - joined below, in the same turn
            except (NotCached, ModelInUse):
                outcome[name] = False  # noqa: B023

        threads = [
            threading.Thread(target=run, args=("lease", lambda d=digest, n=number: store.lease(f"v{n}", d))),
            threading.Thread(target=run, args=("evict", lambda d=digest: store.evict(d))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcome["lease"] != outcome["evict"]
        assert (store.path(digest) / "files" / "w.bin").exists() == outcome["lease"]
        store.release(f"v{number}")


def test_resolutions_are_kept_while_their_version_is_here(store: Store, root: Path) -> None:
    """They go with it; one that can't be read is dropped."""
    digest = bring(store, V1).digest
    store.set_resolution("1" * 64, "llama", "s3://b/llama", digest)
    store.set_resolution("2" * 64, "lost", "s3://b/lost", "sha256:" + "0" * 64)
    (root / "resolved" / f"{'3' * 64}.json").write_text("{")
    with reopened(store, root) as again:
        assert again.resolution("1" * 64) == digest
        assert again.resolutions() == [Resolution(key="1" * 64, name="llama", uri="s3://b/llama", digest=digest)]
        assert names_in(root, "resolved") == {f"resolved/{'1' * 64}.json"}
        again.evict(digest)
        assert again.resolution("1" * 64) is None
        assert names_in(root, "resolved") == set()


# --- what a start makes of damage


def test_a_damaged_record_goes_into_quarantine_and_its_version_away(
    store: Store, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped bit in a hash is noticed; the neighbour that shares a blob is untouched; a pull brings it back."""
    one, two = bring(store, V1).digest, bring(store, V2).digest
    path = root / "records" / f"{one.replace(':', '-')}.json"
    text = path.read_text()
    flipped = hashes_of(V1["w.bin"]).pieces[0]
    path.write_text(text.replace(flipped, "0" + flipped[1:] if flipped[0] != "0" else "1" + flipped[1:]))
    with caplog.at_level(logging.WARNING), reopened(store, root) as again:
        assert "a damaged record was put into quarantine" in caplog.text
        assert [record.digest for record in again.records()] == [two]
        assert names_in(root, "quarantine") == {f"quarantine/{path.name}"}
        assert_nothing_unverified(root, {two: V2})
        assert files_under(again.path(two) / "files") == V2
        assert bring(again, V1).digest == one
        assert_nothing_unverified(root, MODELS)


def test_a_mounted_tree_whose_record_is_damaged_stays_until_it_is_released(store: Store, root: Path) -> None:
    """I3 before tidiness: its pods read on; publishing beside it is refused with a reason, and works after."""
    digest = bring(store, V1).digest
    store.lease("v", digest)
    (root / "records" / f"{digest.replace(':', '-')}.json").write_text("{}")
    with reopened(store, root) as again:
        assert again.record(digest) is None
        assert files_under(again.path(digest) / "files") == V1
        with pytest.raises(ModelInUse, match="is mounted from a tree whose record was lost"):
            bring(again, V1)
        again.release("v")
        assert bring(again, V1).digest == digest
        assert_nothing_unverified(root, MODELS)


def test_a_blob_that_somebody_removed_is_linked_back_from_the_tree(store: Store, root: Path) -> None:
    """Nothing is fetched, nothing is lost."""
    digest = bring(store, V1).digest
    (blob,) = blobs_of({"w": V1["w.bin"]})
    (root / "blobs" / blob).unlink()
    with reopened(store, root) as again:
        assert again.record(digest) is not None
        assert (root / "blobs" / blob).samefile(again.path(digest) / "files" / "w.bin")


def test_a_version_whose_bytes_somebody_removed_is_given_up_and_the_rest_kept(store: Store, root: Path) -> None:
    """A record that can't be made true goes; what is there of it is a claim for the next pull."""
    digest = bring(store, V1).digest
    (blob,) = blobs_of({"w": V1["w.bin"]})
    (root / "blobs" / blob).unlink()
    with store._state.trash.bin() as bin_:
        bin_.take(str(store.path(digest)))
    store.stage(blob, SMALL_FILE_BYTES)  # its full size, and nothing of it true: no substitute
    with reopened(store, root) as again:
        assert again.records() == []
        assert names_in(root, "models", "records", "blobs") == set()
        (kept,) = blobs_of({"shared": SHARED})
        assert again.blob_hashes(kept) == hashes_of(SHARED)
        assert again.stage(blob, SMALL_FILE_BYTES).claimed == {}
        assert bring(again, V1).digest == digest


def test_names_that_are_not_ours_are_left_alone(store: Store, root: Path) -> None:
    """An operator's notes in the cache directory are no reason to fail, and nothing to delete."""
    digest = bring(store, V1).digest
    strangers = [root / place / "README" for place in ("", "blobs", "models", "records", "staging", "trash")]
    for path in strangers[:-1]:
        path.write_text("x")
    with reopened(store, root) as again:
        assert again.record(digest) is not None
        again.sweep_trash()
        assert all(path.exists() for path in strangers[:-1])


def test_a_disk_that_answers_with_an_error_is_told_of(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DiskFault names the step and the file; the lease is not there, and is when the disk is well again."""
    digest = bring(store, V1).digest

    def refuse(source: str, target: str) -> None:
        raise OSError(5, "Input/output error", source)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(DiskFault, match=r"a lease can't be written: Input/output error at .*leases/\.v\.tmp"):
            store.lease("v", digest)
    assert store.leases() == []
    store.lease("v", digest)
    assert [(lease.volume_id, type(lease)) for lease in store.leases()] == [("v", Lease)]
    assert json.loads((root / "leases" / "v").read_text())["digest"] == digest
