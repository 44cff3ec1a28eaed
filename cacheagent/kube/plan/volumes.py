"""Local PersistentVolumes and their claims: one pair for each (version, namespace), bound to each other in advance.
Pure.

Pods mount them without us, so the creation of the pair is the permission, and its removal waits until no pod uses it: a
claim that is deleted while in use makes new pods unschedulable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cacheagent.kube.api import CLAIMS, VOLUMES, Object
from cacheagent.kube.names import (
    CONTENT_DIGEST,
    CONTENT_MODEL,
    MANAGED_BY,
    MANAGED_BY_US,
    claim_name,
    short_digest,
    version_label,
    volume_name,
)
from cacheagent.kube.plan.changes import POD_WAITS, TIDIES, Change, Unused
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.views import Claim, Volume
from cacheagent.kube.plan.world import InUse, World

SUPERSEDED_FOR_S: Final = 120.0
"""How long a pair stays that is not wanted any more: a webhook replica may have named it in a pod a moment ago.
Chosen."""
MOUNT_OPTIONS: Final = ("ro", "nosuid", "nodev", "noexec")
"""Without them a pod that omits `readOnly` and sets `fsGroup` changes owner and bytes of the files that all pods
share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A volume and its claim that shall be there."""

    model: str
    digest: str
    namespace: str
    size_bytes: int

    @property
    def volume(self) -> str:
        """The PersistentVolume's name."""
        return volume_name(self.model, self.digest, self.namespace)

    @property
    def claim(self) -> str:
        """The claim's name."""
        return claim_name(self.model, self.digest)

    @property
    def labels(self) -> dict[str, str]:
        """Of both."""
        return {MANAGED_BY: MANAGED_BY_US, CONTENT_MODEL: self.model, CONTENT_DIGEST: short_digest(self.digest)}


@dataclass(slots=True)
class VolumePlan:
    """`claims`: by version, the claims (namespace, name) that stand for it. `superseded`: as in `Memory`."""

    changes: list[Change] = field(default_factory=list)
    claims: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    superseded: dict[tuple[str, str], float] = field(default_factory=dict)
    deadline: float = float("inf")


def claims_in_use(world: World) -> set[InUse]:
    """By the pods that we watch, and by those that were found a moment ago."""
    used: set[InUse] = set(world.memory.in_use)
    for pod in world.pods.values():
        if not pod.over:
            for claim in pod.claims:
                used |= {("", pod.meta.namespace, claim), (pod.node, pod.meta.namespace, claim)}
    return used


def plan_volumes(world: World, facts: Mapping[str, Facts], used: set[InUse], now: float) -> VolumePlan:
    """Make what is missing, make anew what is broken, remove what nobody uses."""
    pairs = {pair.volume: pair for pair in _wanted(world, facts)}
    wanted_claims = {(pair.namespace, pair.claim) for pair in pairs.values()}
    found = VolumePlan()
    for pair in pairs.values():
        found.claims.setdefault(pair.digest, set()).add((pair.namespace, pair.claim))
        found.changes += _kept(pair, world)
    for name, volume in world.volumes.items():
        if volume.digest:
            found.claims.setdefault(volume.digest, set()).add((volume.claim_namespace, volume.claim))
        has_claim = (volume.claim_namespace, volume.claim) in world.claims
        if name not in pairs and not has_claim and not volume.meta.deleting:
            found.changes.append(_delete_volume(volume))
    for key, claim in world.claims.items():
        if key not in wanted_claims and not claim.meta.deleting:
            _supersede(found, claim, key, world, used, now)
    return found


def _wanted(world: World, facts: Mapping[str, Facts]) -> Iterable[Pair]:
    for name, each in facts.items():
        if not each.digest:
            continue
        for namespace in each.model.spec.local_persistent_volumes.namespaces:
            meta = world.namespaces.get(namespace)
            if meta is not None and not meta.deleting and each.permits(namespace):
                yield Pair(model=name, digest=each.digest, namespace=namespace, size_bytes=each.model.status.size_bytes)


