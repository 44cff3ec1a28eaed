"""A process that dies at any change it makes to the disk: the next start finishes or undoes it, without a person."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cacheagent.model import SMALL_FILE_BYTES
from cacheagent.store import Store
from tests.fakes.cache import (
    NO_FLOOR,
    assert_nothing_unverified,
    blobs_of,
    bring,
    content_of,
    doomed,
    hashes_of,
    immortal,
    manifest_of,
    names_in,
    publish,
    remove_cache,
    reserve,
    stage,
)

LARGE = SMALL_FILE_BYTES + 4097
SHARED = {"shared.bin": content_of("shared", LARGE), "empty": b""}
OLD = {**SHARED, "config.json": b"{}", "old.bin": content_of("old", LARGE)}
NEW = {**SHARED, "sub/dir/tokenizer.json": b"[1]", "new.bin": content_of("new", LARGE)}
OLD_DIGEST = manifest_of(OLD).digest
NEW_DIGEST = manifest_of(NEW, repo_id="org/name").digest
MODELS = {manifest_of(files, repo_id=repo).digest: files for files in (OLD, NEW) for repo in ("", "org/name")}


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """A new copy of the same cache directory on each call, with OLD published."""
    template = tmp_path / "template"
    with immortal():
        store = Store.open(template, NO_FLOOR)
        bring(store, OLD, name="old")
        store.set_resolution("0" * 64, "old", "memory://o", OLD_DIGEST)
        store.close()
    numbers = itertools.count()

    def copy() -> Path:
        target = tmp_path / f"cache-{next(numbers)}"
        subprocess.run(["cp", "-a", template, target], check=True)  # keeps hard links
        return target

    return copy


def die_everywhere(
    fresh: Callable[[], Path],
    act: Callable[[Store], object],
    check: Callable[[Store], object],
    *,
    prepare: Callable[[Store], object] = lambda store: None,
) -> int:
    """Kill `act` before each of its changes in turn; after each death reopen, and check. Returns how many there are."""
    for at in itertools.count():
        root = fresh()
        with immortal():
            store = Store.open(root, NO_FLOOR)
            prepare(store)
        with doomed(at) as doom:
            act(store)
        store.close()  # only the lock: what the kernel does when a process ends
        with immortal():
            look_at(root, check)
        remove_cache(root)
        if not doom.came:
            return at
    raise AssertionError


def look_at(root: Path, check: Callable[[Store], object]) -> None:
    """The next start, and what must hold after it in every case."""
    store = Store.open(root, NO_FLOOR)
    assert_nothing_unverified(root, MODELS)
    assert names_in(root, "staging/trees") == set()
    assert not [path for path in root.rglob(".*") if "trash" not in path.parts]
    check(store)
    assert_nothing_unverified(root, MODELS)
    store.sweep_trash()
    assert names_in(root, "trash") == set()
    store.close()


def verified_parts(store: Store, files: dict[str, bytes]) -> set[str]:
    """Which of these files' blobs the store holds whole, published or as a claim that is right."""
    found = set()
    for blob, content in blobs_of(files).items():
        if store.blob_hashes(blob) is not None or store.prove_small([blob]):
            found.add(blob)
        elif len(content) >= SMALL_FILE_BYTES:
            staged = store.stage(blob, len(content))
            if staged.claimed == dict(enumerate(hashes_of(content).pieces)) and staged.path.read_bytes() == content:
                found.add(blob)
    return found


def test_publish_is_finished_or_undone_and_nothing_verified_is_lost(fresh: Callable[[], Path]) -> None:
    """I1, I2, I5 at every step of a publish that shares a blob with an older version; the next try then succeeds."""
    outcomes = set()

    def check(store: Store) -> None:
        assert verified_parts(store, NEW) == set(blobs_of(NEW))
        assert store.record(OLD_DIGEST) is not None
        outcomes.add(store.record(NEW_DIGEST) is not None)
        record = bring(store, NEW, repo_id="org/name")
        assert store.record(NEW_DIGEST) == record

    def prepare(store: Store) -> None:
        reserve(store, NEW)
        stage(store, NEW)

    steps = die_everywhere(fresh, lambda store: publish(store, NEW, repo_id="org/name"), check, prepare=prepare)
    assert steps > 40
    assert outcomes == {True, False}


