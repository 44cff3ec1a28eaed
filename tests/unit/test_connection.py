"""How a connection to an origin is set up."""

from __future__ import annotations

import socket

import pytest

from cacheagent.transfer import connection
from cacheagent.transfer.connection import NEAR_RECEIVE_BUFFER_BYTES, Connection
from cacheagent.transfer.request import Endpoint
from cacheagent.transfer.running import Running


def buffer_bytes(monkeypatch: pytest.MonkeyPatch, near_s: float) -> int:
    """What a new connection on loopback has; `near_s`: up to which round trip an origin counts as near."""
    made: list[socket.socket] = []
    monkeypatch.setattr(connection, "NEAR_S", near_s)
    running = Running(1)
    monkeypatch.setattr(running, "attach", made.append)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        opened = Connection(Endpoint(scheme="http", host=host, port=port, ca_bundle=""), 5.0, running)
        try:
            return made[-1].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        finally:
            opened.close()


def test_a_near_origin_gets_a_small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the kernel then leaves as it is; a far one gets whatever the kernel thinks of."""
    with socket.socket() as untouched:
        usual = untouched.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert buffer_bytes(monkeypatch, 10.0) == 2 * NEAR_RECEIVE_BUFFER_BYTES
    assert buffer_bytes(monkeypatch, 0.0) == usual != 2 * NEAR_RECEIVE_BUFFER_BYTES
