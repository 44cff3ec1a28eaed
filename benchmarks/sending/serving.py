"""The sending side: the product's server process or a plain copy, each in a control group and behind the link."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from benchmarks.cgroup import Cgroup
from benchmarks.fanout.watch import enter
from benchmarks.pacing import Link
from benchmarks.sending.model import Model
from cacheagent.member import Member
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.orders import ServerReport, Start
from cacheagent.transfer.child import Child, argv_of

PROGRAM = Path(__file__).parent.parent / "programs" / "send_file.py"
SERVER = "server"
TCP = b"cubic"
"""Whatever the machine's own congestion control is."""


def listen(link: Link) -> socket.socket:
    """At the link's far end: a socket belongs to the namespace of the thread that made it, for ever."""
    made: list[socket.socket] = []

    def work() -> None:
        enter(link.namespace)
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, TCP)
        sock.bind((link.server_address, 0))
        sock.listen(512)
        made.append(sock)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


@contextlib.asynccontextmanager
async def product(
    model: Model, keys: dict[str, NodeKey], group: Cgroup, link: Link, *, tls: bool, root: Path
) -> AsyncIterator[Member]:
    """The server process of a node that has the model, as the others know it. `keys`: of all members. `root`: the cache
    directory for whose disk it makes way."""
    with listen(link) as listening:
        argv = group.entering([*argv_of("cacheagent.peers.server"), "--listen-fd", str(listening.fileno())])

        def heard(_: ServerReport) -> None:
            """Its counts are not needed."""

        child = Child(argv, (listening.fileno(),), ServerReport, name="server", on_report=heard, on_end=lambda: None)
        try:
            child.send(Start(name=SERVER, seed=keys[SERVER].seed, root=str(root), tls=tls))
            child.send(model.to_serve({name: (key.public,) for name, key in keys.items()}))
            host, port = listening.getsockname()
            yield Member(name=SERVER, address=f"{host}:{port}", key=keys[SERVER].public_text)
        finally:
            await child.close()


@contextlib.contextmanager
def plain(model: Model, length: int, group: Cgroup, link: Link, connections: int) -> Iterator[tuple[str, int]]:
    """Where a program listens that sends the front of the file to so many, and ends."""
    with listen(link) as listening:
        fd = listening.fileno()
        request = {"fd": fd, "path": str(model.path), "length": length, "connections": connections}
        environment = {**os.environ, "REQUEST": json.dumps(request)}
        argv = group.entering([sys.executable, str(PROGRAM)])
        with subprocess.Popen(argv, pass_fds=(fd,), env=environment, stdout=subprocess.PIPE) as program:
            assert program.stdout is not None
            program.stdout.readline()  # it is there
            yield listening.getsockname()
