"""A fleet of exchanges on one loop, without processes and network: each of them is real, and what lies between them
(the receiver, the server, the origin) is scripted and takes as long as a seed says. Time jumps from one event to the
next, so one seed is one run, and a minute of it takes milliseconds.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Final, NamedTuple, TypeVar

import pytest

from cacheagent.cohorts import COHORT, Circle, circle_of
from cacheagent.member import Member
from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers import exchange, handing, link, own, pace, protocol, rules
from cacheagent.peers.exchange import Exchange
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.link import Link
from cacheagent.peers.node import PeerNode
from cacheagent.peers.orders import Adopt, Arrived, Backlog, Ended, EndKind, Have, Progress
from cacheagent.peers.pace import Pace
from cacheagent.peers.receiving import Listener
from cacheagent.peers.service import Shown
from cacheagent.peers.share import BlobShare
from cacheagent.store import Store
from cacheagent.transfer.base import BlobOrder
from cacheagent.transfer.orders import PieceHash
from tests.fakes.peer_exchange import DIGEST, CountingObserver, FakeReceiving, FakeService, hash_of

BLOB: Final = "0" * 64
STILL_S: Final = 60.0
"""Nothing that is on its way takes so long, of the loop's time: who lacks something then waits for ever."""
APART_S: Final = 1e-6

T = TypeVar("T")


