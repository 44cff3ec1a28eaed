"""The disk layout, byte by byte and mode by mode; who may own a directory; which names reach the disk."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cacheagent.errors import NotCached, StoreBusy, UnknownLayout, UnsafeContent, UsageError
from cacheagent.model import SMALL_FILE_BYTES
from cacheagent.store import Boot, Promise, Store
from cacheagent.store.layout import LAYOUT_VERSION, repo_directory
from tests.fakes.cache import (
    NO_FLOOR,
    blobs_of,
    bring,
    content_of,
    files_under,
    hashes_of,
    publish,
    reserve,
    stage,
)

LARGE = content_of("large", SMALL_FILE_BYTES)
FILES = {"config.json": b"{}", "weights/a.bin": LARGE}
NAME = "sha256-1ec23099530131b2502b5d12513557fff3a210afbfe61a7b314f0299ff12670b"
COMMIT = "1ec23099530131b2502b5d12513557fff3a210af"
SMALL_BLOB, LARGE_BLOB = (next(iter(blobs_of({"f": content}))) for content in (b"{}", LARGE))
TREE = {
    "models/": "755",
    f"models/{NAME}/": "555",
    f"models/{NAME}/files/": "555",
    f"models/{NAME}/files/config.json": "444 x4",
    f"models/{NAME}/files/weights/": "555",
    f"models/{NAME}/files/weights/a.bin": "444 x4",
    f"models/{NAME}/hf/": "555",
    f"models/{NAME}/hf/models--org--llama/": "555",
    f"models/{NAME}/hf/models--org--llama/refs/": "555",
    f"models/{NAME}/hf/models--org--llama/refs/main": "444 x1",
    f"models/{NAME}/hf/models--org--llama/snapshots/": "555",
    f"models/{NAME}/hf/models--org--llama/snapshots/{COMMIT}/": "555",
    f"models/{NAME}/hf/models--org--llama/snapshots/{COMMIT}/config.json": "444 x4",
    f"models/{NAME}/hf/models--org--llama/snapshots/{COMMIT}/weights/": "555",
    f"models/{NAME}/hf/models--org--llama/snapshots/{COMMIT}/weights/a.bin": "444 x4",
}
OURS = {
    "VERSION": "644 x1",
    "blobs/": "700",
    f"blobs/{SMALL_BLOB}": "444 x4",
    f"blobs/{LARGE_BLOB}": "444 x4",
    "boot.json": "644 x1",
    "leases/": "700",
    "leases/volume-1": "644 x1",
    "leases/volume-3": "644 x1",
    "incarnation": "644 x1",
    "promises/": "700",
    "promises/volume-2": "644 x1",
    "quarantine/": "700",
    "records/": "700",
    f"records/{NAME}.json": "644 x1",
    "resolved/": "700",
    f"resolved/{'5' * 64}.json": "644 x1",
    "scrubbed.json": "644 x1",
    "staging/": "700",
    f"staging/{'d' * 64}/": "755",
    f"staging/{'d' * 64}/data": "644 x1",
    f"staging/{'d' * 64}/journal": "644 x1",
    "staging/small/": "700",
    f"staging/small/{'e' * 64}": "644 x1",
    "staging/small/journal": "644 x1",
    "staging/trees/": "700",
    "trash/": "700",
    "volumes/": "755",
    "volumes/volume-3/": "555",
    "volumes/volume-3/.cacheagent/": "555",
    "volumes/volume-3/.cacheagent/progress": "444 x1",
    "volumes/volume-3/.cacheagent/ready": "444 x1",
    "volumes/volume-3/config.json": "444 x4",
    "volumes/volume-3/weights/": "555",
    "volumes/volume-3/weights/a.bin": "444 x4",
}
TEXTS = {
    "VERSION": "cacheagent layout 1\n",
    "boot.json": '{"id":"boot","seconds":0.0}\n',
    "leases/volume-1": f'{{"digest":"{NAME.replace("-", ":")}","owner":"ns/pod","since":1700000000.5,'
    '"volume_id":"volume-1"}\n',
    f"models/{NAME}/hf/models--org--llama/refs/main": COMMIT,
    f"records/{NAME}.json": (
        '{"content_digest":"sha256:3c31ad700f96388641d62ffd571e9a1b7d9740706b9e3a2901504cc9f1542ed7",'
        '"digest":"sha256:1ec23099530131b2502b5d12513557fff3a210afbfe61a7b314f0299ff12670b",'
        '"domain":{"credential":"","endpoint":"memory://origin"},'
        '"hashes":{"config.json":{"pieces":["6e46dd10defc9b56c29a6ec56b508c21f54c08192194e4df25bf36f0c9c3c279"],'
        '"verified_by":[],"whole":{}},'
        '"weights/a.bin":{"pieces":["f74017bd1bf39a91a25147c54a7691ce0d7907af142364164e48230ea66d46da"],'
        '"verified_by":[],"whole":{}}},'
        '"manifest":{"files":[{"checksums":[],'
        '"identity":{"blob_id":"6e46dd10defc9b56c29a6ec56b508c21f54c08192194e4df25bf36f0c9c3c279"},'
        '"path":"config.json","size_bytes":2},{"checksums":[],'
        '"identity":{"blob_id":"f74017bd1bf39a91a25147c54a7691ce0d7907af142364164e48230ea66d46da"},'
        '"path":"weights/a.bin","size_bytes":1048576}],'
        '"format":1,"kind":"tree","repo_id":"org/llama","revision":"","source_kind":"simulated"},'
        '"name":"llama","pin":false,"priority":3,"published_at":1700000000.5,"uri":"memory://origin/m",'
        '"withdrawn":""}\n'
    ),
    "promises/volume-2": (
        '{"digest":"","exactly":false,"later":false,"model":"llama","namespace":"ns","owner":"ns/pod",'
        '"page_cache":false,"pod_uid":"","since":1700000000.5,"uri":"","view":"files","volume_id":"volume-2"}\n'
    ),
    f"resolved/{'5' * 64}.json": f'{{"digest":"{NAME.replace("-", ":")}","key":"{"5" * 64}","name":"llama",'
    '"uri":"memory://origin/m"}\n',
    "volumes/volume-3/.cacheagent/progress": "llama: 37 %\n",
    "volumes/volume-3/.cacheagent/ready": f'{{"digest":"{NAME.replace("-", ":")}"}}\n',
    "scrubbed.json": f'{{"{"0" * 64}":1.5}}\n',
    f"staging/{'d' * 64}/journal": (
        "1048576 16777216\n0 f74017bd1bf39a91a25147c54a7691ce0d7907af142364164e48230ea66d46da\n"
    ),
    "staging/small/journal": (
        f'{{"blob":"{"e" * 64}","size_bytes":5,"hashes":{{'
        '"pieces":["b0f55908f814f26164dc4b644ff892b4e0e000fa087d66497e7b06d27cf4a669"],"whole":{},"verified_by":[]}}\n'
    ),
}


@pytest.fixture
def usual_umask() -> Iterator[None]:
    """Modes of what is for us alone follow it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def listing(root: Path) -> dict[str, str]:
    """Path to mode, and to the number of names of a file."""
    found = {}
    for path in root.rglob("*"):
        status, name = path.lstat(), str(path.relative_to(root))
        mode = f"{stat.S_IMODE(status.st_mode):o}"
        found[name if path.is_file() else name + "/"] = f"{mode} x{status.st_nlink}" if path.is_file() else mode
    return found


