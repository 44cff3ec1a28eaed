"""One download however many ask: single flight, sharing of blobs, cancellation, failures, and what stays on disk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from cacheagent import blobs
from cacheagent.blobs import Exchange, Peers
from cacheagent.errors import (
    ChecksumMismatch,
    CorruptModel,
    NotCached,
    OriginUnavailable,
    PickleRefused,
    SourceChanged,
    UnsafeContent,
    VersionMoved,
)
from cacheagent.flights import Flights, source_key
from cacheagent.model import PIECE_SIZE_BYTES, SMALL_FILE_BYTES
from cacheagent.plan import Plan
from cacheagent.progress import JobStatus
from cacheagent.sharing import BlobShare
from cacheagent.spec import ModelSpec, SourceSpec
from cacheagent.store import Record, Reservation, Store
from cacheagent.transfer.base import BlobOrder
from tests.fakes.memory import MemoryOrigin, MemoryTransport
from tests.fakes.transfer import until

pytestmark = pytest.mark.asyncio

LARGE = 2 * PIECE_SIZE_BYTES + 4097


def large(seed: int, size: int = LARGE) -> bytes:
    block = bytes((seed * 7 + n) % 251 for n in range(4096))
    return (block * (size // len(block) + 1))[:size]


def tree(name: str, uri: str = "memory://a") -> ModelSpec:
    return ModelSpec(name=name, kind="tree", source=SourceSpec(uri=uri))


class Node:
    """A store and flights over origins in memory."""

    def __init__(self, root: Path, origins: dict[str, MemoryOrigin], peers: Peers | None = None) -> None:
        self.root = root
        self.origins = origins
        self.store = Store.open(root)
        self.transport = MemoryTransport(*origins.values())
        self.events: list[JobStatus] = []
        self.flights = Flights(
            self.store, self.transport, lambda spec: origins[spec.uri], on_event=self.events.append, peers=peers
        )

    def files(self, record: Record) -> dict[str, bytes]:
        base = self.store.path(record.digest) / "files"
        return {str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*") if path.is_file()}

    def on_disk(self, *names: str) -> set[str]:
        return {
            str(path.relative_to(self.root))
            for name in names
            for path in (self.root / name).rglob("*")
            if path.is_file()
        }


def node(root: Path, **origins: MemoryOrigin) -> AbstractAsyncContextManager[Node]:
    return node_among(None, root, origins)


@asynccontextmanager
async def node_among(peers: Peers | None, root: Path, origins: dict[str, MemoryOrigin]) -> AsyncIterator[Node]:
    made = Node(root, {f"memory://{name}": origin for name, origin in origins.items()}, peers)
    try:
        yield made
    finally:
        await made.flights.close()
        made.store.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


async def test_a_model_arrives_whole_and_the_second_asking_is_a_hit(root: Path) -> None:
    """Bytes are equal, the story is told in order, the origin is not asked again."""
    objects = {"config.json": b"{}", "empty": b"", "w/1.bin": large(1)}
    async with node(root, a=MemoryOrigin(dict(objects))) as here:
        record = await here.flights.ensure(tree("m"))
        assert here.files(record) == objects
        phases = list(dict.fromkeys(event.phase for event in here.events))
        assert phases == ["resolving", "reserving", "fetching", "publishing", "ready"]
        assert here.events[-1].bytes_fetched == here.events[-1].bytes_total == LARGE + 2
        assert await here.flights.ensure(tree("another name")) == here.store.record(record.digest)
        assert here.origins["memory://a"].listings == 1
        assert here.on_disk("staging", "trash") <= {"staging/small/journal"}


async def test_twenty_askers_make_one_download(root: Path) -> None:
    """All get the same record; each file travelled once."""
    async with node(root, a=MemoryOrigin({"x": large(1), "y": b"small"})) as here:
        records = await asyncio.gather(*(here.flights.ensure(tree("m")) for _ in range(20)))
        assert {record.digest for record in records} == {records[0].digest}
        assert here.transport.fetches == {"x": 1, "y": 1}


async def test_an_asker_who_leaves_cancels_nothing(root: Path) -> None:
    """The other asker, and the job itself, go on."""
    async with node(root, a=MemoryOrigin({"x": large(1)})) as here:
        here.transport.hold("x")
        leaving = asyncio.create_task(here.flights.ensure(tree("m")))
        staying = asyncio.create_task(here.flights.ensure(tree("m")))
        await here.transport.wait_until_started("x")
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        here.transport.release("x")
        assert here.files(await staying) == {"x": large(1)}
        assert here.transport.fetches == {"x": 1}


async def test_a_second_revision_fetches_only_what_changed_also_while_the_first_is_on_its_way(root: Path) -> None:
    """One shard of thirty differs: 31 shards travel for two models, none twice."""
    first = {f"shard-{n:02d}": large(n, SMALL_FILE_BYTES) for n in range(30)}
    second = {**first, "shard-07": large(99, SMALL_FILE_BYTES)}
    async with node(root, a=MemoryOrigin(first), b=MemoryOrigin(second)) as here:
        here.origins["memory://b"].trust_domain = here.origins["memory://a"].trust_domain
        for number in range(30):
            here.transport.hold(f"shard-{number:02d}")
        one = asyncio.create_task(here.flights.ensure(tree("v1", "memory://a")))
        await here.transport.wait_until_started("shard-00")
        two = asyncio.create_task(here.flights.ensure(tree("v2", "memory://b")))
        for number in range(30):
            await here.transport.wait_until_started(f"shard-{number:02d}")
        here.transport.origins = (MemoryBoth(first, second),)
        for number in range(30):
            here.transport.release(f"shard-{number:02d}")
        assert here.files(await one) == first
        assert here.files(await two) == second
        assert sum(here.transport.fetches.values()) == 31


class MemoryBoth(MemoryOrigin):
    """Serves whichever version is asked for by its ETag."""

    def __init__(self, *versions: dict[str, bytes]) -> None:
        super().__init__(versions[0])
        self.versions = versions

    def bytes_of(self, path: str, etag: str) -> bytes:
        for version in self.versions:
            self.objects = version
            try:
                return super().bytes_of(path, etag)
            except SourceChanged:
                continue
        raise SourceChanged(path)


async def test_blobs_are_never_shared_across_trust_domains(root: Path) -> None:
    """The same bytes under the same key at another endpoint travel again: knowing a name gives nothing."""
    mine, theirs = MemoryOrigin({"x": large(1)}), MemoryOrigin({"x": large(1)}, endpoint="memory://other")
    async with node(root, a=mine, b=theirs) as here:
        await here.flights.ensure(tree("m", "memory://a"))
        assert here.transport.fetches["x"] == 1
        await here.flights.ensure(tree("n", "memory://b"))
        assert here.transport.fetches["x"] == 2


async def test_when_the_one_who_fetches_is_dropped_the_other_goes_on(root: Path) -> None:
    """A joined flight that is cancelled is taken over by whoever waits for the blob."""
    shared = {"x": large(1)}
    async with node(root, a=MemoryOrigin({**shared, "a": b"1"}), b=MemoryOrigin({**shared, "b": b"2"})) as here:
        here.transport.hold("x")
        here.flights.start(tree("dropped", "memory://a"), wanted_s=-1)
        await here.transport.wait_until_started("x")
        staying = asyncio.create_task(here.flights.ensure(tree("stays", "memory://b")))
        await here.transport.wait_until_started("b")
        here.flights.drop_unwanted()
        here.transport.release("x")
        assert here.files(await staying) == {**shared, "b": b"2"}
        assert [job.name for job in here.flights.jobs() if job.phase == "ready"] == ["stays"]


async def test_a_failure_is_told_with_its_reason_and_the_next_try_succeeds(root: Path) -> None:
    """What arrived is kept for it: only the file that failed is fetched again."""
    objects = {"bad": large(1), "good": large(2), "tiny": b"t"}
    async with node(root, a=MemoryOrigin(objects)) as here:
        here.transport.failures["bad"] = [OriginUnavailable("the origin is away", hint="try later")]
        here.transport.hold("bad")
        first = asyncio.create_task(here.flights.ensure(tree("m")))
        for path in objects:
            await here.transport.wait_until_started(path)
        here.transport.release("bad")
        with pytest.raises(OriginUnavailable, match="the origin is away"):
            await first
        (job,) = here.flights.jobs()
        assert (job.phase, job.error, job.hint) == ("failed", "origin-unavailable", "try later")
        assert here.on_disk("models", "records", "blobs") == set()
        assert here.files(await here.flights.ensure(tree("m"))) == objects
        assert here.transport.fetches["bad"] == 2


async def test_an_object_that_changed_leaves_nothing_of_itself(root: Path) -> None:
    """Its staging is gone: pieces of two versions can never meet."""
    origin = MemoryOrigin({"x": large(1)})
    async with node(root, a=origin) as here:
        here.transport.hold("x")
        pull = asyncio.create_task(here.flights.ensure(tree("m")))
        await here.transport.wait_until_started("x")
        origin.objects["x"] = large(2)
        here.transport.release("x")
        with pytest.raises(SourceChanged):
            await pull
        assert here.on_disk("models", "records", "blobs", "staging") <= {"staging/small/journal"}
        assert here.files(await here.flights.ensure(tree("m"))) == {"x": large(2)}


async def test_a_lying_safetensors_header_is_never_published(root: Path) -> None:
    """Refused with the file's name and nothing visible; the honest file under the same name is accepted."""
    body = b'{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}'
    lie = len(body).to_bytes(8, "little") + body + bytes(8)
    origin = MemoryOrigin({"m.safetensors": lie})
    spec = ModelSpec(name="m", source=SourceSpec(uri="memory://a"))
    async with node(root, a=origin) as here:
        with pytest.raises(UnsafeContent, match=r"m\.safetensors: not a safetensors file: its tensors end at 9"):
            await here.flights.ensure(spec)
        assert here.on_disk("models", "records", "blobs") == set()
        origin.objects["m.safetensors"] = lie + b"\0"
        assert here.files(await here.flights.ensure(spec)) == {"m.safetensors": lie + b"\0"}


