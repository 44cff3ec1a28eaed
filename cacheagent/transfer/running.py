"""One order under way: how its threads learn that it should stop, and others that it goes on."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from cacheagent.transfer.failure import cancelled

SIGN_EVERY_S: Final = 1.0
"""An order that goes on says so no more often: nothing beside its bytes, and often within an idle limit. Chosen."""


def _nobody_listens() -> None:
    """For orders without a parent."""


class Running:
    """Shared by the thread that reads orders and those that work on one. Stopping is final and wakes whoever waits:
    in a receive (its socket is shut down), in `sleep`, or on `condition`.

    `on_sign` is called now and then while it gets on, by the threads that work on it.
    """

    def __init__(self, order_id: int, on_sign: Callable[[], None] = _nobody_listens) -> None:
        self.id = order_id
        self.condition = threading.Condition()
        self.stopped = False
        self._sockets: set[socket.socket] = set()
        self._on_sign = on_sign
        self._signed_at = time.monotonic()

    def sign(self) -> None:
        """It gets on: bytes came, or it waits for its turn as it should."""
        now = time.monotonic()
        if now - self._signed_at >= SIGN_EVERY_S:
            self._signed_at = now
            self._on_sign()

    def stop(self) -> None:
        """From any thread, any number of times."""
        with self.condition:
            self.stopped = True
            for sock in self._sockets:
                with contextlib.suppress(OSError):  # it may have ended by itself
                    sock.shutdown(socket.SHUT_RDWR)
            self.condition.notify_all()

    def require_wanted(self) -> None:
        """Raises OrderFailed("cancelled") once the order was stopped."""
        if self.stopped:
            raise cancelled()

    def sleep(self, seconds: float) -> None:
        """Wait for a cap, but not longer than the order is wanted. Raises OrderFailed("cancelled")."""
        with self.condition:
            self.condition.wait_for(lambda: self.stopped, seconds)
            self.require_wanted()
        self.sign()

    def attach(self, sock: socket.socket) -> None:
        """Stopping shuts `sock` down from now on. Raises OrderFailed("cancelled")."""
        with self.condition:
            self.require_wanted()
            self._sockets.add(sock)

    def detach(self, sock: socket.socket) -> None:
        """Before `sock` is closed or serves another order."""
        with self.condition:
            self._sockets.discard(sock)