def _kept(pair: Pair, world: World) -> list[Change]:
    volume = world.volumes.get(pair.volume)
    claim = world.claims.get((pair.namespace, pair.claim))
    if volume is None and not _is_held(pair.digest, world):
        return []
    if volume is None:
        create = Change(
            verb="create",
            resource=VOLUMES,
            name=pair.volume,
            body=volume_body(pair, world.settings.host_root),
            urgency=POD_WAITS,
        )
        return [create]
    if volume.meta.deleting:
        return []
    if volume.phase in {
        "Released",
        "Failed",
    }:  # making both anew takes 1 s, clearing claimRef.uid takes 13 s (measured)
        return [_delete_volume(volume), *_delete_claim(claim)]
    if claim is None and volume.phase == "Bound":  # its claim is gone: it will be released, and then both are made anew
        return []
    if claim is None:
        return [
            Change(
                verb="create",
                resource=CLAIMS,
                name=pair.claim,
                namespace=pair.namespace,
                body=claim_body(pair),
                urgency=POD_WAITS,
            )
        ]
    return _delete_claim(claim) if claim.phase == "Lost" else []


def _is_held(digest: str, world: World) -> bool:
    """Whether every node that is labelled with this version has been told to hold it: before a volume sends pods
    there."""
    label = version_label(digest)
    return all(
        digest in node.spec.held
        for name, node in world.cache_nodes.items()
        if node.reported and (kube_node := world.nodes.get(name)) is not None and label in kube_node.ours
    )


def _delete_volume(volume: Volume) -> Change:
    return Change(verb="delete", resource=VOLUMES, name=volume.meta.name, uid=volume.meta.uid, urgency=TIDIES)


def _delete_claim(claim: Claim | None, unless_used: Unused | None = None) -> list[Change]:
    if claim is None or claim.meta.deleting:
        return []
    change = Change(
        verb="delete",
        resource=CLAIMS,
        name=claim.meta.name,
        namespace=claim.meta.namespace,
        uid=claim.meta.uid,
        urgency=TIDIES,
        unless_used=unless_used,
    )
    return [change]


def _supersede(
    found: VolumePlan, claim: Claim, key: tuple[str, str], world: World, used: set[InUse], now: float
) -> None:
    if ("", *key) in used:
        return
    since = world.memory.superseded.get(key, now)
    found.superseded[key] = since
    if now < since + SUPERSEDED_FOR_S:
        found.deadline = min(found.deadline, since + SUPERSEDED_FOR_S)
    else:
        found.changes += _delete_claim(claim, Unused(frozenset({key})))


def volume_body(pair: Pair, host_root: str) -> Object:
    """The PersistentVolume: any node with this version's label."""
    has_version = {"key": version_label(pair.digest), "operator": "Exists"}
    return {
        "apiVersion": VOLUMES.api_version,
        "kind": VOLUMES.kind,
        "metadata": {"name": pair.volume, "labels": pair.labels},
        "spec": {
            "capacity": {"storage": str(max(1, pair.size_bytes))},
            "accessModes": ["ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "volumeMode": "Filesystem",
            "mountOptions": list(MOUNT_OPTIONS),
            "claimRef": {
                "apiVersion": "v1",
                "kind": CLAIMS.kind,
                "namespace": pair.namespace,
                "name": pair.claim,
            },
            "local": {"path": f"{host_root}/models/{pair.digest.replace(':', '-')}/files"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [has_version]}]}},
        },
    }


def claim_body(pair: Pair) -> Object:
    """The claim that this volume waits for."""
    return {
        "apiVersion": CLAIMS.api_version,
        "kind": CLAIMS.kind,
        "metadata": {"name": pair.claim, "namespace": pair.namespace, "labels": pair.labels},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": pair.volume,
            "volumeMode": "Filesystem",
            "resources": {"requests": {"storage": str(max(1, pair.size_bytes))}},
        },
    }
