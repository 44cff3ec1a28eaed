"""Origins that are silent, slow or gone: for a while, or for good."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cacheagent.errors import OriginUnavailable
from cacheagent.model import MIB, PIECE_SIZE_BYTES
from cacheagent.spec import ModelSpec, SourceSpec
from cacheagent.transfer.pool import TransferConfig
from tests.fakes.faults import Drip, Fault, SlowFirstByte, Stall
from tests.fakes.origin import Origin
from tests.fakes.tls import Tls
from tests.fakes.transfer import until
from tests.faults.scene import (
    SHARD,
    SMALL,
    Cache,
    Listing,
    OnDisk,
    assert_claims_are_true,
    assert_published,
    ensure,
    look,
    put_model,
    small_tree,
    web_spec,
)

FILES = small_tree(1)
SIZE = len(FILES[SHARD])
IS_IT_UP = "check that the origin is up and can be reached from this node"

pytestmark = pytest.mark.asyncio

FAULTS: list[Fault] = [Stall(after_bytes=MIB + 1), Stall(), SlowFirstByte(), Drip(bytes_per_s=2000, after_bytes=MIB)]
NAMES = ["stall", "stall at the start", "no first byte", "drip"]


@pytest.mark.parametrize("listing", ["sums", "index"])
@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
async def test_one_connection_that_brings_nothing(cache: Cache, origin: Origin, listing: Listing, fault: Fault) -> None:
    """It is given up after the idle limit, without waiting for its end, and its bytes come on another."""
    put_model(origin, "m", FILES, listing)
    origin.inject(fault, path=f"m/{SHARD}", nth=2)
    got = await cache.recover(web_spec(origin, "m"), FILES)
    assert [each.fault for each in origin.requests if each.fault] == [type(fault).__name__]
    assert_published(cache.root, {got.digest: FILES})


async def test_one_connection_that_brings_nothing_over_tls(cache: Cache, tls: Tls) -> None:
    """Where the kernel's time limit does not count, another one does."""
    with Origin(tls=tls.server_context()) as origin:
        put_model(origin, "m", FILES, "index")
        origin.inject(Stall(after_bytes=MIB + 1), path=f"m/{SHARD}")
        origin.inject(Drip(bytes_per_s=2000, after_bytes=MIB), path=f"m/{SHARD}", nth=2)
        source = SourceSpec(uri=f"{origin.url}/m/", ca_bundle=str(tls.ca_bundle))
        got = await cache.recover(ModelSpec(name="m", kind="tree", source=source), FILES)
        assert len([each for each in origin.requests if each.fault]) == 2
    assert_published(cache.root, {got.digest: FILES})


async def test_a_small_file_that_stalls(cache: Cache, origin: Origin) -> None:
    """The same rule."""
    put_model(origin, "m", SMALL)
    origin.inject(Stall(after_bytes=5), path="m/config.json")
    got = await cache.recover(web_spec(origin, "m"), SMALL)
    assert [each.fault for each in origin.requests if each.fault] == ["Stall"]
    assert_published(cache.root, {got.digest: SMALL})


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
async def test_an_origin_that_is_always_silent(cache: Cache, origin: Origin, fault: Fault) -> None:
    """Given up with what it did not do; nobody waits for the connections that still hang. On a machine that does not
    let a worker run, that may be the one that had the small files."""
    put_model(origin, "m", FILES, "index")
    origin.inject(fault, path=f"m/{SHARD}", times=None)
    what = r"(127\.0\.0\.1:\d+: \d+ bytes came within 1 s|the worker gave no sign of life and was stopped after \d+ s)"
    says = rf"({SHARD}|small files more).*{what}; gave up after \d+ failed tries"
    await cache.fail(web_spec(origin, "m"), OriginUnavailable, says, IS_IT_UP, give_up_after_s=2.0)
    assert replace(look(cache.root), small=()) == OnDisk(staged={SIZE: frozenset()})
    origin.heal()
    got = await cache.recover(web_spec(origin, "m"), FILES)
    assert_published(cache.root, {got.digest: FILES})


@pytest.mark.parametrize("listing", ["sums", "index"])
async def test_an_origin_that_is_slow_and_steady(cache: Cache, origin: Origin, listing: Listing) -> None:
    """The control: a slow link is no fault; nothing is tried again."""
    put_model(origin, "m", FILES, listing)
    origin.pace.bytes_per_s = 24e6
    got = await cache.recover(web_spec(origin, "m"), FILES, idle_timeout_s=10.0)
    assert not [name for name in cache.observer.counts if name.startswith("retry")]
    assert_published(cache.root, {got.digest: FILES})