class JumpingLoop(asyncio.SelectorEventLoop):
    """Waits for nothing: its clock is at the next event at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.now


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing would ever happen again"
        self._loop.now += max(0.0, timeout)
        return super().select(0)


class Plan(NamedTuple):
    """A fleet, and how it fares. Seconds are means. `zones`: of each node. `cohort`: members of one at most; `salt`:
    who they are. `relieve`, `share_out`, `resets` (of connections), `deaths` (of nodes): how often. `good`: how often
    somebody is thought to be good enough. `ahead`: how often a node has more than it can send; `behind`: how often one
    is thought to take less than others. `resumed`: the part of the pieces that is there at the beginning."""

    zones: tuple[str, ...]
    pieces: int
    cohort: int = COHORT
    salt: str = ""
    latency_s: float = 0.01
    piece_s: float = 0.1
    origin_s: float = 0.5
    tick_s: float = 0.2
    disturb_s: float = 0.1
    until_s: float = 5.0
    relieve: float = 1.0
    share_out: float = 1.0
    resets: float = 0.0
    deaths: float = 0.0
    good: float = 0.5
    ahead: float = 0.0
    behind: float = 0.0
    resumed: float = 0.0


def draw_plan(rng: Random, *, zones: int = 1, is_tree: bool = False, breaks: bool = False) -> Plan:
    """One of many."""
    nodes = rng.randint(4, 8)
    return Plan(
        zones=tuple(f"z{number % zones}" for number in range(nodes)),
        pieces=nodes * rng.randint(2, 5),
        cohort=rng.randint(1, 4) if is_tree else COHORT,
        salt=str(rng.random()),
        latency_s=rng.choice((0.03, 0.1, 0.3)),
        piece_s=rng.choice((0.02, 0.1)),
        origin_s=rng.choice((0.1, 0.5, 3.0)),
        tick_s=rng.choice((0.1, 0.5)),
        disturb_s=rng.choice((0.03, 0.1, 0.5)),
        until_s=rng.choice((2.0, 5.0, 15.0)),
        relieve=rng.choice((0.0, 0.02, 0.1, 0.5)),
        share_out=1.0,
        resets=rng.choice((0.0, 0.02, 0.1)) if breaks else 0.0,
        deaths=rng.choice((0.0, 0.1, 0.3)) if breaks else 0.0,
        good=rng.choice((0.0, 0.5, 1.0)),
        ahead=rng.choice((0.0, 0.5, 0.9)),
        behind=rng.choice((0.0, 0.02, 0.2)),
        resumed=rng.choice((0.0, 0.1, 0.3)),
    )


class Event(NamedTuple):
    """`node` did this about these pieces."""

    at: float
    node: str
    what: str
    pieces: frozenset[int]

    def __str__(self) -> str:
        return f"{self.at:9.3f} {self.node} {self.what} {sorted(self.pieces)}"


class Pipe:
    """What is put into it happens in order, each a while later."""

    def __init__(self, rng: Random, mean_s: float) -> None:
        self._rng = rng
        self._mean_s = mean_s
        self._last = 0.0

    def put(self, what: Callable[..., None], *args: object) -> None:
        loop = asyncio.get_running_loop()
        self._last = max(self._last + APART_S, loop.time() + self._rng.expovariate(1 / self._mean_s))
        loop.call_at(self._last, what, *args)


class Subscription:
    """One connection, from the client's receiver to the other node's server, which sends one piece at a time."""

    def __init__(self, number: int, client: FleetNode, server: FleetNode, listener: Listener) -> None:
        self.number = number
        self.client = client
        self.server = server
        self.listener = listener
        self.is_over = False
        self.expected: set[int] = set()
        """By the receiver."""
        self._up = Pipe(client.fleet.rng, client.fleet.plan.latency_s)
        self._down = Pipe(client.fleet.rng, client.fleet.plan.latency_s)
        self._wants: dict[int, int] = {}
        self._numbers = itertools.count()
        self._is_sending = False

    def greet(self) -> None:
        """The server takes it."""
        self._note(protocol.Hello(versions=protocol.VERSIONS, nonce=b"n" * protocol.NONCE_BYTES))

    def say(self, request: protocol.Request, expect: frozenset[int]) -> None:
        """The client's receiver sends it."""
        self.expected |= expect
        self._up.put(self._hear, request)

    def end(self, kind: EndKind) -> None:
        """On both sides."""
        if not self.is_over:
            self.is_over = True
            self.server.subscriptions.remove(self)
            self._report(self.listener.ended, Ended(id=self.number, kind=kind, message="over"))

    def look(self) -> None:
        """Something may be sent."""
        here = [piece for piece in self._wants if piece in self.server.served]
        if here and not self._is_sending and not self.is_over:
            self._is_sending = True
            piece = self.client.fleet.rng.choice(here)
            took_s = self.client.fleet.rng.expovariate(1 / self.client.fleet.plan.piece_s)
            asyncio.get_running_loop().call_later(took_s, self._send, piece, self._wants[piece])

    def _hear(self, request: protocol.Request) -> None:
        if self.is_over:
            return
        wants = protocol.unpack_set(request.wants, self.client.fleet.plan.pieces)
        adopt = protocol.unpack_set(request.adopt, self.client.fleet.plan.pieces)
        if isinstance(request, protocol.Ask):
            self._let_in(request)
        else:
            for piece in protocol.unpack_set(request.drop, self.client.fleet.plan.pieces):
                self._wants.pop(piece, None)
        self._wants.update((piece, next(self._numbers)) for piece in wants if piece not in self._wants)
        if adopt:
            self.server.adopts.put(self.server.adopt, self.client.name, frozenset(adopt))
        self.look()

    def _let_in(self, ask: protocol.Ask) -> None:
        here = self.server.served
        is_complete = len(here) == self.client.fleet.plan.pieces
        welcome = protocol.Welcome(
            complete=is_complete, have=protocol.pack_set(() if is_complete else here), homes=(), signature=b""
        )
        signature = self.server.key.sign(protocol.welcome_to_sign(protocol.session_of(ask), welcome))
        self._note(protocol.signed(welcome, signature))

    def _note(self, note: protocol.Note) -> None:
        self._down.put(self._report, self.listener.said, protocol.note(note)[protocol.HEAD.size :], b"")

    def _send(self, piece: int, want: int) -> None:
        self._is_sending = False
        if self._wants.get(piece) == want:
            del self._wants[piece]
            self._down.put(self._take, piece)
        self.look()

    def _take(self, piece: int) -> None:
        if self.is_over or piece not in self.expected:
            return
        self.expected.discard(piece)
        moved = Progress(id=self.number, received_bytes=PIECE_SIZE_BYTES, useful_bytes=PIECE_SIZE_BYTES)
        sealed = PieceHash(index=piece, length=PIECE_SIZE_BYTES, blake3=hash_of(piece))
        arrived = Arrived(id=self.number, number=piece, piece=sealed, signer=self.server.name, signature=b"")
        self._report(self.listener.moved, moved)
        self._report(self.listener.arrived, arrived)

    def _report(self, what: Callable[..., None], *args: object) -> None:
        self.client.receiving.reports.put(what, *args)


