"""The server of pieces from outside, with the test as its agent: who gets how much, and who nothing any more."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
from blake3 import blake3
from msgspec import structs

from cacheagent.peers import protocol, sender, server
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.orders import (
    Backlog,
    Counts,
    Have,
    Part,
    Refused,
    Serve,
    ServerOrder,
    ServerReport,
    Sought,
    Start,
    Withdraw,
)
from cacheagent.peers.server import Server
from cacheagent.transfer.channel import Channel
from tests.fakes.peer_caller import PATIENCE_S, Caller

DIGEST = "sha256:" + "ab" * 32
MB = 1_000_000
WINDOW = 64 * 1024
SLOW_S = 3
R = TypeVar("R", bound=ServerReport)


class Port(AbstractContextManager["Port"]):
    """n0's server, in a thread. Two files of one piece each, of which nothing is here at first; n1 and n2 are
    members."""

    def __init__(self, path: Path, size: int, **start: Any) -> None:
        self.keys = {name: NodeKey(name.encode().ljust(32, b"-")) for name in ("n0", "n1", "n2")}
        self.data = tuple(os.urandom(size) for _ in range(2))
        self.order = Serve(
            digest=DIGEST,
            members={name: (key.public,) for name, key in self.keys.items()},
            homes=(),
            sizes=(size, size),
            paths=(str(path / "0"), str(path / "1")),
        )
        for place, data in zip(self.order.paths, self.data, strict=True):
            Path(place).write_bytes(data)
        self.stack = ExitStack()
        ours, theirs = socket.socketpair()
        listening = socket.create_server(("127.0.0.1", 0))
        for sock in (ours, theirs, listening):
            self.stack.enter_context(sock)
        self.ports: dict[str, int] = {"n0": listening.getsockname()[1]}
        self._channel: Channel[ServerReport] = Channel(ours, ServerReport)
        ours.settimeout(PATIENCE_S)
        begin = Start(name="n0", seed=self.keys["n0"].seed, root=str(path), **start)
        self.server = Server(Channel(theirs, ServerOrder), listening, begin)
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        self.tell(self.order)

    def tell(self, order: ServerOrder) -> None:
        """What the agent says."""
        self._channel.send(order)

    def list(self, **keys: NodeKey) -> None:
        """These are the members from now on."""
        self.tell(structs.replace(self.order, members={name: (key.public,) for name, key in keys.items()}))

    def show(self, piece: int) -> None:
        """It is here and proved."""
        self.tell(Part(digest=DIGEST, piece=piece, length=len(self.data[piece])))
        self.tell(Have(digest=DIGEST, piece=piece, blake3=blake3(self.data[piece]).digest()))

    def hear(self, kind: type[R], holds: Callable[[R], bool] = lambda _: True) -> R:
        """The next report of a kind of which something holds."""
        while reports := self._channel.read():
            for report in reports:
                if isinstance(report, kind) and holds(report):
                    return report
        raise EOFError

    def call(self, name: str = "n1", key: NodeKey | None = None, window: int = 0) -> Caller:
        """Somebody who asks for everything, with room for so much where that is said."""
        caller = self.stack.enter_context(Caller(self))
        if window:
            caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        caller.say(caller.ask(DIGEST, client=name, key=key or self.keys[name]))
        return caller

    def __exit__(self, *error: object) -> None:
        # Its end of the channel first: a server that speaks to nobody ends the process that it is in.
        self._channel.socket.shutdown(socket.SHUT_WR)
        self._thread.join(PATIENCE_S)
        for member in self.server._members:
            member.sender.stop()
        sockets = [each.socket for each in self.server._members] + [each.socket for each in self.server._pending]
        for each in sockets:
            each.close()
        self.stack.close()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    with Port(tmp_path, 300_000) as made:
        yield made


def is_let_in(caller: Caller) -> bool:
    return isinstance(caller.note(), protocol.Welcome)


def refusal(caller: Caller) -> str:
    """The code with which somebody is sent away."""
    note = caller.note()
    assert isinstance(note, protocol.Refusal)
    assert caller.is_closed()
    return note.code


def piece(caller: Caller) -> tuple[int, bytes]:
    """The next whole one that comes."""
    data = b""
    while (message := caller.message())[0] == protocol.CHUNK:
        assert message[2] == len(data)
        data += message[3]
    assert protocol.read_seal(message[3])[0] == blake3(data).digest()
    return message[1], data


def test_who_comes_between_two_parts_comes_again(port: Port) -> None:
    """He hears of all that is here, once that is known."""
    first, last = (blake3(data).digest() for data in port.data)
    port.tell(Withdraw(digest=DIGEST))
    port.tell(structs.replace(port.order, hashes=first, goes_on=True))
    assert refusal(port.call()) == "busy"
    port.tell(structs.replace(port.order, hashes=last, first=1))
    caller = port.call()
    welcome = caller.note()
    assert isinstance(welcome, protocol.Welcome)
    assert welcome.complete
    assert {piece(caller) for _ in range(2)} == set(enumerate(port.data))


def test_who_is_taken_off_the_list_gets_nothing_more(port: Port) -> None:
    """In the middle of a download, nor when it asks anew. The control is who stays."""
    removed, stays = port.call("n1"), port.call("n2")
    port.show(0)
    for caller in (removed, stays):
        assert is_let_in(caller)
        assert piece(caller) == (0, port.data[0])
    port.list(n0=port.keys["n0"], n2=port.keys["n2"])
    assert removed.is_closed()
    port.show(1)
    assert piece(stays) == (1, port.data[1])
    again = port.call("n1")
    port.hear(Sought)
    port.list(n0=port.keys["n0"], n2=port.keys["n2"])
    assert refusal(again) == "member"


def test_who_comes_in_the_middle_is_let_in_when_it_is_known(port: Port) -> None:
    """It may ask before the list is here that names it: it waits for that, and gets what is here and what comes. One
    whom the list does not name, which is the control, is sent away."""
    port.show(0)
    new, stranger = NodeKey(b"3" * 32), NodeKey(b"4" * 32)
    joins = port.call("n3", new)
    port.hear(Sought)
    other = port.call("n4", stranger)
    port.hear(Sought)
    port.list(**port.keys, n3=new)
    assert refusal(other) == "member"
    assert is_let_in(joins)
    port.show(1)
    assert dict(piece(joins) for _ in range(2)) == dict(enumerate(port.data))


@pytest.mark.parametrize("signed", [True, False])
def test_who_says_two_things_at_once_is_sent_away(port: Port, *, signed: bool) -> None:
    """Before it was let in, whether it would have been or not. The server goes on, and serves who waits."""
    port.show(0)
    caller = port.stack.enter_context(Caller(port))
    ask = caller.ask(DIGEST)
    caller.socket.sendall(protocol.request(ask if signed else protocol.signed(ask, b"")) * 2)
    assert refusal(caller) == "wants"
    assert is_let_in(port.call("n2"))


def test_a_defect_costs_the_connection_that_found_it(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told of, and the others are served: of one that nobody knows, and of one that was let in."""
    port.show(0)
    stays, member, unknown = port.call("n2"), port.call("n1"), port.stack.enter_context(Caller(port))
    for caller in (stays, member):
        assert is_let_in(caller)
        assert piece(caller) == (0, port.data[0])
    read_request = protocol.read_request

    def find_defect(body: bytes) -> protocol.Request:
        if body == b"defect":
            raise ZeroDivisionError("a defect of ours")
        return read_request(body)

    monkeypatch.setattr(protocol, "read_request", find_defect)
    for caller in (member, unknown):
        caller.socket.sendall(protocol.LENGTH.pack(6) + b"defect")
        assert port.hear(Refused).message == "a defect: ZeroDivisionError('a defect of ours')"
        assert caller.is_closed()
    port.show(1)
    assert piece(stays) == (1, port.data[1])


