"""What a Node says of itself: labels for the versions that are there, and the cold taint. Pure.

One patch for each Node, so that what changes together is written together.
"""

from __future__ import annotations

from collections.abc import Mapping

from cacheagent.kube.api import NODES, Object
from cacheagent.kube.names import model_label, short_digest, version_label
from cacheagent.kube.plan.changes import POD_WAITS, STEERS, Change, merge_patch
from cacheagent.kube.plan.cold import Coldness
from cacheagent.kube.plan.digests import is_digest
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.holds import Hold
from cacheagent.kube.plan.views import CacheNode, Node


class LabelBook:
    """Labels of every known version and model, made once for a round."""

    def __init__(self, facts: Mapping[str, Facts]) -> None:
        self.versions: dict[str, str] = {}
        self.models: list[tuple[str, list[tuple[str, str]]]] = []
        for name, each in facts.items():
            known = [digest for digest in (each.digest, *each.previous) if digest]
            self.versions.update((digest, version_label(digest)) for digest in known)
            self.models.append((model_label(name), [(digest, short_digest(digest)) for digest in known]))
        self.alike: dict[tuple[object, ...], Mapping[str, str]] = {}
        """What was found for one node, for those that differ in nothing that decides."""


def wanted_labels(
    book: LabelBook, node: CacheNode, kube_node: Node, hold: Hold, claims: Mapping[str, set[tuple[str, str]]]
) -> Mapping[str, str]:
    """A version's key goes only when the version goes: the kubelet checks a volume's affinity again when it restarts. A
    version that volumes point at gets its key only when the agent has heard that it is held."""
    if not node.reported:
        return kube_node.ours
    # Nodes that have the same share these values (`views`), so for most of a fleet it is decided once a round.
    decides = (id(node.on_disk), id(kube_node.ours), hold.leaving, node.spec.held, node.heard)
    if decides not in book.alike:
        book.alike[decides] = _labels(book, node, kube_node, hold, claims)
    return book.alike[decides]


def _labels(
    book: LabelBook, node: CacheNode, kube_node: Node, hold: Hold, claims: Mapping[str, set[tuple[str, str]]]
) -> Mapping[str, str]:
    shown: set[str] = set()
    labels: dict[str, str] = {}
    for digest in node.on_disk:
        if digest in hold.leaving or not is_digest(digest):
            continue
        key = book.versions.get(digest) or version_label(digest)
        if key in kube_node.ours or (
            digest in book.versions and (digest not in claims or (digest in node.spec.held and node.heard))
        ):
            labels[key] = "ready"
            shown.add(digest)
    for key, versions in book.models:
        for digest, short in versions:
            if digest in shown:
                labels[key] = short
                break
    return labels


def plan_node(kube_node: Node, labels: Mapping[str, str], cold: Coldness) -> Change | None:
    """The patch of a Node, if it needs one. A list of taints is replaced whole, so then it must be the one we know."""
    metadata: Object = {}
    if labels != kube_node.ours:
        metadata["labels"] = merge_patch(labels, kube_node.ours)
    if cold.annotations:
        metadata["annotations"] = cold.annotations
    body: Object = {"metadata": metadata} if metadata else {}
    if cold.taints is not None:
        body = {
            "metadata": {**metadata, "resourceVersion": kube_node.meta.resource_version},
            "spec": {"taints": cold.taints},
        }
    if not body:
        return None
    gains = "labels" in metadata or cold.taints is not None
    return Change(
        verb="patch",
        resource=NODES,
        name=kube_node.meta.name,
        body=body,
        urgency=POD_WAITS if gains else STEERS,
        notes=cold.notes,
    )
