"""The receiver's end of a connection: every byte in its place, however they come and however they are asked for."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.peers.line import ConnectionOver, Line
from cacheagent.peers.protocol import HEAD

PATIENCE_S = 90.0


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Line, socket.socket]]:
    """A line, and the server's end of it."""
    line = Line()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        line.connect(*listening.getsockname())
        server, _ = listening.accept()
    server.settimeout(PATIENCE_S)
    with server:
        yield line, server
    line.close()


def send_in_parts(server: socket.socket, data: bytes, cuts: list[int]) -> None:
    ends = [*sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, end in zip([0, *ends], ends, strict=False):
        server.sendall(data[start:end])


@given(
    lengths=st.lists(st.integers(0, 3 * HEAD.size) | st.integers(0, 300_000), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 400_000), max_size=6),
)
def test_bytes_come_in_order(pair: tuple[Line, socket.socket], lengths: list[int], cuts: list[int]) -> None:
    """What was taken along is handed out first, also where less is asked for than was taken."""
    line, server = pair
    data = os.urandom(sum(lengths))
    sending = threading.Thread(target=send_in_parts, args=(server, data, cuts))
    sending.start()
    parts = [line.exactly(length) for length in lengths]
    sending.join(PATIENCE_S)
    assert b"".join(parts) == data
    assert [len(part) for part in parts] == lengths


def test_a_head_that_is_here_is_taken_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs no call, and nothing behind it is touched; the end is seen by whoever asks for more."""
    line = Line()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        line.connect(*listening.getsockname())
        server, _ = listening.accept()
    data = os.urandom(1000 + HEAD.size)
    with server:
        server.sendall(data)
        server.shutdown(socket.SHUT_WR)
        first = line.exactly(1000)
        with monkeypatch.context() as patched:
            patched.setattr(line, "_socket", None)  # nobody asks the kernel
            head = line.exactly(HEAD.size)
        assert first + head == data
        with pytest.raises(ConnectionOver) as caught:
            line.exactly(1)
    assert caught.value.kind == "reset"
    line.close()
