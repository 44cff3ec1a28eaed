"""One worker process: started, spoken to, watched, ended, and given up when even SIGKILL does not end it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cacheagent.errors import TargetAbandoned, TransferFailed
from cacheagent.transfer.orders import (
    Cancel,
    FetchPiece,
    FetchSmall,
    FetchStream,
    PiecePart,
    Rehash,
    Report,
    StreamPiece,
)
from cacheagent.transfer.rate import SharedRate
from cacheagent.transfer.wire import FrameReader, frame

DEAD_WITHIN_S: Final = 1.0
"""A process that SIGKILL has not ended by then hangs inside the kernel. Chosen."""
READ_BYTES: Final = 256 * 1024

log = logging.getLogger(__name__)

Work = FetchPiece | FetchSmall | FetchStream | Rehash
OnPart = Callable[[StreamPiece | PiecePart], None]
"""Hears what comes before the final report."""


class WorkerLost(TransferFailed):
    """The worker is dead, so nothing of its order is written any more. Inside this package only: it is retried."""


@dataclass(kw_only=True)
class Asked:
    """An order that has no final report yet."""

    work: Work
    answer: asyncio.Future[Report]
    on_part: OnPart | None
    asked_at: float
    cancelling: asyncio.TimerHandle | None = None
    failure: TransferFailed | None = None
    """Why there will be no answer."""


class Counters:
    """What one slot of the shared memory has counted since it was last looked at."""

    def __init__(self, shared: SharedRate, slot: int) -> None:
        self._shared = shared
        self._slot = slot
        self._seen = self._totals()

    def advance(self) -> tuple[int, int]:
        """Bytes received, and bytes written through the page cache."""
        before, self._seen = self._seen, self._totals()
        return self._seen[0] - before[0], self._seen[1] - before[1]

    def _totals(self) -> tuple[int, int]:
        return self._shared.received_bytes(self._slot), self._shared.buffered_bytes(self._slot)


@dataclass(kw_only=True)
class Launch:
    """How to start a worker."""

    argv: Sequence[str]
    slot: int
    shared: SharedRate
    threads: int
    idle_timeout_s: float
    answer_limit_s: float


class Worker:
    """A process that carries out orders. Used on the event loop only; starting it takes milliseconds.

    `on_end(worker)` is called once, when it takes no more orders: it died, or was given up (`is_stuck`).
    """

    def __init__(self, launch: Launch, on_end: Callable[[Worker], None]) -> None:
        self.slot = launch.slot
        self.counters = Counters(launch.shared, launch.slot)
        self.threads = launch.threads
        self.used_threads = 0
        self.is_ending = False
        self.is_leaving = False
        self.is_stuck = False
        self.alive_at = asyncio.get_running_loop().time()
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._answer_limit_s = launch.answer_limit_s
        self._asked: dict[int, Asked] = {}
        self._frames: FrameReader[Report] = FrameReader(Report)
        self._unsent = bytearray()
        self._socket, self._process, self._pidfd = _start(launch)
        self._loop.add_reader(self._socket, self._on_readable)
        self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def free_threads(self) -> int:
        """How many more orders it could start at once."""
        return self.threads - self.used_threads

    @property
    def asked(self) -> Sequence[Asked]:
        """What it has not answered yet."""
        return tuple(self._asked.values())

    async def ask(self, work: Work, on_part: OnPart | None = None) -> Report:
        """Give an order and wait for its final report.

        Raises WorkerLost when the worker died, TargetAbandoned when it hangs and can't be ended. Cancelling sends
        Cancel and returns only when the order is answered or the worker is dead (then CancelledError) or given up
        (then TargetAbandoned).
        """
        if self.is_ending:
            await self.ended.wait()  # nothing was sent; how it ended is what the asker will want to know
            raise WorkerLost(f"transfer worker {self.pid} ended ({_describe(self._process.returncode)})")
        now = self._loop.time()
        asked = Asked(work=work, answer=self._loop.create_future(), on_part=on_part, asked_at=now)
        self._asked[work.id] = asked
        self._send(frame(work))
        try:
            return await asked.answer
        except asyncio.CancelledError:
            await self._cancel_and_wait(asked)
            raise

    async def _cancel_and_wait(self, asked: Asked) -> None:
        """Raises CancelledError or TargetAbandoned, or returns. Cancelling a task cancels the future that it awaits,
        so the answer to Cancel goes into a new one.
        """
        try:
            if asked.work.id in self._asked:
                asked.answer = self._loop.create_future()
                self.cancel(asked.work.id)
                await wait_out((asked.answer,))
        finally:
            if isinstance(asked.failure, TargetAbandoned):
                raise asked.failure

    def cancel(self, work_id: int) -> None:
        """Ask it to stop an order; a worker that does not answer soon is killed."""
        asked = self._asked.get(work_id)
        if asked is None or asked.cancelling is not None or self.is_ending:
            return
        self._send(frame(Cancel(id=work_id)))
        asked.cancelling = self._loop.call_later(self._answer_limit_s, self._not_answered, work_id)

    def hang_up(self) -> None:
        """End it in an orderly way: no more orders; it sees the end of its socket and leaves."""
        self.is_ending = self.is_leaving = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End it at once. What it was asked fails with WorkerLost when it is dead, or TargetAbandoned if it isn't."""
        if self.ended.is_set():
            return
        self.is_ending = True
        self._process.send_signal(signal.SIGKILL)
        self._loop.call_later(DEAD_WITHIN_S, self._not_dead)

    def forget(self) -> None:
        """Let go of one that is stuck: its process ends when the kernel lets it, and init reaps it."""
        self._close_pidfd()
        if self._process.returncode is None:
            self._process.returncode = -signal.SIGKILL  # which it will be; else Popen complains about a child left

    def _send(self, data: bytes) -> None:
        idle = not self._unsent
        self._unsent += data
        if idle:
            self._flush()

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:  # it is dying; the end is seen by who reads
            self._unsent.clear()
            sent = 0
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._socket, self._flush)
        else:
            self._loop.remove_writer(self._socket)

    def _on_readable(self) -> None:
        if self._receive() is False and not self.is_ending:
            log.warning("transfer worker %d closed its socket: it is ended", self.pid)
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
        self.alive_at = self._loop.time()
        try:
            for report in self._frames.feed(data):
                self._take(report)
        except TransferFailed as error:
            log.exception("transfer worker %d is broken: it is ended", self.pid, exc_info=error)
            self._loop.remove_reader(self._socket)
            self.kill()
            return False
        return True

    def _take(self, report: Report) -> None:
        asked = self._asked.get(report.id)
        if asked is None:
            return
        if isinstance(report, StreamPiece | PiecePart):
            asked.asked_at = self._loop.time()
            if asked.on_part is not None:
                asked.on_part(report)
            return
        del self._asked[report.id]
        if asked.cancelling is not None:
            asked.cancelling.cancel()
        if not asked.answer.done():  # else whoever waited was cancelled a moment ago
            asked.answer.set_result(report)

    def _not_answered(self, work_id: int) -> None:
        if work_id in self._asked:
            log.warning("transfer worker %d did not answer a cancel: it is killed", self.pid)
            self.kill()

    def _on_exit(self) -> None:
        """The process is dead: what it said last is taken in, then its orders are given back."""
        self._close_pidfd()
        self._process.wait()
        if self.ended.is_set():  # it was stuck, and its orders were given back before
            return
        while self._receive():
            pass
        self._end(WorkerLost(f"transfer worker {self.pid} ended ({_describe(self._process.returncode)})"))

    def _not_dead(self) -> None:
        if self._process.returncode is not None or self.ended.is_set():
            return
        self.is_stuck = True
        log.error("transfer worker %d hangs in the kernel and is given up", self.pid)
        self._end(
            TargetAbandoned(
                f"transfer worker {self.pid} hangs in the kernel and may still write",
                hint="look for a file server or disk that stopped answering: dmesg, ps state D",
            )
        )

    def _end(self, error: TransferFailed) -> None:
        self.is_ending = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self.ended.set()
        asked, self._asked = self._asked, {}
        for each in asked.values():
            each.failure = error
            if each.cancelling is not None:
                each.cancelling.cancel()
            if not each.answer.done():
                each.answer.set_exception(error)
                each.answer.exception()  # whoever was cancelled looks at `failure` instead
        self._on_end(self)

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


async def wait_out(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Wait until all have ended, also when the caller is cancelled meanwhile; that is delivered afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while left := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(left)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _start(launch: Launch) -> tuple[socket.socket, subprocess.Popen[bytes], int]:
    """Our end of the socket, the process, and a descriptor that tells when it is dead. Raises OSError, and then nothing
    is left. Popen runs on the event loop's thread: PR_SET_PDEATHSIG is about the *thread* that started a process.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    with theirs, contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        process = subprocess.Popen(
            [
                *launch.argv,
                *("--fd", str(theirs.fileno())),
                *("--shared-fd", str(launch.shared.fd)),
                *("--slot", str(launch.slot)),
                *("--threads", str(launch.threads)),
                *("--idle-timeout-s", str(launch.idle_timeout_s)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), launch.shared.fd),
            start_new_session=True,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        pidfd = os.pidfd_open(process.pid)
        stack.pop_all()
    return ours, process, pidfd


def _describe(returncode: int | None) -> str:
    if returncode is None:
        return "it hangs in the kernel"
    return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
