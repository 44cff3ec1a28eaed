"""What an origin says when it does not give: 403, 404, 429, 500, 503, and a reset in the middle of a piece."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cacheagent.errors import (
    CacheAgentError,
    OriginForbidden,
    OriginNotFound,
    OriginThrottled,
    OriginUnavailable,
    OriginWrong,
)
from cacheagent.model import MIB, PIECE_SIZE_BYTES
from tests.fakes.faults import Reset, Status
from tests.fakes.origin import Origin
from tests.faults.scene import (
    QUICK,
    SHARD,
    SMALL,
    Cache,
    Listing,
    OnDisk,
    SentSince,
    assert_claims_are_true,
    assert_published,
    look,
    put_model,
    small_tree,
    web_spec,
)

FILES = small_tree(1)
SIZE = len(FILES[SHARD])
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

pytestmark = pytest.mark.asyncio


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Its limit of silence is beyond what a busy machine needs to answer: nobody is silent in these tests, and tries
    are counted."""
    return Cache(tmp_path / "cache", transfer=msgspec.structs.replace(QUICK, idle_timeout_s=30.0))


@pytest.mark.parametrize("path", [SHARD, "config.json"])
@pytest.mark.parametrize(
    ("status", "error", "next_step"),
    [
        (403, OriginForbidden, "check the credentials and what they may read"),
        (404, OriginNotFound, "it was there when the source was listed; list it again"),
        (410, OriginNotFound, "it was there when the source was listed; list it again"),
        (418, OriginWrong, "an answer that no file server should give to a GET"),
    ],
)
async def test_a_refusal_ends_the_pull_at_once(
    cache: Cache, origin: Origin, path: str, status: int, error: type[CacheAgentError], next_step: str
) -> None:
    """It is not asked for a second time; the sentence says which file, what the origin said, and what to do."""
    put_model(origin, "m", FILES, "index")
    origin.inject(Status(status), path=f"m/{path}", times=None)
    says = rf"GET http://127\.0\.0\.1:\d+/m/{path}: {status} .*Injected: a fault of the test"
    await cache.fail(web_spec(origin, "m"), error, says, next_step)
    assert len([each for each in origin.requests_for(f"m/{path}") if each.fault]) <= cache.transfer.connections
    assert cache.observer.counts.total() == cache.observer.counts["piece_done"], "it was tried again"
    found = look(cache.root)
    assert replace(found, small=(), staged={}) == OnDisk()
    assert_claims_are_true(cache.root, FILES[SHARD])
    origin.heal()
    got = await cache.recover(web_spec(origin, "m"), FILES)
    assert_published(cache.root, {got.digest: FILES})


@pytest.mark.parametrize(
    ("status", "error", "next_step"),
    [
        (401, OriginForbidden, "no credential was used; name one that may read it"),
        (403, OriginForbidden, "no credential was used; name one that may read it"),
        (404, OriginNotFound, "a web source needs a list of its files"),
    ],
)
async def test_a_listing_that_is_refused(
    cache: Cache, origin: Origin, status: int, error: type[CacheAgentError], next_step: str
) -> None:
    """Nothing is reserved, staged or asked for."""
    put_model(origin, "m", FILES)
    origin.inject(Status(status), times=None)
    await cache.fail(web_spec(origin, "m"), error, r"http://127\.0\.0\.1:\d+/m/", next_step)
    assert look(cache.root) == OnDisk()
    assert origin.requests_for(f"m/{SHARD}") == []
    origin.heal()
    got = await cache.recover(web_spec(origin, "m"), FILES)
    assert_published(cache.root, {got.digest: FILES})


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("path", [SHARD, "config.json"])
async def test_retry_after_is_obeyed(cache: Cache, origin: Origin, status: int, path: str) -> None:
    """Not one request, of whatever file, before the time that the origin asked for is over."""
    files = {SHARD: FILES[SHARD], "config.json": FILES["config.json"]}  # a second small file would be asked for ahead
    put_model(origin, "m", files, "index")
    origin.inject(Status(status, retry_after="2", body=SLOW_DOWN), path=f"m/{path}")
    got = await cache.recover(web_spec(origin, "m"), files, connections=1)
    (refused,) = [each for each in origin.requests if each.fault]
    after = [each.started_s - refused.started_s for each in origin.requests if each.number > refused.number]
    assert after
    assert min(after) >= 2.0
    assert cache.observer.pauses == [2.0]
    assert_published(cache.root, {got.digest: files})


