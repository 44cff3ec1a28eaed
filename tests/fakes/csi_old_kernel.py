"""`python -m csi` on a kernel that lacks the newer system calls for mounting."""

from __future__ import annotations

import errno
import os
import sys

from csi import mount
from csi.__main__ import main


def _no_such_system_call(number: int, *arguments: object) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


if __name__ == "__main__":
    mount._syscall = _no_such_system_call
    sys.exit(main())
