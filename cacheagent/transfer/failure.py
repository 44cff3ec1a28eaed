"""How an order ends without success, inside a worker: raised where it happens, reported once."""

from __future__ import annotations

import errno
import os
import traceback

from cacheagent.errors import TransferFailed
from cacheagent.transfer.orders import Failed, FailureKind, SmallFile


class OrderFailed(TransferFailed):
    """One order cannot go on; `kind` tells the parent what to do about it. The message holds no secrets."""

    def __init__(
        self, kind: FailureKind, message: str, *, status: int = 0, retry_after_s: float = -1.0, errno: int = 0
    ) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.status = status
        self.retry_after_s = retry_after_s
        self.errno = errno

    def about(self, what: str) -> OrderFailed:
        """The same failure, saying what it is about."""
        self.message = f"{what}: {self.message}"
        return self

    def report(self, order_id: int, files: tuple[SmallFile, ...] = ()) -> Failed:
        """The same as a report."""
        return Failed(
            id=order_id,
            kind=self.kind,
            message=self.message,
            status=self.status,
            retry_after_s=self.retry_after_s,
            errno=self.errno,
            files=files,
        )


def cancelled() -> OrderFailed:
    """Nobody wants the order's bytes any more."""
    return OrderFailed("cancelled", "the order was cancelled")


def as_failure(error: Exception, *, stopped: bool) -> OrderFailed:
    """Any exception as a failure. What comes after the order was stopped comes from that. One that nobody foresaw is
    a bug: its traceback goes to stderr, its order fails, and the worker's other orders go on.
    """
    if stopped:
        return cancelled()
    if isinstance(error, OrderFailed):
        return error
    traceback.print_exception(error)
    return OrderFailed("protocol", f"the worker failed: {type(error).__name__}: {error}"[:400])


def disk_failure(error: OSError, path: str) -> OrderFailed:
    """What an error on our own disk means."""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    kind: FailureKind = "disk-full" if full else "disk-fault"
    return OrderFailed(kind, f"{path}: {_reason(error)}", errno=_number(error))


def source_failure(error: OSError, path: str) -> OrderFailed:
    """What an error on a mounted source means: a file that went away was replaced or deleted under us."""
    gone = error.errno in {errno.ENOENT, errno.ESTALE, errno.ENOTDIR}
    return OrderFailed("changed" if gone else "source-io", f"{path}: reading: {_reason(error)}", errno=_number(error))


def _number(error: OSError) -> int:
    return error.errno or 0


def _reason(error: OSError) -> str:
    return f"{os.strerror(error.errno)} (errno {error.errno})" if error.errno else str(error)
