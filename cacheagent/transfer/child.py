"""A child process as the agent sees it: started, spoken to, ended, and given up when even SIGKILL does not end it."""

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
from cacheagent.transfer.channel import READ_BYTES
from cacheagent.transfer.wire import FrameReader, frame

LEAVE_WITHIN_S: Final = 0.5
"""For `close`, before the process is killed. Chosen."""
DEAD_WITHIN_S: Final = 1.0
"""A process that SIGKILL has not ended by then hangs inside the kernel. Chosen."""

log = logging.getLogger(__name__)

Report = TypeVar("Report")


def argv_of(module: str) -> tuple[str, ...]:
    """How a module of ours is run; `-P`: nothing of the current directory is imported."""
    return (sys.executable, "-P", "-m", module)


class Child(Generic[Report]):
    """Used on the event loop only; starting it takes milliseconds. It can't be used again.

    `on_end` is called once, when the process is dead, or hangs and was given up (`is_stuck`: then it may still write to
    files). `reports` is the type of what it says.
    """

    def __init__(
        self,
        argv: Sequence[str],
        descriptors: Sequence[int],
        reports: object,
        *,
        name: str,
        on_report: Callable[[Report], None],
        on_end: Callable[[], None],
    ) -> None:
        """`descriptors`: what it inherits beside its socket, which `--fd` names. Raises OSError."""
        self.is_ending = False
        self.is_leaving = False
        self.is_stuck = False
        self.ended = asyncio.Event()
        self._name = name
        self._on_report = on_report
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._frames: FrameReader[Report] = FrameReader(reports)
        self._unsent = bytearray()
        self._socket, self._process, self._pidfd = _start(argv, descriptors)
        self._loop.add_reader(self._socket, self._on_readable)
        self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def how_it_ended(self) -> str:
        """For messages."""
        returncode = self._process.returncode
        if returncode is None:
            return "it hangs in the kernel"
        return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"

    def send(self, order: msgspec.Struct) -> None:
        """Does not wait. What is sent to a dead process is lost."""
        if self.ended.is_set():
            return
        idle = not self._unsent
        self._unsent += frame(order)
        if idle:
            self._flush()

    def hang_up(self) -> None:
        """End it in an orderly way: no more orders; it sees the end of its socket and leaves."""
        self.is_ending = self.is_leaving = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End it at once."""
        if self.ended.is_set():
            return
        self.is_ending = True
        self._process.send_signal(signal.SIGKILL)
        self._loop.call_later(DEAD_WITHIN_S, self._not_dead)

    async def close(self) -> None:
        """End it in an orderly way, within a second and a half."""
        if not self.ended.is_set():
            self.hang_up()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_WITHIN_S):
                    await self.ended.wait()
        self.kill()
        await self.ended.wait()
        self.forget()

    def forget(self) -> None:
        """Let go of one that is stuck: its process ends when the kernel lets it, and init reaps it."""
        self._close_pidfd()
        if self._process.returncode is None:
            self._process.returncode = -signal.SIGKILL  # which it will be; else Popen complains about a child left

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:  # it is dying; the end is seen by who reads
            sent = len(self._unsent)
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._socket, self._flush)
        else:
            self._loop.remove_writer(self._socket)

    def _on_readable(self) -> None:
        if self._receive() is False and not self.is_ending:
            log.warning("%s %d closed its socket: it is ended", self._name, self.pid)
            self.kill()

    def _receive(self) -> bool | None:
        """Take in what is there. False at the end of the stream, None when there is nothing now."""
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._socket)
            return False
        try:
            for report in self._frames.feed(data):
                self._on_report(report)
        except TransferFailed as error:
            log.exception("%s %d is broken: it is ended", self._name, self.pid, exc_info=error)
            self._loop.remove_reader(self._socket)
            self.kill()
            return False
        return True

    def _on_exit(self) -> None:
        """The process is dead: what it said last is taken in before anybody hears of its end."""
        self._close_pidfd()
        self._process.wait()
        if self.ended.is_set():  # it was stuck, and given up before
            return
        while self._receive():
            pass
        self._end()

    def _not_dead(self) -> None:
        if self._process.returncode is not None or self.ended.is_set():
            return
        self.is_stuck = True
        log.error("%s %d hangs in the kernel and is given up", self._name, self.pid)
        self._end()

    def _end(self) -> None:
        self.is_ending = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self.ended.set()
        self._on_end()

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def _start(argv: Sequence[str], descriptors: Sequence[int]) -> tuple[socket.socket, subprocess.Popen[bytes], int]:
    """Our end of the socket, the process, and a descriptor that tells when it is dead. Raises OSError, and then nothing
    is left. Popen runs on the event loop's thread: PR_SET_PDEATHSIG is about the *thread* that started a process.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    with theirs, contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        process = subprocess.Popen(
            [*argv, "--fd", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), *descriptors),
            start_new_session=True,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        pidfd = os.pidfd_open(process.pid)
        stack.pop_all()
    return ours, process, pidfd
