"""What this node gives to others: the server process, and what it was told."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec

from cacheagent.config import Address, PeersSettings
from cacheagent.errors import ConfigError
from cacheagent.model import piece_count
from cacheagent.peers.in_turn import VouchersInTurn
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.member import Membership
from cacheagent.peers.observer import PeerObserver
from cacheagent.peers.orders import (
    Adopt,
    Backlog,
    Counts,
    Have,
    Lost,
    Part,
    Refused,
    Serve,
    ServerReport,
    Sought,
    Staged,
    Start,
    Withdraw,
)
from cacheagent.peers.protocol import pack_set
from cacheagent.peers.quiet import Quiet
from cacheagent.peers.vouchers import Vouchers
from cacheagent.peers.whole import in_parts, serve_whole
from cacheagent.store import Record, Store
from cacheagent.transfer.child import Child, argv_of

LOG: Final = logging.getLogger(__name__)
ARGV: Final = argv_of("cacheagent.peers.server")
LOOK_S: Final = 5.0
"""How often members are asked again and what is served is looked for on disk."""
PUBLISH_LOOK_S: Final = 0.05
PUBLISH_TRIES: Final = 200
"""After so many it takes its time."""
RESTART_S: Final = 1.0
NOTHING_WAITS: Final = Backlog(seconds=0.0)
TELL_AGAIN_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What there is of a digest on this node at the start of a download: its large files in order, and the raw hashes
    of those that are here."""

    digest: str
    blobs: Mapping[str, int]
    paths: Mapping[str, str]
    here: Mapping[str, tuple[bytes, ...]]


@dataclass(kw_only=True)
class Served:
    """One digest that the server process knows, to be said again when it is started anew."""

    order: Serve
    have: dict[int, Have] = field(default_factory=dict)
    told_at: float = 0.0


