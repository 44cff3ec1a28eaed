"""One of each custom resource with every field set to something that is not its default."""

from __future__ import annotations

from typing import Final

from cacheagent.kube.objects import (
    Condition,
    LabelSelector,
    LocalVolumes,
    ModelCacheNodeSpec,
    ModelCacheNodeStatus,
    ModelCachePeersSpec,
    ModelCacheSpec,
    ModelCacheStatus,
    ModelPolicy,
    ModelWarmupSpec,
    ModelWarmupStatus,
    Namespaces,
    NodeCounts,
    NodeModel,
    NodeModelStatus,
    NodeUsage,
    PeerBelow,
    PeerMember,
    Refusal,
    Source,
    Wanted,
)

DIGEST: Final = "sha256:" + "0123456789abcdef" * 4
OTHER: Final = "sha256:" + "fedcba9876543210" * 4
WHEN: Final = "2026-01-31T12:00:00Z"

SOURCE: Final = Source(
    uri="s3://models/llama",
    revision="main",
    endpoint="https://s3.example.org:9000",
    region="eu-west-1",
    credentials="team-a",
    ca_bundle="/etc/ssl/private-ca.pem",
    path_style=False,
    repo_id="meta/llama",
    include=("*.safetensors",),
    exclude=("*.md",),
)
CONDITION: Final = Condition(
    type="Ready", status="True", reason="AllNodes", message="2 of 2", last_transition_time=WHEN, observed_generation=3
)
COUNTS: Final = NodeCounts(assigned=4, ready=2, downloading=1, failed=1)
MODEL: Final = ModelCacheSpec(
    source=SOURCE,
    digest=DIGEST,
    kind="tree",
    node_selector={"pool": "h100"},
    prefetch=False,
    allowed_namespaces=Namespaces(
        names=("shop",),
        selector=LabelSelector(
            match_labels={"tier": "prod"},
            match_expressions=({"key": "team", "operator": "In", "values": ["a", "b"]},),
        ),
    ),
    priority=-5,
    pin=True,
    policy=ModelPolicy(allow_pickle=True),
    local_persistent_volumes=LocalVolumes(namespaces=("shop",)),
    required=True,
    page_cache=True,
    content_digest=OTHER,
    peers="never",
)
MODEL_STATUS: Final = ModelCacheStatus(
    observed_generation=3,
    conditions=(CONDITION,),
    digest=DIGEST,
    resolved_for="token",
    looked_for="look",
    origin_digest=OTHER,
    revision="main",
    content_digest=OTHER,
    files=12,
    size_bytes=141_000_000_000,
    nodes=COUNTS,
    progress="37 %",
    previous_digests=(OTHER,),
)
NODE: Final = ModelCacheNodeSpec(
    models=(
        NodeModel(
            name="llama",
            source=SOURCE,
            kind="tree",
            digest=DIGEST,
            resolve="token",
            policy=ModelPolicy(allow_pickle=True),
            priority=7,
            pin=True,
            page_cache=True,
            max_origin_bytes_per_s=250_000_000,
            namespaces=(),
            on_demand=True,
            versions=(OTHER,),
            revision="main",
            content_digest=OTHER,
            peers="never",
            shared=True,
        ),
    ),
    refusals=(Refusal(model="secret", namespace="shop", code="refused", message="not for shop"),),
    held=(OTHER,),
)
NODE_STATUS: Final = ModelCacheNodeStatus(
    observed_generation=9,
    agent_version="1.2.3",
    incarnation="abc",
    reported_at=WHEN,
    usage=NodeUsage(
        capacity_bytes=2_000_000_000_000,
        free_bytes=1_200_000_000_000,
        used_bytes=800_000_000_000,
        reserved_bytes=1,
        evictable_bytes=2,
    ),
    models=(
        NodeModelStatus(
            name="llama",
            phase="fetching",
            digest=DIGEST,
            resolved_for="token",
            revision="main",
            content_digest=OTHER,
            repo_id="meta/llama",
            files=12,
            size_bytes=141_000_000_000,
            bytes_done=52_000_000_000,
            rate_bytes_per_s=1_000_000_000,
            code="no-room",
            message="needs 141 GB",
            mounted=2,
        ),
    ),
    wanted=(Wanted(model="gpt", namespace="shop", uri="hf://openai/gpt"),),
    evicting=(OTHER,),
    public_key="c2VjcmV0",
    peer_address="10.0.0.1:7411",
    liars=("n2",),
)
PEERS: Final = ModelCachePeersSpec(
    digests=(DIGEST, OTHER),
    members=(PeerMember(name="node-1", address="10.0.0.1:7411", key="c2VjcmV0", zone="a"),),
    nodes=128,
    level=2,
    above=(PeerMember(name="node-2", address="10.0.0.2:7411", key="c2VjcmV0", zone="a"),),
    below=(PeerBelow(name="node-3", key="c2VjcmV0"),),
)
WARMUP: Final = ModelWarmupSpec(
    model="llama",
    node_selector={},
    nodes=("node-1",),
    max_origin_rate="500MB/s",
    ttl_seconds=3600,
)
WARMUP_STATUS: Final = ModelWarmupStatus(
    observed_generation=1, conditions=(CONDITION,), digest=DIGEST, nodes=COUNTS, expires_at=WHEN
)
