"""What is asked for again, when, and how long. Pure; time is an argument (seconds)."""

from __future__ import annotations

import errno
import random
from typing import Final, Literal, assert_never

from cacheagent.errors import (
    CacheAgentError,
    ChecksumMismatch,
    DiskFault,
    OriginForbidden,
    OriginNotFound,
    OriginThrottled,
    OriginUnavailable,
    OriginWrong,
    SourceChanged,
    TransferFailed,
)
from cacheagent.transfer.orders import Failed

Reason = Literal[
    "connect", "reset", "timeout", "throttled", "server-error", "protocol", "tls", "source-io", "expired", "worker"
]

FREE_FAILURES: Final = 100
FAILURES_PER_SUCCESS: Final = 2.0
"""Beyond the free ones, an origin that fails more often than this per piece it gives is given up. Chosen."""
PROTOCOL_TRIES: Final = 2
TLS_TRIES: Final = 3
"""A server that restarts may break a handshake; a wrong certificate stays wrong. Chosen."""
WORKER_TRIES: Final = 3
"""An order that ends so many workers ends the next one too. Chosen."""


def is_refusal(failed: Failed) -> bool:
    """The answer that a signed URL gets when it has expired, or a token: S3 says 400 for expired session tokens."""
    return failed.kind == "status" and failed.status in {400, 401, 403}


def is_throttle(failed: Failed) -> bool:
    """The origin wants less of us."""
    return failed.kind == "status" and failed.status in {429, 503}


def retry_reason(failed: Failed) -> Reason:
    """Why it is asked for again, for counting."""
    match failed.kind:
        case "connect" | "reset" | "timeout" | "protocol" | "tls":
            return failed.kind
        case "status":
            return "throttled" if is_throttle(failed) else "server-error"
        case "source-io":
            return "source-io"
        case _:
            return "worker"


def permanent_error(failed: Failed, what: str, tries: int) -> CacheAgentError | None:
    """The error to raise where asking again gives the same answer; None where it may help. `what` names the file
    without secrets; `tries` counts this one. Refusals are judged apart, by the age of the location.
    """
    said = f"{what}: {failed.message}"
    match failed.kind:
        case "status":
            return _status_error(failed.status, said)
        case "changed":
            return _changed(said)
        case "mismatch":
            return ChecksumMismatch(
                failed.message,  # whose hash it is says it already
                hint="the bytes were damaged on the way or at the origin; nothing of the file was kept",
            )
        case "disk-full":
            return DiskFault(said, hint="something else took the room that was reserved; free some and try again")
        case "disk-fault":
            return DiskFault(said, hint="look at the disk: dmesg, smartctl, mount options")
        case "protocol":
            return (
                OriginWrong(said, hint="something between here and the origin alters answers")
                if (tries >= PROTOCOL_TRIES)
                else None
            )
        case "tls":
            return OriginUnavailable(said, hint="check the certificate and ca_bundle") if tries >= TLS_TRIES else None
        case "source-io":
            return _source_error(failed.errno, said)
        case "connect" | "reset" | "timeout" | "cancelled":
            return None
    assert_never(failed.kind)


def refusal_error(failed: Failed, what: str) -> CacheAgentError:
    """A 400, 401 or 403 although the location is fresh."""
    said = f"{what}: {failed.message}"
    if failed.status == 400:
        return OriginWrong(said, hint="the origin does not understand what it signed itself; check endpoint and region")
    return OriginForbidden(said, hint="check the credentials and what they may read")


def worker_error(what: str, tries: int, last: TransferFailed) -> TransferFailed | None:
    """The error for an order whose worker ended under it `tries` times; None where another worker may fare better."""
    if tries < WORKER_TRIES:
        return None
    return TransferFailed(
        f"{what}: {tries} transfer workers ended while they worked on it; the last: {last.message}",
        hint="look at the log for what they said; memory limits kill the largest process first",
    )


def backoff_s(failures: int, base_s: float, cap_s: float, random_source: random.Random) -> float:
    """Exponential with full jitter, after this many failures in a row."""
    return random_source.uniform(0, min(cap_s, base_s * 2.0 ** min(failures - 1, 30)))


class Budget:
    """How long one call goes on asking: by time without progress, and by the share of failures."""

    def __init__(self, give_up_after_s: float, now: float) -> None:
        self._give_up_after_s = give_up_after_s
        self._started = self._alive_at = now
        self._failures = 0
        self._successes = 0

    def succeeded(self) -> None:
        """One more answer that is of use."""
        self._successes += 1

    def goes_on(self, now: float) -> None:
        """It waits for something that is no fault of the origin's."""
        self._alive_at = now

    def final_error(self, failed: Failed, what: str, now: float, progress_at: float) -> TransferFailed | None:
        """Called for each failure that might pass; the error to raise once that is over. `progress_at`: when the origin
        last gave anything to anybody.
        """
        self._failures += 1
        idle_s = now - max(progress_at, self._alive_at)
        too_often = self._failures > FREE_FAILURES + FAILURES_PER_SUCCESS * self._successes
        if idle_s < self._give_up_after_s and not too_often:
            return None
        why = f"nothing came for {idle_s:.0f} s" if not too_often else "most tries failed"
        said = (
            f"{what}: {failed.message}; gave up after {self._failures} failed tries in {now - self._started:.0f} s"
            f" ({why})"
        )
        if is_throttle(failed):
            return OriginThrottled(said, hint="the origin limits us: try later, or set fewer connections")
        return OriginUnavailable(said, hint="check that the origin is up and can be reached from this node")


def _status_error(status: int, said: str) -> CacheAgentError | None:
    if status in {404, 410}:
        return OriginNotFound(said, hint="it was there when the source was listed; list it again")
    if status in {412, 416}:
        return _changed(said)
    if status in {408, 425, 429} or status >= 500:
        return None
    return OriginWrong(said, hint="an answer that no file server should give to a GET")


def _source_error(number: int, said: str) -> CacheAgentError | None:
    if number == errno.ENOENT:
        return OriginNotFound(said, hint="it was there when the source was listed; list it again")
    if number in {errno.EACCES, errno.EPERM}:
        return OriginForbidden(said, hint="the agent's user may not read it")
    return None


def _changed(said: str) -> SourceChanged:
    return SourceChanged(said, hint="resolve again to get the new version")
