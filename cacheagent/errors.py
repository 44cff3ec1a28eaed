"""Every error a caller can meet, named after what the caller does next.

Two roots mean two actions: `OriginWrong` (somebody must change the source or the request; asking again gives the same
answer) and `TransferFailed` (asking again later may work). `StoreError` is about this node's disk. All carry a
sentence for a person, a `hint` with the next step, a stable `code` for machines and the exit code of the command line.
"""

from __future__ import annotations

from typing import ClassVar


class CacheAgentError(Exception):
    """Root of all errors. `message` says what happened and where; `hint` says what to do next."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(CacheAgentError):
    """The request or the configuration cannot be understood."""

    code = "usage"
    exit_code = 2


class ConfigError(UsageError):
    """A configuration file is wrong; the message names file and field."""

    code = "config"


class WaitTimedOut(CacheAgentError):
    """The caller's own time limit passed; the work goes on."""

    code = "timed-out"
    exit_code = 3


class PolicyRefused(CacheAgentError):
    """A rule of the administrator forbids it (pickle, prefixes, namespaces)."""

    code = "refused"
    exit_code = 4


# --- the origin is wrong: trying again gives the same answer
# -----------------------------------------------------------------


class OriginWrong(CacheAgentError):
    """What the origin holds, or says, cannot be used."""

    code = "origin-wrong"


class OriginNotFound(OriginWrong):
    """Bucket, prefix, repository, revision or file does not exist (404)."""

    code = "not-found"


class OriginForbidden(OriginWrong):
    """The origin refuses the credentials, or the lack of them (401, 403)."""

    code = "forbidden"


class SourceChanged(OriginWrong):
    """An object is no longer the one that was listed; nothing was mixed. Resolving again gives the new version."""

    code = "source-changed"


class VersionMoved(OriginWrong):
    """The origin holds another version than the one that is asked for, and only the present one can be fetched."""

    code = "version-moved"


class IncompleteModel(OriginWrong):
    """A shard that the index names is missing, or the index is malformed."""

    code = "incomplete"


class UnsafeContent(OriginWrong):
    """A path or header that must not reach a disk or an engine: `..`, clashes, a lying safetensors header."""

    code = "unsafe"


class PickleRefused(UnsafeContent, PolicyRefused):
    """Only pickle weights exist and the model's policy does not allow them."""

    code = "pickle-refused"
    exit_code = 4


class ChecksumMismatch(OriginWrong):
    """The bytes do not match a checksum. Nothing of the file was kept."""

    code = "checksum-mismatch"


# --- the transfer failed: trying again later may work
# ------------------------------------------------------------------------


class TransferFailed(CacheAgentError):
    """The bytes did not arrive, for a reason that may pass."""

    code = "transfer-failed"


class OriginUnavailable(TransferFailed):
    """Refused, reset, timed out or 5xx, longer than the retry budget lasts."""

    code = "origin-unavailable"


class OriginThrottled(TransferFailed):
    """429 or 503 SlowDown, longer than the retry budget lasts."""

    code = "origin-throttled"


class LocationExpired(TransferFailed):
    """A signed URL is no longer accepted; locating the file again gives a fresh one."""

    code = "location-expired"


class TargetAbandoned(TransferFailed):
    """A worker hangs in the kernel and may still write into the file: discard that file, never write to it again."""

    code = "target-abandoned"


# --- this node's disk
# --------------------------------------------------------------------------------------------------------


class StoreError(CacheAgentError):
    """The cache directory cannot do what was asked."""

    code = "store"


class NoRoom(StoreError):
    """The model does not fit, even after everything evictable is gone. The message holds the numbers."""

    code = "no-room"


class DiskFault(StoreError):
    """The filesystem answered EIO, EROFS or ENOSPC although room was reserved."""

    code = "disk-fault"


class StoreBusy(StoreError):
    """Another agent owns this cache directory."""

    code = "store-busy"


class UnknownLayout(StoreError):
    """The directory was written by a version that this one does not understand; nothing was touched."""

    code = "unknown-layout"


class NotCached(StoreError):
    """No published model of that name or digest is here."""

    code = "not-cached"


class ModelInUse(StoreError):
    """The model is leased or pinned; it stays."""

    code = "in-use"


class CorruptModel(StoreError):
    """Bytes at rest no longer match their recorded hashes."""

    code = "corrupt"


# --- the local API
# -----------------------------------------------------------------------------------------------------------


class AgentUnavailable(CacheAgentError):
    """No agent answers on the socket."""

    code = "agent-unavailable"


class RootTaskEnded(CacheAgentError):
    """A part of the agent that runs as long as it does has ended: a defect. The agent stops rather than go on."""

    code = "root-task-ended"