class FleetReceiving(FakeReceiving):
    """Orders and reports take their time, and stay in order."""

    def __init__(self, node: FleetNode) -> None:
        self.reports = Pipe(node.fleet.rng, node.fleet.plan.latency_s / 4)
        self._orders = Pipe(node.fleet.rng, node.fleet.plan.latency_s / 4)
        self._node = node
        self._subscriptions: dict[int, Subscription] = {}

    def connect(self, session: int, member: Member, listener: Listener) -> int:
        server = self._node.fleet.nodes[member.name]
        number = next(self._node.fleet.numbers)
        subscription = self._subscriptions[number] = Subscription(number, self._node, server, listener)
        server.subscriptions.append(subscription)
        self._orders.put(server.take, subscription)
        return number

    def say(self, connection: int, data: bytes, expect: Iterable[int]) -> None:
        subscription = self._subscriptions[connection]
        request = protocol.read_request(data[protocol.LENGTH.size :])
        self._node.asks(subscription.server.name, request)
        self._orders.put(subscription.say, request, frozenset(expect))

    async def release(self, connection: int, pieces: Iterable[int]) -> None:
        released = asyncio.get_running_loop().create_future()
        self._orders.put(self._release, self._subscriptions[connection], frozenset(pieces), released)
        await released

    def disconnect(self, connection: int) -> None:
        self._orders.put(self._subscriptions[connection].end, "closed")

    def _release(self, subscription: Subscription, pieces: frozenset[int], released: asyncio.Future[None]) -> None:
        subscription.expected -= pieces
        self.reports.put(_answer, released)


def _answer(released: asyncio.Future[None]) -> None:
    if not released.done():
        released.set_result(None)


class FleetService(FakeService):
    """What is here is served in a moment."""

    def __init__(self, node: FleetNode) -> None:
        self._orders = Pipe(node.fleet.rng, node.fleet.plan.latency_s / 4)
        self._node = node

    async def vouched(self, digest: str) -> dict[int, Have]:
        return {}

    def backlog(self, digest: str) -> Backlog:
        fleet = self._node.fleet
        return Backlog(seconds=2 * exchange.AHEAD_S * fleet.is_ahead(), behind=fleet.behind())

    def have(self, order: Have) -> None:
        self._orders.put(self._node.serve, order.piece)


