"""How processes of ours end by themselves: without a word when the agent is gone, and never without one otherwise."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cacheagent.peers.orders import Start
from cacheagent.transfer.channel import Channel
from cacheagent.transfer.child import argv_of
from cacheagent.transfer.rate import SharedRate
from cacheagent.transfer.wire import frame

PATIENCE_S = 90.0
TOO_LONG = struct.pack(">I", 2**32 - 1)
"""The head of a frame that nobody sends."""

Started = tuple["subprocess.Popen[str]", socket.socket]


@pytest.fixture(params=["peers.server", "peers.receiver", "transfer.worker"])
def started(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Started]:
    """Begins one, and has its agent's end of the socket."""

    def start() -> Started:
        shared, (ours, theirs) = SharedRate.create(1), socket.socketpair()
        listening = socket.create_server(("127.0.0.1", 0))
        address = listening.getsockname()
        arguments = {
            "peers.server": ["--listen-fd", str(listening.fileno())],
            "peers.receiver": ["--shared-fd", str(shared.fd), "--slot", "0"],
            "transfer.worker": [
                *("--shared-fd", str(shared.fd), "--slot", "0", "--threads", "1", "--idle-timeout-s", "5")
            ],
        }[request.param]
        with theirs, listening:
            process = subprocess.Popen(
                [*argv_of(f"cacheagent.{request.param}"), *arguments, "--fd", str(theirs.fileno())],
                pass_fds=(theirs.fileno(), listening.fileno(), shared.fd),
                stderr=subprocess.PIPE,
                text=True,
            )
        shared.close()
        if request.param == "peers.server":
            ours.sendall(frame(Start(name="n0", seed=b"0" * 32, root=str(tmp_path))))
            with socket.create_connection(address, PATIENCE_S) as caller:
                assert caller.recv(1), "it greets: its start is over"
        return process, ours

    return start


def test_an_exception_that_nobody_foresaw_is_told(started: Callable[[], Started]) -> None:
    """On stderr, which is the agent's, and by the exit code."""
    process, agent = started()
    with process, agent:
        agent.sendall(TOO_LONG)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" in said
    assert "TransferFailed" in said
    assert process.returncode == 1


def test_the_end_of_the_agent_is_no_reason_for_a_word(started: Callable[[], Started]) -> None:
    """The control."""
    process, agent = started()
    with process, agent:
        agent.shutdown(socket.SHUT_WR)
        while agent.recv(1024):
            pass
        _, said = process.communicate(timeout=PATIENCE_S)
    assert (said, process.returncode) == ("", 0)


def test_an_agent_that_is_gone_has_not_read_everything() -> None:
    """Which the kernel tells as an error, and which is none."""
    ours, theirs = socket.socketpair()
    with theirs:
        channel: Channel[Start] = Channel(theirs, Start)
        channel.send(Start(name="n0", seed=b"", root=""))
        ours.close()
        assert channel.read() == []