async def test_what_is_evicted_before_it_could_be_promised_is_fetched_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared file that was here when the plan was made, and gone when the room was reserved, travels."""
    origin = MemoryOrigin({"x": large(1)})
    async with node(root, a=origin) as here:
        old = await here.flights.ensure(tree("m"))
        origin.objects["y"] = b"new"
        reserve = here.store.reserve

        def evict_and_reserve(digest: str, blobs: Mapping[str, int], *, priority: int) -> Reservation:
            here.store.evict(old.digest)
            return reserve(digest, blobs, priority=priority)

        monkeypatch.setattr(here.store, "reserve", evict_and_reserve)
        assert here.files(await here.flights.ensure(tree("m"), refresh=True)) == origin.objects
        assert here.transport.fetches == {"x": 2, "y": 1}


async def test_a_refused_model_reserves_and_fetches_nothing(root: Path) -> None:
    """Policy speaks before the first byte."""
    async with node(root, a=MemoryOrigin({"w.bin": large(1)})) as here:
        with pytest.raises(PickleRefused):
            await here.flights.ensure(ModelSpec(name="m", source=SourceSpec(uri="memory://a")))
        assert not here.transport.fetches
        assert here.origins["memory://a"].closed == 1


async def test_refresh_asks_the_origin_and_keeps_the_old_version(root: Path) -> None:
    """Without refresh a moved revision is not noticed; with it both versions stand beside each other."""
    origin = MemoryOrigin({"x": b"old"})
    async with node(root, a=origin) as here:
        old = await here.flights.ensure(tree("m"))
        origin.objects["x"] = b"new"
        assert (await here.flights.ensure(tree("m"))).digest == old.digest
        new = await here.flights.ensure(tree("m"), refresh=True)
        assert here.files(new) == {"x": b"new"}
        assert here.files(old) == {"x": b"old"}
        assert (await here.flights.ensure(tree("m"))).digest == new.digest


async def test_an_interrupted_pull_is_resumed_from_what_is_proved(root: Path) -> None:
    """Pieces on disk are proved and kept by the next agent; only the others travel."""
    objects = {"a": large(1), "tiny": b"t"}
    async with node(root, a=MemoryOrigin(objects)) as here:
        plan = here.flights.ensure(tree("m"))
        here.transport.hold("a")
        pull = asyncio.create_task(plan)
        await here.transport.wait_until_started("a")
        await here.transport.wait_until_started("tiny")
        await here.flights.close()
        with pytest.raises(asyncio.CancelledError):
            await pull
        assert any(path.startswith("staging/") for path in here.on_disk("staging"))
    async with node(root, a=MemoryOrigin(objects)) as again:
        assert again.files(await again.flights.ensure(tree("m"))) == objects


async def test_verify_finds_a_byte_that_changed_at_rest(root: Path) -> None:
    """The sound model passes first; then one flipped bit is named by file and piece."""
    async with node(root, a=MemoryOrigin({"x": large(1), "y": b"y"})) as here:
        record = await here.flights.ensure(tree("m"))
        await here.flights.verify(record.digest)
        path = here.store.path(record.digest) / "files" / "x"
        path.chmod(0o644)
        with path.open("r+b") as stream:
            stream.seek(PIECE_SIZE_BYTES + 5)
            stream.write(b"\xff")
        with pytest.raises(CorruptModel, match="x piece 1"):
            await here.flights.verify(record.digest)
        with pytest.raises(NotCached):
            await here.flights.verify("sha256:" + "0" * 64)


async def test_a_waiting_asker_raises_the_priority_of_what_starts_after(root: Path) -> None:
    """Background work takes the priority of whoever waits for it."""
    async with node(root, a=MemoryOrigin({"x": large(1)})) as here:
        await here.flights.ensure(tree("m"), priority=100)
        assert here.transport.priorities == {"x": 100}


async def test_who_comes_later_and_waits_raises_what_is_under_way(root: Path) -> None:
    """The same model asked for again with more urgency, and another model that shares a blob."""
    shared = {"x": large(1)}
    async with node(root, a=MemoryOrigin(dict(shared)), b=MemoryOrigin({**shared, "b": b"2"})) as here:
        here.transport.hold("x")
        background = asyncio.create_task(here.flights.ensure(tree("m", "memory://a")))
        await here.transport.wait_until_started("x")
        waiting = asyncio.create_task(here.flights.ensure(tree("m", "memory://a"), priority=100))
        await asyncio.sleep(0)
        assert here.transport.raised[-1] == (1, 100)
        other = asyncio.create_task(here.flights.ensure(tree("n", "memory://b"), priority=200))
        await here.transport.wait_until_started("b")
        assert here.transport.raised[-1] == (1, 200)
        here.transport.release("x")
        await asyncio.gather(background, waiting, other)
        assert here.transport.fetches["x"] == 1


async def test_the_key_of_a_request_ignores_what_does_not_change_the_files() -> None:
    """Name, priority and pin are not part of it; patterns, revision and policy are."""
    spec = tree("m")
    same = msgspec.structs.replace(spec, name="n", priority=5, pin=True, keep_warm=False)
    other = msgspec.structs.replace(spec, source=SourceSpec(uri="memory://a", exclude=("*.md",)))
    assert source_key(spec) == source_key(same)
    assert source_key(spec) != source_key(other)


async def test_a_job_ends_when_the_last_one_lets_go(root: Path) -> None:
    """Of two who want it, one's leaving changes nothing; after the other's nothing is fetched, and the next one goes
    on with what is there."""
    async with node(root, a=MemoryOrigin({"x": large(1)})) as here:
        here.transport.hold("x")
        wanted = tree("m", "memory://a")
        here.flights.start(wanted, wanted_s=60, by="keeper")
        here.flights.start(wanted, wanted_s=60)
        await here.transport.wait_until_started("x")
        here.flights.let_go(wanted, "keeper")
        here.flights.drop_unwanted()
        assert here.flights.jobs()[0].phase == "fetching"
        here.flights.let_go(wanted, "asker")
        here.flights.drop_unwanted()
        async with asyncio.timeout(60):
            while here.flights.jobs():  # noqa: ASYNC110 - there is nothing to wait on
                await asyncio.sleep(0.001)
        here.transport.release("x")
        assert here.files(await here.flights.ensure(wanted)) == {"x": large(1)}


async def test_a_version_that_is_demanded_is_the_only_one_that_comes(root: Path) -> None:
    """The origin's other version fails with both digests before the first byte; the right one comes, and is found
    afterwards without a question."""
    origin = MemoryOrigin({"x": b"old"})
    async with node(root, a=origin) as here:
        source = tree("m", "memory://a")
        manifest = await here.flights.look_up(source)
        assert here.store.records() == []
        origin.objects["x"] = b"new"
        pinned = msgspec.structs.replace(source, digest=manifest.digest)
        with pytest.raises(VersionMoved, match=f"version {manifest.digest} is asked for"):
            await here.flights.ensure(pinned)
        assert here.transport.fetches["x"] == 0
        origin.objects["x"] = b"old"
        assert (await here.flights.ensure(pinned)).digest == manifest.digest
        listings = origin.listings
        origin.objects["x"] = b"new"
        assert (await here.flights.ensure(pinned)).digest == manifest.digest
        assert origin.listings == listings


async def test_a_content_digest_that_is_demanded_is_compared(root: Path) -> None:
    """Other bytes than those that somebody verified are not published; the right demand is met."""
    async with node(root, a=MemoryOrigin({"x": b"x"})) as here:
        source = tree("m", "memory://a")
        wrong = msgspec.structs.replace(source, content_digest="sha256:" + "0" * 64)
        with pytest.raises(ChecksumMismatch, match="is demanded"):
            await here.flights.ensure(wrong)
        assert here.store.records() == []
        record = await here.flights.ensure(source)
        right = msgspec.structs.replace(source, content_digest=record.content_digest)
        assert (await here.flights.ensure(right)).digest == record.digest


async def test_fields_that_came_later_change_no_key() -> None:
    """Disks remember what requests were resolved to by these keys."""
    assert source_key(tree("m")) == "eca92d9103a95423cfe7ec0492af19fdc697c1a75347e46d83527e2ba2cc5daf"
    assert source_key(msgspec.structs.replace(tree("m"), digest="sha256:" + "0" * 64)) != source_key(tree("m"))


async def test_a_limit_holds_for_what_runs_and_what_comes_and_for_nobody_who_waits(root: Path) -> None:
    """It is the transport's under the job's own name; a pod that waits lifts it, and nothing of it stays behind."""
    async with node(root, a=MemoryOrigin({"x": large(1)}), b=MemoryOrigin({"y": large(2)})) as here:
        slow, other = tree("m", "memory://a"), tree("n", "memory://b")
        here.transport.hold("x")
        here.transport.hold("y")
        here.flights.limit({slow: 500})
        here.flights.start(slow)
        here.flights.start(other)
        await here.transport.wait_until_started("x")
        await here.transport.wait_until_started("y")
        assert (here.transport.caps[source_key(slow)], limit_of(here, slow), limit_of(here, other)) == (500, 500, 0)
        here.flights.limit({slow: 200, other: 100})
        assert (here.transport.caps[source_key(slow)], here.transport.caps[source_key(other)]) == (200, 100)
        here.flights.start(slow, urgent=True)
        assert (here.transport.caps[source_key(slow)], limit_of(here, slow)) == (0, 0)
        here.flights.limit({slow: 300})
        assert (here.transport.caps[source_key(slow)], here.transport.caps[source_key(other)]) == (0, 0)
        assert (limit_of(here, slow), limit_of(here, other)) == (0, 0)
        here.flights.limit({slow: 300, other: 100})
        here.transport.release("x")
        here.transport.release("y")
        await asyncio.gather(here.flights.ensure(slow), here.flights.ensure(other))
        assert set(here.transport.caps.values()) == {0}


def limit_of(here: Node, spec: ModelSpec) -> int:
    job = here.flights.job(spec)
    assert job is not None
    return job.limit_bytes_per_s


async def test_what_a_job_without_a_limit_waits_for_comes_without_one(root: Path) -> None:
    """The limited job that brings it has none so long, and has it again for what it alone wants."""
    slow, other = tree("m", "memory://a"), tree("n", "memory://b")
    origins = {"a": MemoryOrigin({"x": large(1), "y": large(2)}), "b": MemoryOrigin({"x": large(1), "z": large(3)})}
    async with node(root, **origins) as here:
        for path in ("x", "y", "z"):
            here.transport.hold(path)
        here.flights.limit({slow: 500, other: 400})
        here.flights.start(slow)
        await here.transport.wait_until_started("x")
        await here.transport.wait_until_started("y")
        here.flights.start(other)
        await here.transport.wait_until_started("z")
        assert capped(here, slow, other) == (500, 400)
        here.flights.start(other, urgent=True)
        assert capped(here, slow, other) == (0, 0)
        here.flights.limit({slow: 300, other: 400})
        assert capped(here, slow, other) == (0, 0)
        here.transport.release("x")
        here.transport.release("z")
        await here.flights.ensure(other)
        assert (*capped(here, slow, other), limit_of(here, slow)) == (300, 0, 300)
        here.transport.release("y")
        await here.flights.ensure(slow)
        assert set(here.transport.caps.values()) == {0}
        assert here.transport.fetches == {"x": 1, "y": 1, "z": 1}


async def test_what_is_begun_for_others_too_has_no_limit_either(root: Path) -> None:
    """A job without a limit is there first and waits for something of its own; nothing of that when it is gone."""
    slow, other = tree("m", "memory://a"), tree("n", "memory://b")
    origins = {"a": MemoryOrigin({"x": large(1)}), "b": MemoryOrigin({"x": large(1), "z": large(3)})}
    async with node(root, **origins) as here:
        here.transport.hold("x")
        here.transport.hold("z")
        here.flights.limit({slow: 500})
        here.flights.start(slow)
        await here.transport.wait_until_started("x")
        assert capped(here, slow) == (500,)
        here.flights.start(other, wanted_s=-1.0)
        await here.transport.wait_until_started("z")
        assert capped(here, slow) == (0,)
        here.flights.drop_unwanted()
        await until(lambda: here.flights.job(other) is None, "the other is gone")
        assert capped(here, slow) == (500,)
        here.transport.release("x")
        await here.flights.ensure(slow)


class Budget(Peers):
    """Others that take from the same origin, and exchange nothing with this node."""

    share = 1000

    async def join(self, digest: str, plan: Plan) -> Exchange | None:
        return None

    async def leave(self, exchange: object, *, complete: bool) -> None:
        raise AssertionError(exchange)

    def origin_share(self, digest: str) -> int:
        return self.share


async def test_a_share_of_an_origin_holds_for_whoever_waits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the limit of a warm-up, the smaller one, and as it is by now; not for what is not exchanged at all."""
    monkeypatch.setattr(blobs, "SHARE_LOOK_S", 0.001)
    budget = Budget()
    origins = {"a": MemoryOrigin({"x": large(1)}), "b": MemoryOrigin({"y": large(2)})}
    async with node_among(budget, root, origins) as here:
        shared, alone = tree("m", "memory://a"), msgspec.structs.replace(tree("n", "memory://b"), peers="never")
        here.transport.hold("x")
        here.transport.hold("y")
        here.flights.start(shared)
        here.flights.start(alone)
        await here.transport.wait_until_started("x")
        await here.transport.wait_until_started("y")
        assert capped(here, shared, alone) == (1000, 0)
        here.flights.limit({shared: 500})
        assert capped(here, shared) == (500,)
        here.flights.limit({shared: 5000})
        assert capped(here, shared) == (1000,)
        here.flights.start(shared, urgent=True)
        assert capped(here, shared) == (1000,)
        budget.share = 250
        await until(lambda: capped(here, shared) == (250,), "there are more nodes now")
        here.transport.release("x")
        here.transport.release("y")
        await asyncio.gather(here.flights.ensure(shared), here.flights.ensure(alone))
        assert set(here.transport.caps.values()) == {0}