@pytest.mark.parametrize("listing", ["sums", "index"])
async def test_an_origin_that_is_gone_for_a_while(cache: Cache, origin: Origin, listing: Listing) -> None:
    """Its restart takes less than the budget: the pull waits, goes on and fetches nothing twice that it had."""
    put_model(origin, "m", FILES, listing)
    origin.pace.bytes_per_s = 20e6
    pull = asyncio.create_task(cache.pull(web_spec(origin, "m"), give_up_after_s=60.0, connections=1))
    await until(lambda: cache.observer.bytes_done > PIECE_SIZE_BYTES, "the first piece")
    with origin.gone():
        await asyncio.sleep(4)  # the length of the fault, not a wait for anything
        assert not pull.done()
        assert (look(cache.root).models, look(cache.root).records) == (frozenset(), frozenset())
    record = await pull
    origin.wait_until_idle()
    assert origin.body_bytes_sent(f"m/{SHARD}") < SIZE + PIECE_SIZE_BYTES
    assert any(name.startswith("retry ") for name in cache.observer.counts)
    assert_published(cache.root, {record.digest: FILES})


@pytest.mark.slow
async def test_an_origin_that_is_gone_for_a_minute(cache: Cache, origin: Origin) -> None:
    """With the usual waits: both kinds of pull outlast it, and take up where they were within moments."""
    names: tuple[Listing, ...] = ("sums", "index")
    for name in names:
        put_model(origin, name, FILES, name)
    origin.pace.bytes_per_s = 20e6
    cache.transfer = TransferConfig(workers=1, connections=2)
    async with cache.node() as node:
        pulls = [asyncio.create_task(ensure(node, web_spec(origin, name))) for name in names]
        await until(lambda: cache.observer.bytes_done > 2 * PIECE_SIZE_BYTES, "the first pieces")
        with origin.gone():
            await asyncio.sleep(60)  # the length of the fault, not a wait for anything
            assert not any(pull.done() for pull in pulls)
            assert (look(cache.root).models, look(cache.root).records) == (frozenset(), frozenset())
            assert_claims_are_true(cache.root, FILES[SHARD])
            back_s = asyncio.get_running_loop().time()
        records = await asyncio.gather(*pulls)
    # At most the longest pause between two tries (10 s), and then what was missing, 20 MB a second.
    assert asyncio.get_running_loop().time() - back_s < cache.transfer.backoff_cap_s + 30
    origin.wait_until_idle()
    for name in names:
        assert origin.body_bytes_sent(f"{name}/{SHARD}") < SIZE + 2 * PIECE_SIZE_BYTES
    assert_published(cache.root, {record.digest: FILES for record in records})


@pytest.mark.parametrize("listing", ["sums", "index"])
async def test_an_origin_that_is_gone_for_good(cache: Cache, origin: Origin, listing: Listing) -> None:
    """The cause is in the sentence; the pieces that came are kept for when it is back after all."""
    put_model(origin, "m", FILES, listing)
    origin.pace.bytes_per_s = 20e6
    says = rf"{SHARD}.*127\.0\.0\.1:\d+: .*[Cc]onnection (refused|reset).*gave up after \d+ failed tries in \d+ s"
    failing = asyncio.create_task(
        cache.fail(web_spec(origin, "m"), OriginUnavailable, says, IS_IT_UP, give_up_after_s=2.0, connections=1)
    )
    await until(lambda: cache.observer.bytes_done > PIECE_SIZE_BYTES, "the first piece")
    with origin.gone():
        await failing
        found = look(cache.root)
        assert replace(found, small=(), staged={}) == OnDisk()
        assert len(found.staged[SIZE]) >= 1
        assert_claims_are_true(cache.root, FILES[SHARD])
    origin.pace.bytes_per_s = None
    got = await cache.recover(web_spec(origin, "m"), FILES)
    assert got.bytes_kept >= len(found.staged[SIZE] - {2}) * PIECE_SIZE_BYTES
    assert_published(cache.root, {got.digest: FILES})


async def test_an_origin_that_is_not_there_at_all(cache: Cache, origin: Origin) -> None:
    """The listing has its own few tries; then the sentence says who could not be reached."""
    put_model(origin, "m", FILES)
    with origin.gone():
        says = rf"http://127\.0\.0\.1:{origin.port} cannot be reached"
        await cache.fail(web_spec(origin, "m"), OriginUnavailable, says, "is the server up")
        assert look(cache.root) == OnDisk()
    got = await cache.recover(web_spec(origin, "m"), FILES)
    assert_published(cache.root, {got.digest: FILES})
