"""Turning a judged pod into JSON patch operations: only additions of what is not there yet, so that a second pass adds
nothing. Pure."""

from __future__ import annotations

from typing import Any, Final

from cacheagent.kube import names
from cacheagent.kube.webhook.annotations import Asked
from cacheagent.kube.webhook.decide import WAIT_CONTAINER, Chosen, Injection
from cacheagent.kube.webhook.patch import END, FIRST, Patch
from cacheagent.kube.webhook.pod import Pod, Slot, annotations_of, object_in, slots_of, spec_of, volumes_of
from cacheagent.kube.webhook.settings import WebhookSettings
from cacheagent.model import canonical_json

WAIT_COMMAND: Final = ("python3", "-m", "cacheagent.waiter")
WAIT_RESOURCES: Final = {"cpu": "100m", "memory": "64Mi"}
"""Requests and limits of the waiting container: equal, so that a Guaranteed pod stays one. Chosen: a Python program
that polls."""
WAIT_USER: Final = 65532
"""The image's own user: not root."""
_NODE_AFFINITY: Final = ("spec", "affinity", "nodeAffinity")
_PREFERRED: Final = "preferredDuringSchedulingIgnoredDuringExecution"


def inject(pod: Pod, injection: Injection, settings: WebhookSettings) -> list[dict[str, Any]]:
    """The operations, in the order in which they apply; none when all is there. Raises PodRefused for a pod that no
    schema would let through."""
    patch = Patch(pod)
    for model in injection.models:
        _add_volume(patch, model, injection.asked)
        for slot in list(slots_of(patch.pod)):
            if slot.name in injection.containers:
                _add_mount(patch, slot, model)
    if injection.asked.view == "hf":
        for slot in list(slots_of(patch.pod)):
            if slot.name in injection.containers:
                _add_environment(patch, slot, injection.models[0].mount_path)
    if injection.asked.mode == "csi":  # with `pv` the claim says where the pod may go
        for model in injection.models:
            _add_affinity(patch, model, settings.affinity_weight)
    if injection.asked.wait == "gate":
        _add_gate(patch)
    _mark(patch, injection)
    if injection.asked.wait == "init":
        _add_waiting(patch, injection, settings)  # last: it moves the other init containers up
    return patch.operations


def _add_volume(patch: Patch, model: Chosen, asked: Asked) -> None:
    if all(volume.get("name") != model.volume for volume in volumes_of(patch.pod)):
        patch.put(("spec", "volumes", END), {"name": model.volume, **_volume_source(model, asked)})


def _volume_source(model: Chosen, asked: Asked) -> dict[str, Any]:
    if asked.mode == "pv":
        claim = names.claim_name(model.name, model.digest)
        return {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    attributes = {
        "model": "" if model.uri else model.name,
        "uri": model.uri,
        "digest": model.digest,
        "view": asked.view,
        "wait": "init" if asked.wait == "init" else "mount",
        "pageCache": "" if asked.page_cache is None else str(asked.page_cache).lower(),
    }
    told = {key: value for key, value in attributes.items() if value}
    return {"csi": {"driver": names.DRIVER, "readOnly": True, "volumeAttributes": told}}


def _mount(model: Chosen) -> dict[str, Any]:
    return {"name": model.volume, "mountPath": model.mount_path, "readOnly": True}


def _add_mount(patch: Patch, slot: Slot, model: Chosen) -> None:
    there = any(mount.get("name") == model.volume and _plain(mount) == model.mount_path for mount in slot.mounts)
    if not there:
        patch.put((*slot.path, "volumeMounts", END), _mount(model))


def _plain(mount: dict[str, Any]) -> str:
    return "/" + "/".join(part for part in str(mount.get("mountPath")).split("/") if part not in {"", "."})


def _add_environment(patch: Patch, slot: Slot, path: str) -> None:
    for name, value in (("HF_HUB_CACHE", path), ("HF_HUB_OFFLINE", "1")):
        if name not in slot.env_names:
            patch.put((*slot.path, "env", END), {"name": name, "value": value})


def _add_affinity(patch: Patch, model: Chosen, weight: int) -> None:
    """Preferred, never required: a warm cache attracts pods and never keeps one from starting."""
    if not model.digest:
        return
    expression = {"key": names.model_label(model.name), "operator": "In", "values": [names.short_digest(model.digest)]}
    term = {"weight": weight, "preference": {"matchExpressions": [expression]}}
    affinity = object_in(object_in(spec_of(patch.pod), "affinity"), "nodeAffinity")
    if term not in (affinity.get(_PREFERRED) or []):
        patch.put((*_NODE_AFFINITY, _PREFERRED, END), term)


def _add_gate(patch: Patch) -> None:
    gate = {"name": names.GATE}
    if gate not in (spec_of(patch.pod).get("schedulingGates") or []):
        patch.put(("spec", "schedulingGates", END), gate)


def _mark(patch: Patch, injection: Injection) -> None:
    metadata = object_in(patch.pod, "metadata")
    if object_in(metadata, "labels").get(names.INJECTED_LABEL) != "true":
        patch.put(("metadata", "labels", names.INJECTED_LABEL), "true")
    decision = canonical_json(injection.decision).decode()
    if annotations_of(patch.pod).get(names.DECISION) != decision:
        patch.put(("metadata", "annotations", names.DECISION), decision)


def _add_waiting(patch: Patch, injection: Injection, settings: WebhookSettings) -> None:
    if any(slot.name == WAIT_CONTAINER for slot in slots_of(patch.pod)):
        return
    container: dict[str, Any] = {
        "name": WAIT_CONTAINER,
        "image": settings.image,
        "command": [*WAIT_COMMAND, *(model.mount_path for model in injection.models)],
        "resources": {"requests": dict(WAIT_RESOURCES), "limits": dict(WAIT_RESOURCES)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": WAIT_USER,
            "runAsGroup": WAIT_USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [_mount(model) for model in injection.models],
    }
    if settings.image_pull_policy:
        container["imagePullPolicy"] = settings.image_pull_policy
    patch.put(("spec", "initContainers", FIRST), container)
