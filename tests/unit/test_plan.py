"""What must travel and in which order."""

from __future__ import annotations

from cacheagent.model import SMALL_FILE_BYTES, FileHashes, Manifest, RemoteFile, TrustDomain, blob_id
from cacheagent.plan import make_plan

DOMAIN = TrustDomain(endpoint="https://s3.example", credential="a")
BIG = 3 * SMALL_FILE_BYTES


def file(path: str, size: int, key: str = "") -> RemoteFile:
    return RemoteFile(path=path, size_bytes=size, identity={"key": key or path})


def nothing(blob: str) -> FileHashes | None:
    return None


def manifest(*files: RemoteFile) -> Manifest:
    return Manifest(kind="tree", source_kind="s3", files=files)


def test_small_files_come_apart_from_large_ones_in_path_order() -> None:
    """A file of exactly the limit is large; an empty one is small."""
    files = (file("a", BIG), file("b", 0), file("c", SMALL_FILE_BYTES), file("d", SMALL_FILE_BYTES - 1))
    plan = make_plan(manifest(*files), DOMAIN, nothing)
    assert [plan.blobs[blob].path for blob in plan.small] == ["b", "d"]
    assert [plan.blobs[blob].path for blob in plan.large] == ["a", "c"]
    assert plan.linked == {}
    assert sum(plan.sizes().values()) == sum(each.size_bytes for each in files)


def test_what_is_here_is_linked_and_does_not_travel() -> None:
    """Only a blob of the same trust domain, identity and size counts."""
    shard, other = file("s1", BIG), file("s2", BIG)
    here = {blob_id(DOMAIN, shard): FileHashes(pieces=("aa",))}
    plan = make_plan(manifest(shard, other), DOMAIN, here.get)
    assert plan.linked == here
    assert plan.linked_bytes == BIG
    assert plan.large == (blob_id(DOMAIN, other),)
    stranger = make_plan(manifest(shard, other), TrustDomain(endpoint="https://evil.example"), here.get)
    assert stranger.linked == {}
    assert len(stranger.large) == 2


def test_one_blob_under_two_paths_travels_once() -> None:
    """The Hub gives equal files one blob id."""
    plan = make_plan(manifest(file("a", BIG, "same"), file("b", BIG, "same")), DOMAIN, nothing)
    assert len(plan.blobs) == len(plan.large) == 1
