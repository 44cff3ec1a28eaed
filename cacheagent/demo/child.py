"""Somebody else's server as a child process that never outlives us: the demo and the tests start theirs here."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from cacheagent.errors import CacheAgentError

T = TypeVar("T")

# prctl(PR_SET_PDEATHSIG, signal): the kernel sends it when the thread that started the child ends, even by kill -9.
# A fresh interpreter sets it and becomes the server, because Python code in a forked, threaded parent may deadlock.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys; "
    "ctypes.CDLL(None).prctl(1, int(sys.argv[1])); "
    "os.getppid() == int(sys.argv[2]) or os._exit(1); "  # the parent died before prctl
    "os.execv(sys.argv[3], sys.argv[3:])"
)


class ChildEnded(CacheAgentError):
    """The server ended before it was ready; the message holds the end of its log."""


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago. Somebody may take one before you do, so be ready to try again."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def on_free_ports(count: int, start: Callable[[list[int]], AbstractContextManager[T]]) -> Iterator[T]:
    """Enter `start(ports)`; when that raises `ChildEnded`, twice more with others: somebody may have taken one."""
    with contextlib.ExitStack() as stack:
        yield _enter_on_free_ports(stack, count, start)


def _enter_on_free_ports(
    stack: contextlib.ExitStack, count: int, start: Callable[[list[int]], AbstractContextManager[T]]
) -> T:
    for _ in range(2):
        with contextlib.suppress(ChildEnded):
            return stack.enter_context(start(free_ports(count)))
    return stack.enter_context(start(free_ports(count)))


@contextlib.contextmanager
def running_child(
    command: Sequence[str | Path],
    *,
    log_path: Path,
    stop_signal: signal.Signals = signal.SIGTERM,
    stop_timeout_s: float = 10.0,
    environment: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` (an absolute path first) in its own process group until the block ends, however it ends.

    `stop_signal` goes to the group at the end of the block, and to the child when the *thread* that entered the block
    ends: enter it from a thread that lives as long as the server should. After `stop_timeout_s` the group is killed.
    Output goes to `log_path`; `environment` is added to our own.
    """
    prefix = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(int(stop_signal)), str(os.getpid())]
    with log_path.open("ab") as log:
        child = subprocess.Popen(
            [*prefix, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield child
    finally:
        stop_group(child, stop_signal=stop_signal, stop_timeout_s=stop_timeout_s)


def stop_group(child: subprocess.Popen[bytes], *, stop_signal: signal.Signals, stop_timeout_s: float) -> None:
    """Stop a child that leads its own process group, and wait until it is gone; one that ended already is fine."""
    if child.poll() is None:
        os.killpg(child.pid, stop_signal)
        try:
            child.wait(stop_timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def wait_until_ready(
    child: subprocess.Popen[bytes], is_ready: Callable[[], bool], *, name: str, log_path: Path, timeout_s: float
) -> None:
    """Return once `is_ready()` holds.

    Raises `ChildEnded` when the child ends first and `CacheAgentError` after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not is_ready():
        if child.poll() is not None:
            raise ChildEnded(
                f"{name} ended with status {child.returncode} before it was ready: {_end_of(log_path)}",
                hint=f"its log is {log_path}",
            )
        if time.monotonic() > deadline:
            raise CacheAgentError(
                f"{name} was not ready after {timeout_s:.0f} s: {_end_of(log_path)}", hint=f"its log is {log_path}"
            )
        time.sleep(0.05)


def _end_of(log_path: Path) -> str:
    return log_path.read_text(errors="replace")[-1000:].strip() or "it wrote nothing"
