"""The one table between errors and gRPC. The kubelet shows the sentence in the pod's events.

FAILED_PRECONDITION is the kubelet's "it did not work, nothing is going on any more": the pod can be deleted at once.
After UNAVAILABLE, RESOURCE_EXHAUSTED and ABORTED it takes the volume for half mounted.
"""

from __future__ import annotations

from typing import Final

import grpc

from cacheagent.errors import (
    AgentUnavailable,
    CacheAgentError,
    ModelInUse,
    NoRoom,
    NotCached,
    OriginWrong,
    PolicyRefused,
    StoreError,
    TransferFailed,
    UsageError,
    WaitTimedOut,
)
from csi.errors import NotReady

STATUSES: Final[tuple[tuple[type[CacheAgentError], grpc.StatusCode], ...]] = (
    (NotReady, grpc.StatusCode.FAILED_PRECONDITION),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (PolicyRefused, grpc.StatusCode.PERMISSION_DENIED),
    (NotCached, grpc.StatusCode.NOT_FOUND),
    (NoRoom, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (AgentUnavailable, grpc.StatusCode.UNAVAILABLE),
    (ModelInUse, grpc.StatusCode.FAILED_PRECONDITION),
    (OriginWrong, grpc.StatusCode.FAILED_PRECONDITION),
    (TransferFailed, grpc.StatusCode.FAILED_PRECONDITION),
    (WaitTimedOut, grpc.StatusCode.FAILED_PRECONDITION),
    (StoreError, grpc.StatusCode.INTERNAL),
    (CacheAgentError, grpc.StatusCode.INTERNAL),
)
"""First match wins: a pickle that policy refuses is both wrong at its origin and forbidden."""

LONGEST_SENTENCE: Final = 900
"""An event holds 1024 characters, the kubelet's own words among them."""


def status_of(error: CacheAgentError) -> grpc.StatusCode:
    """What kind of thing went wrong, for the kubelet."""
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def sentence_of(error: CacheAgentError) -> str:
    """What stands in the pod's events."""
    if isinstance(error, AgentUnavailable):
        return "the agent container of this node does not answer; it is restarting, or its log says why not"
    return " ".join(str(error).split())[:LONGEST_SENTENCE]
