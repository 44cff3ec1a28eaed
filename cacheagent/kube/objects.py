"""The custom resources as values. Parsed leniently (a newer version may add fields) and encoded without defaults.

The CRDs in `daemonset/` say the same to the API server; a test holds the two together. Field names are camelCase in
JSON.
"""

from __future__ import annotations

from typing import Any, Literal, dataclass_transform

import msgspec

from cacheagent.model import Kind
from cacheagent.quantity import size_text

Phase = Literal["pending", "resolving", "fetching", "ready", "failed"]
Peers = Literal["auto", "never"]
"""Whether a model's pieces are exchanged with other nodes."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class KubeValue(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A part of a custom resource."""


# --- ModelCache: one model, cluster scope


class Source(KubeValue):
    """Where a model comes from; see `cacheagent.spec.SourceSpec`. `credentials` is a *name* from the chart's values."""

    uri: str
    revision: str = ""
    endpoint: str = ""
    region: str = ""
    credentials: str = ""
    ca_bundle: str = ""
    path_style: bool | None = None
    repo_id: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class ModelPolicy(KubeValue):
    """What a model may contain."""

    allow_pickle: bool = False


class LabelSelector(KubeValue):
    """As everywhere in Kubernetes. An empty one matches everything."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[dict[str, Any], ...] = ()


class Namespaces(KubeValue):
    """A union: those named, and those whose labels match. Neither given: none."""

    names: tuple[str, ...] = ()
    selector: LabelSelector | None = None


class LocalVolumes(KubeValue):
    """Namespaces that get a local PersistentVolume and a claim for each version (mode `pv`)."""

    namespaces: tuple[str, ...] = ()


class ModelCacheSpec(KubeValue):
    """`prefetch` false: only fetched where a pod or a warm-up asks. `node_selector`: labels of the nodes that keep it
    warm; empty means every cache node. `allowed_namespaces` absent means every namespace. `required`: a node stays
    cold (tainted) without it. `digest`: accept this version only. `page_cache`: read it into memory when a pod mounts
    it. `peers` never: every node fetches it from the origin itself.
    """

    source: Source
    digest: str = ""
    kind: Kind = "checkpoint"
    node_selector: dict[str, str] = {}
    prefetch: bool = True
    allowed_namespaces: Namespaces | None = None
    priority: int = 0
    pin: bool = False
    policy: ModelPolicy = ModelPolicy()
    local_persistent_volumes: LocalVolumes = LocalVolumes()
    required: bool = False
    page_cache: bool = False
    content_digest: str = ""
    peers: Peers = "auto"


class Condition(KubeValue):
    """`metav1.Condition`."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    last_transition_time: str = ""
    observed_generation: int = 0


class NodeCounts(KubeValue, omit_defaults=False):
    """Counts, never lists: a status must not grow with the cluster."""

    assigned: int = 0
    ready: int = 0
    downloading: int = 0
    failed: int = 0

    @property
    def text(self) -> str:
        """`2/3`, for people."""
        return f"{self.ready}/{self.assigned}"


def _follow(value: KubeValue, **texts: str) -> None:
    """Set texts that are made of other fields: a printer column can show a field, and can't compute one."""
    for name, text in texts.items():
        msgspec.structs.force_setattr(value, name, text)


class ModelCacheStatus(KubeValue):
    """Conditions `Resolved`, `Ready`, `Degraded`. `resolved_for`: the request (hash of source and refresh mark) that
    `digest` answers. `looked_for`: the last look (token of the source and the look's mark) that was answered, and
    `origin_digest` what the origin held then; empty when a version was pinned since. `progress`: for people, "37 %" or
    "2/2". `previous_digests`: older versions that may still be in use. `ready`, `size` and `version` ("2/3", "141 GB",
    12 hex digits) follow the other fields by themselves.
    """

    observed_generation: int = 0
    conditions: tuple[Condition, ...] = ()
    digest: str = ""
    resolved_for: str = ""
    looked_for: str = ""
    origin_digest: str = ""
    revision: str = ""
    content_digest: str = ""
    files: int = 0
    size_bytes: int = 0
    nodes: NodeCounts = NodeCounts()
    progress: str = ""
    previous_digests: tuple[str, ...] = ()
    ready: str = ""
    size: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        size = size_text(self.size_bytes) if self.digest else ""
        _follow(self, ready=self.nodes.text, size=size, version=self.digest.removeprefix("sha256:")[:12])


# --- ModelCacheNode: one node, cluster scope, the node's name


class NodeModel(KubeValue):
    """One model that this node shall have. `digest` empty: not pinned yet. `resolve` not empty: this node is asked to
    resolve the source and to report what it found with this token; without it and without a digest the node waits.
    `namespaces`: who may mount it; None means everybody. `on_demand`: a pod here asked for it, so it overtakes
    prefetching. `max_origin_bytes_per_s`: what a warm-up lets this node take of it from the origin while no pod waits
    for it; 0: no limit. `versions`: older digests of it that stay known (their pods may mount them again), never
    fetched. `revision`: the commit that `digest` is of, where the source has such. `content_digest`: what the files'
    own hashes must come to, if given. `shared`: other nodes are to have this version too, so there is a
    ModelCachePeers, or there will be one as soon as their agents have spoken.
    """

    name: str
    source: Source
    kind: Kind = "checkpoint"
    digest: str = ""
    revision: str = ""
    content_digest: str = ""
    resolve: str = ""
    policy: ModelPolicy = ModelPolicy()
    priority: int = 0
    pin: bool = False
    page_cache: bool = False
    max_origin_bytes_per_s: int = 0
    namespaces: tuple[str, ...] | None = None
    on_demand: bool = False
    versions: tuple[str, ...] = ()
    peers: Peers = "auto"
    shared: bool = False


