"""What this node gives to others, and under whose name: while it is fetched, published, evicted and fetched again."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from cacheagent.cohorts import Circle
from cacheagent.config import Address, PeersSettings
from cacheagent.errors import TransferFailed
from cacheagent.member import Member
from cacheagent.model import SMALL_FILE_BYTES, blob_id
from cacheagent.peers import service, whole
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.orders import Have, Refused, Serve, ServerOrder, Sought, Withdraw
from cacheagent.peers.protocol import seal_to_sign
from cacheagent.peers.service import Service, Shown
from cacheagent.peers.shelf import Shelf
from cacheagent.peers.swarm import NodePeers
from cacheagent.peers.vouchers import KEEP_S, Vouchers, keep
from cacheagent.peers.whole import in_parts, serve_whole
from cacheagent.store import Record, Reservation, Store
from cacheagent.store.layout import Layout
from cacheagent.transfer.wire import FrameReader, frame
from tests.fakes.cache import DOMAIN, NO_FLOOR, blobs_of, content_of, hashes_of, manifest_of, reserve, stage
from tests.fakes.peer_children import FailingChild, FakeChild
from tests.fakes.peer_exchange import CountingObserver
from tests.fakes.running import until

pytestmark = pytest.mark.asyncio
ME, OTHER = NodeKey(b"0" * 32), NodeKey(b"1" * 32)
FILES = {"a.bin": content_of("a", SMALL_FILE_BYTES), "b.bin": content_of("b", SMALL_FILE_BYTES)}


class Scene:
    """Node n0 with a store. `keys`: those of the members, on its list."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(path, NO_FLOOR)
        self.vouchers = Vouchers(Layout(path))
        self.observer = CountingObserver()
        self.keys = {"n0": ME, "n1": OTHER}
        self.service = self.restarted()

    def restarted(self) -> Service:
        """A service that knows what the disk knows."""
        settings = PeersSettings(listen=Address("127.0.0.1:0"), name="n0")
        self.service = Service(settings, ME, self.store, self.vouchers, self, self.observer)
        return self.service

    def circle(self, digest: str) -> Circle:
        """See Membership."""
        return Circle(
            tuple(
                Member(name=name, address=f"{name}.example:7411", key=key.public_text)
                for name, key in self.keys.items()
            )
        )

    def keep(self, seal: Have) -> None:
        """The receiver has told of a piece."""
        keep(self.vouchers.path(seal.digest), seal)

    async def seek(self, digest: str) -> None:
        """Somebody asks for it, and it is here."""
        FakeChild.last.say(Sought(digest=digest))
        await until(lambda: FakeChild.last.told_of(Serve), "it is served")

    def publish(self, *verified_by: str) -> Record:
        """The model, whose large files were proved by these."""
        with_them = {
            blob: msgspec.structs.replace(hashes_of(content), verified_by=verified_by)
            for blob, content in blobs_of(FILES).items()
        }
        reservation = reserve(self.store, FILES)
        stage(self.store, FILES)
        manifest = manifest_of(FILES)
        record = self.store.publish(manifest, DOMAIN, with_them, uri="memory://m", name="m", pin=False, priority=0)
        reservation.release()
        return record

    def seal(self, digest: str, piece: int, key: NodeKey = OTHER) -> Have:
        """What n1 says of a piece."""
        content = list(FILES.values())[piece]
        hashed = bytes.fromhex(hashes_of(content).pieces[0])
        signature = key.sign(seal_to_sign(digest, piece, len(content), hashed))
        return Have(digest=digest, piece=piece, blake3=hashed, signer="n1", signature=signature)


@pytest_asyncio.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(service, "Child", FakeChild)
    made = Scene(tmp_path / "cache")
    yield made
    await made.service.close()
    made.store.close()


def shelf_of(child: FakeChild) -> Shelf:
    """What the server process makes of what it was told."""
    shelf: Shelf | None = None
    for order in child.told:
        if isinstance(order, Serve):
            if shelf is None:
                shelf = Shelf(order, "n0", ME)
            shelf.update(order)
        elif isinstance(order, Have) and shelf is not None:
            shelf.have(order)
        elif isinstance(order, Withdraw):
            shelf = None
    assert shelf is not None
    return shelf


def signers(child: FakeChild) -> list[str]:
    """Who vouches for the pieces; empty where nobody does."""
    shelf = shelf_of(child)
    with shelf.condition:
        seals = [shelf.seal(piece) for piece in range(shelf.pieces)]
    return [seal.signer if seal is not None else "" for seal in seals]


