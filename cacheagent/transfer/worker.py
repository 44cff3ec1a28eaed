"""A transfer worker: a process that receives orders on a socket, works on them in threads, and answers.

Its main thread reads orders. Other threads, as many as there is work for up to a maximum, take them in order; each has
a page-aligned buffer of its own, and ends, with its memory, when it has had nothing to do for a while. The process ends
at once when its parent does: the socket says so, and the kernel where the main thread can't look.

    python -m cacheagent.transfer.worker --fd 3 --shared-fd 4 --slot 0 --threads 32 --idle-timeout-s 30
"""

from __future__ import annotations

import argparse
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, assert_never

from cacheagent.transfer.channel import Channel, end_process, end_with_parent
from cacheagent.transfer.disk import Buffer
from cacheagent.transfer.failure import as_failure
from cacheagent.transfer.http1 import Connections
from cacheagent.transfer.orders import (
    Cancel,
    Claims,
    FetchPiece,
    FetchSmall,
    FetchStream,
    GoesOn,
    Listens,
    Order,
    Rehash,
    Report,
)
from cacheagent.transfer.piece import fetch_piece, rehash
from cacheagent.transfer.rate import SharedRate
from cacheagent.transfer.running import Running
from cacheagent.transfer.small import fetch_small
from cacheagent.transfer.stream import Stream
from cacheagent.transfer.tools import Tools

THREAD_IDLE_S: Final = 20.0
"""A thread without work for so long ends and frees its buffer. Chosen, not measured."""

Work = Callable[[Buffer], None]


class Threads:
    """Threads on demand: a new one only when all are busy."""

    def __init__(self, most: int, on_idle: Callable[[], None]) -> None:
        self._most = most
        self._on_idle = on_idle
        self._condition = threading.Condition()
        self._waiting: deque[Work] = deque()
        self._count = 0
        self._idle = 0

    def submit(self, work: Work) -> None:
        """First come, first served. `work` must not raise."""
        with self._condition:
            self._waiting.append(work)
            if self._idle >= len(self._waiting) or self._count == self._most:
                self._condition.notify()
                return
            self._count += 1
        threading.Thread(target=self._run, name="transfer", daemon=True).start()

    def _run(self) -> None:
        buffer = Buffer()
        while (work := self._next()) is not None:
            work(buffer)

    def _next(self) -> Work | None:
        with self._condition:
            self._idle += 1
            found = self._condition.wait_for(lambda: self._waiting, THREAD_IDLE_S)
            self._idle -= 1
            if found:
                return self._waiting.popleft()
            self._count -= 1
        self._on_idle()
        return None


class Worker:
    """Turns orders into work and work into reports."""

    def __init__(self, channel: Channel[Order], tools: Tools, threads: Threads) -> None:
        self._channel = channel
        self._tools = tools
        self._threads = threads
        self._lock = threading.Lock()
        self._running: dict[int, Running] = {}
        self._following: dict[int, Stream] = {}

    def serve(self) -> None:
        """Until the parent closes the socket."""
        self._channel.send(Listens())
        for order in self._channel:
            self._accept(order)

    def _accept(self, order: Order) -> None:
        if isinstance(order, Cancel):
            with self._lock:
                running = self._running.get(order.id)
            if running is not None:  # else it has been answered already
                running.stop()
            return
        if isinstance(order, Claims):
            with self._lock:
                following = self._following.get(order.id)
            if following is not None:
                following.claim(order.pieces)
            return
        running = Running(order.id, partial(self._tools.report, GoesOn(id=order.id)))
        with self._lock:
            self._running[order.id] = running
        if isinstance(order, FetchStream):
            stream = Stream(order, running, self._tools.within(order.cap))
            if order.follows:
                with self._lock:
                    self._following[order.id] = stream
            for _ in range(order.lanes):
                self._threads.submit(partial(self._answer, running, stream.work))
        else:
            self._threads.submit(partial(self._answer, running, partial(self._perform, order, running)))

    def _answer(self, running: Running, work: Callable[[Buffer], Report | None], buffer: Buffer) -> None:
        """Whatever happens, an order is answered once; a lane that isn't the last of its stream says nothing."""
        report = work(buffer)
        if report is not None:
            with self._lock:
                del self._running[running.id]
                self._following.pop(running.id, None)
            self._tools.report(report)

    def _perform(self, order: FetchPiece | FetchSmall | Rehash, running: Running, buffer: Buffer) -> Report:
        """What came of it."""
        try:
            running.require_wanted()
            match order:
                case FetchPiece():
                    return fetch_piece(order, running, self._tools.within(order.cap), buffer)
                case Rehash():
                    return rehash(order, running, self._tools, buffer)
                case FetchSmall():
                    return fetch_small(order, running, self._tools.within(order.cap), buffer)
                case _:
                    assert_never(order)
        except Exception as error:
            return as_failure(error, stopped=running.stopped).report(order.id)


def main() -> None:
    """Runs until the parent is gone."""
    options = _parse_options()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us in order
    end_with_parent()
    channel: Channel[Order] = Channel(socket.socket(fileno=options.fd), Order)
    connections = Connections(options.idle_timeout_s)
    tools = Tools(connections=connections, meter=SharedRate(options.shared_fd).meter(options.slot), report=channel.send)
    try:
        Worker(channel, tools, Threads(options.threads, connections.close_idle)).serve()
    finally:
        end_process()


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cacheagent.transfer.worker", description="Started by the agent only.")
    parser.add_argument("--fd", type=int, required=True, help="socket for orders and reports")
    parser.add_argument("--shared-fd", type=int, required=True, help="memory shared by all workers")
    parser.add_argument("--slot", type=int, required=True, help="this worker's line in it")
    parser.add_argument("--threads", type=int, required=True, help="at most so many orders or lanes at once")
    parser.add_argument("--idle-timeout-s", type=float, required=True, help="limit of every wait for an origin")
    return parser.parse_args()


if __name__ == "__main__":
    main()
