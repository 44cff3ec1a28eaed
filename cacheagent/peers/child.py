"""A peer process as the agent sees it: started, spoken to, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import msgspec

from cacheagent.errors import TransferFailed
from cacheagent.peers.channel import READ_BYTES
from cacheagent.transfer.wire import FrameReader, frame

LOG: Final = logging.getLogger(__name__)
LEAVE_WITHIN_S: Final = 0.5
DEAD_WITHIN_S: Final = 1.0
"""A process that SIGKILL has not ended by then hangs inside the kernel. Chosen."""

Report = TypeVar("Report")


class Child(Generic[Report]):
    """Used on the event loop only. `on_end` is called once, when the process is dead, or hangs and was given up
    (`is_stuck`: then it may still write to files). It can't be used again.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        descriptors: Sequence[int],
        reports: object,
        on_report: Callable[[Report], None],
        on_end: Callable[[], None],
    ) -> None:
        self.ended = asyncio.Event()
        self.is_stuck = False
        self._name = module
        self._on_report = on_report
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._reader: FrameReader[Report] = FrameReader(reports)
        self._unsent = bytearray()
        self._socket, theirs = socket.socketpair()
        with theirs:
            # Popen runs on the event loop's thread: PR_SET_PDEATHSIG is about the *thread* that started a process.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, "--fd", str(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *descriptors),
                start_new_session=True,
            )
        self._socket.setblocking(False)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._socket, self._receive)
        self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, order: msgspec.Struct) -> None:
        """Does not wait. What is sent to a dead process is lost."""
        if self.ended.is_set():
            return
        idle = not self._unsent
        self._unsent += frame(order)
        if idle:
            self._flush()

    def kill(self) -> None:
        """End it at once."""
        if not self.ended.is_set():
            self._process.send_signal(signal.SIGKILL)
            self._loop.call_later(DEAD_WITHIN_S, self._not_dead)

    async def close(self) -> None:
        """End it in an orderly way, within a second and a half."""
        if not self.ended.is_set():
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_WITHIN_S):
                    await self.ended.wait()
        self.kill()
        await self.ended.wait()

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:  # it is dying; its end is seen by the pidfd
            sent = len(self._unsent)
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._socket, self._flush)
        else:
            self._loop.remove_writer(self._socket)

    def _receive(self) -> bool:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._socket)
            return False
        try:
            for report in self._reader.feed(data):
                self._on_report(report)
        except TransferFailed:
            LOG.exception("%s is broken: it is ended", self._name)
            self.kill()
            return False
        return True

    def _on_exit(self) -> None:
        while self._receive():  # what it said last
            pass
        self._process.wait()
        self._finish()

    def _not_dead(self) -> None:
        if not self.ended.is_set():
            LOG.error("%s (pid %d) hangs in the kernel and is given up", self._name, self._process.pid)
            self.is_stuck = True
            self._process.returncode = -signal.SIGKILL  # which it will be; else Popen complains about a child left
            self._finish()

    def _finish(self) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._socket.close()
        self.ended.set()
        self._on_end()