def shown(scene: Scene, digest: str) -> Shown:
    """A download that has everything to bring."""
    manifest = manifest_of(FILES)
    blobs = {blob_id(DOMAIN, file): file.size_bytes for file in manifest.files}
    return Shown(digest=digest, blobs=blobs, paths={}, here={})


async def test_what_was_evicted_and_is_fetched_again_is_not_here(scene: Scene) -> None:
    """Though nobody has looked at the disk since: what is told of it anew is told of nothing."""
    record = scene.publish("crc64nvme")
    await scene.seek(record.digest)
    assert shelf_of(FakeChild.last).is_complete
    scene.store.evict(record.digest)
    scene.service.show(shown(scene, record.digest), ("n0", "n1"), {})
    shelf = shelf_of(FakeChild.last)
    assert not shelf.is_complete
    assert shelf.proved() == []
    assert [shelf.available(piece) for piece in range(2)] == [0, 0]
    scene.service.have(Have(digest=record.digest, piece=1, blake3=b"h" * 32))
    assert shelf_of(FakeChild.last).proved() == [1]


@pytest.mark.parametrize(("verified_by", "expected"), [("crc64nvme", ["n1", "n0"]), ("sha256", ["n0", "n0"])])
async def test_what_only_crcs_speak_for_goes_on_under_the_name_that_it_came_with(
    scene: Scene, verified_by: str, expected: list[str]
) -> None:
    """After it is published, and after a restart of the process and of the agent; where the origin's SHA-256 has
    spoken, this node's own word is good."""
    digest = manifest_of(FILES).digest
    scene.service.show(shown(scene, digest), ("n0", "n1"), {})
    foreign = scene.seal(digest, 0)
    scene.keep(foreign)
    scene.service.have(foreign)
    scene.service.have(msgspec.structs.replace(scene.seal(digest, 1), signer="", signature=b""))
    record = scene.publish(verified_by)
    scene.service.published(record)
    await until(lambda: shelf_of(FakeChild.last).order.hashes, "all of it is told of")
    assert signers(FakeChild.last) == expected
    scene.service._child = None
    scene.service._start()
    assert signers(FakeChild.last) == expected
    await scene.service.close()
    scene.restarted()
    await scene.seek(digest)
    assert signers(FakeChild.last) == expected