class AlteredOrigin(MemoryOrigin):
    """Stands for members too, which give other bytes of what is in `altered`."""

    def __init__(self, objects: dict[str, bytes], *altered: str) -> None:
        super().__init__(objects)
        self.altered = {path: large(99) for path in altered}

    def bytes_of(self, path: str, etag: str) -> bytes:
        return self.altered.get(path, super().bytes_of(path, etag))


class Unsuspected(BlobShare):
    """What comes is believed."""

    others = 1

    def have(self, index: int, blake3: str, *, is_own: bool) -> None:
        return

    def is_doubted(self, index: int, blake3: str) -> bool:
        return False


class Liars(Peers, Exchange):
    """When a download ends, however it does, it turns out that a member lied about one piece of each altered file: what
    comes from then on is right. `paths`: of the blobs. `left`: whether each download was complete."""

    def __init__(self, origin: AlteredOrigin) -> None:
        self._origin = origin
        self.paths: dict[str, str] = {}
        self.left: list[bool] = []

    async def join(self, digest: str, plan: Plan) -> Exchange | None:
        self.paths = {blob: file.path for blob, file in plan.blobs.items()}
        return self

    def origin_share(self, digest: str) -> int:
        return 0

    async def leave(self, exchange: object, *, complete: bool) -> None:
        self.left.append(complete)

    def share(self, order: BlobOrder) -> BlobShare:
        return Unsuspected()  # type: ignore[abstract]

    def take_doubted(self, blob: str) -> dict[int, str]:
        altered = self._origin.altered.pop(self.paths[blob], b"")
        return {1: blake3(altered[PIECE_SIZE_BYTES:][:PIECE_SIZE_BYTES]).hexdigest()} if altered else {}