class FleetNode:
    """One node: its exchange, its server, and the job, a PieceSink, which asks the origin."""

    def __init__(self, fleet: Fleet, name: str, key: NodeKey) -> None:
        self.fleet = fleet
        self.name = name
        self.key = key
        self.receiving = FleetReceiving(self)
        self.service = FleetService(self)
        self.adopts = Pipe(fleet.rng, fleet.plan.latency_s / 4)
        self.here: set[int] = set()
        self.served: set[int] = set()
        self.subscriptions: list[Subscription] = []
        self.exchange: Exchange | None = None
        self.asked_origin: list[int] = []
        self.is_dead = False
        self._is_whole = asyncio.Event()
        self._share: BlobShare | None = None
        self._waiting: list[Subscription] = []

    # --- the job

    async def bring(self, store: Store) -> None:
        """Everything, from its beginning to its end, or its death."""
        try:
            await self._begin(store)
            await self._is_whole.wait()
        finally:
            await self.leave()

    async def _begin(self, store: Store) -> None:
        pieces, rng = self.fleet.plan.pieces, self.fleet.rng
        await asyncio.sleep(rng.expovariate(1 / (4 * self.fleet.plan.latency_s)))
        node = PeerNode(
            name=self.name,
            key=self.key,
            service=self.service,
            receiving=self.receiving,
            store=store,
            membership=FleetMembership(self.fleet, self.name),
            observer=CountingObserver(),
        )
        size = pieces * PIECE_SIZE_BYTES
        running = Exchange(DIGEST, {BLOB: size}, self.fleet.circle(self.name), node, set())
        await running.start(Shown(digest=DIGEST, blobs={BLOB: size}, paths={}, here={}))
        self.exchange = running
        self._share = running.share(BlobOrder(blob_id=BLOB, size_bytes=size, target="/nowhere", source_kind="https"))
        for piece in range(pieces):
            if rng.random() < self.fleet.plan.resumed:
                self._have(piece)
        for subscription in self._waiting:
            subscription.greet()
        self._share.begin(self, [piece for piece in range(pieces) if piece not in self.here])

    async def leave(self) -> None:
        """The job is over."""
        if self._share is not None and self.exchange is not None:
            await self._share.end()
            await self.exchange.leave()
            self.exchange = self._share = None

    def want(self, indexes: Sequence[int]) -> None:
        for piece in indexes:
            self.note("asks the origin for", [piece])
            self.asked_origin.append(piece)
            took_s = self.fleet.rng.expovariate(1 / self.fleet.plan.origin_s)
            asyncio.get_running_loop().call_later(took_s, self._have, piece)

    def put(self, piece: PieceHash) -> None:
        self._have(piece.index)

    def fail(self, error: Exception) -> None:
        raise AssertionError from error

    def _have(self, piece: int) -> None:
        if self._share is not None:
            self.note("has", [piece])
            self.here.add(piece)
            self.fleet.moved()
            self._share.have(piece, hash_of(piece), is_own=True)
            if len(self.here) == self.fleet.plan.pieces:
                self._is_whole.set()

    # --- what others see of it

    def take(self, subscription: Subscription) -> None:
        """A connection. Who has not begun yet lets it wait."""
        if self.is_dead or subscription.client.is_dead:
            subscription.end("connect")
        elif self.exchange is None and not self.here:
            self._waiting.append(subscription)
        else:
            subscription.greet()

    def serve(self, piece: int) -> None:
        """It is here."""
        self.served.add(piece)
        for subscription in self.subscriptions:
            subscription.look()

    def adopt(self, client: str, pieces: frozenset[int]) -> None:
        """A member's request has come."""
        if self.exchange is not None:
            self.note(f"is asked to adopt by {client}", pieces)
            self.exchange.adopt(Adopt(digest=DIGEST, client=client, pieces=protocol.pack_set(pieces)))

    # --- what is done to it

    def disturb(self) -> None:
        """What else is rare happens now."""
        running, plan, rng = self.exchange, self.fleet.plan, self.fleet.rng
        if running is None:
            return
        there = [each for each in running._links.values() if each.is_up]
        owing = [each for each in there if each.expected]
        near = [each for each in owing if each.name in running._zones.near]
        helpers = [each.name for each in there if each.name in running._zones.near and rng.random() < 0.5]
        if owing and rng.random() < plan.relieve:
            slow = rng.choice(owing)
            self.note(f"relieves {slow.name} of some of", slow.expected)
            running._relieve(slow)
        if near and helpers and rng.random() < plan.share_out:
            late = rng.sample(near, rng.randint(1, len(near)))
            before = {each.name: set(each.expected) for each in late}
            running._placement.share_out([(each, rng.uniform(0.0, 5.0), {*helpers} - {each.name}) for each in late])
            for each in late:
                if gone := before[each.name] - each.expected:
                    self.note(f"shares out of {each.name}, among {helpers},", gone)
        if rng.random() < plan.resets and there:
            self._reset(rng.choice(there).name)

    def die(self) -> None:
        """It comes to nobody any more."""
        self.note("dies", ())
        self.is_dead = True
        mine = [each for node in self.fleet.nodes.values() for each in node.subscriptions if each.client is self]
        for subscription in [*mine, *self.subscriptions]:
            subscription.end("reset")

    def _reset(self, name: str) -> None:
        for subscription in [each for each in self.fleet.nodes[name].subscriptions if each.client is self]:
            self.note(f"loses its connection to {name}", ())
            subscription.end("reset")

    # --- what is told of it

    def note(self, what: str, pieces: Collection[int]) -> None:
        self.fleet.events.append(Event(asyncio.get_running_loop().time(), self.name, what, frozenset(pieces)))

    def asks(self, name: str, request: protocol.Request) -> None:
        """Of a member."""
        pieces = self.fleet.plan.pieces
        wants = set(protocol.unpack_set(request.wants, pieces))
        adopt = set(protocol.unpack_set(request.adopt, pieces))
        drop = set(protocol.unpack_set(request.drop, pieces)) if isinstance(request, protocol.More) else set[int]()
        for what, some in (
            (f"drops, at {name},", drop),
            (f"wants of {name}", wants - adopt),
            (f"wants of {name}, which is to adopt it,", wants & adopt),
            (f"offers {name} to take", adopt - wants),
        ):
            if some:
                self.note(what, some)

    def whom(self, piece: int) -> str:
        """Of whom it expects a piece: of nobody, if that is none of a member's name."""
        if self.exchange is None:
            return "nobody: it has left"
        placement = self.exchange._placement
        names = [name for name, each in self.exchange._links.items() if piece in each.expected]
        if piece in placement._own.at_origin:
            names.append("the origin")
        if piece in placement._own.waiting:
            names.append("the origin, later")
        if any(piece in move.pieces for move in placement._moves._moving.values()):
            names.append("on the move")
        return " and ".join(names) or "nobody"


