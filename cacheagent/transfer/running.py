"""One order under way: how the threads that work on it learn that it should stop."""

from __future__ import annotations

import contextlib
import socket
import threading

from cacheagent.transfer.failure import cancelled


class Running:
    """Shared by the thread that reads orders and those that work on one. Stopping is final and wakes whoever waits:
    in a receive (its socket is shut down), in `sleep`, or on `condition`.
    """

    def __init__(self, order_id: int) -> None:
        self.id = order_id
        self.condition = threading.Condition()
        self.stopped = False
        self._sockets: set[socket.socket] = set()

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
        """Wait, but not longer than the order is wanted. Raises OrderFailed("cancelled")."""
        with self.condition:
            self.condition.wait_for(lambda: self.stopped, seconds)
            self.require_wanted()

    def attach(self, sock: socket.socket) -> None:
        """Stopping shuts `sock` down from now on. Raises OrderFailed("cancelled")."""
        with self.condition:
            self.require_wanted()
            self._sockets.add(sock)

    def detach(self, sock: socket.socket) -> None:
        """Before `sock` is closed or serves another order."""
        with self.condition:
            self._sockets.discard(sock)
