"""TLS between two members: whose certificate is believed, how long, and that every byte comes through."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cacheagent.peers import protocol
from cacheagent.peers.certificates import LIFE
from cacheagent.peers.contexts import Papers, client_context
from cacheagent.peers.inbox import Inbox
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.line import ConnectionOver
from cacheagent.peers.server_line import ServerLine, TlsFailed, TlsServerLine
from cacheagent.peers.tls_line import TlsLine

PATIENCE_S = 90.0
KEY, NEXT, OTHER = (NodeKey(bytes([number]) * 32) for number in (1, 2, 3))
NAME = "node-" + "x" * 200
"""Longer than names in certificates may be."""


class Serving:
    """A listening socket whose first connection is handed to `serve`, in a thread. What that raises is in `failed`."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self.failed: list[Exception] = []
        self._serve = serve
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            sock, _ = self._listening.accept()
            with sock:
                try:
                    self._serve(sock)
                except (EOFError, OSError, TlsFailed) as error:
                    self.failed.append(error)

    def close(self) -> None:
        self._listening.close()
        self.thread.join(PATIENCE_S)


@pytest.fixture
def serving() -> Iterator[Callable[[Callable[[socket.socket], None]], Serving]]:
    """Makes them; all are over at the end."""
    made: list[Serving] = []

    def make(serve: Callable[[socket.socket], None]) -> Serving:
        made.append(Serving(serve))
        return made[-1]

    yield make
    for each in made:
        each.close()


Make = Callable[[Callable[[socket.socket], None]], Serving]


def greeted(sock: socket.socket, papers: Papers) -> TlsServerLine:
    """The server's end, when the handshake is over."""
    line = TlsServerLine(sock, *papers.current())
    while not line.is_ready():
        assert select.select([sock], [], [], PATIENCE_S)[0]
    return line


def shows(papers: Papers) -> Callable[[socket.socket], None]:
    """A server that does no more than that."""

    def serve(sock: socket.socket) -> None:
        greeted(sock, papers)

    return serve


def made(at: datetime) -> Papers:
    """By the member's clock."""
    return Papers(KEY, NAME, lambda: at)


def reached(port: int, *keys: NodeKey, name: str = NAME) -> TlsLine:
    """The receiver's end of a connection to whom these keys belong."""
    line = TlsLine(name, tuple(key.public for key in keys))
    try:
        line.connect("127.0.0.1", port)
    except ConnectionOver:
        line.close()
        raise
    return line


def test_bytes_go_both_ways(serving: Make, tmp_path: Path) -> None:
    """A part of a file behind its head, and a request; both sides know the same channel."""
    data = os.urandom(700_000)
    (tmp_path / "data").write_bytes(data)
    heard: list[protocol.Request] = []
    told: list[int] = []
    channels: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        line = greeted(sock, Papers(KEY, NAME))
        channels.append(line.channel)
        inbox = Inbox(line)
        heard.extend(inbox.read())  # it may have come with the end of the handshake
        while not heard:
            assert select.select([sock], [], [], PATIENCE_S)[0]
            heard.extend(inbox.read())
        with (tmp_path / "data").open("rb") as file:
            line.send_file(b"head", file.fileno(), 100_000, 600_000, told.append)
        line.send(b"end")

    line = reached(serving(serve).port, KEY)
    request = protocol.More(number=1, wants=os.urandom(50_000), adopt=b"", drop=b"", signature=b"")
    assert line.send(protocol.request(request))
    assert line.exactly(4) == b"head"
    assert line.exactly(600_000) == data[100_000:]
    assert line.exactly(3) == b"end"
    assert heard == [request]
    assert sum(told) == 600_000
    assert channels == [line.channel]
    assert len(line.channel) == 32
    line.close()


@pytest.mark.parametrize("cut", [1, 7, 1000, 16_500, 40_000])
def test_what_comes_in_any_cuts_is_read_without_a_stop(serving: Make, cut: int) -> None:
    """The kernel is never asked to wait for more than will come, whatever of a record OpenSSL holds already."""
    data = os.urandom(40_000)

    def serve(sock: socket.socket) -> None:
        line = greeted(sock, Papers(KEY, NAME))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            line.socket = ours
            line.send(data)
            encrypted = theirs.recv(100_000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(encrypted), cut):
            sock.sendall(encrypted[at : at + cut])
        with suppress(OSError):
            sock.recv(1)  # until the other side has it all

    line = reached(serving(serve).port, KEY)
    found = b"".join(line.exactly(length) for length in (20, 10_000, 1, 29_979))
    line.close()
    assert found == data


