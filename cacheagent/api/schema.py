"""What travels over the API, version 1. Requests are parsed strictly; answers ignore fields they don't know, so that a
newer agent can talk to an older client (the containers of one pod restart one by one).
"""

from __future__ import annotations

from typing import Final, Literal, dataclass_transform

import msgspec

from cacheagent.model import Kind, Value
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec

PREFIX: Final = "/v1"

HEARTBEAT_S: Final = 10.0
"""An event stream without news sends an empty line this often; a client that hears nothing for three of them may
take the agent for dead. Chosen, not measured."""

LONGEST_WAIT_S: Final = 3600.0
"""The most that one `ensure` waits; ask again for more. Chosen: far above the kubelet's 110 s holds."""


class EnsureRequest(Value):
    """Bring this model: either a whole `spec`, or the `name` of a configured or cached one.

    `priority`: overrides the spec's for this job, upwards only. `refresh`: ask the origin again what the model is now.
    `wait_s`: hold the answer until the job has ended, at most this many seconds (0 answers at once).
    """

    spec: ModelSpec | None = None
    name: str = ""
    priority: int | None = None
    refresh: bool = False
    wait_s: float = 0.0


class LeaseRequest(Value):
    """Somebody mounts `ref` (name, digest or its prefix); `owner` is for people: which pod."""

    ref: str
    owner: str = ""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable answer."""


class Version(Answer):
    """Who answers."""

    version: str
    api: str = "v1"


class Usage(Answer):
    """The cache directory's room, in bytes. `evictable_bytes` could be freed now; `floor_bytes` is never used."""

    capacity_bytes: int
    free_bytes: int
    used_bytes: int
    reserved_bytes: int
    evictable_bytes: int
    floor_bytes: int
    models: int
    blobs: int


class Model(Answer):
    """One published version. `path`: its tree on this node. `leases`: mounted volumes that use it. Times are seconds
    since the epoch. `suspect`: a piece at rest is wrong and being repaired; no new leases.
    """

    name: str
    digest: str
    uri: str
    kind: Kind
    files: int
    size_bytes: int
    published_at: float
    last_used: float
    path: str
    revision: str = ""
    repo_id: str = ""
    content_digest: str = ""
    pin: bool = False
    priority: int = 0
    suspect: bool = False
    leases: tuple[str, ...] = ()


WarmState = Literal["ready", "working", "waiting", "failed", "on-demand"]


class Wanted(Answer):
    """One configured model. `working`: a job runs. `waiting`: its turn has not come. `failed`: `message` and `hint` say
    why, and it is tried again in `retry_in_s` seconds. `on-demand`: `keep_warm` is off and nobody has asked yet.
    """

    name: str
    uri: str
    priority: int
    state: WarmState
    digest: str = ""
    error: str = ""
    message: str = ""
    hint: str = ""
    retry_in_s: float = 0.0


class Status(Answer):
    """The whole agent at one moment. `config_error`: why the last reload was refused; the configuration before it is
    in force.
    """

    version: str
    root: str
    uptime_s: float
    usage: Usage
    models: tuple[Model, ...]
    wanted: tuple[Wanted, ...]
    jobs: tuple[JobStatus, ...]
    config_error: str = ""


class Models(Answer):
    """Everything that is published here."""

    models: tuple[Model, ...]


class Lease(Answer):
    """A mounted volume. `path`: the tree to mount."""

    volume_id: str
    digest: str
    path: str
    owner: str = ""


class Leases(Answer):
    """All mounted volumes."""

    leases: tuple[Lease, ...]


class Evicted(Answer):
    """What an eviction gave back; blobs that other versions share stay."""

    digest: str
    freed_bytes: int


class Done(Answer):
    """It is done; there is nothing more to say."""

    digest: str = ""


class ErrorBody(Answer):
    """`code` is stable, `message` says what happened and where, `hint` what to do next."""

    code: str
    message: str
    hint: str = ""


class ErrorAnswer(Answer):
    """The body of every answer that is not 2xx."""

    error: ErrorBody
