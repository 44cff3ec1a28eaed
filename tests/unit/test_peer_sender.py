"""The thread that sends: what it sends of what is there, in which order, how fast, and to whom no more."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers import protocol, sender
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.orders import Have, Serve
from cacheagent.peers.sender import CHUNK_BYTES, Sender
from cacheagent.peers.server_line import ServerLine
from cacheagent.peers.shelf import Shelf

PATIENCE_S = 90.0
KEY = NodeKey(b"k" * 32)
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection over loopback: the server's and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname(), PATIENCE_S)
        server, _ = listening.accept()
    with client, server:
        yield server, client


def shelf(path: Path, size: int) -> Shelf:
    """Of one file."""
    members: dict[str, tuple[bytes, ...]] = {"n1": (KEY.public,)}
    return Shelf(Serve(digest=DIGEST, members=members, homes=(), sizes=(size,), paths=(str(path),)), "n1", KEY)


def message(sock: socket.socket) -> tuple[int, int, int, bytes]:
    """The next one: kind, piece, offset, body."""
    kind, piece, offset, length = protocol.HEAD.unpack(exactly(sock, protocol.HEAD.size))
    return kind, piece, offset, exactly(sock, length)


def exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = sock.recv(length - len(data))
        assert part, "it hung up"
        data += part
    return data


def test_parts_go_as_they_come_and_the_seal_last(tmp_path: Path, pair: tuple[socket.socket, socket.socket]) -> None:
    """Nothing beyond what is written; the seal when the piece is proved; every byte passes the cap's bucket."""
    data = os.urandom(3 * CHUNK_BYTES)
    (tmp_path / "data").write_bytes(data)
    shown, asked = shelf(tmp_path / "data", len(data)), []

    def wait_for(length: int) -> float:
        asked.append(length)
        return 0.0

    shown.part(0, CHUNK_BYTES)
    sending = Sender(ServerLine(pair[0]), shown, "n2", [0], wait_for)
    thread = threading.Thread(target=sending.run)
    thread.start()
    assert message(pair[1]) == (protocol.CHUNK, 0, 0, data[:CHUNK_BYTES])
    shown.part(0, 2 * CHUNK_BYTES)
    assert message(pair[1]) == (protocol.CHUNK, 0, CHUNK_BYTES, data[CHUNK_BYTES : 2 * CHUNK_BYTES])
    shown.have(Have(digest=DIGEST, piece=0, blake3=blake3(data).digest()))
    assert message(pair[1])[:3] == (protocol.CHUNK, 0, 2 * CHUNK_BYTES)
    kind, piece, _, body = message(pair[1])
    assert (kind, piece) == (protocol.SEAL, 0)
    assert protocol.read_seal(body)[0] == blake3(data).digest()
    assert asked == [CHUNK_BYTES] * 3
    assert sending.sent_bytes == len(data)
    shown.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_nobody_is_woken_for_what_nobody_wants(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most pieces of a download: they come from others, who give them to everybody. Who wants one later gets it."""
    (tmp_path / "data").write_bytes(bytes(PIECE_SIZE_BYTES + 1000))
    shown = shelf(tmp_path / "data", PIECE_SIZE_BYTES + 1000)
    sending = Sender(ServerLine(pair[0]), shown, "n2", [0], lambda _: 0.0)
    woken: list[None] = []
    monkeypatch.setattr(shown.condition, "notify_all", lambda: woken.append(None))
    shown.part(1, 500)
    shown.have(Have(digest=DIGEST, piece=1, blake3=b"h" * 32))
    assert not woken
    shown.part(0, 1)
    assert len(woken) == 1
    shown.have(Have(digest=DIGEST, piece=0, blake3=b"h" * 32))
    assert len(woken) == 2
    sending.more([1], [0])
    assert len(woken) == 3
    thread = threading.Thread(target=sending.run)
    thread.start()
    assert message(pair[1])[:3] == (protocol.CHUNK, 1, 0)
    assert message(pair[1])[:2] == (protocol.SEAL, 1)
    monkeypatch.undo()
    sending.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_what_is_dropped_and_wanted_again_begins_anew(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    """From its first byte; what is only dropped is not finished."""
    data = os.urandom(2 * CHUNK_BYTES)
    (tmp_path / "data").write_bytes(data)
    shown = shelf(tmp_path / "data", len(data))
    shown.part(0, CHUNK_BYTES)
    sending = Sender(ServerLine(pair[0]), shown, "n2", [0], lambda _: 0.0)
    thread = threading.Thread(target=sending.run)
    thread.start()
    assert message(pair[1])[2] == 0
    sending.more([0], [0])
    assert message(pair[1])[2] == 0
    sending.more([], [0])
    shown.have(Have(digest=DIGEST, piece=0, blake3=blake3(data).digest()))
    pair[1].settimeout(0.3)
    with pytest.raises(TimeoutError):
        pair[1].recv(1)
    sending.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_who_takes_nothing_is_dropped(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that does not read ends its own thread, and nobody else's."""
    monkeypatch.setattr(sender, "NO_PROGRESS_S", 1)
    size = PIECE_SIZE_BYTES
    with (tmp_path / "data").open("wb") as file:
        file.truncate(size)
    shown = shelf(tmp_path / "data", size)
    shown.part(0, size)
    sending = Sender(ServerLine(pair[0]), shown, "n2", [0], lambda _: 0.0)
    sending.run()
    assert 0 < sending.sent_bytes < size


def test_what_is_dropped_and_wanted_over_and_over_waits_once(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    """However often: a subscriber costs what its wants cost."""
    shown = shelf(tmp_path / "data", 3 * PIECE_SIZE_BYTES)
    for piece in range(3):
        shown.part(piece, CHUNK_BYTES)
    sending = Sender(ServerLine(pair[0]), shown, "n2", [0, 1, 2], lambda _: 0.0)
    with shown.condition:
        first = sending._find()
    assert first is not None
    for _ in range(100):
        sending.more([0, 2], [0, 2])
    assert len(sending._begun) == 3
    with shown.condition:
        found = sending._find()
    assert found is not None
    assert found.piece == 1, "the others begin anew, behind it"


def test_what_is_wanted_again_while_a_part_of_it_is_sent_begins_anew(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The client took no notice of that part."""
    data = os.urandom(2 * CHUNK_BYTES)
    (tmp_path / "data").write_bytes(data)
    shown, again = shelf(tmp_path / "data", len(data)), [True]

    def wait_for(_length: int) -> float:
        if again and again.pop():
            sending.more([0], [0])
        return 0.0

    shown.part(0, len(data))
    shown.have(Have(digest=DIGEST, piece=0, blake3=blake3(data).digest()))
    sending = Sender(ServerLine(pair[0]), shown, "n2", [0], wait_for)
    thread = threading.Thread(target=sending.run)
    thread.start()
    heads = [message(pair[1])[:3] for _ in range(4)]
    sent = [(protocol.CHUNK, 0, offset) for offset in (0, 0, CHUNK_BYTES)]
    assert heads == [*sent, (protocol.SEAL, 0, 0)]
    sending.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert shown.wanted[0] == 0
