"""The object under a key becomes another one: between list and get, between two pieces, and in the middle of one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cacheagent.errors import ChecksumMismatch, SourceChanged
from cacheagent.model import MIB
from tests.fakes.content import Content
from tests.fakes.exchange import Answer, Request
from tests.fakes.faults import Replace
from tests.fakes.origin import Origin
from tests.faults.scene import (
    SHARD,
    SMALL,
    Cache,
    Listing,
    OnDisk,
    SentSince,
    assert_published,
    look,
    put_listing,
    put_model,
    small_tree,
    web_spec,
)

OLD, NEW = small_tree(1), small_tree(2)
SEEN_CHANGED = r"shard\.bin.*412"
RESOLVE = "resolve again to get the new version"

pytestmark = pytest.mark.asyncio


def assert_nothing_kept(cache: Cache) -> None:
    """But for small files, which may have arrived before."""
    assert replace(look(cache.root), small=()) == OnDisk()


async def assert_next_try_brings(cache: Cache, origin: Origin, listing: Listing, files: dict[str, bytes]) -> None:
    """The publisher has written the new list; the new version comes whole, from its first byte."""
    put_listing(origin, "m", files, listing)
    again = SentSince(origin)
    status = await cache.recover(web_spec(origin, "m"), files)
    assert again.bytes_of(f"m/{SHARD}") == len(files[SHARD]), "something of the old one was kept"
    assert_published(cache.root, {status.digest: files})


@pytest.mark.parametrize("listing", ["sums", "index"])
@pytest.mark.parametrize("request_number", [1, 2])
async def test_replaced_between_list_and_get_or_between_pieces(
    cache: Cache, origin: Origin, listing: Listing, request_number: int
) -> None:
    """The first request that meets the new object ends the pull; pieces of the old one are thrown away."""
    put_model(origin, "m", OLD, listing)
    origin.inject(Replace(Content(NEW[SHARD])), path=f"m/{SHARD}", nth=request_number)
    spec = web_spec(origin, "m")
    await cache.fail(spec, SourceChanged, SEEN_CHANGED, RESOLVE)
    assert_nothing_kept(cache)
    await assert_next_try_brings(cache, origin, listing, NEW)


@pytest.mark.parametrize("listing", ["sums", "index"])
async def test_replaced_by_another_size(cache: Cache, origin: Origin, listing: Listing) -> None:
    """A longer object under the same key is no more mixed in than one of the same size."""
    put_model(origin, "m", OLD, listing)
    longer = {**NEW, SHARD: NEW[SHARD] + b"longer"}
    origin.inject(Replace(Content(longer[SHARD])), path=f"m/{SHARD}")
    await cache.fail(web_spec(origin, "m"), SourceChanged, SEEN_CHANGED, RESOLVE)
    assert_nothing_kept(cache)
    await assert_next_try_brings(cache, origin, listing, longer)


@pytest.mark.parametrize("listing", ["sums", "index"])
async def test_a_server_that_ignores_conditions_is_seen_through(cache: Cache, origin: Origin, listing: Listing) -> None:
    """If-Match is a wish; the ETag of the answer is what counts."""
    put_model(origin, "m", OLD, listing)
    answer = origin.respond

    def careless(request: Request) -> Answer:
        request.headers.pop("if-match", None)
        return answer(request)

    origin.respond = careless  # type: ignore[method-assign]
    origin.inject(Replace(Content(NEW[SHARD])), path=f"m/{SHARD}", nth=2)
    await cache.fail(web_spec(origin, "m"), SourceChanged, r"shard\.bin.*ETag is", RESOLVE)
    assert_nothing_kept(cache)
    await assert_next_try_brings(cache, origin, listing, NEW)


@pytest.mark.parametrize(("listing", "connections"), [("sums", 3), ("index", 1)])
async def test_replaced_while_the_old_one_is_being_sent(
    cache: Cache, origin: Origin, listing: Listing, connections: int
) -> None:
    """A server that renames a new file into place sends the old one to its end: the next request sees the new one."""
    put_model(origin, "m", OLD, listing)
    origin.inject(Replace(Content(NEW[SHARD]), after_bytes=MIB), path=f"m/{SHARD}")
    await cache.fail(web_spec(origin, "m"), SourceChanged, SEEN_CHANGED, RESOLVE, connections=connections)
    assert_nothing_kept(cache)
    await assert_next_try_brings(cache, origin, listing, NEW)


async def test_written_in_place_under_a_checksum(cache: Cache, origin: Origin) -> None:
    """Old head and new tail in one answer, with the right length and ETag: the SHA-256 of the list finds it."""
    put_model(origin, "m", OLD, "sums")
    origin.inject(
        Replace(Content(NEW[SHARD], etag=Content(OLD[SHARD]).etag), after_bytes=MIB, mixed=True), path=f"m/{SHARD}"
    )
    await cache.fail(
        web_spec(origin, "m"), ChecksumMismatch, r"shard\.bin", "nothing of the file was kept", connections=1
    )
    assert_nothing_kept(cache)
    await assert_next_try_brings(cache, origin, "sums", NEW)


@pytest.mark.parametrize("answer", [1, 3])
async def test_written_in_place_without_a_checksum(cache: Cache, origin: Origin, answer: int) -> None:
    """Nothing but the ETag pins the file: it is different after the last byte, in whichever answer the change fell."""
    put_model(origin, "m", OLD, "index")
    origin.inject(Replace(Content(NEW[SHARD]), after_bytes=MIB, mixed=True), path=f"m/{SHARD}", nth=answer)
    await cache.fail(web_spec(origin, "m"), SourceChanged, r"shard\.bin", "resolve again", connections=1)
    assert_nothing_kept(cache)
    await assert_next_try_brings(cache, origin, "index", NEW)


@pytest.mark.parametrize("listing", ["sums", "index"])
async def test_the_same_object_written_again_is_no_change(cache: Cache, origin: Origin, listing: Listing) -> None:
    """The control of all these: equal bytes under an equal ETag come at the first try."""
    put_model(origin, "m", OLD, listing)
    origin.inject(Replace(Content(OLD[SHARD])), path=f"m/{SHARD}", nth=2)
    status = await cache.recover(web_spec(origin, "m"), OLD)
    assert_published(cache.root, {status.digest: OLD})


async def test_a_new_version_beside_a_published_one(cache: Cache, origin: Origin) -> None:
    """The version that is published stays what it is, whatever becomes of the next."""
    put_model(origin, "m", OLD)
    old = await cache.pull(web_spec(origin, "m"))
    between = {**NEW, "config.json": SMALL["config.json"]}
    put_model(origin, "m", between)
    newest = {**small_tree(3), "config.json": SMALL["config.json"]}
    origin.inject(Replace(Content(newest[SHARD])), path=f"m/{SHARD}")
    before = look(cache.root)
    await cache.fail(web_spec(origin, "m"), SourceChanged, SEEN_CHANGED, RESOLVE)
    assert look(cache.root) == before
    assert_published(cache.root, {old.digest: OLD})
    put_listing(origin, "m", newest, "sums")
    status = await cache.recover(web_spec(origin, "m"), newest)
    assert_published(cache.root, {old.digest: OLD, status.digest: newest})
