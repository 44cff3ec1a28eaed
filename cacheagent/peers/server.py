"""The process that gives pieces to other members.

    python -m cacheagent.peers.server --fd 3 --listen-fd 4

The main thread takes connections, judges who they are, and reads what they want; each subscriber that was let in has a
thread that sends. So thousands of connections that never say a right word cost a socket each, and for 5 s.
"""

from __future__ import annotations

import argparse
import contextlib
import selectors
import signal
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Final, assert_never

from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers import protocol
from cacheagent.peers.gate import Judge, Turned
from cacheagent.peers.inbox import Pending
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.line import settle_socket
from cacheagent.peers.orders import (
    Adopt,
    Backlog,
    Counts,
    Have,
    Lost,
    Part,
    Refused,
    Serve,
    ServerOrder,
    Sought,
    Staged,
    Start,
    Withdraw,
)
from cacheagent.peers.sender import Sender, start
from cacheagent.peers.server_line import ServerLine, TlsFailed, TlsServerLine
from cacheagent.peers.shelf import Shelf
from cacheagent.peers.yielding import LOOK_S, DiskCounters, Yielding
from cacheagent.transfer.channel import Channel, end_process, end_with_parent
from cacheagent.transfer.rate import SharedRate

if TYPE_CHECKING:
    from cacheagent.peers.contexts import Papers

MOST_CONNECTIONS: Final = 512
"""Of all digests: 63 of a cohort and 128 below it, twice, and some. Chosen."""
MOST_PER_MEMBER: Final = 4
"""Of one digest: a reconnection may be here before the old connection's end is."""
MOST_PENDING: Final = 128
"""Connections that have not said who they are. The oldest goes when there are more: an honest one needs milliseconds.
Chosen."""
COUNTS_S: Final = 1.0
BEHIND_BYTES: Final = 2 * PIECE_SIZE_BYTES
"""Who has so much more to get than most others takes less than they do. Chosen."""


class Member:
    """A connection that was let in. `key`: the public one that it was let in by."""

    def __init__(self, pending: Pending, sender: Sender, session: protocol.Session, key: bytes) -> None:
        self.socket = pending.socket
        self.inbox = pending.inbox
        self.sender = sender
        self.session = session
        self.key = key
        self.number = 0
        self.is_over = False


def _papers(key: NodeKey, order: Start) -> Papers | None:
    if not order.tls:
        return None
    from cacheagent.peers.contexts import Papers  # certificates are a fifth of this process' start

    return Papers(key, order.name)