class Refusal(KubeValue):
    """The controller's answer to something wanted that it does not assign. `code`: that of an error in
    `cacheagent.errors` (`not-cached` for an unknown model, `refused` for a namespace or a URI that is not
    permitted)."""

    model: str
    namespace: str
    code: str
    message: str


class ModelCacheNodeSpec(KubeValue):
    """Written by the controller only. `held`: versions that PersistentVolumes point at: not evicted before the
    controller has taken them off this list (the agent announces what it would like to evict in `status.evicting`).
    """

    models: tuple[NodeModel, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    held: tuple[str, ...] = ()


class NodeModelStatus(KubeValue):
    """How far one model is on this node. `digest`: the version that this speaks of; empty before it is resolved.
    `resolved_for`: the token of `NodeModel.resolve` that this digest answers. `code`: of the error when failed.
    `mounted`: volumes that use it.
    """

    name: str
    phase: Phase
    digest: str = ""
    resolved_for: str = ""
    revision: str = ""
    content_digest: str = ""
    repo_id: str = ""
    files: int = 0
    size_bytes: int = 0
    bytes_done: int = 0
    rate_bytes_per_s: int = 0
    code: str = ""
    message: str = ""
    mounted: int = 0


class Wanted(KubeValue):
    """A pod on this node asks for a model that is not assigned here. `uri` instead of a known name: on-demand URIs."""

    model: str
    namespace: str
    uri: str = ""


class NodeUsage(KubeValue):
    """Bytes on the cache's disk; see `cacheagent.api.schema.Usage`."""

    capacity_bytes: int = 0
    free_bytes: int = 0
    used_bytes: int = 0
    reserved_bytes: int = 0
    evictable_bytes: int = 0


class ModelCacheNodeStatus(KubeValue):
    """Written by the node's own agent only (server-side apply). `models`: what is assigned, and every version on disk.
    `incarnation`: changes when the cache directory was made anew (a wiped disk), so that the node counts as cold again.
    `observed_generation`: the spec that the agent has taken in. `public_key` (Ed25519, base64; the present one, a
    comma and the next one) and `peer_address` (`host:port`): how other agents know and reach this one; empty while it
    exchanges nothing. `liars`: nodes that this one has caught, and asks for nothing; its word alone, which nobody else
    goes by. `ready` and `free` ("3/4" models, "1.2 TB") follow the other fields by themselves.
    """

    observed_generation: int = 0
    agent_version: str = ""
    incarnation: str = ""
    reported_at: str = ""
    usage: NodeUsage = NodeUsage()
    models: tuple[NodeModelStatus, ...] = ()
    wanted: tuple[Wanted, ...] = ()
    evicting: tuple[str, ...] = ()
    public_key: str = ""
    peer_address: str = ""
    liars: tuple[str, ...] = ()
    ready: str = ""
    free: str = ""

    def __post_init__(self) -> None:
        ready = sum(model.phase == "ready" for model in self.models)
        free = size_text(self.usage.free_bytes) if self.usage.capacity_bytes else ""
        _follow(self, ready=f"{ready}/{len(self.models)}", free=free)


# --- ModelCachePeers: who exchanges which versions, cluster scope


class PeerMember(KubeValue):
    """One node of a cohort. `name`: the node's. `address`: `host:port` of its agent. `key`: what its agent reports
    as its public key."""

    name: str
    address: str
    key: str
    zone: str = ""


class PeerBelow(KubeValue):
    """A node that this cohort feeds: by its keys it is let in, and it is never called."""

    name: str
    key: str


class ModelCachePeersSpec(KubeValue):
    """A cohort: nodes that all are to have all these versions. Written by the controller only; sorted. `nodes`: how
    many there are in all cohorts, at most; 0: those of this one. `level`: in their tree; 1: it is the root, 0: there is
    none. `above`: members of the cohort that feeds it. `below`: those of the cohorts that it feeds."""

    digests: tuple[str, ...] = ()
    members: tuple[PeerMember, ...] = ()
    nodes: int = 0
    level: int = 0
    above: tuple[PeerMember, ...] = ()
    below: tuple[PeerBelow, ...] = ()


# --- ModelWarmup: what `cacheagent warm` creates, cluster scope


class ModelWarmupSpec(KubeValue):
    """Keep `model` on the nodes that match `node_selector` or are named in `nodes`, until `ttl_seconds` after its
    creation. `max_origin_rate`: what all of them together may take of it from the origin (`500MB/s`); empty: no limit.
    """

    model: str
    node_selector: dict[str, str] | None = None
    nodes: tuple[str, ...] = ()
    ttl_seconds: int = 86400
    max_origin_rate: str = ""


class ModelWarmupStatus(KubeValue):
    """`expires_at`: RFC 3339. `digest`: the version that it warms. `ready` ("2/3") follows `nodes` by itself."""

    observed_generation: int = 0
    conditions: tuple[Condition, ...] = ()
    digest: str = ""
    nodes: NodeCounts = NodeCounts()
    expires_at: str = ""
    ready: str = ""

    def __post_init__(self) -> None:
        _follow(self, ready=self.nodes.text)