def test_both_keys_of_a_node_are_good_while_it_changes_them(serving: Make) -> None:
    """The list names two: whichever issued its certificate. One of them alone is good for its own only."""
    for shown in (KEY, NEXT):
        reached(serving(shows(Papers(shown, NAME))).port, KEY, NEXT).close()
    with pytest.raises(ConnectionOver) as over:
        reached(serving(shows(Papers(NEXT, NAME))).port, KEY)
    assert over.value.kind == "key"


@pytest.mark.parametrize(
    ("key", "name"), [(OTHER, NAME), (OTHER, "n2"), (KEY, "n2")], ids=["another key", "another member", "another name"]
)
def test_a_server_that_is_not_the_member_is_left(serving: Make, key: NodeKey, name: str) -> None:
    """In the handshake, with a reason on both sides; the member itself is not."""
    reached(serving(shows(Papers(KEY, NAME))).port, KEY).close()
    server = serving(shows(Papers(key, name)))
    with pytest.raises(ConnectionOver, match="does not show that it is node-x") as over:
        reached(server.port, KEY)
    assert over.value.kind == "key"
    server.thread.join(PATIENCE_S)
    assert isinstance(server.failed[0], TlsFailed)


def test_a_certificate_is_good_for_its_time_and_replaced_before(serving: Make) -> None:
    """One of two days ago and one of tomorrow are believed by nobody; at half of its life there is another one."""
    now = datetime.now(UTC)
    for made_at in (now - 2 * LIFE, now + LIFE):
        with pytest.raises(ConnectionOver, match=r"not yet valid|expired") as over:
            reached(serving(shows(made(made_at))).port, KEY)
        assert over.value.kind == "key"
    times = [now, now + LIFE / 2 - timedelta(seconds=1), now + LIFE / 2]
    papers = Papers(KEY, NAME, lambda: times.pop(0))
    first, second, third = (papers.current() for _ in range(3))
    assert first == second
    assert third[1] != first[1]
    reached(serving(shows(Papers(KEY, NAME, lambda: now - LIFE / 2))).port, KEY).close()


def test_a_server_in_the_clear_is_named(serving: Make) -> None:
    """It greets as a node without TLS does, and hears TLS: both say what is to be set."""
    heard: list[str] = []

    def serve(sock: socket.socket) -> None:
        line = ServerLine(sock)
        line.send(protocol.note(protocol.Hello(versions=(1,), nonce=b"n" * 32)))
        assert select.select([sock], [], [], PATIENCE_S)[0]
        try:
            Inbox(line).read()
        except protocol.SpeaksTls as error:
            heard.append(str(error))

    server = serving(serve)
    with pytest.raises(ConnectionOver, match=r"peers\.tls") as over:
        reached(server.port, KEY)
    assert over.value.kind == "tls"
    server.thread.join(PATIENCE_S)
    assert heard == [protocol.NO_TLS_HERE]


def test_a_client_in_the_clear_is_no_tls(serving: Make) -> None:
    """What it says is no handshake, and it gets nothing but an alert."""
    server = serving(shows(Papers(KEY, NAME)))
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        server.thread.join(PATIENCE_S)
        assert isinstance(server.failed[0], TlsFailed)
        assert len(sock.recv(1000)) <= 7


def test_older_tls_is_not_spoken(serving: Make) -> None:
    """By a member's own client with 1.2; with 1.3 it is."""
    for newest, is_spoken in ((ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, True)):
        context = client_context(NAME, (KEY.public,))
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, newest
        server = serving(shows(Papers(KEY, NAME)))
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as sock:
            if is_spoken:
                with context.wrap_socket(sock) as wrapped:
                    assert wrapped.version() == "TLSv1.3"
            else:
                with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
                    context.wrap_socket(sock)


def test_an_end_is_an_end(serving: Make) -> None:
    """A connection that breaks says so, and takes no more requests."""
    line = reached(serving(lambda sock: greeted(sock, Papers(KEY, NAME)).send(b"abc")).port, KEY)
    assert line.exactly(3) == b"abc"
    with pytest.raises(ConnectionOver, match="ended"):
        line.exactly(1)
    line.close()
    assert not line.send(b"x")
    early = TlsLine(NAME, (KEY.public,))
    assert not early.send(b"x")
    early.close()


def test_signatures_of_one_channel_are_good_for_no_other() -> None:
    """Nor for one without TLS, whose signed bytes are those of agents that know no TLS."""
    channels = (b"", b"a" * 32, b"b" * 32)
    sessions = [protocol.Session("sha256:x", "n1", "n0", b"c", b"s", channel) for channel in channels]
    assert len({session.bind("ask", 1) for session in sessions}) == 3
    assert b"cacheagent peer 1 ask" in sessions[0].bind("ask", 1)
    assert sessions[0].bind("ask", 1) == protocol.Session("sha256:x", "n1", "n0", b"c", b"s").bind("ask", 1)