@pytest.mark.parametrize("lacks", ["thread", "descriptor", "nothing"])
def test_a_server_that_lacks_something_goes_on(port: Port, monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    """Who comes just then is sent away without a word, and who comes after it is served."""
    port.show(0)

    def lack(*_: object) -> NoReturn:
        raise RuntimeError("can't start new thread") if lacks == "thread" else OSError(errno.EMFILE, "too many")

    with monkeypatch.context() as poor:
        if lacks == "thread":
            poor.setattr(server, "start", lack)
        elif lacks == "descriptor":
            poor.setattr(port.server, "_line", lack)
        try:
            caller = port.call("n1")
            is_served = is_let_in(caller) and piece(caller) == (0, port.data[0])
        except (EOFError, OSError):
            is_served = False
        assert is_served == (lacks == "nothing")
    other = port.call("n2")
    assert is_let_in(other)
    assert piece(other) == (0, port.data[0])
    assert port.server._shelves[DIGEST].wanted[1] == (2 if lacks == "nothing" else 1)


def test_a_member_that_vanishes_is_noticed(port: Port) -> None:
    """The kernel asks whether it is there while nothing is sent to it."""
    assert is_let_in(port.call())
    (member,) = port.server._members
    assert member.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert member.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10


def test_there_are_so_many_connections_and_not_more(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is told so; when somebody has gone there is room again."""
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    first, second = port.call("n1"), port.call("n2")
    assert is_let_in(first)
    assert is_let_in(second)
    assert refusal(port.call("n1")) == "busy"
    first.socket.close()
    port.hear(Counts, lambda counts: counts.connections == 1)
    assert is_let_in(port.call("n1"))


def test_who_has_another_key_by_now_comes_anew(port: Port) -> None:
    """What was let in by the key of before, which somebody may have stolen, ends; the new key is good. The control is
    a member whose key stays."""
    before, stays = port.call("n1"), port.call("n2")
    assert is_let_in(before)
    assert is_let_in(stays)
    new = NodeKey(b"new" + bytes(29))
    port.list(**{**port.keys, "n1": new})
    assert before.is_closed()
    assert refusal(port.call("n1")) == "signature"
    after = port.call("n1", new)
    assert is_let_in(after)
    port.show(0)
    for caller in (after, stays):
        assert piece(caller) == (0, port.data[0])


def test_both_keys_of_a_member_are_good_while_it_changes_them(port: Port) -> None:
    """Nobody is interrupted: the list names two, and then the new one alone."""
    new = NodeKey(b"new" + bytes(29))
    before = port.call("n1")
    assert is_let_in(before)
    members = {**port.order.members, "n1": (port.keys["n1"].public, new.public)}
    port.tell(structs.replace(port.order, members=members))
    after = port.call("n1", new)
    assert is_let_in(after)
    port.show(0)
    for caller in (before, after):
        assert piece(caller) == (0, port.data[0])
    port.list(**{**port.keys, "n1": new})
    assert before.is_closed()
    port.show(1)
    assert piece(after) == (1, port.data[1])


def test_who_reads_nothing_holds_nobody_up_and_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others get every byte meanwhile, and stay."""
    monkeypatch.setattr(sender, "NO_PROGRESS_S", 2)
    with Port(tmp_path, 16 * MB) as port:
        port.show(0)
        slow, reads = port.call("n1"), port.call("n2")
        assert is_let_in(slow)
        assert is_let_in(reads)
        assert piece(reads) == (0, port.data[0])
        port.hear(Counts, lambda counts: counts.connections == 2)
        port.hear(Counts, lambda counts: counts.connections == 1)
        with pytest.raises((EOFError, ConnectionResetError)):
            piece(slow)
        port.show(1)
        assert piece(reads) == (1, port.data[1])


def test_who_takes_a_little_now_and_then_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it never takes nothing for long. The control beside it is slow too, so that it takes longer than that, and
    gets every byte."""
    monkeypatch.setattr(sender, "SLOW_S", SLOW_S)
    with Port(tmp_path, 8 * sender.CHUNK_BYTES) as port, ThreadPoolExecutor(1) as pool:
        port.show(0)
        drips, slow = port.call("n1", window=WINDOW), port.call("n2", window=WINDOW)
        assert is_let_in(drips)
        assert is_let_in(slow)
        port.hear(Counts, lambda counts: counts.connections == 2)
        dripping = pool.submit(drip, drips)
        began = time.monotonic()
        assert slowly(slow, len(port.data[0])) == port.data[0]
        assert time.monotonic() - began > SLOW_S
        assert 0 < dripping.result(PATIENCE_S) < len(port.data[0])
        port.hear(Counts, lambda counts: counts.connections == 1)


def test_who_waits_for_the_cap_is_not_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets less than it must take, for longer than that, and it gets all of it."""
    monkeypatch.setattr(sender, "SLOW_S", SLOW_S)
    rate = sender.CHUNK_BYTES // SLOW_S // 2
    with Port(tmp_path, 2 * sender.CHUNK_BYTES, egress_cap_bytes_per_s=rate) as port:
        capped = port.call("n1", window=WINDOW)
        assert is_let_in(capped)
        began = time.monotonic()
        port.show(0)
        assert piece(capped) == (0, port.data[0])
        assert time.monotonic() - began > SLOW_S


def drip(caller: Caller) -> int:
    """How much came, read a little now and then, until the server hung up."""
    taken = 0
    with contextlib.suppress(ConnectionResetError):
        while part := caller.socket.recv(4096):
            taken += len(part)
            time.sleep(0.05)
    return taken


def slowly(caller: Caller, length: int) -> bytes:
    """A piece that is read three times as fast as it must be."""
    data = b""
    while len(data) < length:
        kind, _, _, body = caller.message()
        assert kind == protocol.CHUNK
        data += body
        time.sleep(SLOW_S / 3 * len(body) / sender.CHUNK_BYTES)
    return data


def test_all_together_get_no_more_than_the_cap(tmp_path: Path) -> None:
    """However many connections there are. Without one, which is the control, it takes less time."""
    times = []
    for cap in (2 * MB, 0):
        with Port(tmp_path, int(1.5 * MB), egress_cap_bytes_per_s=cap) as port:
            callers = [port.call("n1"), port.call("n2")]
            assert all(map(is_let_in, callers))
            began = time.monotonic()
            port.show(0)
            for caller in callers:
                assert piece(caller) == (0, port.data[0])
            times.append(time.monotonic() - began)
    capped, free = times
    assert capped >= 0.7 * 2 * 1.5 / 2
    assert free < capped


def test_the_server_tells_what_waits_to_be_sent(tmp_path: Path) -> None:
    """As long as it takes, by what was sent lately; nothing when all has been sent."""

    def seconds(counts: Counts) -> float:
        return counts.backlogs[DIGEST].seconds if DIGEST in counts.backlogs else 0.0

    with Port(tmp_path, 4 * MB, egress_cap_bytes_per_s=MB) as port:
        callers = [port.call("n1"), port.call("n2")]
        assert all(map(is_let_in, callers))
        port.show(0)
        port.hear(Counts, lambda counts: seconds(counts) > 1)
        for caller in callers:
            assert piece(caller) == (0, port.data[0])
        port.hear(Counts, lambda counts: seconds(counts) == 0)


def test_who_has_much_more_to_get_is_behind() -> None:
    """Than most others; they say how long it takes, however far behind one of them is."""
    waiting = [("n1", MB), ("n2", 2 * MB), ("n3", 2 * MB + server.BEHIND_BYTES - 1), ("n4", 2 * MB)]
    assert server.backlog_of(waiting, 4 * MB) == Backlog(seconds=2.0)
    waiting[0] = ("n1", 2 * MB + server.BEHIND_BYTES)
    assert server.backlog_of(waiting, 4 * MB) == Backlog(seconds=2.0, behind=("n1",))
    assert server.backlog_of(waiting, 0) == Backlog(seconds=0.0, behind=("n1",))
