"""Root obeys file modes in the tests too: the agent runs as an ordinary user, so what only root may do must fail."""

import ctypes
import os

_DROP_FROM_BOUNDING_SET = 24  # PR_CAPBSET_DROP, linux/prctl.h
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_OVERRIDE, _READ_SEARCH = 1, 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, linux/capability.h


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
