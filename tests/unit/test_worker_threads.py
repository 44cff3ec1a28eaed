"""Threads of a worker: as many as there is work, no more than allowed, gone when idle."""

from __future__ import annotations

import threading

import pytest

from cacheagent.transfer import worker as worker_module
from cacheagent.transfer.disk import Buffer
from cacheagent.transfer.worker import Threads
from tests.fakes.worker import PATIENCE_S, wait_for


class Gate:
    """Work that waits, so that a test sees who is at it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = threading.Semaphore(0)
        self.threads: list[str] = []

    def work(self, buffer: Buffer) -> None:
        self.threads.append(threading.current_thread().name)
        buffer.view(1)
        self.inside.release()
        assert self.open.wait(PATIENCE_S)


def test_threads_grow_with_the_work_up_to_the_maximum() -> None:
    """Three at most for five works; all are done in the end, in the order in which they came."""
    gate, threads = Gate(), Threads(3, lambda: None)
    for _ in range(5):
        threads.submit(gate.work)
    for _ in range(3):
        assert gate.inside.acquire(timeout=PATIENCE_S)
    assert len(gate.threads) == 3
    gate.open.set()
    for _ in range(2):
        assert gate.inside.acquire(timeout=PATIENCE_S)
    assert len(gate.threads) == 5


def test_one_thread_serves_work_that_comes_one_by_one() -> None:
    """No second thread, no second buffer, while one is free."""
    threads = Threads(8, lambda: None)
    buffers: list[int] = []
    for number in range(5):
        done = threading.Event()

        def work(buffer: Buffer, done: threading.Event = done) -> None:
            buffers.append(id(buffer))
            done.set()

        wait_for(lambda: threads._idle == threads._count)
        threads.submit(work)
        assert done.wait(PATIENCE_S), number
    assert len(set(buffers)) == 1


def test_an_idle_thread_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its buffer goes with it, and connections that nobody uses are closed; later work gets a new one."""
    monkeypatch.setattr(worker_module, "THREAD_IDLE_S", 0.01)
    idle = threading.Semaphore(0)
    threads = Threads(2, idle.release)
    gate = Gate()
    gate.open.set()
    for _ in range(2):
        threads.submit(gate.work)
        assert gate.inside.acquire(timeout=PATIENCE_S)
        assert idle.acquire(timeout=PATIENCE_S)
    wait_for(lambda: threads._count == 0)