def one_piece_altered(path: str, seed: int) -> tuple[str, bytes]:
    """What the origin has, of which `AlteredOrigin` has another piece 1."""
    other = large(99)
    return path, other[:PIECE_SIZE_BYTES] + large(seed, PIECE_SIZE_BYTES) + other[2 * PIECE_SIZE_BYTES :]


async def test_what_a_liar_gave_of_files_that_had_come_is_fetched_before_they_are_published(root: Path) -> None:
    """Of each of them, once, and what was right of them is kept; of the honest member's file, nothing. What came twice
    counts once."""
    objects = dict([one_piece_altered("x", 1), one_piece_altered("y", 2), ("z", large(3))])
    origin = AlteredOrigin(objects, "x", "y")
    liars = Liars(origin)
    async with node_among(liars, root, {"a": origin}) as here:
        assert here.files(await here.flights.ensure(tree("m"))) == objects
        assert here.transport.pieces == {"x": 3 + 1, "y": 3 + 1, "z": 3}
        assert liars.left == [True]
        assert here.events[-1].bytes_done == here.events[-1].bytes_total == 3 * LARGE


async def test_what_a_liar_gave_is_not_believed_after_a_failure_either(root: Path) -> None:
    """The last file does not come: of those that had, the next try fetches what the liar gave, though it does not know
    of it any more."""
    objects = dict([one_piece_altered("x", 1), ("z", large(3))])
    origin = AlteredOrigin(objects, "x")
    liars = Liars(origin)
    async with node_among(liars, root, {"a": origin}) as here:
        here.transport.failures["z"] = [OriginUnavailable("away")]
        here.transport.hold("z")
        pull = asyncio.create_task(here.flights.ensure(tree("m")))
        await here.transport.wait_until_started("z")
        (blob,) = (blob for blob, path in liars.paths.items() if path == "x")
        await until(lambda: here.store.blob_hashes(blob) is not None, "the first file is here")
        here.transport.release("z")
        with pytest.raises(OriginUnavailable):
            await pull
        assert here.files(await here.flights.ensure(tree("m"))) == objects
        assert here.transport.pieces == {"x": 3 + 1, "z": 3}
        assert liars.left == [False, True]