class Server:
    """All of it but the threads that send; used on the main thread."""

    def __init__(self, channel: Channel[ServerOrder], listening: socket.socket, order: Start) -> None:
        self._channel = channel
        self._listening = listening
        self._key = NodeKey(order.seed)
        self._name = order.name
        self._papers = _papers(self._key, order)
        self._egress = SharedRate.create(0, order.egress_cap_bytes_per_s).whole
        self._yielding = Yielding(order.egress_cap_bytes_per_s)
        self._disk = DiskCounters(Path(order.root))
        self._looked_at = 0.0
        self._shelves: dict[str, Shelf] = {}
        self._absent: set[str] = set()
        self._pending: list[Pending] = []
        self._members: list[Member] = []
        self._sent_before = 0
        self._counted_at = 0.0
        self._last_counts = Counts(sent_bytes=0, connections=0, yields=0)
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Until the agent is gone."""
        self._listening.setblocking(False)
        self._selector.register(self._channel.socket, selectors.EVENT_READ, self._channel)
        self._selector.register(self._listening, selectors.EVENT_READ, None)
        while True:
            for key, _ in self._selector.select(0.5):
                what = key.data
                if what is self._channel:
                    if not (orders := self._channel.read()):
                        return
                    for order in orders:
                        self._obey(order)
                elif what is None:
                    self._accept()
                else:
                    self._read(what)
            self._tidy()

    # --- orders

    def _obey(self, order: ServerOrder) -> None:
        if isinstance(order, Start):
            return
        shelf = self._shelves.get(order.digest)
        if isinstance(order, Serve):
            self._serve(order, shelf)
        elif isinstance(order, Withdraw):
            if shelf is not None:
                del self._shelves[order.digest]
                shelf.close()
            self._answer_waiting(order.digest)
        elif shelf is not None:
            match order:
                case Staged():
                    shelf.stage(order.file, order.path)
                case Part():
                    shelf.part(order.piece, order.length)
                case Have():
                    shelf.have(order)
                case Lost():
                    shelf.lose(protocol.unpack_set(order.pieces, shelf.pieces))
                case _:
                    assert_never(order)

    def _serve(self, order: Serve, shelf: Shelf | None) -> None:
        if shelf is not None:
            shelf.update(order)
            self._drop_removed(order)
        else:
            self._shelves[order.digest] = Shelf(order, self._name, self._key)
        self._answer_waiting(order.digest)

    def _drop_removed(self, order: Serve) -> None:
        """Who is no member any more, or has other keys by now, gets nothing more on this connection."""
        for member in self._members:
            keys = order.members.get(member.session.client, ())
            if member.session.digest == order.digest and member.key not in keys:
                member.sender.stop()

    def _answer_waiting(self, digest: str) -> None:
        for pending in tuple(self._pending):
            if pending.ask is not None and pending.ask.digest == digest:
                self._judge(pending, pending.ask)

    # --- connections

    def _accept(self) -> None:
        for _ in range(64):  # then others have their turn
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return  # there is none any more, or no descriptor for one
            try:
                line = self._line(sock)
            except OSError:  # no descriptor for what TLS needs
                sock.close()
                return
            if len(self._pending) >= MOST_PENDING:
                self._refuse(self._pending[0], "busy", "too many connections say nothing")
            sock.setblocking(False)
            settle_socket(sock)
            pending = Pending(line, time.monotonic())
            self._pending.append(pending)
            self._selector.register(sock, selectors.EVENT_READ, pending)
            if not pending.line.is_mute:
                self._greet(pending)

    def _line(self, sock: socket.socket) -> ServerLine:
        return ServerLine(sock) if self._papers is None else TlsServerLine(sock, *self._papers.current())

    def _greet(self, pending: Pending) -> None:
        pending.is_greeted = True
        with contextlib.suppress(OSError):  # its end is seen by reading
            pending.line.send(protocol.note(protocol.Hello(versions=protocol.VERSIONS, nonce=pending.nonce)))

    def _read(self, what: Pending | Member) -> None:
        """A defect that somebody's bytes find ends that connection, and is told of, and not everybody's."""
        try:
            if isinstance(what, Pending):
                self._read_pending(what)
            else:
                self._read_member(what)
        except Exception as error:
            self._channel.send(Refused(reason="wants", client="", message=f"a defect: {error!r}"[:200]))
            if isinstance(what, Member):
                self._drop(what)
            elif what in self._pending:
                self._forget(what)

    def _read_pending(self, pending: Pending) -> None:
        if pending not in self._pending:  # it was sent away, or let in, a moment ago
            return
        try:
            if not pending.is_greeted:
                if not pending.line.is_ready():
                    return
                self._greet(pending)
            requests = pending.inbox.read()
        except EOFError:
            self._forget(pending)
            return
        except TlsFailed as failed:
            self._channel.send(Refused(reason="tls", client="", message=str(failed)[:200]))
            self._forget(pending)
            return
        except protocol.ProtocolError as error:
            self._refuse(pending, "tls" if isinstance(error, protocol.SpeaksTls) else "wants", str(error))
            return
        if not requests:
            return
        request, *more = requests
        if more or pending.ask is not None or not isinstance(request, protocol.Ask):
            self._refuse(pending, "wants", "it did not wait for the answer")
            return
        pending.ask = request
        shelf = self._shelves.get(request.digest)
        if shelf is not None and request.client in shelf.order.members:
            self._judge(pending, request)
        else:  # it may be here, and it may be a member since a moment ago: the agent knows
            self._channel.send(Sought(digest=request.digest[:80]))

    def _judge(self, pending: Pending, ask: protocol.Ask) -> None:
        shelf = self._shelves.get(ask.digest)
        try:
            if shelf is None:
                raise Turned("digest", "this node does not want that digest, or not yet")
            key = Judge(self._name, pending.nonce, time.time(), pending.line.channel).judge(ask, shelf)
            self._require_room(ask)
            wants = protocol.unpack_set(ask.wants, shelf.pieces)
            adopt = protocol.unpack_set(ask.adopt, shelf.pieces)
        except Turned as turned:
            self._refuse(pending, turned.code, turned.message)
            return
        except protocol.ProtocolError as error:
            self._refuse(pending, "wants", str(error))
            return
        self._let_in(pending, ask, key, wants)
        self._pass_on(shelf, ask.client, adopt)

    def _require_room(self, ask: protocol.Ask) -> None:
        mine = Counter((member.session.client, member.session.digest) for member in self._members)
        if len(self._members) >= MOST_CONNECTIONS or mine[ask.client, ask.digest] >= MOST_PER_MEMBER:
            raise Turned("busy", "too many connections")

    def _let_in(self, pending: Pending, ask: protocol.Ask, key: bytes, wants: list[int]) -> None:
        shelf = self._shelves[ask.digest]
        session = protocol.session_of(ask, pending.line.channel)
        with shelf.condition:
            welcome = protocol.Welcome(
                complete=shelf.is_complete,
                have=b"" if shelf.is_complete else protocol.pack_set(shelf.proved()),
                homes=shelf.order.homes,
                signature=b"",
            )
        signature = self._key.sign(protocol.welcome_to_sign(session, welcome))
        signed = protocol.signed(welcome, signature)
        self._pending.remove(pending)
        sender = Sender(pending.line, shelf, ask.client, wants, self._egress.reserve)
        member = Member(pending, sender, session, key)
        self._members.append(member)
        self._selector.modify(pending.socket, selectors.EVENT_READ, member)
        try:
            pending.line.send(protocol.note(signed))
        except OSError:
            sender.stop()

        def on_end() -> None:
            member.is_over = True

        try:
            start(sender, on_end)
        except RuntimeError:  # no thread for it: it ends as one that has gone at once
            sender.stop()
            sender.run()
            on_end()

    def _read_member(self, member: Member) -> None:
        try:
            for request in member.inbox.read():
                self._take_more(member, request)
        except (EOFError, protocol.ProtocolError):
            self._drop(member)

    def _drop(self, member: Member) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(member.socket)
        member.sender.stop()

    def _take_more(self, member: Member, request: protocol.Request) -> None:
        shelf, session = member.sender.shelf, member.session
        if not isinstance(request, protocol.More) or request.number != member.number + 1:
            raise protocol.ProtocolError("not the next request")
        Judge.require_signed(request, session, shelf)
        member.number = request.number
        member.sender.more(
            protocol.unpack_set(request.wants, shelf.pieces), protocol.unpack_set(request.drop, shelf.pieces)
        )
        self._pass_on(shelf, session.client, protocol.unpack_set(request.adopt, shelf.pieces))

    def _pass_on(self, shelf: Shelf, client: str, adopt: list[int]) -> None:
        if adopt:
            self._channel.send(Adopt(digest=shelf.digest, client=client, pieces=protocol.pack_set(adopt)))

    def _backlogs(self, rate: float) -> dict[str, Backlog]:
        """See Counts. `rate`: what is sent now, in bytes a second."""
        waiting: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for member in self._members:
            if not member.sender.shelf.is_complete:
                waiting[member.session.digest].append((member.session.client, member.sender.backlog()))
        return {digest: backlog_of(each, rate) for digest, each in waiting.items()}

    def _make_way(self, now: float) -> None:
        use = self._disk.read()
        if use is not None:
            limit = self._yielding.look(use, now)
            if limit != self._egress.bytes_per_s:
                self._egress.set(limit)

    def _refuse(self, pending: Pending, code: protocol.RefusalCode, message: str) -> None:
        client = pending.ask.client[:64] if pending.ask is not None else ""
        if code != "digest":  # that is every late start, and no reason to look
            self._channel.send(Refused(reason=code, client=client, message=message[:200]))
        refusal = protocol.note(protocol.Refusal(code=code, message=message[:200]))
        if pending.is_greeted:
            with contextlib.suppress(OSError):
                pending.line.send(refusal)
        elif code == "tls":  # it seems to wait for a word in the clear, as a node without TLS does
            pending.line.say_plainly(refusal)
        self._forget(pending)

    def _forget(self, pending: Pending) -> None:
        self._pending.remove(pending)
        self._selector.unregister(pending.socket)
        pending.socket.close()

    def _tidy(self) -> None:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._make_way(now)
        for pending in [each for each in self._pending if each.deadline < now]:
            if pending.line.is_mute:
                self._refuse(pending, "tls", protocol.TLS_HERE)
            elif pending.ask is None:
                self._forget(pending)  # it said nothing: it gets no answer either
            else:
                self._refuse(pending, "digest", "this node does not know yet whether it wants that digest")
        for member in [each for each in self._members if each.is_over]:
            self._members.remove(member)
            self._sent_before += member.sender.sent_bytes
            with contextlib.suppress(KeyError):  # its end was read before
                self._selector.unregister(member.socket)
            member.socket.close()
        if now - self._counted_at >= COUNTS_S:
            for member in self._members:
                if not member.sender.takes_enough():
                    member.sender.stop()
            passed_s, self._counted_at = now - self._counted_at, now
            sent = self._sent_before + sum(member.sender.sent_bytes for member in self._members)
            rate = (sent - self._last_counts.sent_bytes) / passed_s
            counts = Counts(
                sent_bytes=sent,
                connections=len(self._members),
                yields=self._yielding.times,
                backlogs=self._backlogs(rate),
            )
            if counts != self._last_counts:
                self._last_counts = counts
                self._channel.send(counts)


def backlog_of(waiting: Sequence[tuple[str, int]], rate: float) -> Backlog:
    """Of one digest: who waits for how many bytes that are here; at this rate, in bytes a second."""
    usual = median_low(size for _, size in waiting)
    behind = tuple(client for client, size in waiting if size >= usual + BEHIND_BYTES)
    return Backlog(seconds=len(waiting) * usual / rate if rate > 0 else 0.0, behind=behind)


def main() -> None:
    """Runs until the parent is gone."""
    parser = argparse.ArgumentParser(prog="cacheagent.peers.server", description="Started by the agent only.")
    parser.add_argument("--fd", type=int, required=True, help="socket for orders and reports")
    parser.add_argument("--listen-fd", type=int, required=True, help="socket that listens on the peer port")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us in order
    end_with_parent()
    threading.stack_size(256 * 1024)
    channel: Channel[ServerOrder] = Channel(socket.socket(fileno=options.fd), ServerOrder)
    first, *rest = channel.read()
    assert isinstance(first, Start), first
    server = Server(channel, socket.socket(fileno=options.listen_fd), first)
    try:
        for order in rest:
            server._obey(order)
        server.run()
    finally:
        end_process()


if __name__ == "__main__":
    main()
