"""An exchange of one node without processes and network: the receiver, the service and the job are scripted."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest
from blake3 import blake3

from cacheagent.cohorts import Circle
from cacheagent.member import Member
from cacheagent.model import PIECE_SIZE_BYTES, Checksum
from cacheagent.peers import exchange, protocol, rules
from cacheagent.peers.exchange import Exchange
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.node import PeerNode
from cacheagent.peers.observer import PeerObserver
from cacheagent.peers.orders import Arrived, Backlog, Ended, EndKind, Have, Progress, Target, Unproved
from cacheagent.peers.receiving import Listener, Receiving
from cacheagent.peers.service import Service, Shown
from cacheagent.peers.share import BlobShare
from cacheagent.peers.vouchers import Vouchers, keep
from cacheagent.peers.zones import Zones
from cacheagent.store import Store
from cacheagent.store.layout import Layout
from cacheagent.transfer.base import BlobOrder
from cacheagent.transfer.orders import PieceHash
from tests.fakes.cache import NO_FLOOR
from tests.fakes.running import until

DIGEST = "sha256:" + "ab" * 32


class Connection:
    """One to a member. `expected`: what it was told that the member may bring."""

    def __init__(self, number: int, listener: Listener) -> None:
        self.number = number
        self.listener = listener
        self.asks: list[protocol.Request] = []
        self.expected: set[int] = set()
        self.is_ended = False
        self.is_told_to_end = False


class FakeReceiving(Receiving):
    """Answers releases at once, or `hold`s them."""

    def __init__(self) -> None:
        self.hold = False
        self.releases: list[tuple[frozenset[int], asyncio.Future[None]]] = []
        self.connections: dict[str, list[Connection]] = {}
        self.keys: dict[str, tuple[bytes, ...]] = {}
        self._connections: dict[int, Connection] = {}
        self._ids = itertools.count(1)

    def session(self, digest: str, keys: dict[str, tuple[bytes, ...]]) -> int:
        self.keys = keys
        return 1

    def set_keys(self, session: int, digest: str, keys: dict[str, tuple[bytes, ...]]) -> None:
        self.keys = keys

    def add(self, target: Target) -> None:
        pass

    def forget(self, session: int) -> None:
        pass

    def connect(self, session: int, member: Member, listener: Listener) -> int:
        connection = Connection(next(self._ids), listener)
        self._connections[connection.number] = connection
        self.connections.setdefault(member.name, []).append(connection)
        return connection.number

    def say(self, connection: int, data: bytes, expect: Iterable[int]) -> None:
        self._connections[connection].asks.append(protocol.read_request(data[protocol.LENGTH.size :]))
        self._connections[connection].expected |= set(expect)

    async def release(self, connection: int, pieces: Iterable[int]) -> None:
        if self._connections[connection].is_ended:
            return
        released = frozenset(pieces)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.releases.append((released, answer))
        if not self.hold:
            answer.set_result(None)
        await answer
        self._connections[connection].expected -= released

    def let_go(self) -> None:
        """What was held is answered."""
        self.hold = False
        for _, answer in self.releases:
            if not answer.done():
                answer.set_result(None)

    def disconnect(self, connection: int) -> None:
        self._connections[connection].is_told_to_end = True


class FakeService(Service):
    """Remembers what is served."""

    def __init__(self, vouchers: Vouchers) -> None:
        self.haves: list[Have] = []
        self.lost: set[int] = set()
        self.waits = Backlog(seconds=0.0)
        self._of_disk = vouchers

    async def vouched(self, digest: str) -> dict[int, Have]:
        return self._of_disk.read(digest)

    def show(self, shown: Shown, homes: tuple[str, ...], vouched: Mapping[int, Have]) -> None:
        pass

    def backlog(self, digest: str) -> Backlog:
        return self.waits

    def set_path(self, digest: str, file: int, path: str) -> None:
        pass

    def part(self, digest: str, piece: int, length: int) -> None:
        pass

    def have(self, order: Have) -> None:
        self.haves.append(order)

    def lose(self, digest: str, pieces: Iterable[int]) -> None:
        self.lost.update(pieces)


class CountingObserver(PeerObserver):
    """Remembers reasons of refusals and kinds of faults, and takes no notice of the rest."""

    def __init__(self) -> None:
        self.lies = 0
        self.refused: list[str] = []
        self.faults: list[str] = []

    def peer_received(self, size_bytes: int, *, crosses: bool) -> None:
        return

    def peer_yielded(self, times: int) -> None:
        return

    def peer_sent(self, size_bytes: int) -> None:
        return

    def peer_refused(self, reason: str) -> None:
        self.refused.append(reason)

    def peer_rehomed(self, pieces: int) -> None:
        return

    def peer_at_fault(self, kind: str) -> None:
        self.faults.append(kind)

    def peer_lied(self) -> None:
        self.lies += 1


class FakeJob:
    """A PieceSink. What is wanted of it comes at once, as long as `is_open`."""

    def __init__(self) -> None:
        self.is_open = True
        self.wanted: list[int] = []
        self.failure: Exception | None = None
        self.share: BlobShare | None = None

    def want(self, indexes: Sequence[int]) -> None:
        self.wanted += indexes
        if self.is_open:
            asyncio.get_running_loop().call_soon(self._bring, tuple(indexes))

    def put(self, piece: PieceHash) -> None:
        assert self.share is not None
        self.share.have(piece.index, piece.blake3, is_own=False)

    def fail(self, error: Exception) -> None:
        self.failure = error

    def _bring(self, indexes: Iterable[int]) -> None:
        assert self.share is not None
        for index in indexes:
            self.share.have(index, hash_of(index), is_own=True)


class ExchangeScene:
    """Node n0, which lacks `files` files of so many pieces each. `listed` may be changed: who is on the list now.
    `zones`: of members by name, where they have any. `above`: those of them that are of the cohort above."""

    def __init__(
        self,
        path: Path,
        names: Sequence[str] = ("n0", "n1"),
        files: Sequence[int] = (8,),
        zones: Mapping[str, str] | None = None,
        above: Sequence[str] = (),
    ) -> None:
        self.keys = {name: NodeKey(name.encode().ljust(32, b"-")) for name in names}
        self.listed = {
            name: Member(
                name=name, address=f"{name}.example:7411", key=key.public_text, zone=(zones or {}).get(name, "")
            )
            for name, key in self.keys.items()
        }
        self.receiving = FakeReceiving()
        self.vouchers = Vouchers(Layout(path))
        self.service = FakeService(self.vouchers)
        self.liars: set[str] = set()
        self.observer = CountingObserver()
        self.files = files
        self.level = 2
        self.above = above
        circle = self.circle(DIGEST)
        self.zones = Zones(circle.near, "n0", DIGEST, circle.above)
        self.zones.assign(sum(files))
        self._store = Store.open(path, NO_FLOOR)
        self._blobs = {f"{number:064x}": pieces * PIECE_SIZE_BYTES for number, pieces in enumerate(files)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._store.close()

    async def start(self, digest: str = DIGEST) -> Exchange:
        """One that has called the others."""
        exchange = self.make(digest)
        await exchange.start(Shown(digest=digest, blobs=self._blobs, paths={}, here={}))
        return exchange

    def make(self, digest: str = DIGEST) -> Exchange:
        """One that has no homes yet."""
        node = PeerNode(
            name="n0",
            key=self.keys["n0"],
            service=self.service,
            receiving=self.receiving,
            store=self._store,
            membership=self,
            observer=self.observer,
        )
        return Exchange(digest, self._blobs, self.circle(digest), node, self.liars)

    def circle(self, digest: str) -> Circle:
        """See Membership."""
        near = tuple(member for name, member in self.listed.items() if name not in self.above)
        above = tuple(member for name, member in self.listed.items() if name in self.above)
        return Circle(near=near, above=above, level=self.level if above else 0)

    def begin(self, exchange: Exchange, number: int = 0) -> tuple[FakeJob, BlobShare]:
        """A job for one file."""
        job, share = FakeJob(), exchange.share(self.order(self.blobs[number]))
        job.share = share
        share.begin(job, range(self.files[number]))
        return job, share

    @property
    def blobs(self) -> list[str]:
        """The files, in order."""
        return list(self._blobs)

    def order(self, blob: str, *checksums: Checksum) -> BlobOrder:
        """To bring one of them. `checksums`: what its origin says of it."""
        return BlobOrder(
            blob_id=blob,
            size_bytes=self._blobs[blob],
            target="/nowhere",
            source_kind="https",
            checksums=checksums,
        )

    def of(self, name: str) -> set[int]:
        """Pieces whose home is this member."""
        return {piece for piece, home in enumerate(self.zones.homes) if home == name}

    async def expects(self, **pieces: set[int]) -> None:
        """Wait until each member is to bring these, and nothing else."""

        def as_said() -> bool:
            return {name: self.connection(name).expected for name in pieces} == pieces

        await until(as_said, f"they are asked for {pieces}")

    # --- what happens at the others

    def connection(self, name: str) -> Connection:
        """The last one."""
        return self.receiving.connections[name][-1]

    def take(self, name: str, *versions: int) -> None:
        """The member takes the connection, and says what it speaks."""
        self.connection(name).listener.said(_body(protocol.Hello(versions=versions, nonce=b"n" * 32)), b"")

    def greet(self, name: str) -> protocol.Ask:
        """As `take`, and it hears what is wanted."""
        self.take(name, *protocol.VERSIONS)
        (ask,) = self.connection(name).asks
        assert isinstance(ask, protocol.Ask)
        return ask

    def let_in(self, name: str, *, complete: bool = False, have: Iterable[int] = ()) -> None:
        """And lets this node in. `have`: what it has by now."""
        ask = self.greet(name)
        session = protocol.Session(ask.digest, ask.client, ask.server, ask.client_nonce, ask.server_nonce)
        welcome = protocol.Welcome(complete=complete, have=protocol.pack_set(have), homes=(), signature=b"")
        signature = self.keys[name].sign(protocol.welcome_to_sign(session, welcome))
        self.connection(name).listener.said(_body(protocol.signed(welcome, signature)), b"")

    def send(self, name: str, piece: int, *, signer: str = "") -> None:
        """A piece comes, sealed, and the receiver keeps who vouches for it."""
        connection = self.connection(name)
        hashed = hash_of(piece)
        sealed = PieceHash(index=piece, length=PIECE_SIZE_BYTES, blake3=hashed)
        signer = signer or name
        raw = bytes.fromhex(hashed)
        signed = protocol.seal_to_sign(DIGEST, piece, PIECE_SIZE_BYTES, raw)
        signature = self.keys[signer].sign(signed)
        seal = Have(digest=DIGEST, piece=piece, blake3=raw, signer=signer, signature=signature)
        keep(self.vouchers.path(DIGEST), seal)
        number = connection.number
        connection.listener.arrived(Arrived(id=number, number=piece, piece=sealed, signer=signer, signature=signature))

    def die(self, name: str) -> None:
        """Its connection breaks, and there is no other one."""
        self.end(name, "reset")
        self.end(name, "connect")

    def send_unproved(self, name: str, piece: int, signer: str) -> None:
        """A piece comes whose seal is of somebody whom nobody knows."""
        connection = self.connection(name)
        connection.listener.unproved(Unproved(id=connection.number, number=piece, signer=signer))

    def move(self, name: str, received: int, useful: int, begun: Iterable[int] = ()) -> None:
        """Bytes come."""
        connection = self.connection(name)
        moved = Progress(id=connection.number, received_bytes=received, useful_bytes=useful, begun=tuple(begun))
        connection.listener.moved(moved)

    def end(self, name: str, kind: EndKind = "reset") -> None:
        """The connection is over."""
        connection = self.connection(name)
        connection.is_ended = True
        connection.listener.ended(Ended(id=connection.number, kind=kind, message="over"))


def hash_of(piece: int) -> str:
    """Of what the origin has there."""
    return blake3(f"piece {piece}".encode()).hexdigest()


def _body(note: protocol.Note) -> bytes:
    return protocol.note(note)[protocol.HEAD.size :]


def be_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks of milliseconds; nobody is given up, or slow, unless a test says so."""
    monkeypatch.setattr(exchange, "TICK_S", 0.005)
    monkeypatch.setattr(exchange, "ANSWERS_WITHIN_S", 0.005)
    monkeypatch.setattr(exchange, "OUT_AFTER_S", 1e9)
    monkeypatch.setattr(rules, "PATIENCE_S", 1e9)
    monkeypatch.setattr(rules, "NO_PROGRESS_S", 1e9)
