"""Root obeys file modes in the tests too: the agent runs as an ordinary user, so what only root may do must fail."""

import ctypes
import os

_DROP_FROM_BOUNDING_SET = 24  # PR_CAPBSET_DROP, linux/prctl.h
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_OVERRIDE, _READ_SEARCH = 1, 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, linux/capability.h


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def obey_file_modes() -> None:
    """Give up, for this process and all that it starts, root's right to read and write in spite of a file's mode.

    Does nothing for anybody else. For the main thread, before there are others: capabilities belong to threads.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (_OVERRIDE, _READ_SEARCH):  # a program that root starts gets what the bounding set allows
        _check(libc.prctl(_DROP_FROM_BOUNDING_SET, capability, 0, 0, 0))
    header, data = _Header(_CAPABILITY_VERSION_3, 0), (_Data * 2)()
    _check(libc.capget(ctypes.byref(header), data))
    for field in ("effective", "permitted", "inheritable"):
        setattr(data[0], field, getattr(data[0], field) & ~(1 << _OVERRIDE | 1 << _READ_SEARCH))
    _check(libc.capset(ctypes.byref(header), data))


def _check(answer: int) -> None:
    if answer != 0:
        raise OSError(ctypes.get_errno(), f"cannot give up capabilities: {os.strerror(ctypes.get_errno())}")
