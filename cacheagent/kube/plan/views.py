"""What a plan needs of each object, parsed once for each change of it. Pure.

Parsing is lenient: an object that can't be understood is left out by `world.WorldView` and named in the log.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import msgspec

from cacheagent.kube.api import Object
from cacheagent.kube.names import (
    CONTENT_DIGEST,
    CONTENT_MODEL,
    DRIVER,
    GATE,
    MODEL,
    MODEL_LABEL,
    VERSION_LABEL,
    WAIT_CONTAINER,
)
from cacheagent.kube.objects import (
    ModelCacheNodeSpec,
    ModelCacheNodeStatus,
    ModelCachePeersSpec,
    ModelCacheSpec,
    ModelCacheStatus,
    ModelWarmupSpec,
    ModelWarmupStatus,
    NodeModel,
    NodeModelStatus,
)
from cacheagent.kube.plan.times import seconds_of
from cacheagent.kube.slim import is_gpu
from cacheagent.quantity import Rate

_NOTHING: Final[Mapping[str, Any]] = {}
ALIKE: Final = 256
"""Kinds of nodes that are told apart, as to what they have. Chosen: pools are fewer, nodes that change soon agree
again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """`metadata`. `created_at`: seconds since the epoch. `owners`: uids of ownerReferences."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    created_at: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    owners: tuple[str, ...] = ()
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A ModelCache."""

    meta: Meta
    spec: ModelCacheSpec
    status: ModelCacheStatus

    @property
    def name(self) -> str:
        """Its name."""
        return self.meta.name


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheNode:
    """A ModelCacheNode, with what is asked of its status again and again.

    `entries`: the status's models by name. `on_disk`: digests that are published there; `ready`: those of them that
    may be mounted (a version that rotted is withdrawn, and stays on disk for those who have it). `contents`: what
    their files' own hashes come to. `mounted`: names of models that volumes use. `assigned`: the spec's models by
    name. `busy`: models on their way.
    """

    meta: Meta
    spec: ModelCacheNodeSpec
    status: ModelCacheNodeStatus
    assigned: Mapping[str, NodeModel]
    entries: Mapping[str, tuple[NodeModelStatus, ...]]
    on_disk: frozenset[str]
    ready: frozenset[str]
    contents: Mapping[str, str]
    mounted: frozenset[str]
    busy: int

    @property
    def name(self) -> str:
        """The node's name."""
        return self.meta.name

    @property
    def reported(self) -> bool:
        """Whether its agent has ever spoken."""
        return bool(self.status.reported_at or self.status.incarnation)

    @property
    def heard(self) -> bool:
        """Whether its agent has taken in the spec as it is now."""
        return self.status.observed_generation >= self.meta.generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A Node. `ours`: its labels that say which versions are there. `taints`: as written."""

    meta: Meta
    ours: Mapping[str, str]
    taints: tuple[Mapping[str, Any], ...]
    unschedulable: bool
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPod:
    """A pod of the agent that has a node."""

    node: str
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Uses:
    """One of our inline volumes in a pod: what it asks for, and the version if that was known at admission."""

    model: str
    uri: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod that the webhook rewrote. `refs`: what its annotation names (models or URIs). `claims`: all its claims'
    names. `gpus`: what its containers hold. `scheduled_at`, `weights_at`: when it got its node and its weights; 0
    before."""

    meta: Meta
    node: str
    phase: str
    refs: tuple[str, ...]
    inline: tuple[Uses, ...]
    claims: tuple[str, ...]
    gates: tuple[str, ...]
    spec: Mapping[str, Any]
    gpus: int = 0
    scheduled_at: float = 0.0
    weights_at: float = 0.0

    @property
    def gated(self) -> bool:
        """Whether it waits behind our scheduling gate."""
        return GATE in self.gates

    @property
    def over(self) -> bool:
        """Whether none of its containers runs again."""
        return self.phase in {"Succeeded", "Failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """A ModelWarmup."""

    meta: Meta
    spec: ModelWarmupSpec
    status: ModelWarmupStatus

    @property
    def expires_at(self) -> float:
        """Seconds since the epoch."""
        return self.meta.created_at + self.spec.ttl_seconds

    @property
    def origin_rate(self) -> int:
        """Bytes/s that its nodes together may take from the origin; 0: no limit."""
        return int(Rate.parse(self.spec.max_origin_rate)) if self.spec.max_origin_rate else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """A ModelCachePeers."""

    meta: Meta
    spec: ModelCachePeersSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A PersistentVolume that we made. `short`: 12 hex of its digest. `path`: in the node's file system."""

    meta: Meta
    phase: str
    model: str
    short: str
    digest: str
    claim_namespace: str
    claim: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A PersistentVolumeClaim that we made."""

    meta: Meta
    phase: str
    model: str
    short: str
    volume: str


def parse_meta(body: Object) -> Meta:
    """Its `metadata`."""
    written = body.get("metadata") or {}
    return Meta(
        name=written.get("name", ""),
        namespace=written.get("namespace", ""),
        uid=written.get("uid", ""),
        resource_version=written.get("resourceVersion", ""),
        generation=written.get("generation", 0),
        created_at=seconds_of(written.get("creationTimestamp") or ""),
        labels=written.get("labels") or {},
        annotations=written.get("annotations") or {},
        owners=tuple(owner.get("uid", "") for owner in written.get("ownerReferences") or ()),
        deleting=bool(written.get("deletionTimestamp")),
    )


def parse_model(body: Object) -> Model:
    """Raises msgspec.ValidationError."""
    return Model(
        meta=parse_meta(body),
        spec=msgspec.convert(body.get("spec") or {}, ModelCacheSpec),
        status=msgspec.convert(body.get("status") or {}, ModelCacheStatus),
    )


def parse_cache_node(body: Object) -> CacheNode:
    """Raises msgspec.ValidationError."""
    spec = msgspec.convert(body.get("spec") or {}, ModelCacheNodeSpec)
    status = msgspec.convert(body.get("status") or {}, ModelCacheNodeStatus)
    published, entries = _published(status.models), _entries(status.models)
    return CacheNode(
        meta=parse_meta(body),
        spec=spec,
        status=status,
        assigned=_assigned(spec.models),
        entries=entries,
        on_disk=published.on_disk,
        ready=published.ready,
        contents=published.contents,
        mounted=frozenset(entry.name for entry in status.models if entry.mounted),
        busy=sum(entry.phase in {"fetching", "resolving"} for entry in status.models),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Published:
    """What `CacheNode` says of versions that are on disk."""

    on_disk: frozenset[str]
    ready: frozenset[str]
    contents: Mapping[str, str]


# Most nodes have and say the same, so what is made of it is made once for all of them: at rest, 2,000 nodes with 50
# models each have 40 MB less of it.


def _published(models: tuple[NodeModelStatus, ...]) -> _Published:
    return _published_of(tuple(entry for entry in models if entry.phase == "ready" and entry.digest))


@lru_cache(maxsize=ALIKE)
def _published_of(published: tuple[NodeModelStatus, ...]) -> _Published:
    on_disk = frozenset(entry.digest for entry in published)
    withdrawn = {entry.digest for entry in published if entry.message}
    return _Published(
        on_disk=on_disk,
        ready=frozenset(entry.digest for entry in published if not entry.message) if withdrawn else on_disk,
        contents={entry.digest: entry.content_digest for entry in published if entry.content_digest},
    )


@lru_cache(maxsize=ALIKE)
def _entries(models: tuple[NodeModelStatus, ...]) -> Mapping[str, tuple[NodeModelStatus, ...]]:
    found: dict[str, tuple[NodeModelStatus, ...]] = defaultdict(tuple)
    for entry in models:
        found[entry.name] += (entry,)
    return dict(found)


@lru_cache(maxsize=ALIKE)
def _alike(labels: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return dict(labels)


@lru_cache(maxsize=ALIKE)
def _assigned(models: tuple[NodeModel, ...]) -> Mapping[str, NodeModel]:
    return {model.name: model for model in models}


def parse_node(body: Object) -> Node:
    """A Node."""
    meta, spec = parse_meta(body), body.get("spec") or _NOTHING
    conditions = (body.get("status") or _NOTHING).get("conditions") or ()
    return Node(
        meta=meta,
        ours=_alike(
            tuple(each for each in sorted(meta.labels.items()) if each[0].startswith((MODEL_LABEL, VERSION_LABEL)))
        ),
        taints=tuple(spec.get("taints") or ()),
        unschedulable=bool(spec.get("unschedulable")),
        ready=any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions),
    )


def parse_agent_pod(body: Object) -> AgentPod:
    """A pod of the agent. One that is going is not ready."""
    conditions = (body.get("status") or _NOTHING).get("conditions") or ()
    ready = any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)
    return AgentPod(
        node=(body.get("spec") or _NOTHING).get("nodeName") or "", ready=ready and not parse_meta(body).deleting
    )


def parse_pod(body: Object) -> Pod:
    """A pod that the webhook rewrote."""
    meta, spec = parse_meta(body), body.get("spec") or {}
    volumes = spec.get("volumes") or ()
    asked = meta.annotations.get(MODEL, "")
    return Pod(
        meta=meta,
        node=spec.get("nodeName") or "",
        phase=(body.get("status") or _NOTHING).get("phase") or "Pending",
        refs=tuple(ref.strip() for ref in asked.split(",") if ref.strip()),
        inline=tuple(_uses(volume["csi"]) for volume in volumes if _is_ours(volume)),
        claims=tuple(claims_of(body)),
        gates=tuple(gate.get("name", "") for gate in spec.get("schedulingGates") or ()),
        spec=spec,
        gpus=_gpus(spec),
        scheduled_at=_reached(body, "PodScheduled"),
        weights_at=_weights_at(body),
    )


def _gpus(spec: Mapping[str, Any]) -> int:
    limits = [(each.get("resources") or _NOTHING).get("limits") or _NOTHING for each in spec.get("containers") or ()]
    counts = [str(count) for each in limits for resource, count in each.items() if is_gpu(resource)]
    return sum(int(count) for count in counts if count.isdecimal())


def _reached(body: Object, milestone: str) -> float:
    for each in (body.get("status") or _NOTHING).get("conditions") or ():
        if each.get("type") == milestone and each.get("status") == "True":
            return seconds_of(each.get("lastTransitionTime") or "")
    return 0.0


def _weights_at(body: Object) -> float:
    """Volumes are mounted before a pod's sandbox is made; with `wait: init` they are filled later."""
    ours = [volume for volume in (body.get("spec") or _NOTHING).get("volumes") or () if _is_ours(volume)]
    if all((volume["csi"].get("volumeAttributes") or _NOTHING).get("wait") != "init" for volume in ours):
        return _reached(body, "PodReadyToStartContainers")
    for each in (body.get("status") or _NOTHING).get("initContainerStatuses") or ():
        ended = (each.get("state") or _NOTHING).get("terminated") or _NOTHING
        if each.get("name") == WAIT_CONTAINER and ended.get("exitCode") == 0:
            return seconds_of(ended.get("finishedAt") or "")
    return 0.0


def claims_of(body: Object) -> list[str]:
    """Names of the claims that a pod's volumes name."""
    volumes = (body.get("spec") or _NOTHING).get("volumes") or ()
    return [
        volume["persistentVolumeClaim"].get("claimName", "")
        for volume in volumes
        if volume.get("persistentVolumeClaim")
    ]


def _is_ours(volume: Mapping[str, Any]) -> bool:
    return (volume.get("csi") or _NOTHING).get("driver") == DRIVER


def _uses(csi: Mapping[str, Any]) -> Uses:
    attributes = csi.get("volumeAttributes") or {}
    return Uses(model=attributes.get("model", ""), uri=attributes.get("uri", ""), digest=attributes.get("digest", ""))


def parse_warmup(body: Object) -> Warmup:
    """Raises msgspec.ValidationError."""
    warmup = Warmup(
        meta=parse_meta(body),
        spec=msgspec.convert(body.get("spec") or {}, ModelWarmupSpec),
        status=msgspec.convert(body.get("status") or {}, ModelWarmupStatus),
    )
    try:
        warmup.origin_rate  # noqa: B018 - judged here, so that nobody meets it later
    except ValueError as error:
        raise msgspec.ValidationError(f"spec.maxOriginRate: {error}") from error
    return warmup


def parse_peers(body: Object) -> Peers:
    """Raises msgspec.ValidationError."""
    return Peers(meta=parse_meta(body), spec=msgspec.convert(body.get("spec") or {}, ModelCachePeersSpec))


def parse_volume(body: Object) -> Volume:
    """A PersistentVolume that we made."""
    meta, spec = parse_meta(body), body.get("spec") or _NOTHING
    claim = spec.get("claimRef") or _NOTHING
    path = (spec.get("local") or _NOTHING).get("path", "")
    _, _, tail = path.rpartition("/models/sha256-")
    return Volume(
        meta=meta,
        phase=(body.get("status") or _NOTHING).get("phase") or "Pending",
        model=meta.labels.get(CONTENT_MODEL, ""),
        short=meta.labels.get(CONTENT_DIGEST, ""),
        digest=f"sha256:{tail[:64]}" if tail else "",
        claim_namespace=claim.get("namespace", ""),
        claim=claim.get("name", ""),
    )


def parse_claim(body: Object) -> Claim:
    """A PersistentVolumeClaim that we made."""
    meta = parse_meta(body)
    return Claim(
        meta=meta,
        phase=(body.get("status") or _NOTHING).get("phase") or "Pending",
        model=meta.labels.get(CONTENT_MODEL, ""),
        short=meta.labels.get(CONTENT_DIGEST, ""),
        volume=(body.get("spec") or _NOTHING).get("volumeName") or "",
    )
