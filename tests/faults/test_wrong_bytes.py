"""Bodies that end early, bytes that are wrong at the right length, lists that are wrong."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from cacheagent.errors import ChecksumMismatch, OriginUnavailable, OriginWrong
from cacheagent.model import MIB, PIECE_SIZE_BYTES
from tests.fakes.faults import (
    Chunked,
    EndlessHeader,
    Fault,
    IgnoreRange,
    NoLength,
    NotHttp,
    Truncate,
    WrongBytes,
    WrongRange,
)
from tests.fakes.origin import Origin
from tests.faults.scene import (
    SHARD,
    SMALL,
    Cache,
    Listing,
    OnDisk,
    assert_claims_are_true,
    assert_published,
    look,
    put_listing,
    put_model,
    small_tree,
    web_spec,
)

FILES = small_tree(1)
SIZE = len(FILES[SHARD])
NOTHING_KEPT = "the bytes were damaged on the way or at the origin; nothing of the file was kept"

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("listing", ["sums", "index"])
async def test_a_body_that_ends_early_is_asked_for_again(cache: Cache, origin: Origin, listing: Listing) -> None:
    """A clean close in the middle of a promised body is no end: what is missing comes by another request."""
    put_model(origin, "m", FILES, listing)
    origin.inject(Truncate(after_bytes=MIB + 1), path=f"m/{SHARD}", times=2)
    status = await cache.recover(web_spec(origin, "m"), FILES)
    assert [each.fault for each in origin.requests_for(f"m/{SHARD}")].count("Truncate") == 2
    if listing == "index":  # a stream may replace a broken connection itself; a piece is an order that is given again
        assert any(name.startswith("retry ") for name in cache.observer.counts)
    assert_published(cache.root, {status.digest: FILES})


@pytest.mark.parametrize("listing", ["sums", "index"])
async def test_bodies_that_always_end_early_are_given_up(cache: Cache, origin: Origin, listing: Listing) -> None:
    """No piece ever arrives: the budget ends it, with the cause; a healthy origin brings everything."""
    put_model(origin, "m", FILES, listing)
    origin.inject(Truncate(after_bytes=1000), path=f"m/{SHARD}", times=None)
    says = r"shard\.bin.*ended before the last byte; gave up after \d+ failed tries in \d+ s \(nothing came for \d+ s\)"
    next_step = "check that the origin is up and can be reached from this node"
    await cache.fail(web_spec(origin, "m"), OriginUnavailable, says, next_step, give_up_after_s=2.0)
    assert replace(look(cache.root), small=()) == OnDisk(staged={SIZE: frozenset()})
    origin.heal()
    status = await cache.recover(web_spec(origin, "m"), FILES)
    assert_published(cache.root, {status.digest: FILES})


@pytest.mark.parametrize("at", [0, MIB, PIECE_SIZE_BYTES + 1, SIZE - 1])
async def test_one_wrong_byte_in_a_large_file(cache: Cache, origin: Origin, at: int) -> None:
    """The right length and one bit pattern that is not the publisher's: nothing of the file is kept or seen."""
    put_model(origin, "m", FILES)
    origin.inject(WrongBytes(at=at), path=f"m/{SHARD}")
    # One connection, so that the file comes as one answer and the position is the file's.
    await cache.fail(web_spec(origin, "m"), ChecksumMismatch, r"shard\.bin.*sha256", NOTHING_KEPT, connections=1)
    assert replace(look(cache.root), small=()) == OnDisk()
    status = await cache.recover(web_spec(origin, "m"), FILES)
    assert_published(cache.root, {status.digest: FILES})


async def test_one_wrong_byte_in_a_small_file(cache: Cache, origin: Origin) -> None:
    """A small file is judged before it is written: it is never on disk."""
    put_model(origin, "m", SMALL)
    origin.inject(WrongBytes(at=3), path="m/config.json")
    await cache.fail(web_spec(origin, "m"), ChecksumMismatch, r"config\.json.*sha256", NOTHING_KEPT)
    assert look(cache.root) in (OnDisk(), OnDisk(small=(0,)))
    status = await cache.recover(web_spec(origin, "m"), SMALL)
    assert_published(cache.root, {status.digest: SMALL})


@pytest.mark.parametrize("path", [SHARD, "config.json"])
async def test_a_list_with_a_wrong_checksum(cache: Cache, origin: Origin, path: str) -> None:
    """Expected and found are named; the corrected list brings the model, and equal files are not fetched twice."""
    put_model(origin, "m", FILES)
    wrong = hashlib.sha256(b"something else").hexdigest()
    right = hashlib.sha256(FILES[path]).hexdigest()
    origin.put("m/SHA256SUMS", origin.files["m/SHA256SUMS"].read(0, 10_000).replace(right.encode(), wrong.encode()))
    says = rf"{path.rpartition('/')[2]}.*sha256.*({wrong}.*{right}|{right}.*{wrong})"
    await cache.fail(web_spec(origin, "m"), ChecksumMismatch, says, NOTHING_KEPT)
    assert (len(FILES[path]) in look(cache.root).staged, len(FILES[path]) in look(cache.root).small) == (False, False)
    assert_claims_are_true(cache.root, FILES[SHARD])
    put_listing(origin, "m", FILES, "sums")
    status = await cache.recover(web_spec(origin, "m"), FILES)
    assert_published(cache.root, {status.digest: FILES})


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (NoLength(), "a 206 without Content-Length"),
        (Chunked(), "a 206 without Content-Length"),
        (WrongRange(), r"Content-Range is 'bytes \d+-\d+/\d+', wanted bytes"),
        (IgnoreRange(), r"the server ignored Range \(status 200"),
        (EndlessHeader(), "its head is longer than"),
        (NotHttp(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "it begins with 'SSH-2.0"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
async def test_answers_that_nobody_can_trust(cache: Cache, origin: Origin, fault: Fault, says: str) -> None:
    """Once: asked again, and all is well. Always: refused with what was seen, and nothing was written."""
    put_model(origin, "m", FILES, "index")
    origin.inject(fault, path=f"m/{SHARD}")
    status = await cache.recover(web_spec(origin, "m"), FILES)
    assert cache.observer.counts["retry protocol"] == 1
    put_model(origin, "other", FILES, "index")
    origin.inject(fault, path=f"other/{SHARD}", times=None)
    before = look(cache.root)
    hint = "something between here and the origin alters answers"
    await cache.fail(web_spec(origin, "other"), OriginWrong, rf"other/weights/shard\.bin.*{says}", hint)
    assert replace(look(cache.root), small=()) == replace(before, staged={SIZE: frozenset()})
    origin.heal()
    other = await cache.recover(web_spec(origin, "other"), FILES)
    assert_published(cache.root, {status.digest: FILES, other.digest: FILES})
