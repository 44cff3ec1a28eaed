"""A Hub whose storage damages, throttles or forgets, and whose branch moves while it is being fetched."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cacheagent.errors import ChecksumMismatch, OriginForbidden
from cacheagent.model import MIB, PIECE_SIZE_BYTES
from cacheagent.spec import ModelSpec, SourceSpec
from tests.fakes.faults import Status, WrongBytes
from tests.fakes.hub import Hub
from tests.fakes.repo import Repo
from tests.fakes.transfer import until
from tests.faults.scene import (
    SHARD,
    SHARD_BYTES,
    Cache,
    OnDisk,
    assert_claims_are_true,
    assert_published,
    look,
    small_tree,
)

OLD, NEW = small_tree(1), small_tree(2)
NOTHING_KEPT = "the bytes were damaged on the way or at the origin; nothing of the file was kept"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

pytestmark = pytest.mark.asyncio


@pytest.fixture
def repo(hub: Hub) -> Repo:
    made = hub.create("org/m")
    made.commit(OLD)
    return made


@pytest.fixture
def spec(hub: Hub) -> ModelSpec:
    return ModelSpec(name="m", kind="tree", source=SourceSpec(uri="hf://org/m", endpoint=hub.url))


@pytest.mark.usefixtures("repo")
@pytest.mark.parametrize(
    ("path", "at", "algorithm"), [(SHARD, MIB + 1, "sha256"), ("config.json", 3, "git-sha1")], ids=["LFS", "small"]
)
async def test_a_wrong_byte(cache: Cache, hub: Hub, spec: ModelSpec, path: str, at: int, algorithm: str) -> None:
    """Of a large file found by its SHA-256, of a small one by its git blob id; the next try brings both."""
    server = hub.storage if path == SHARD else hub
    server.inject(WrongBytes(at=at), path=None if path == SHARD else _resolved(hub, path))
    says = rf"{path}: .*{algorithm} is .*, the origin says "
    error = await cache.fail(spec, ChecksumMismatch, says, NOTHING_KEPT, connections=1)
    assert error.message.count("://") == 1, "said once, where it came from"
    found = look(cache.root)
    assert len(OLD[path]) not in {*found.staged, *found.small}
    assert replace(found, staged={}, small=()) == OnDisk()
    assert_claims_are_true(cache.root, OLD[SHARD])
    status = await cache.recover(spec, OLD)
    assert_published(cache.root, {status.digest: OLD})


def _resolved(hub: Hub, path: str) -> str:
    (commit,) = hub.repos["org/m"].commits
    return f"org/m/resolve/{commit}/{path}"


async def test_a_branch_that_moves(cache: Cache, hub: Hub, repo: Repo, spec: ModelSpec) -> None:
    """The commit that was listed comes, whole; the pull after it brings the new one."""
    hub.storage.pace.bytes_per_s = 20e6
    pulling = asyncio.create_task(cache.pull(spec, connections=1))
    await until(lambda: cache.observer.bytes_done >= PIECE_SIZE_BYTES, "the first piece")
    repo.commit(NEW)
    old = await pulling
    hub.storage.pace.bytes_per_s = None
    new = await cache.recover(spec, NEW)
    assert_published(cache.root, {old.digest: OLD, new.digest: NEW})


@pytest.mark.usefixtures("repo")
async def test_signed_urls_that_expire_in_mid_pull(cache: Cache, hub: Hub, spec: ModelSpec) -> None:
    """Once they have an age, a refusal means new ones, and what came is kept; from the start it is meant."""
    hub.storage.pace.bytes_per_s = 20e6
    pulling = asyncio.create_task(cache.recover(spec, OLD, connections=3, fresh_location_s=0.0))
    await until(lambda: cache.observer.bytes_done >= PIECE_SIZE_BYTES, "the first piece")
    hub.storage.expire_urls()
    status = await pulling
    assert [each.status for each in hub.storage.requests].count(403) >= 1
    hub.storage.wait_until_idle()
    assert sum(each.body_bytes_sent for each in hub.storage.requests if each.status == 206) < (
        SHARD_BYTES + PIECE_SIZE_BYTES
    )
    assert_published(cache.root, {status.digest: OLD})

    hub.repos["org/m"].commit(NEW)
    hub.storage.inject(Status(403), times=None)
    before = look(cache.root)
    await cache.fail(spec, OriginForbidden, rf"{SHARD}.*403", "check the credentials and what they may read")
    assert replace(look(cache.root), staged={}, small=()) == replace(before, staged={}, small=())
    assert_claims_are_true(cache.root, NEW[SHARD])
    hub.heal()
    hub.storage.heal()
    new = await cache.recover(spec, NEW)
    assert_published(cache.root, {status.digest: OLD, new.digest: NEW})


@pytest.mark.usefixtures("repo")
async def test_storage_that_wants_less(cache: Cache, hub: Hub, spec: ModelSpec) -> None:
    """Retry-After of the host behind the redirect is obeyed, too."""
    hub.storage.inject(Status(503, retry_after="2", body=SLOW_DOWN), nth=1)
    status = await cache.recover(spec, OLD, connections=1)
    refused = next(each for each in hub.storage.requests if each.status == 503)
    after = [each.started_s - refused.started_s for each in hub.storage.requests if each.number > refused.number]
    assert after
    assert min(after) >= 2.0
    assert cache.observer.pauses == [2.0]
    assert_published(cache.root, {status.digest: OLD})