async def test_a_file_that_another_call_doubts_is_waited_for_again(root: Path) -> None:
    """A model that shares it, is not exchanged, and had it already; the call that doubts it fails to bring it anew."""
    objects = dict([one_piece_altered("x", 1)])
    origin, other = AlteredOrigin(objects, "x"), MemoryOrigin({**objects, "y": large(2)})
    async with node_among(Liars(origin), root, {"a": origin, "b": other}) as here:
        alone = msgspec.structs.replace(tree("n", "memory://b"), peers="never")
        here.transport.hold("x")
        here.transport.hold("y")
        exchanged = asyncio.create_task(here.flights.ensure(tree("m")))
        await here.transport.wait_until_started("x")
        waiting = asyncio.create_task(here.flights.ensure(alone))
        await here.transport.wait_until_started("y")
        here.transport.release("x")
        here.transport.hold("x")
        await until(lambda: here.transport.fetches["x"] == 2, "it was here for both, and is fetched anew")
        here.transport.failures["x"] = [OriginUnavailable("away")]
        here.transport.release("x")
        with pytest.raises(OriginUnavailable):
            await exchanged
        here.transport.release("y")
        assert here.files(await waiting) == {**objects, "y": large(2)}
        assert here.transport.pieces == {"x": 3 + 1, "y": 3}


async def test_a_use_is_written_down_beside_the_loop(root: Path) -> None:
    """Whoever holds the store's lock for long (a slow disk) holds up the one who asks, and nobody else."""
    async with node(root, a=MemoryOrigin({"x": b"1"})) as here:
        record = await here.flights.ensure(tree("m"))
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with here.store._state.lock:
                held.set()
                release.wait(30)

        holder = threading.Thread(target=hold)
        holder.start()
        try:
            await asyncio.to_thread(held.wait, 30)
            asking = asyncio.create_task(here.flights.ensure(tree("m")))
            for _ in range(10):
                await asyncio.sleep(0.005)
            assert not asking.done()
        finally:
            release.set()
            holder.join()
        used = await asking
        assert used.digest == record.digest
        assert used.last_used > record.last_used


def capped(here: Node, *specs: ModelSpec) -> tuple[int, ...]:
    return tuple(here.transport.caps[source_key(spec)] for spec in specs)
