"""A piece is fetched again from exactly where it came from, or not at all."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from cacheagent.errors import NotCached, OriginUnavailable, OriginWrong
from cacheagent.flights import Flights
from cacheagent.location import HttpLocation
from cacheagent.model import PIECE_SIZE_BYTES, Manifest, blob_id, piece_range
from cacheagent.refetch import Refetch, _pinned
from cacheagent.spec import ModelSpec, SourceSpec
from cacheagent.store import Record, Store
from cacheagent.transfer.base import BlobOrder, Locate
from tests.fakes.memory import MemoryOrigin, MemoryTransport

pytestmark = pytest.mark.asyncio
WEIGHTS = os.urandom(PIECE_SIZE_BYTES + 1000)


class World:
    """One published model and the ways to its origin."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.origin = MemoryOrigin({"weights.bin": WEIGHTS}, endpoint="memory://origin", credential="team")
        self.store = Store.open(root)
        self.flights = Flights(self.store, MemoryTransport(self.origin), lambda _: self.origin, on_event=lambda _: None)
        self.configured: list[SourceSpec] = []
        self.opened: list[SourceSpec] = []
        self.failure: Exception | None = None

    def open_source(self, spec: SourceSpec) -> MemoryOrigin:
        self.opened.append(spec)
        if spec.endpoint == "memory://origin":
            return self.origin
        return MemoryOrigin({}, endpoint="memory://elsewhere", credential=spec.credential)

    async def fetch_piece(self, order: BlobOrder, index: int, locate: Locate) -> None:
        if self.failure is not None:
            raise self.failure
        location = await locate()
        assert isinstance(location, HttpLocation)
        offset, length = piece_range(order.size_bytes, index)
        with open(order.target, "r+b") as target:
            assert target.seek(0, os.SEEK_END) == order.size_bytes
            target.seek(offset)
            target.write(self.origin.bytes_of(location.url, location.etag)[offset : offset + length])

    def refetch(self) -> Refetch:
        configured: Iterator[SourceSpec] = iter(self.configured)
        return Refetch(self.root, self.store, self.fetch_piece, self.open_source, lambda: configured)

    def left_behind(self) -> list[str]:
        return [path.name for path in self.root.glob(".repair-*")]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """With its model here."""
    made = World(tmp_path / "cache")
    yield made
    await made.flights.close()
    made.store.close()


async def published(world: World, uri: str = "memory://a") -> tuple[Record, str]:
    """The record and its one blob."""
    record = await world.flights.ensure(ModelSpec(name="llama", kind="tree", source=SourceSpec(uri=uri)))
    return record, blob_id(record.domain, record.manifest.files[0])


async def test_each_piece_comes_as_it_was(world: World) -> None:
    """The last one with its own length; nothing is left on the disk, and the source is closed."""
    _, blob = await published(world)
    closed = world.origin.closed
    assert await world.refetch()(blob, 0) == WEIGHTS[:PIECE_SIZE_BYTES]
    assert await world.refetch()(blob, 1) == WEIGHTS[PIECE_SIZE_BYTES:]
    assert world.origin.closed == closed + 2
    assert world.left_behind() == []


async def test_the_configuration_knows_best_and_the_record_is_enough(world: World) -> None:
    """A configured source of that URI goes first; without one the record's own facts are tried."""
    _, blob = await published(world)
    await world.refetch()(blob, 0)
    assert world.opened == [
        SourceSpec(uri="memory://a", credential="team"),
        SourceSpec(uri="memory://a", credential="team", endpoint="memory://origin"),
    ]
    world.opened.clear()
    world.configured = [
        SourceSpec(uri="memory://b"),
        SourceSpec(uri="memory://a", endpoint="memory://origin", ca_bundle="/ca.pem"),
    ]
    await world.refetch()(blob, 0)
    assert world.opened == [world.configured[1]]


async def test_another_origin_or_credential_is_never_asked(world: World) -> None:
    """Whoever vouches for other bytes can't repair these."""
    _, blob = await published(world)
    world.origin.trust_domain = world.origin.trust_domain.__class__(endpoint="memory://origin", credential="other")
    with pytest.raises(OriginWrong, match="llama: nothing here reaches memory://a as it was reached") as caught:
        await world.refetch()(blob, 0)
    assert caught.value.hint
    assert world.left_behind() == []


async def test_a_failure_leaves_nothing_and_the_next_try_succeeds(world: World) -> None:
    """The scratch file goes, whatever happens."""
    record, blob = await published(world)
    world.failure = OriginUnavailable("away")
    with pytest.raises(OriginUnavailable, match="away"):
        await world.refetch()(blob, 1)
    assert world.left_behind() == []
    world.failure = None
    assert await world.refetch()(blob, 1) == WEIGHTS[PIECE_SIZE_BYTES:]
    world.store.evict(record.digest)
    with pytest.raises(NotCached):
        await world.refetch()(blob, 1)


async def test_a_branch_is_asked_for_as_the_commit_that_it_was(world: World) -> None:
    """It may have moved on since; other kinds of sources are asked as they were."""
    record, _ = await published(world)
    hub = Manifest(kind="tree", source_kind="hf", files=(), revision="c0ffee")
    of_hub = Record(**{**{name: getattr(record, name) for name in record.__struct_fields__}, "manifest": hub})
    asked = SourceSpec(uri="hf://org/name@main", credential="team")
    assert _pinned(asked, of_hub) == SourceSpec(uri="hf://org/name", revision="c0ffee", credential="team")
    assert _pinned(asked, record) == asked