def test_the_layout_is_as_documented(tmp_path: Path, usual_umask: None) -> None:
    """If this fails because you changed the layout or a format: bump the version, and docs/design.md."""
    root = tmp_path / "cache"
    store = Store.open(root, NO_FLOOR, now=lambda: 1_700_000_000.5, boot=lambda: Boot(id="boot", seconds=5.0))
    record = bring(store, FILES, name="llama", repo_id="org/llama", priority=3)
    store.set_resolution("5" * 64, "llama", "memory://origin/m", record.digest)
    store.lease("volume-1", record.digest, owner="ns/pod")
    promise = Promise(volume_id="volume-2", model="llama", namespace="ns", owner="ns/pod", since=1_700_000_000.5)
    store.promise(promise)
    store.make_volume("volume-3")
    store.write_progress("volume-3", "llama: 37 %")
    store.fill_volume(replace(promise, volume_id="volume-3", digest=record.digest))
    store.set_scrubbed({"0" * 64: 1.5})
    store.stage("d" * 64, SMALL_FILE_BYTES).append(0, hashes_of(LARGE).pieces[0])
    Path(store.small_path("e" * 64)).write_bytes(b"small")
    store.small_done([("e" * 64, 5, hashes_of(b"small"))])
    store.close()
    assert listing(root) == TREE | OURS
    assert {path: (root / path).read_text() for path in TEXTS} == TEXTS
    assert (root / f"records/{NAME}.json").stat().st_mtime == pytest.approx(1_700_000_000.5, abs=1e-3)
    assert LAYOUT_VERSION == 1


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    """What is published can be read by pods of any user, whoever started the agent how."""
    before = os.umask(0o077)
    try:
        store = Store.open(tmp_path / "cache", NO_FLOOR)
        record = bring(store, FILES, repo_id="org/llama")
        store.make_volume("volume-3")
        store.write_progress("volume-3", "llama: 37 %")
        store.fill_volume(Promise(volume_id="volume-3", model="llama", namespace="ns", since=1.0, digest=record.digest))
        store.close()
    finally:
        os.umask(before)
    public = ("models", "volumes")
    seen = {path: mode for path, mode in listing(tmp_path / "cache").items() if path.startswith(public)}
    assert seen == TREE | {path: mode for path, mode in OURS.items() if path.startswith(public)}


def test_a_directory_without_version_that_holds_other_things_is_refused_untouched(tmp_path: Path) -> None:
    """A typing error in the configuration must not make a cache of a home directory; an empty one is taken."""
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UnknownLayout, match=r"'thesis\.tex': it is no cache directory; nothing was touched"):
        Store.open(tmp_path, NO_FLOOR)
    assert listing(tmp_path) == {"thesis.tex": "644 x1"}
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    Store.open(tmp_path / "disk", NO_FLOOR).close()
    assert (tmp_path / "disk" / "VERSION").exists()


