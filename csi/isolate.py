"""Out of the network: containers of a pod share one, and this one has no use for it."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Final

from cacheagent.errors import UsageError

_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h


def leave_the_network() -> None:
    """Go on in a network namespace of this process's own, with nothing in it. Sockets in the file system still work.

    For the first line of a program: a namespace belongs to a thread, and later threads inherit it. Raises UsageError
    where the kernel doesn't permit it.
    """
    if threading.active_count() != 1:
        raise RuntimeError("only a process with one thread can leave the network as a whole")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise UsageError(
            f"this process can't leave the network: {reason}",
            hint="the CSI driver runs as root in a privileged container, or it could not mount anything either",
        )
