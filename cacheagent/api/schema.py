"""What travels over the API, version 1. Requests are parsed strictly; answers ignore fields they don't know, so that a
newer agent can talk to an older client (the containers of one pod restart one by one).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, dataclass_transform

import msgspec

from cacheagent.model import Kind, Value
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec

PREFIX: Final = "/v1"

HEARTBEAT_S: Final = 10.0
"""An event stream without news sends an empty line this often; a client that hears nothing for three of them may
take the agent for dead. Chosen, not measured."""

GRANT_S: Final = 600.0
"""How long a lease without a mount is believed: the kubelet asks again within 5 minutes. Chosen: twice that."""

View = Literal["files", "hf"]

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


class VolumeRequest(Value):
    """A volume is to be mounted (`PUT /volumes/{volume_id}`). `model`: a name; or `uri` for an on-demand URI. `digest`:
    exactly this version; empty: the one that is current at the volume's first request, which then stays for the
    volume's life. `namespace`, `pod`, `pod_uid`: of the pod, as the kubelet says. `view`: what to mount. `wait`:
    `mount` answers `ready` only with the whole model; `init` answers at once with a directory that is filled later.
    `wait_s`: hold the answer until it is ready, at most so long (0 answers at once). `page_cache`: read it into memory
    after the mount.
    """

    namespace: str
    model: str = ""
    uri: str = ""
    digest: str = ""
    pod: str = ""
    pod_uid: str = ""
    view: View = "files"
    wait: Literal["mount", "init"] = "mount"
    wait_s: float = 0.0
    page_cache: bool = False


class MountTimes(Value):
    """When a volume was mounted (`PUT /volumes/{volume_id}/mount`): from the agent's answer to the mount, in seconds
    since the epoch. `namespace`, `pod`, `pod_uid`: of the pod, as the kubelet says."""

    pod_uid: Annotated[str, msgspec.Meta(min_length=1)]
    began_at: Annotated[float, msgspec.Meta(ge=0)]
    ended_at: Annotated[float, msgspec.Meta(ge=0)]
    namespace: str = ""
    pod: str = ""
    digest: str = ""


class MountedPath(Value):
    """One of our directories that is mounted somewhere on this node. `path`: below the cache directory, for instance
    `models/sha256-…/files`. `volume_id`: of a CSI volume, or `pv-<pod uid>-<volume>` for a local PersistentVolume.
    """

    volume_id: str
    path: str


class MountsReport(Value):
    """Everything of ours that is mounted on this node, whole: leases that are missing are made, leases of volumes that
    are not mounted any more and were granted more than `GRANT_S` ago are given back."""

    mounts: tuple[MountedPath, ...]


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


class Volume(Answer):
    """`ready`: mount `path` (relative to the cache directory, for instance `models/sha256-…/files` or `volumes/<id>`);
    the lease is taken. `waiting`: `message` is a sentence for the pod's events ("37 %, 52 of 141 GB, about 80 s left"),
    ask again. `traced`: somebody wants to know when it was mounted, see MountTimes.
    """

    volume_id: str
    state: Literal["ready", "waiting"]
    digest: str = ""
    path: str = ""
    message: str = ""
    traced: bool = False


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
