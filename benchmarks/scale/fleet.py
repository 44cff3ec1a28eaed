"""The objects of a fleet: Nodes as large as GPU nodes are, the agents' pods, models, a warm-up. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from cacheagent.kube.api import MODEL_CACHE_NODES, MODEL_CACHES, MODEL_WARMUPS, NODES, PODS, Object
from cacheagent.kube.convert import now_text, spec_of, to_json
from cacheagent.kube.names import AGENT_COMPONENT, model_label, short_digest, version_label
from cacheagent.kube.objects import ModelCacheNodeSpec, ModelCacheSpec, ModelCacheStatus, NodeModel
from cacheagent.kube.plan.facts import resolve_token
from cacheagent.kube.plan.views import parse_model

NAMESPACE: Final = "cacheagent"
WARMED: Final = "warmed-up"
"""The model that no node has until it is warmed."""
SIZE_BYTES: Final = 141_107_412_992
FILES: Final = 41
"""Of every model."""
IMAGES: Final = 50
"""As many as the kubelet reports at most."""
GPU_LABELS: Final = {
    **{f"feature.node.kubernetes.io/cpu-cpuid.{name}": "true" for name in ("AVX512F", "AVX512VNNI", "AMXBF16", "SHA")},
    **{f"feature.node.kubernetes.io/{name}.present": "true" for name in ("pci-10de", "pci-15b3", "rdma.capable")},
    **{f"nvidia.com/gpu.deploy.{name}": "true" for name in ("driver", "dcgm", "device-plugin", "mig-manager")},
    "nvidia.com/gpu.count": "8",
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.memory": "81559",
    "nvidia.com/gpu.family": "hopper",
    "node.kubernetes.io/instance-type": "p5.48xlarge",
    "topology.kubernetes.io/region": "eu-north-1",
    "kubernetes.io/arch": "amd64",
    "kubernetes.io/os": "linux",
}


class Size(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`models` in all; one of them is on no node until it is warmed, each other one is on all nodes of one of `pools`.
    `rest_s`: how long is measured at rest."""

    nodes: int
    models: int
    pools: int
    rest_s: float

    @property
    def node_names(self) -> list[str]:
        """All nodes."""
        return [f"gpu-node-{number:05}.cluster.example" for number in range(self.nodes)]

    @property
    def model_names(self) -> list[str]:
        """Those that some nodes have."""
        return [f"model-{number:03}-70b-instruct" for number in range(self.models - 1)]

    def is_on(self, model: int, node: int) -> bool:
        """Whether the model of this number belongs on the node of this number before the warm-up."""
        return model % self.pools == node % self.pools

    def pool_of(self, number: int) -> str:
        """Of a model or a node."""
        return f"pool-{number % self.pools}"

    def nodes_with(self, model: int) -> int:
        """How many."""
        return sum(self.is_on(model, node) for node in range(self.nodes))


def conditions() -> list[Object]:
    """A Node's, as the kubelet writes them every five minutes."""
    return [
        {
            "type": type_,
            "status": "True" if type_ == "Ready" else "False",
            "reason": f"Kubelet{type_}",
            "message": "kubelet is posting its status, and this is what it has to say of it",
            "lastHeartbeatTime": now_text(),
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for type_ in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
    ]


def node(name: str, pool: str, models: Iterable[str]) -> Object:
    """A Node of about 10 KB, with the labels of the models that are there."""
    labels = {**GPU_LABELS, "kubernetes.io/hostname": name, "pool": pool}
    for each in models:
        digest = digest_of(each)
        labels |= {version_label(digest): "ready", model_label(each): short_digest(digest)}
    images = [
        {"names": [f"registry.example/team-{n}/image@sha256:{n:064x}", f"registry.example/team-{n}/image:v{n}"]}
        for n in range(IMAGES)
    ]
    return {
        "apiVersion": NODES.api_version,
        "kind": NODES.kind,
        "metadata": {"name": name, "labels": labels},
        "spec": {"providerID": f"aws:///eu-north-1a/{name}"},
        "status": {
            "capacity": {"cpu": "192", "memory": "2Ti", "nvidia.com/gpu": "8", "pods": "110"},
            "conditions": conditions(),
            "images": [{**image, "sizeBytes": 1_000_000_000} for image in images],
        },
    }


def agent_pod(node_name: str) -> Object:
    """The agent's pod on a node."""
    containers = [{"name": name, "image": "registry.example/cacheagent:1"} for name in ("agent", "csi")]
    return {
        "apiVersion": PODS.api_version,
        "kind": PODS.kind,
        "metadata": {
            "name": f"cacheagent-agent-{node_name.split('.', maxsplit=1)[0]}",
            "namespace": NAMESPACE,
            "labels": AGENT_COMPONENT,
        },
        "spec": {"nodeName": node_name, "containers": containers, "tolerations": [{"operator": "Exists"}]},
    }


def model(name: str, pool: str = "", *, prefetch: bool = True) -> Object:
    """A ModelCache for the nodes of a pool."""
    return {
        "apiVersion": MODEL_CACHES.api_version,
        "kind": MODEL_CACHES.kind,
        "metadata": {"name": name},
        "spec": {
            "source": {
                "uri": f"s3://models-of-the-company/production/{name}",
                "endpoint": "https://s3.storage.example",
                "region": "eu-north-1",
                "credentials": "models",
            },
            "prefetch": prefetch,
            **({"nodeSelector": {"pool": pool}} if pool else {}),
            "allowedNamespaces": {"names": ["inference", "research"]},
        },
    }


def resolved(model: Object) -> Object:
    """A ModelCache's status once its version is pinned."""
    digest = digest_of(model["metadata"]["name"])
    status = ModelCacheStatus(
        digest=digest, resolved_for=resolve_token(parse_model(model)), files=FILES, size_bytes=SIZE_BYTES
    )
    return to_json(status)


def cache_node(node: Object, models: Iterable[Object]) -> Object:
    """The ModelCacheNode of this Node, with its orders as the controller writes them."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": node["metadata"]["name"], "uid": node["metadata"]["uid"]}
    orders = []
    for model in models:
        name, spec = model["metadata"]["name"], spec_of(model, ModelCacheSpec)
        allowed = spec.allowed_namespaces
        orders.append(
            NodeModel(
                name=name,
                source=spec.source,
                digest=digest_of(name),
                namespaces=allowed.names if allowed is not None else None,
            )
        )
    return {
        "apiVersion": MODEL_CACHE_NODES.api_version,
        "kind": MODEL_CACHE_NODES.kind,
        "metadata": {"name": node["metadata"]["name"], "ownerReferences": [owner]},
        "spec": to_json(ModelCacheNodeSpec(models=tuple(orders))),
    }


def digest_of(text: str) -> str:
    """A digest that every part of the benchmark computes alike."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def warmup() -> Object:
    """Every node shall have the one model that none has."""
    return {
        "apiVersion": MODEL_WARMUPS.api_version,
        "kind": MODEL_WARMUPS.kind,
        "metadata": {"name": "everywhere"},
        "spec": {"model": WARMED, "nodeSelector": {}},
    }
