"""The objects of a fleet: Nodes as large as GPU nodes are, the agents' pods, models, a warm-up. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from cacheagent.kube.api import MODEL_CACHES, MODEL_WARMUPS, NODES, PODS, Object
from cacheagent.kube.convert import now_text
from cacheagent.kube.names import AGENT_COMPONENT

NAMESPACE: Final = "cacheagent"
WARMED: Final = "warmed-up"
"""The model that no node has until it is warmed."""
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
    """`models` in all; one of them is on no node until it is warmed, each other one is on every node. `rest_s`: how
    long is measured at rest."""

    nodes: int
    models: int
    rest_s: float

    @property
    def node_names(self) -> list[str]:
        """All nodes."""
        return [f"gpu-node-{number:05}.cluster.example" for number in range(self.nodes)]

    @property
    def model_names(self) -> list[str]:
        """Those that every node has."""
        return [f"model-{number:03}-70b-instruct" for number in range(self.models - 1)]


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


def node(name: str) -> Object:
    """A Node of about 10 KB."""
    images = [
        {"names": [f"registry.example/team-{n}/image@sha256:{n:064x}", f"registry.example/team-{n}/image:v{n}"]}
        for n in range(IMAGES)
    ]
    return {
        "apiVersion": NODES.api_version,
        "kind": NODES.kind,
        "metadata": {"name": name, "labels": {**GPU_LABELS, "kubernetes.io/hostname": name, "pool": "h100"}},
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


def model(name: str, *, prefetch: bool = True) -> Object:
    """A ModelCache for all nodes."""
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
            "allowedNamespaces": {"names": ["inference", "research"]},
        },
    }


def warmup() -> Object:
    """Every node shall have the one model that none has."""
    return {
        "apiVersion": MODEL_WARMUPS.api_version,
        "kind": MODEL_WARMUPS.kind,
        "metadata": {"name": "everywhere"},
        "spec": {"model": WARMED, "nodeSelector": {}},
    }
