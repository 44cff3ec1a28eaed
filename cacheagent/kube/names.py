"""Every name that lives in a cluster: groups, labels, annotations, and the names that are made from a digest. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import Final

GROUP: Final = "cacheagent.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

DRIVER: Final = "csi.cacheagent.io"
"""Name of the CSI driver: in CSIDriver, in inline volumes and in PersistentVolumes."""

FIELD_MANAGER_CONTROLLER: Final = "cacheagent-controller"
FIELD_MANAGER_AGENT: Final = "cacheagent-agent"

# --- what a person writes on a pod (docs/annotations.md)
MODEL: Final = f"{GROUP}/model"
MOUNT_PATH: Final = f"{GROUP}/mount-path"
CONTAINERS: Final = f"{GROUP}/containers"
MODE: Final = f"{GROUP}/mode"
WAIT: Final = f"{GROUP}/wait"
VIEW: Final = f"{GROUP}/view"
PAGE_CACHE: Final = f"{GROUP}/page-cache"
GATE_NODES: Final = f"{GROUP}/gate-nodes"
GATE_DEADLINE: Final = f"{GROUP}/gate-deadline"

# --- what a person writes on a namespace
KSERVE_LABEL: Final = f"{GROUP}/kserve"
"""With the value `enabled`: what KServe's pods there would download, the cache shows them."""
KSERVE_ENABLED: Final = "enabled"

# --- what we write on pods, nodes and our own objects
INJECTED_LABEL: Final = f"{GROUP}/injected"
"""On every pod that the webhook rewrote, value `true`: the controller watches only those."""
DECISION: Final = f"{GROUP}/decision"
"""The webhook's first decision as JSON; a second call follows it instead of deciding anew."""
ADMITTED: Final = f"{GROUP}/admitted"
"""When the webhook judged the pod, where starts are traced: a span of the start is made of it."""
NOT_SERVED: Final = f"{GROUP}/not-served"
"""On a pod of KServe that has a ModelCache and can't be served from it: why not."""
WOKEN: Final = f"{GROUP}/weights-ready"
"""Set by the controller on pods that wait, when their model becomes ready: any change wakes the kubelet's pod
worker."""
GATE: Final = f"{GROUP}/weights"
"""The scheduling gate of `wait: gate`."""
WAIT_CONTAINER: Final = "cacheagent-wait"
"""The init container of `wait: init`."""
REFRESH: Final = f"{GROUP}/refresh"
"""On a ModelCache: any new value makes the controller have the source resolved again."""
LOOK: Final = f"{GROUP}/look"
"""On a ModelCache: any new value makes the controller have a node look what the origin holds now; nothing is pinned."""
LAST_USED: Final = f"{GROUP}/last-used"
"""On a ModelCache that a URI made: when it was last used (RFC 3339, some hours behind)."""
COLD_SINCE: Final = f"{GROUP}/cold-since"
"""On a Node with the cold taint: since when (RFC 3339)."""
INCARNATION: Final = f"{GROUP}/incarnation"
"""On a Node: the cache directory that was warm; another one means that the node comes back empty."""
COLD_TAINT: Final = f"{GROUP}/cold"
MODEL_LABEL: Final = f"model.{GROUP}/"
"""`model.cacheagent.io/<model>` = 12 hex digits of the digest that is ready there: for people and for preferred
affinity."""
VERSION_LABEL: Final = f"version.{GROUP}/"
"""`version.cacheagent.io/<12 hex>` = `ready`: one *key* per version, so that the affinity of a PersistentVolume never
moves."""
MEMBER_LABEL: Final = f"member.{GROUP}/"
"""`member.cacheagent.io/<16 hex of the node's name>` on a ModelCachePeers: whom it lists. Agents watch by it."""
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY_US: Final = "cacheagent"
CONTENT_MODEL: Final = f"{GROUP}/model-name"
CONTENT_DIGEST: Final = f"{GROUP}/digest"
"""Labels (name; 12 hex) on PersistentVolumes and claims that the controller made."""

AGENT_COMPONENT: Final = {"app.kubernetes.io/name": "cacheagent", "app.kubernetes.io/component": "agent"}
"""Labels of the agent's pods: a node where one runs is a cache node."""

DEFAULT_MOUNT_PATH: Final = "/mnt/models"

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def short_digest(digest: str) -> str:
    """The first 12 hex digits. Raises ValueError for what is no digest."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest[:100]!r} is no digest")
    return digest[7:19]


def version_label(digest: str) -> str:
    """The node label's key that says: this version is here."""
    return VERSION_LABEL + short_digest(digest)


def model_label(model: str) -> str:
    """The node label's key that says which version of a model is here."""
    return MODEL_LABEL + model


def member_label(node: str) -> str:
    """The label's key by which a node finds the lists that it is on. A node's name may be longer than a label's."""
    return MEMBER_LABEL + hashlib.sha256(node.encode()).hexdigest()[:16]


def claim_name(model: str, digest: str) -> str:
    """Name of the claim of one version of a model, the same in every namespace: at most 63 characters."""
    return f"cacheagent-{model[:39]}-{short_digest(digest)}".replace("--", "-")


def volume_name(model: str, digest: str, namespace: str) -> str:
    """Name of the PersistentVolume of one (version, namespace)."""
    return f"{claim_name(model, digest)}-{hashlib.sha256(namespace.encode()).hexdigest()[:10]}"


def model_name_of_uri(uri: str, credential: str = "") -> str:
    """The ModelCache that stands for a URI which a pod asked for: the same on every node and replica."""
    return f"uri-{hashlib.sha256(f'{credential} {uri}'.encode()).hexdigest()[:16]}"
