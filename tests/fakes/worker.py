"""A worker's parts without the process, and the process with a test as its parent."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cacheagent.transfer.disk import Buffer
from cacheagent.transfer.http1 import Connections
from cacheagent.transfer.orders import Listens, Order, Report
from cacheagent.transfer.rate import SharedRate
from cacheagent.transfer.tools import Tools
from cacheagent.transfer.wire import FrameReader, frame

PATIENCE_S = 60.0
"""Chosen: no test waits for so long unless it is broken."""


@dataclass
class Bench:
    """What the functions of a worker want, in this process."""

    idle_timeout_s: float = 20.0
    cap_bytes_per_s: int = 0
    reports: list[Report] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shared = SharedRate.create(1, self.cap_bytes_per_s)
        self.buffer = Buffer()
        self.tools = Tools(
            connections=Connections(self.idle_timeout_s), meter=self.shared.meter(0), report=self.reports.append
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tools.connections.close()


class WorkerProcess:
    """A real worker. Leaving the block closes its socket and waits for its end."""

    def __init__(self, *, threads: int = 8, idle_timeout_s: float = 20.0, cap_bytes_per_s: int = 0) -> None:
        self.shared = SharedRate.create(1, cap_bytes_per_s)
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(PATIENCE_S)
        with theirs:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "cacheagent.transfer.worker"),
                    *("--fd", str(theirs.fileno()), "--shared-fd", str(self.shared.fd), "--slot", "0"),
                    *("--threads", str(threads), "--idle-timeout-s", str(idle_timeout_s)),
                ],
                pass_fds=(theirs.fileno(), self.shared.fd),
            )
        self._frames: FrameReader[Report] = FrameReader(Report)
        self._unread: list[Report] = []
        assert self.receive() == Listens()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self.process.wait(PATIENCE_S)
        self.shared.close()

    def send(self, *orders: Order) -> None:
        """Give orders."""
        for order in orders:
            self.channel.sendall(frame(order))

    def receive(self) -> Report:
        """The next report."""
        while not self._unread:
            data = self.channel.recv(1 << 20)
            if not data:
                raise EOFError("the worker closed its socket")
            self._unread = self._frames.feed(data)
        return self._unread.pop(0)


def random_bytes(size: int, seed: int = 0) -> bytes:
    """The same for the same arguments."""
    return random.Random(seed).randbytes(size)


def preallocated(path: Path, size: int) -> str:
    """A target as the store makes it."""
    with path.open("wb") as file:
        file.truncate(size)
    return str(path)


def wait_for(holds: Callable[[], bool]) -> None:
    """Return once it does."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"did not happen within {PATIENCE_S} s"
        time.sleep(0.005)