@pytest.mark.parametrize("at_once", [1, 2], ids=["in parts", "in one"])
async def test_what_is_much_is_told_in_parts(scene: Scene, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Also to a process that takes another one's place. Who is a member by now is told without any of it."""
    monkeypatch.setattr(whole, "PIECES_AT_ONCE", at_once)
    record = scene.publish("crc64nvme")
    scene.keep(scene.seal(record.digest, 1))
    await scene.seek(record.digest)
    for _ in range(2):
        told = FakeChild.last.told_of(Serve)
        assert [order.goes_on for order in told] == [True, False][at_once - 1 :]
        assert [seal.piece for seal in told[-1].seals] == [1]
        assert sum(len(order.seals) for order in told) == 1
        assert shelf_of(FakeChild.last).is_complete
        assert signers(FakeChild.last) == ["n0", "n1"]
        scene.service._child = None
        scene.service._start()
    del scene.keys["n1"]
    scene.service.look()
    changed = FakeChild.last.told_of(Serve)[-1]
    assert (set(changed.members), changed.hashes, changed.seals, changed.goes_on) == ({"n0"}, b"", (), False)
    assert shelf_of(FakeChild.last).is_complete
    assert signers(FakeChild.last) == ["n0", "n0"]
    scene.service._child = None
    scene.service._start()
    assert shelf_of(FakeChild.last).is_complete


async def test_no_part_is_too_long_for_a_process() -> None:
    """Of 5 TB that others vouch for, under the longest of names; in one, which is the control, it would be its end."""
    pieces, digest = 300_000, "sha256:" + "ab" * 32
    hashes = [piece.to_bytes(32, "big") for piece in range(pieces)]
    seals = [
        Have(digest=digest, piece=piece, blake3=blake3, signer="n" * 253, signature=b"s" * 64)
        for piece, blake3 in enumerate(hashes)
    ]
    order = Serve(
        digest=digest, members={}, homes=(), sizes=(), paths=(), hashes=b"".join(hashes), seals=tuple(seals[::-1])
    )
    with pytest.raises(TransferFailed, match="at most"):
        FrameReader[ServerOrder](ServerOrder).feed(frame(order)[:4])
    reader = FrameReader[ServerOrder](ServerOrder)
    parts = [each for part in in_parts(order) for each in reader.feed(frame(part))]
    assert len(parts) == 5
    firsts = [part.first for part in parts if isinstance(part, Serve)]
    assert firsts == [
        0,
        *itertools.accumulate(len(part.hashes) // 32 for part in parts[:-1] if isinstance(part, Serve)),
    ]
    assert b"".join(part.hashes for part in parts if isinstance(part, Serve)) == order.hashes
    assert {seal for part in parts if isinstance(part, Serve) for seal in part.seals} == set(seals)


async def test_what_nobody_else_would_believe_this_node_says_itself(scene: Scene) -> None:
    """Who vouched has left, or has another key by now: seals of it are refused everywhere."""
    digest = manifest_of(FILES).digest
    scene.service.show(shown(scene, digest), ("n0", "n1"), {})
    scene.service.have(scene.seal(digest, 0))
    scene.service.have(scene.seal(digest, 1, NodeKey(b"old" + b"1" * 29)))
    assert signers(FakeChild.last) == ["n1", "n0"]
    del scene.keys["n1"]
    scene.service.look()
    assert signers(FakeChild.last) == ["n0", "n0"]


async def test_seals_go_with_what_they_are_of(scene: Scene, tmp_path: Path) -> None:
    """When it is evicted, and when it never came for a long time; a line that a crash cut is none."""
    record = scene.publish("crc64nvme")
    scene.keep(scene.seal(record.digest, 0))
    scene.keep(scene.seal(record.digest, 1))
    path = Path(Layout(tmp_path / "cache").seals_of(record.digest))
    path.write_bytes(path.read_bytes()[:-5])
    assert scene.vouchers.read(record.digest) == {0: scene.seal(record.digest, 0)}
    scene.keep(scene.seal(record.digest, 1))
    assert set(scene.vouchers.read(record.digest)) == {0, 1}
    await scene.seek(record.digest)
    scene.store.evict(record.digest)
    scene.service.look()
    await until(lambda: not path.exists(), "they are forgotten")
    never = "sha256:" + "0" * 64
    scene.keep(scene.seal(never, 0))
    stale = Path(Layout(tmp_path / "cache").seals_of(never))
    scene.vouchers.tidy(lambda digest: False)
    assert stale.exists()
    old = stale.stat().st_mtime - KEEP_S - 1
    os.utime(stale, (old, old))
    scene.vouchers.tidy(lambda digest: digest == never)
    assert stale.exists()
    scene.vouchers.tidy(lambda digest: False)
    assert not stale.exists()


async def test_disks_are_waited_for_elsewhere(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who vouches is read and forgotten in threads: one that hangs holds nobody up but who asks for it, and what was to
    be forgotten is gone for whoever reads afterwards."""
    record = scene.publish("crc64nvme")
    scene.keep(scene.seal(record.digest, 0))
    reading, go_on = threading.Event(), threading.Event()
    read = Vouchers.read

    def slow_read(self: Vouchers, digest: str) -> dict[int, Have]:
        reading.set()
        assert go_on.wait(30)
        return read(self, digest)

    monkeypatch.setattr(Vouchers, "read", slow_read)
    FakeChild.last.say(Sought(digest=record.digest))
    FakeChild.last.say(Sought(digest=record.digest))
    await until(reading.is_set, "it is read")
    assert not FakeChild.last.told_of(Serve)
    scene.service._vouchers.forget(record.digest)
    again = asyncio.create_task(scene.service.vouched(record.digest))
    go_on.set()
    assert await again == {}
    (order,) = FakeChild.last.told_of(Serve)
    assert [seal.signer for seal in order.seals] == ["n1"]


async def test_what_is_evicted_while_it_is_read_is_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked hears it at once, and need not wait for the end of his patience."""
    record = scene.publish("sha256")

    def evicting(store: Store, record: Record, vouchers: Vouchers) -> Serve | None:
        order = serve_whole(store, record, vouchers)
        store.evict(record.digest)
        return order

    monkeypatch.setattr(service, "serve_whole", evicting)
    FakeChild.last.say(Sought(digest=record.digest))
    await until(lambda: FakeChild.last.told_of(Withdraw), "it is not here")
    assert not FakeChild.last.told_of(Serve)


async def test_refusals_are_counted_and_not_all_logged(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """A line for each peer and reason; the metric has all."""
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            FakeChild.last.say(Refused(reason="time", client="n1", message="clocks"))
        FakeChild.last.say(Refused(reason="nonce", client="n1", message="replayed"))
    assert [record.__dict__["reason"] for record in caplog.records] == ["time", "nonce"]
    assert len(scene.observer.refused) == 51


async def test_a_server_that_cannot_be_started_is_tried_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until it can, whether it is the first or takes another one's place; it knows then what that one knew. The log
    says so once."""
    digest = manifest_of(FILES).digest
    scene.service.show(shown(scene, digest), ("n0", "n1"), {})
    monkeypatch.setattr(service, "Child", FailingChild)
    monkeypatch.setattr(service, "RESTART_S", 0.001)
    before = FakeChild.last
    FailingChild.failures = 3
    before.end()
    await until(lambda: FakeChild.last is not before, "another one has begun")
    assert [order.digest for order in FakeChild.last.told_of(Serve)] == [digest]
    (line,) = [record for record in caplog.records if "can't be started" in record.message]
    assert "temporarily unavailable" in line.__dict__["why"]
    await scene.service.close()
    before = FakeChild.last
    FailingChild.failures = 2
    scene.restarted()
    assert FakeChild.last is before
    await until(lambda: FakeChild.last is not before, "the first one has begun")


async def complete(scene: Scene, tries: int) -> Reservation:
    """A download is, and its job is not over: what it has is served meanwhile."""
    digest = manifest_of(FILES).digest
    reservation = reserve(scene.store, FILES)
    scene.service.show(shown(scene, digest), ("n0", "n1"), {})
    scene.service.expect_publish(digest, tries)
    await asyncio.sleep(0.1)
    assert not isinstance(FakeChild.last.told[-1], Withdraw)
    return reservation


@pytest.mark.parametrize("tries", [service.PUBLISH_TRIES, 0], ids=["at once", "after a long while"])
async def test_what_is_complete_and_not_published_is_withdrawn(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    """When its job is over, as after a header that is refused, and not before; it is served again by another job."""
    monkeypatch.setattr(service, "LOOK_S", 0.01)
    for _ in range(2):
        reservation = await complete(scene, tries)
        reservation.release()
        await until(lambda: isinstance(FakeChild.last.told[-1], Withdraw), "it is served no more")
        assert not scene.service._served


@pytest.mark.parametrize("tries", [service.PUBLISH_TRIES, 0], ids=["at once", "after a long while"])
async def test_what_is_complete_and_published_is_served_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    """The control: the job ends with a record."""
    monkeypatch.setattr(service, "LOOK_S", 0.01)
    reservation = await complete(scene, tries)
    scene.publish("sha256")
    reservation.release()
    await until(lambda: shelf_of(FakeChild.last).order.hashes, "all of it is told of")
    assert not FakeChild.last.told_of(Withdraw)


async def test_what_is_evicted_while_it_is_told_of_is_withdrawn(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a download had told of it; where another one has begun, that goes on."""
    for again in (False, True):
        record = scene.publish("sha256")
        scene.service.show(shown(scene, record.digest), ("n0", "n1"), {})

        def evicting(store: Store, record: Record, vouchers: Vouchers) -> Serve | None:
            store.evict(record.digest)
            return None

        monkeypatch.setattr(service, "serve_whole", evicting)
        before = len(FakeChild.last.told_of(Withdraw))
        scene.service.expect_publish(record.digest)
        reading = scene.service._reading[record.digest]
        if again:
            monkeypatch.setattr(scene.store, "is_on_its_way", lambda digest: True)
        await reading
        assert (len(FakeChild.last.told_of(Withdraw)) == before) is again
        assert (record.digest in scene.service._served) is again


async def test_what_is_private_has_no_members(scene: Scene, tmp_path: Path) -> None:
    """Whoever is on the list; nothing has any before there is a store."""
    listed = Member(name="n1", address="n1.example:7411", key=OTHER.public_text)
    peers = NodePeers(
        PeersSettings(members=(listed,)), tmp_path, CountingObserver(), lambda _store, digest: digest == "a"
    )
    assert peers.circle("b").near == ()
    peers._store = scene.store
    assert peers.circle("a").near == ()
    assert peers.circle("b").near == (listed,)
