"""The one table between errors and HTTP, used from both ends: the server looks up a status, the client raises the same
class again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from cacheagent.api.schema import ErrorAnswer, ErrorBody
from cacheagent.errors import (
    AgentUnavailable,
    CacheAgentError,
    ModelInUse,
    NoRoom,
    NotCached,
    OriginWrong,
    PolicyRefused,
    StoreBusy,
    TransferFailed,
    UsageError,
    WaitTimedOut,
)

STATUSES: Final[tuple[tuple[type[CacheAgentError], int], ...]] = (
    (UsageError, 400),
    (PolicyRefused, 403),
    (NotCached, 404),
    (ModelInUse, 409),
    (StoreBusy, 409),
    (NoRoom, 507),
    (OriginWrong, 502),
    (TransferFailed, 503),
    (AgentUnavailable, 503),
    (WaitTimedOut, 504),
    (CacheAgentError, 500),
)
"""First match wins: a pickle that policy refuses is both wrong at its origin (502) and forbidden (403)."""

INTERNAL: Final = "internal"
"""Code of a defect: an exception that nobody foresaw."""


def status_of(error: CacheAgentError) -> int:
    """The HTTP status that tells a client without our table what kind of thing went wrong."""
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def to_answer(error: CacheAgentError) -> ErrorAnswer:
    """What the server sends."""
    return ErrorAnswer(error=ErrorBody(code=error.code, message=error.message, hint=error.hint))


def from_code(code: str, message: str, hint: str) -> CacheAgentError:
    """The error of that code; of a code that this version does not know, the root of all errors."""
    return _BY_CODE.get(code, CacheAgentError)(message, hint=hint)


def from_answer(status: int, body: bytes) -> CacheAgentError:
    """What the client raises for an answer that is not 2xx, whoever wrote it."""
    try:
        error = msgspec.json.decode(body, type=ErrorAnswer).error
    except msgspec.MsgspecError:
        text = body[:200].decode(errors="replace")
        return CacheAgentError(
            f"the agent answered {status} in a form that is not its own: {text!r}",
            hint="check that the socket is an agent's and that both have the same version",
        )
    return from_code(error.code, error.message, error.hint)


def _all_errors(root: type[CacheAgentError]) -> Iterator[type[CacheAgentError]]:
    yield root
    for kind in root.__subclasses__():
        yield from _all_errors(kind)


_BY_CODE: Final = {
    kind.code: kind for kind in _all_errors(CacheAgentError) if kind.__module__ == CacheAgentError.__module__
}
"""Without what other modules derive for themselves under the same code: those need not take a hint."""
