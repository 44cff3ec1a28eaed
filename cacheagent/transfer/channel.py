"""A child process' end of the socket to its agent."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Final, Generic, NoReturn, TypeVar

import msgspec

from cacheagent.transfer.wire import FrameReader, frame

Order = TypeVar("Order")

READ_BYTES: Final = 256 * 1024
_PR_SET_PDEATHSIG: Final = 1


class Channel(Generic[Order]):
    """Orders come in by iterating, on one thread; reports go out from any."""

    def __init__(self, sock: socket.socket, orders: object) -> None:
        self.socket = sock
        self.socket.setblocking(True)
        self._reader: FrameReader[Order] = FrameReader(orders)
        self._sending = threading.Lock()

    def __iter__(self) -> Iterator[Order]:
        while orders := self.read():
            yield from orders

    def read(self) -> list[Order]:
        """At least one; empty when the parent is gone."""
        while data := self._receive():
            if orders := self._reader.feed(data):
                return orders
        return []

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(READ_BYTES)
        except ConnectionResetError:  # it is gone, and has not read all that was said to it
            return b""

    def send(self, report: msgspec.Struct) -> None:
        """Waits for the parent to take it."""
        data = frame(report)
        try:
            with self._sending:
                self.socket.sendall(data)
        except OSError:
            os._exit(0)  # the parent is gone, and with it whoever could want to hear this


def end_with_parent() -> None:
    """The kernel kills us when the thread that started us ends. (The socket's end tells the rest of the cases.)"""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_process() -> NoReturn:
    """For the `finally` of a child's main: at once, since threads may be in calls that never return. An exception that
    is the reason goes to stderr, which is the agent's, and the exit code is 1: nobody else would hear of it."""
    error = sys.exception()
    try:
        if error is not None:
            traceback.print_exception(error)
    finally:
        os._exit(0 if error is None else 1)