class FleetMembership:
    """As one of the nodes sees it."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self._fleet = fleet
        self._name = name

    def circle(self, digest: str) -> Circle:
        """See Membership."""
        return self._fleet.circle(self._name)


class Fleet:
    """All of them. `lacks`: at the end, pieces that somebody lacks for ever, and of whom each of those expects it."""

    def __init__(self, plan: Plan, rng: Random) -> None:
        self.plan = plan
        self.rng = rng
        self.numbers = itertools.count(1)
        self.events: list[Event] = []
        names = [f"n{number}" for number in range(len(plan.zones))]
        keys = {name: NodeKey(name.encode().ljust(32, b"-")) for name in names}
        self.members = {
            name: Member(name=name, address=f"{name}.example:7411", key=keys[name].public_text, zone=zone)
            for name, zone in zip(names, plan.zones, strict=True)
        }
        self.nodes = {name: FleetNode(self, name, keys[name]) for name in names}
        self._moved_at = 0.0
        self._is_disturbed = True
        self.lacks: dict[int, dict[str, str]] = {}

    async def run(self, store: Store) -> None:
        """Until all that live have everything, or nothing moves any more."""
        loop = asyncio.get_running_loop()
        self.moved()
        jobs = [loop.create_task(node.bring(store), name=name) for name, node in self.nodes.items()]
        loop.call_later(self.plan.until_s, self._leave_alone)
        for node, job in zip(self.nodes.values(), jobs, strict=True):
            if self.rng.random() < self.plan.deaths:
                loop.call_later(self.rng.uniform(0.0, self.plan.until_s), _end, node, job)
        self._disturb()
        while (unfinished := [job for job in jobs if not job.done()]) and loop.time() - self._moved_at < STILL_S:
            await asyncio.wait(unfinished, timeout=1.0)
        for job in jobs:
            if job.done() and not job.cancelled():
                job.result()
        self._leave_alone()
        self.lacks = self._lacks()
        for job in unfinished:
            job.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        for node in self.nodes.values():
            await node.leave()
        await asyncio.sleep(1.0)

    def moved(self) -> None:
        """A piece came somewhere."""
        self._moved_at = asyncio.get_running_loop().time()

    def is_good(self) -> bool:
        """What somebody thinks of somebody now."""
        return self.rng.random() < self.plan.good

    def is_ahead(self) -> bool:
        """Somebody has more than it can send now."""
        return self._is_disturbed and self.rng.random() < self.plan.ahead

    def behind(self) -> tuple[str, ...]:
        """Who takes less than others, as somebody sees it."""
        return tuple(name for name in self.nodes if self._is_disturbed and self.rng.random() < self.plan.behind)

    def circle(self, name: str) -> Circle:
        """With whom a node has to do."""
        return circle_of(tuple(self.members.values()), name, size=self.plan.cohort, salt=self.plan.salt)

    def story(self) -> str:
        """Of each piece that somebody lacks: who waits for whom, and how it came to that."""
        lines: list[str] = [str(self.plan)]
        for piece, whom in self.lacks.items():
            lines.append(f"piece {piece}: {', '.join(f'{name} expects it of {other}' for name, other in whom.items())}")
            lines += [str(event) for event in self.events if piece in event.pieces]
        return "\n".join(lines)

    def _lacks(self) -> dict[int, dict[str, str]]:
        lacks: dict[int, dict[str, str]] = {}
        for name, node in self.nodes.items():
            if node.is_dead:
                continue
            for piece in sorted(set(range(self.plan.pieces)) - node.here):
                lacks.setdefault(piece, {})[name] = node.whom(piece)
        return lacks

    def _disturb(self) -> None:
        if self._is_disturbed:
            self.rng.choice(list(self.nodes.values())).disturb()
            wait_s = self.rng.expovariate(len(self.nodes) / self.plan.disturb_s)
            asyncio.get_running_loop().call_later(wait_s, self._disturb)

    def _leave_alone(self) -> None:
        self._is_disturbed = False


def _end(node: FleetNode, job: asyncio.Task[None]) -> None:
    if not job.done():
        node.die()
        job.cancel()


async def _here(work: Callable[[], T]) -> T:
    return work()


@contextmanager
def scripted(fleet: Fleet, loop: JumpingLoop) -> Iterator[None]:
    """Who is slow or late is up to the fleet, and a standstill helps nobody."""

    def is_good(_pace: Pace, _link: Link) -> bool:
        return fleet.is_good()

    with pytest.MonkeyPatch.context() as patch:
        for module in (exchange, handing, link, own, pace):
            patch.setattr(module, "time", SimpleNamespace(monotonic=loop.time, time=time.time))
        patch.setattr(exchange, "in_thread", _here)
        patch.setattr(exchange, "TICK_S", fleet.plan.tick_s)
        patch.setattr(handing, "AGAIN_S", 2 * fleet.plan.tick_s)
        patch.setattr(handing, "WORTH_S", 0.0)
        patch.setattr(rules, "NO_PROGRESS_S", 1e9)
        patch.setattr(Pace, "slow", lambda _pace, _now: [])
        patch.setattr(Pace, "late", lambda _pace, _behind: ())
        patch.setattr(Pace, "is_good", is_good)
        patch.setattr(Pace, "is_fed", lambda _pace, _inflow: True)
        patch.setattr(Pace, "patience_s", lambda _pace: 4 * fleet.plan.tick_s)
        yield


def run_fleet(plan: Plan, rng: Random, store: Store) -> Fleet:
    """From its beginning to its end."""
    fleet = Fleet(plan, rng)
    loop = JumpingLoop()
    with scripted(fleet, loop), asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(fleet.run(store))
    return fleet