@pytest.mark.parametrize("listing", ["sums", "index"])
@pytest.mark.parametrize(
    ("fault", "counted"),
    [
        (Status(500), "retry server-error"),
        (Status(502), "retry server-error"),
        (Status(503, body=SLOW_DOWN), "retry throttled"),
        (Status(429), "retry throttled"),
        (Reset(after_bytes=MIB + 1), "retry reset"),
        (Reset(), "retry reset"),
    ],
    ids=["500", "502", "503", "429", "reset-in-mid-piece", "reset-before-the-body"],
)
async def test_trouble_that_passes(cache: Cache, origin: Origin, listing: Listing, fault: Any, counted: str) -> None:
    """A few failures in a row, then the origin is well: the pull succeeds and says nothing."""
    put_model(origin, "m", FILES, listing)
    origin.inject(fault, path=f"m/{SHARD}", times=3)
    got = await cache.recover(web_spec(origin, "m"), FILES)
    assert len([each for each in origin.requests if each.fault]) == 3
    assert cache.observer.counts[counted] >= 1
    assert got.message == ""
    assert_published(cache.root, {got.digest: FILES})


async def test_a_reset_costs_its_own_piece_only(cache: Cache, origin: Origin) -> None:
    """What other requests brought is not asked for again."""
    put_model(origin, "m", FILES, "index")
    origin.inject(Reset(after_bytes=MIB), path=f"m/{SHARD}", nth=2)
    got = await cache.recover(web_spec(origin, "m"), FILES, connections=1)
    origin.wait_until_idle()
    assert origin.body_bytes_sent(f"m/{SHARD}") == SIZE + MIB
    spans = [each.range for each in origin.requests_for(f"m/{SHARD}")]
    assert len(spans) == 4
    assert len(set(spans)) == 3
    assert_published(cache.root, {got.digest: FILES})


@pytest.mark.parametrize(
    ("status", "error", "next_step"),
    [
        (500, OriginUnavailable, "check that the origin is up"),
        (429, OriginThrottled, "the origin limits us: try later, or set fewer connections"),
        (503, OriginThrottled, "the origin limits us: try later, or set fewer connections"),
    ],
)
async def test_trouble_that_stays(
    cache: Cache, origin: Origin, status: int, error: type[CacheAgentError], next_step: str
) -> None:
    """Given up when the budget is spent; the pieces that came before are kept, and only the others come after."""
    put_model(origin, "m", FILES, "index")
    origin.inject(Status(status, body=SLOW_DOWN), path=f"m/{SHARD}", nth=2, times=None)
    says = rf"m/{SHARD}.*: {status} .*SlowDown: Please reduce your request rate\..*gave up after \d+ failed tries"
    await cache.fail(web_spec(origin, "m"), error, says, next_step, connections=1, give_up_after_s=2.0)
    assert look(cache.root) == OnDisk(staged={SIZE: frozenset({0})}, small=tuple(sorted(map(len, SMALL.values()))))
    assert_claims_are_true(cache.root, FILES[SHARD])
    origin.heal()
    again = SentSince(origin)
    got = await cache.recover(web_spec(origin, "m"), FILES)
    assert got.bytes_kept == PIECE_SIZE_BYTES + sum(map(len, SMALL.values()))
    assert got.bytes_fetched == SIZE - PIECE_SIZE_BYTES
    assert again.bytes_of(f"m/{SHARD}") == SIZE - PIECE_SIZE_BYTES
    assert_published(cache.root, {got.digest: FILES})