def test_a_crash_of_the_recovery_itself_is_recovered_from(fresh: Callable[[], Path]) -> None:
    """Dying again while a publish is finished changes nothing about the end."""
    root = fresh()
    with immortal():
        store = Store.open(root, NO_FLOOR)
        reserve(store, NEW)
        stage(store, NEW)
    with doomed(10**9) as doom:
        publish(store, NEW, repo_id="org/name")
    after_record = next(at for at, step in enumerate(doom.trace) if step.startswith("rename") and "records/" in step)
    store.close()

    def half_published() -> Path:
        root = fresh()
        with immortal():
            store = Store.open(root, NO_FLOOR)
            reserve(store, NEW)
            stage(store, NEW)
        with doomed(after_record + 4):
            publish(store, NEW, repo_id="org/name")
        store.close()
        return root

    for at in itertools.count():
        root = half_published()
        with doomed(at) as doom:
            Store.open(root, NO_FLOOR).close()
        with immortal():
            look_at(root, lambda store: store.record(NEW_DIGEST) or pytest.fail("given up"))
        remove_cache(root)
        if not doom.came:
            break
    assert at > 20


def test_staging_survives_at_every_step(fresh: Callable[[], Path]) -> None:
    """What was verified before the crash is found; what is found is right."""
    done: set[str] = set()

    def act(store: Store) -> None:
        done.clear()
        for path, content in NEW.items():
            stage(store, {path: content})
            done.update(blobs_of({path: content}))

    die_everywhere(fresh, act, lambda store: done <= verified_parts(store, NEW) or pytest.fail("lost"))


def test_an_eviction_is_finished_or_undone(fresh: Callable[[], Path]) -> None:
    """The version is whole or gone, with everything that belongs to it alone."""
    outcomes = set()

    def check(store: Store) -> None:
        here = store.record(OLD_DIGEST) is not None
        outcomes.add(here)
        assert store.path(OLD_DIGEST).exists() == here
        assert (store.resolution("0" * 64) == OLD_DIGEST) == here
        assert store.usage().blobs == (len(blobs_of(OLD)) if here else 0)
        bring(store, OLD)

    die_everywhere(fresh, lambda store: store.evict(OLD_DIGEST), check)
    assert outcomes == {True, False}


def test_an_eviction_leaves_what_a_version_on_its_way_shares(fresh: Callable[[], Path]) -> None:
    """Blobs that somebody waits for outlive their last version, dying anywhere."""

    def check(store: Store) -> None:
        assert verified_parts(store, NEW) >= set(blobs_of(SHARED))
        bring(store, NEW, repo_id="org/name")

    steps = die_everywhere(
        fresh, lambda store: store.evict(OLD_DIGEST), check, prepare=lambda store: reserve(store, NEW)
    )
    assert steps > 10


def test_small_changes_are_made_whole_or_not_at_all(fresh: Callable[[], Path]) -> None:
    """Pins, uses, leases, resolutions, withdrawals: what was answered stays, what was not is as before."""
    answered: list[str] = []

    def act(store: Store) -> None:
        answered.clear()
        store.pin(OLD_DIGEST)
        answered.append("pin")
        store.lease("volume", OLD_DIGEST, owner="pod")
        answered.append("lease")
        store.touch(OLD_DIGEST)
        store.withdraw(OLD_DIGEST, "reason")
        answered.append("withdraw")
        store.set_resolution("1" * 64, "n", "memory://n", OLD_DIGEST)
        answered.append("resolution")

    def check(store: Store) -> None:
        record = store.record(OLD_DIGEST)
        assert record is not None
        found = {
            "pin": record.pin,
            "lease": bool(store.leases()),
            "withdraw": record.suspect,
            "resolution": store.resolution("1" * 64) is not None,
        }
        assert all(found[name] for name in answered), (answered, found)
        assert not store.warnings()

    die_everywhere(fresh, act, check)


def test_a_first_start_that_died_is_a_first_start_again(tmp_path: Path) -> None:
    """A directory that was never finished is no stranger's."""
    for at in itertools.count():
        root = tmp_path / f"cache-{at}"
        with doomed(at) as doom:
            Store.open(root, NO_FLOOR).close()
        with immortal():
            look_at(root, lambda store: bring(store, OLD))
        if not doom.came:
            break
    assert at > 15


def test_a_repair_leaves_no_writable_blob(fresh: Callable[[], Path]) -> None:
    """Dying anywhere in it, the blob is as bad as before or whole, and read-only but for one instant."""
    (blob,) = blobs_of({"old.bin": OLD["old.bin"]})
    writable = 0

    def prepare(store: Store) -> None:
        path = store.blob_path(blob)
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.write(b"wrong")
        path.chmod(0o444)

    for at in itertools.count():
        root = fresh()
        with immortal():
            store = Store.open(root, NO_FLOOR)
            prepare(store)
        with doomed(at) as doom:
            store.repair_piece(blob, 0, OLD["old.bin"])
        writable += store.blob_path(blob).stat().st_mode & 0o200 != 0
        store.close()
        if not doom.came:
            assert store.blob_path(blob).read_bytes() == OLD["old.bin"]
            break
    assert writable <= 1
