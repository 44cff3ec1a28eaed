"""Root obeys file modes in the tests too: the agent runs as an ordinary user, so what only root may do must fail.

One thread keeps root's rights, for tests that run a cluster: its programs (containerd, the kubelet) need all of them.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_DROP_FROM_BOUNDING_SET = 24  # PR_CAPBSET_DROP, linux/prctl.h
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_OVERRIDE, _READ_SEARCH = 1, 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, linux/capability.h

_Order = tuple[Callable[[], Any], "Future[Any]"]
_orders: queue.SimpleQueue[_Order] | None = None


def obey_file_modes() -> None:
    """Give up, for this process and all that it starts, root's right to read and write in spite of a file's mode.

    Does nothing for anybody else. For the main thread, before there are others: capabilities belong to threads.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (_OVERRIDE, _READ_SEARCH):  # a program that root starts gets what the bounding set allows
        _check(libc.prctl(_DROP_FROM_BOUNDING_SET, capability, 0, 0, 0))
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)  # 0: this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable of capabilities 0-31, then of 32-63
    _check(libc.capget(header, sets))
    for index in range(3):
        sets[index] &= ~(1 << _OVERRIDE | 1 << _READ_SEARCH)
    _check(libc.capset(header, sets))


def _check(answer: int) -> None:
    if answer != 0:
        raise OSError(ctypes.get_errno(), f"cannot give up capabilities: {os.strerror(ctypes.get_errno())}")


def keep_a_root_thread() -> None:
    """Start the thread behind `as_root`, if there is none; before `obey_file_modes`. Only root has anything to keep."""
    global _orders  # noqa: PLW0603 - one thread a process, made before anything else
    if os.geteuid() == 0 and _orders is None:
        _orders = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(_orders,), name="root", daemon=True).start()


def make_removable(root: Path) -> None:
    """Directories below become their owner's to change: what the store published is read-only, and would stay."""
    for parent, folders, _ in os.walk(root):
        for folder in (Path(parent, name) for name in folders):
            if not folder.is_symlink():
                folder.chmod(0o700)


def as_root(function: Callable[[], T]) -> T:
    """Call `function` on a thread that has all of root's rights, where one was kept; else right here.

    Children that it starts live as long as this process, also when they asked to die with their parent's thread: it is
    always the same one. So it has to be quick; `as_root_for_long` isn't bound by that.
    """
    if _orders is None:
        return function()
    answer: Future[T] = Future()
    _orders.put((function, answer))
    return answer.result()


def as_root_for_long(function: Callable[[], T]) -> T:
    """The same on a thread of its own, which ends with the function: others needn't wait for it."""
    if _orders is None:
        return function()
    answer: Future[T] = Future()

    def start() -> None:
        threading.Thread(target=_answer, args=(function, answer), name="root for long", daemon=True).start()

    as_root(start)
    return answer.result()


def _serve(orders: queue.SimpleQueue[_Order]) -> None:
    while True:
        _answer(*orders.get())


def _answer(function: Callable[[], Any], answer: Future[Any]) -> None:
    try:
        answer.set_result(function())
    except BaseException as error:
        answer.set_exception(error)