class Service:
    """Used on the event loop only. The process runs as long as this does; one that dies is replaced."""

    def __init__(
        self,
        settings: PeersSettings,
        key: NodeKey,
        store: Store,
        vouchers: Vouchers,
        membership: Membership,
        observer: PeerObserver,
    ) -> None:
        self.connections = 0
        self.sent_bytes = 0
        self.on_adopt: Callable[[Adopt], None] = lambda _: None
        self._start_order = Start(
            name=settings.node_name,
            seed=key.seed,
            root=str(store.root),
            egress_cap_bytes_per_s=int(settings.egress_cap_bytes_per_s),
            tls=settings.tls,
        )
        self._vouchers = VouchersInTurn(vouchers)
        self._store = store
        self._membership = membership
        self._observer = observer
        self._served: dict[str, Served] = {}
        self._told_again: set[str] = set()
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._quiet = Quiet()
        self._closing = False
        self._listening = _listen(settings.listen)
        self._child: Child[ServerReport] | None = None
        self._sent_by_others = 0
        self._yields = 0
        self._backlogs: dict[str, Backlog] = {}
        self._start()

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self._listening.getsockname()[:2]
        return f"{host}:{port}"

    async def run(self) -> None:
        """Keep what is served as it is on disk and as the members are; until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Members may have changed: who comes must be let in at once, or it goes to the origin."""
        for digest, served in tuple(self._served.items()):
            self._look(digest, served)

    async def close(self) -> None:
        """End the process."""
        self._closing = True
        self._listening.close()
        for task in tuple(self._reading.values()):
            task.cancel()
        await asyncio.gather(*self._reading.values(), return_exceptions=True)
        await self._vouchers.settle()
        if self._child is not None:
            await self._child.close()

    async def vouched(self, digest: str) -> dict[int, Have]:
        """What others said of pieces of it."""
        return await self._vouchers.ask(lambda vouchers: vouchers.read(digest))

    def show(self, shown: Shown, homes: tuple[str, ...], vouched: Mapping[int, Have]) -> None:
        """A download begins: what is here is served, the rest as it comes. `vouched`: what others said of pieces."""
        if shown.digest in self._served:  # it was here before, and what was said of it may have been evicted since
            self.withdraw(shown.digest)
        order = Serve(
            digest=shown.digest,
            members={},
            homes=homes,
            sizes=tuple(shown.blobs.values()),
            paths=tuple(shown.paths.get(blob, "") for blob in shown.blobs),
        )
        self._say(self._listed(order))
        piece = 0
        for blob, size in shown.blobs.items():
            for blake3 in shown.here.get(blob, ()):
                own, seal = Have(digest=shown.digest, piece=piece, blake3=blake3), vouched.get(piece)
                self.have(seal if seal is not None and seal.blake3 == blake3 else own)
                piece += 1
            if blob not in shown.here:
                piece += piece_count(size)

    def backlog(self, digest: str) -> Backlog:
        """What is here and was not sent yet, as it was last told."""
        return self._backlogs.get(digest, NOTHING_WAITS)

    def set_path(self, digest: str, file: int, path: str) -> None:
        """A file is staged."""
        served = self._served.get(digest)
        if served is not None and served.order.paths[file] != path:
            served.order = served.order.with_path(file, path)
            self._send(Staged(digest=digest, file=file, path=path))  # all of them each time would be very many

    def part(self, digest: str, piece: int, length: int) -> None:
        """See Part."""
        self._send(Part(digest=digest, piece=piece, length=length))

    def have(self, order: Have) -> None:
        """See Have."""
        served = self._served.get(order.digest)
        if served is not None:
            served.have[order.piece] = order
            self._send(order)

    def lose(self, digest: str, pieces: Iterable[int]) -> None:
        """Nobody is given these any more."""
        served = self._served.get(digest)
        if served is not None and (lost := tuple(pieces)):
            for piece in lost:
                served.have.pop(piece, None)
            self._send(Lost(digest=digest, pieces=pack_set(lost)))

    def published(self, record: Record) -> None:
        """All of it is here, at its last place: that is told when it is known who vouches for it."""
        digest = record.digest
        if digest not in self._reading and not self._closing:
            task = asyncio.get_running_loop().create_task(self._tell_whole(record), name="seals are read")
            self._reading[digest] = task
            task.add_done_callback(lambda _: self._reading.pop(digest))

    def expect_publish(self, digest: str, tries: int = PUBLISH_TRIES) -> None:
        """A download is complete: its files move to their last place in a moment, and whoever is sent something of them
        waits for that. What is refused in that moment moves nowhere, and is served no more."""
        served = self._served.get(digest)
        if served is None or served.order.hashes or self._closing:
            return
        is_on_its_way = self._store.is_on_its_way(digest)  # asked first: there is a record before the job ends
        record = self._store.record(digest)
        if record is not None:
            self.published(record)
        elif is_on_its_way:
            pause_s = PUBLISH_LOOK_S if tries else LOOK_S
            asyncio.get_running_loop().call_later(pause_s, self.expect_publish, digest, max(0, tries - 1))
        else:
            self.withdraw(digest)

    def withdraw(self, digest: str) -> None:
        """It is not here any more, or was given up."""
        self._served.pop(digest, None)
        self._send(Withdraw(digest=digest))

    def _look(self, digest: str, served: Served) -> None:
        record = self._store.record(digest)
        if record is None and served.order.hashes:  # evicted
            self.withdraw(digest)
            self._vouchers.forget(digest)
            return
        order = self._listed(served.order)
        if record is not None and not served.order.hashes:
            self.published(record)
        elif order != served.order:
            self._say_who(served, order)

    async def _tell_whole(self, record: Record) -> None:
        """What a download told of it is no longer needed then."""
        digest = record.digest
        order = await self._vouchers.ask(partial(serve_whole, self._store, record))
        if order is None or self._store.record(digest) is None:  # evicted meanwhile
            if digest not in self._served or not self._store.is_on_its_way(digest):  # else it is fetched again
                self.withdraw(digest)
            return
        self._say(self._listed(order))
        self._served[digest].have.clear()
        if not order.seals:
            self._vouchers.forget(digest)

    def _listed(self, order: Serve) -> Serve:
        """With those who are members now."""
        circle = self._membership.circle(order.digest)
        above = tuple(member.name for member in circle.above)
        return msgspec.structs.replace(order, members=circle.keys, above=above, below=tuple(circle.below))

    def _tell_again(self, digest: str) -> None:
        self._told_again.discard(digest)
        served = self._served.get(digest)
        if served is not None:
            served.told_at = asyncio.get_running_loop().time()
            self._say_who(served, self._listed(served.order))

    @staticmethod
    def _pause_s(served: Served) -> float:
        return max(0.0, served.told_at + TELL_AGAIN_S - asyncio.get_running_loop().time())

    def _say(self, order: Serve) -> None:
        served = self._served.setdefault(order.digest, Served(order=order))
        served.order = order
        for part in in_parts(order):
            self._send(part)

    def _say_who(self, served: Served, order: Serve) -> None:
        """The members may be others than before. What is here the process knows, and it is much."""
        served.order = order
        self._send(msgspec.structs.replace(order, hashes=b"", seals=()))

    def _send(self, order: msgspec.Struct) -> None:
        if self._child is not None:
            self._child.send(order)

    def _start(self) -> None:
        if self._closing:
            return
        number = self._listening.fileno()
        try:
            self._child = Child(
                [*ARGV, "--listen-fd", str(number)],
                (number,),
                ServerReport,
                name="the peers' server",
                on_report=self._heard,
                on_end=self._died,
            )
        except OSError as error:  # no memory or no process to spare, which may be why the last one died
            self._not_started(error)
            return
        self._child.send(self._start_order)
        for served in self._served.values():
            for part in in_parts(served.order):
                self._child.send(part)
            for have in served.have.values():
                self._child.send(have)

    def _not_started(self, error: OSError) -> None:
        """The kernel takes connections meanwhile, and whoever made one waits for a greeting."""
        if times := self._quiet.count(("", "start"), time.monotonic()):
            LOG.warning("the peers' server can't be started", extra={"why": str(error), "times": times})
        asyncio.get_running_loop().call_later(RESTART_S, self._start)

    def _died(self) -> None:
        child, self._child = self._child, None
        self._sent_by_others, self.connections, self._yields, self._backlogs = self.sent_bytes, 0, 0, {}
        if child is not None and not self._closing:
            LOG.warning("the peers' server ended; another one takes its place", extra={"how": child.how_it_ended})
            asyncio.get_running_loop().call_later(RESTART_S, self._start)

    def _heard(self, report: ServerReport) -> None:
        match report:
            case Sought():
                self._sought(report.digest)
            case Adopt():
                self.on_adopt(report)
            case Refused():
                self._observer.peer_refused(report.reason)
                if times := self._quiet.count((report.client, report.reason), time.monotonic()):
                    extra = {"peer": report.client, "reason": report.reason, "why": report.message, "times": times}
                    LOG.warning("a peer was sent away", extra=extra)
            case Counts():
                sent = self._sent_by_others + report.sent_bytes
                self._observer.peer_sent(sent - self.sent_bytes)
                self._observer.peer_yielded(report.yields - self._yields)
                self.sent_bytes, self.connections, self._yields = sent, report.connections, report.yields
                self._backlogs = report.backlogs

    def _sought(self, digest: str) -> None:
        """Somebody asks for what the process does not know: is it here? Or is he a member by now? That is told again at
        most once a second, whoever asks."""
        served = self._served.get(digest)
        if served is not None:
            if digest not in self._told_again:
                self._told_again.add(digest)
                asyncio.get_running_loop().call_later(self._pause_s(served), self._tell_again, digest)
            return
        record = self._store.record(digest)
        if record is None or not self._membership.circle(digest).near:
            self._send(Withdraw(digest=digest))
        else:
            self.published(record)


def _listen(address: Address) -> socket.socket:
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen(512)
    except OSError as error:
        raise ConfigError(
            f"peers: can't listen on {address}: {error}", hint="choose another address or port"
        ) from error
    os.set_inheritable(sock.fileno(), False)
    return sock