@pytest.mark.parametrize("content", ["cacheagent layout 2\n", "", "garbage \udcff\n"])
def test_an_unknown_version_is_refused_untouched(tmp_path: Path, content: str) -> None:
    """Never migrated silently; with its own version back it opens again."""
    root = tmp_path / "cache"
    store = Store.open(root, NO_FLOOR)
    digest = bring(store, FILES).digest
    store.close()
    (root / "VERSION").write_text(content, errors="surrogateescape")
    before = listing(root)
    with pytest.raises(UnknownLayout, match=r"expected 'cacheagent layout 1'; nothing was touched"):
        Store.open(root, NO_FLOOR)
    assert listing(root) == before
    (root / "VERSION").write_text("cacheagent layout 1\n")
    reopened = Store.open(root, NO_FLOOR)
    assert reopened.record(digest) is not None
    reopened.close()


HOLD = """
import sys
from collections.abc import Iterator
from pathlib import Path
from cacheagent.store import Store
store = Store.open(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    """Two agents on one root; when the first is killed the second may have it at once."""
    root = tmp_path / "cache"
    command = [sys.executable, "-c", HOLD, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        with pytest.raises(StoreBusy, match=rf"{root} is in use by process {first.pid}\b") as busy:
            Store.open(root, NO_FLOOR)
        assert "one agent owns a cache directory" in busy.value.hint
        first.kill()
        first.wait()
    Store.open(root, NO_FLOOR).close()


def test_the_same_process_can_not_open_it_twice_either(tmp_path: Path) -> None:
    """The lock belongs to the open store; closing gives it back."""
    store = Store.open(tmp_path / "cache", NO_FLOOR)
    with pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
        Store.open(tmp_path / "cache", NO_FLOOR)
    store.close()
    store.close()
    Store.open(tmp_path / "cache", NO_FLOOR).close()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../evil", "'..' component"),
        ("a/../../evil", "'..' component"),
        ("/etc/passwd", "is absolute"),
        ("a//b", "has an empty"),
        ("nul\0byte", "control character"),
        ("x" * 256, "more than 255 bytes"),
        ("ü" * 128, "more than 255 bytes"),
    ],
)
def test_a_path_that_must_not_reach_the_disk_is_refused_by_the_store_too(
    tmp_path: Path, path: str, reason: str
) -> None:
    """The last door: nothing is published, nothing appears outside; beside it an honest model is taken."""
    store = Store.open(tmp_path / "cache", NO_FLOOR)
    content = {path: b"x"}
    reservation = reserve(store, content)
    stage(store, content)
    with pytest.raises(UnsafeContent, match=reason):
        publish(store, content)
    reservation.release()
    assert files_under(tmp_path / "cache" / "models") == {}
    assert files_under(tmp_path / "cache" / "records") == {}
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]
    honest = {"ünïcode/x": b"x", "u\u0308nicode/x": b"y", "x" * 255: b"z"}  # both normal forms, as they came
    assert files_under(store.path(bring(store, honest).digest) / "files") == honest
    store.close()


def test_a_name_that_is_a_file_and_a_directory_is_refused(tmp_path: Path) -> None:
    """So is a repository id that would leave its directory."""
    store = Store.open(tmp_path / "cache", NO_FLOOR)
    clash = {"a": b"1", "a/b": b"2"}
    stage(store, clash)
    with pytest.raises(UnsafeContent, match="is a file and also a directory"):
        publish(store, clash)
    for repo in ("../x", "a/b/c", "a--b", "", "/", "a/..", "x" * 300, "a b"):
        with pytest.raises(UnsafeContent, match="can't be a directory of the hf view"):
            repo_directory(repo)
    assert repo_directory("org/Name_1.5-x") == "models--org--Name_1.5-x"
    assert repo_directory("gpt2") == "models--gpt2"
    store.close()


def test_names_from_outside_never_become_paths(tmp_path: Path) -> None:
    """Digests, blobs, volumes and keys are judged first; well-formed ones that aren't here say so."""
    store = Store.open(tmp_path / "cache", NO_FLOOR)
    digest = bring(store, FILES).digest
    for bad in ("../../etc", "sha256:..", "sha256:" + "G" * 64, digest.upper(), digest + "/x", ""):
        with pytest.raises(UsageError, match="is no digest"):
            store.path(bad)
    for volume in ("..", ".hidden", "a/b", "", "x" * 129, "nul\0"):
        with pytest.raises(UsageError, match=r"volume id .* can't be a file name"):
            store.lease(volume, digest)
    for blob in ("..", "../" + "0" * 61, "0" * 63):
        with pytest.raises(UsageError, match="can't be a blob's name"):
            store.small_path(blob)
    assert store.leases() == []
    with pytest.raises(NotCached, match="is not in this cache"):
        store.lease("volume", "sha256:" + "0" * 64)
    assert store.lease("csi-0123", digest) == store.path(digest)
    store.close()
