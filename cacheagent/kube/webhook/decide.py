"""Judging a pod: which versions of which models go where, or why not. Pure; what the cluster has is told by a catalog.

The first decision is kept on the pod: a second call, after others added their containers, takes containers and
versions from it. It is never believed further than that: permission is judged anew each time, and only versions of the
very model count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from cacheagent.errors import PolicyRefused, UsageError
from cacheagent.kube import names
from cacheagent.kube.uris import get_rule, is_uri, repository_of
from cacheagent.kube.webhook.annotations import Asked, Mode, View, Wait, near, overlap, parse_annotations
from cacheagent.kube.webhook.catalog import Catalog, CatalogModel
from cacheagent.kube.webhook.pod import Pod, Slot, annotations_of, slots_of, spec_of, volumes_of
from cacheagent.kube.webhook.refusal import PodRefused
from cacheagent.kube.webhook.settings import WebhookSettings
from cacheagent.model import Value

WAIT_CONTAINER = names.WAIT_CONTAINER
LONGEST_VOLUME_NAME = 63
"""A DNS label."""


class Decision(Value):
    """What is kept on the pod. `models`: digest by name, empty where it was not known."""

    models: dict[str, str]
    containers: tuple[str, ...]
    mode: Mode
    wait: Wait
    view: View


class Chosen(Value):
    """One model for one pod. `uri`: the on-demand URI that `name` stands for."""

    name: str
    volume: str
    mount_path: str
    digest: str = ""
    uri: str = ""


class Injection(Value):
    """All that is to be done to a pod."""

    asked: Asked
    models: tuple[Chosen, ...]
    containers: tuple[str, ...]

    @property
    def decision(self) -> Decision:
        """What a second call must know of this one."""
        return Decision(
            models={model.name: model.digest for model in self.models},
            containers=self.containers,
            mode=self.asked.mode,
            wait=self.asked.wait,
            view=self.asked.view,
        )


def decide(pod: Pod, namespace: str, catalog: Catalog, settings: WebhookSettings) -> Injection | None:
    """What to do to this pod; None when it asks for nothing. Raises PodRefused."""
    asked = parse_annotations(annotations_of(pod))
    return None if asked is None else judge(pod, asked, namespace, catalog, settings)


def judge(pod: Pod, asked: Asked, namespace: str, catalog: Catalog, settings: WebhookSettings) -> Injection:
    """What to do to a pod for which this is asked. Raises PodRefused."""
    slots = [slot for slot in slots_of(pod) if slot.name != WAIT_CONTAINER]
    first = _first_decision(pod)
    models = tuple(_choose(written, asked, namespace, catalog, settings) for written in asked.models)
    for name in (model.name for model in models):
        if sum(model.name == name for model in models) > 1:
            raise PodRefused(f"{names.MODEL} names one model twice, {name}; name it once")
    if first is not None and _same_request(first, asked, models):
        models = tuple(_as_before(model, first, catalog) for model in models)
        containers = tuple(slot.name for slot in slots if slot.name in first.containers)
    else:
        containers = _containers(asked, slots, settings)
    if asked.mode == "pv":
        for model in models:
            _require_volume(model, namespace, catalog)
    if asked.wait == "gate" and spec_of(pod).get("nodeName"):
        raise PodRefused(f"{names.WAIT}: gate can't hold a pod with spec.nodeName; use {names.WAIT}: init or mount")
    _check_paths(models, [slot for slot in slots if slot.name in containers])
    _check_volumes(models, volumes_of(pod), asked.mode)
    return Injection(asked=asked, models=models, containers=containers)


def is_ours(volume: Pod, model: Chosen, mode: Mode) -> bool:
    """Whether a volume of the pod is this model's already, put there by us or by the pod's author."""
    if mode == "pv":
        claim = volume.get("persistentVolumeClaim")
        return isinstance(claim, dict) and claim.get("claimName") == names.claim_name(model.name, model.digest)
    csi = volume.get("csi")
    if not isinstance(csi, dict) or csi.get("driver") != names.DRIVER:
        return False
    attributes = csi.get("volumeAttributes")
    if not isinstance(attributes, dict):
        return False
    return bool(attributes.get("uri") == model.uri if model.uri else attributes.get("model") == model.name)


def _choose(written: str, asked: Asked, namespace: str, catalog: Catalog, settings: WebhookSettings) -> Chosen:
    name, uri = written, ""
    if is_uri(written):
        name, uri = _permitted_uri(written, namespace, settings)
        known = catalog.find(name)
        repo_id = repository_of(uri)
    else:
        known = _permitted_model(written, namespace, catalog)
        repo_id = known.repo_id
    if asked.view == "hf" and not repo_id:
        raise PodRefused(
            f"{names.VIEW}: hf needs a repository id, and {written[:200]} has none; "
            "set spec.source.repoId (org/name) of its ModelCache, or use view files"
        )
    digest = known.digest if known is not None else ""
    return Chosen(
        name=name, volume=volume_name(name), mount_path=asked.mount_path(written, name), digest=digest, uri=uri
    )


def volume_name(model: str) -> str:
    """Name of a model's volume in a pod: a DNS label, so the longest names end in a hash."""
    name = f"cacheagent-{model}"
    if len(name) <= LONGEST_VOLUME_NAME:
        return name
    return f"{name[: LONGEST_VOLUME_NAME - 9]}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def _permitted_uri(written: str, namespace: str, settings: WebhookSettings) -> tuple[str, str]:
    try:
        permitted = get_rule(written, namespace, settings.allow_list)
    except PolicyRefused as refusal:
        raise PodRefused(f"{refusal.message}; {refusal.hint}", status=403) from refusal
    except UsageError as error:
        raise PodRefused(f"{names.MODEL}: {error.message}") from error
    return permitted.model, permitted.uri


def _permitted_model(name: str, namespace: str, catalog: Catalog) -> CatalogModel:
    labels = catalog.namespace_labels(namespace)
    model = catalog.find(name)
    if model is None:
        raise PodRefused(
            f"there is no ModelCache {name!r}{_suggest(name, namespace, catalog)}", status=403, may_pass=True
        )
    if not model.permits(namespace, labels):
        raise PodRefused(
            f"namespace {namespace!r} may not use model {name!r}; "
            "ask for it to be in spec.allowedNamespaces of the ModelCache",
            status=403,
            may_pass=True,
        )
    if model.deleting:
        raise PodRefused(f"model {name!r} is being deleted; name another one", status=403)
    return model


def _suggest(name: str, namespace: str, catalog: Catalog) -> str:
    """Only names that this namespace may use: the others are nobody's business."""
    labels = catalog.namespace_labels(namespace)
    usable = [
        other
        for other in catalog.names()
        if (model := catalog.find(other)) is not None and model.permits(namespace, labels)
    ]
    return near(name, usable) or "; create it, or name one of `kubectl get modelcache`"


def _first_decision(pod: Pod) -> Decision | None:
    written = annotations_of(pod).get(names.DECISION)
    if written is None:
        return None
    try:
        return msgspec.json.decode(written, type=Decision)
    except msgspec.MsgspecError:  # somebody's own text, or another release's: decided anew
        return None


def _same_request(first: Decision, asked: Asked, models: Sequence[Chosen]) -> bool:
    """A decision that was copied along with a pod, whose annotations then changed, decides nothing."""
    same = (first.mode, first.wait, first.view) == (asked.mode, asked.wait, asked.view)
    return same and set(first.models) == {model.name for model in models}


def _as_before(model: Chosen, first: Decision, catalog: Catalog) -> Chosen:
    digest = first.models[model.name]
    known = catalog.find(model.name)
    if digest and (known is None or digest not in known.versions):
        return model
    return msgspec.structs.replace(model, digest=digest)


def _containers(asked: Asked, slots: Sequence[Slot], settings: WebhookSettings) -> tuple[str, ...]:
    known = [slot.name for slot in slots]
    for name in known:
        if known.count(name) > 1:
            raise PodRefused(f"two containers of the pod are called {name[:100]!r}; rename one")
    for name in asked.containers:
        if name not in known:
            suggestion = near(name, known) or f"; it has {', '.join(known)[:200]}"
            raise PodRefused(f"{names.CONTAINERS} names {name[:100]!r}, which the pod doesn't have{suggestion}")
    if asked.containers:
        return tuple(name for name in known if name in asked.containers)
    chosen = tuple(slot.name for slot in slots if not slot.sidecar and slot.name not in settings.sidecars)
    if not any(slot.name in chosen and not slot.init for slot in slots):
        raise PodRefused(
            f"the pod has only containers that are known as sidecars ({', '.join(known)[:200]}); "
            f"name one in {names.CONTAINERS}"
        )
    return chosen


def _require_volume(model: Chosen, namespace: str, catalog: Catalog) -> None:
    known = catalog.find(model.name)
    if known is None or namespace not in known.volume_namespaces:
        raise PodRefused(
            f"model {model.name!r} has no local PersistentVolume for namespace {namespace!r}; add the namespace to "
            f"spec.localPersistentVolumes.namespaces of its ModelCache, or use {names.MODE}: csi",
            status=403,
            may_pass=True,
        )
    if not model.digest:
        raise PodRefused(
            f"model {model.name!r} is not resolved yet, so it has no PersistentVolume; try again when `kubectl get "
            f"modelcache {model.name}` shows its digest, or use {names.MODE}: csi",
            status=403,
            may_pass=True,
        )


def _check_paths(models: Sequence[Chosen], slots: Iterable[Slot]) -> None:
    for number, model in enumerate(models):
        for other in models[:number]:
            if overlap(model.mount_path, other.mount_path):
                raise PodRefused(
                    f"models {other.name!r} and {model.name!r} would lie in each other at {other.mount_path} and "
                    f"{model.mount_path}; write model=/path for each in {names.MOUNT_PATH}"
                )
    for slot in slots:
        taken = [(mount.get("mountPath"), mount.get("name")) for mount in slot.mounts]
        taken += [(device.get("devicePath"), None) for device in slot.devices]
        for model in models:
            _check_path(model, slot, [(str(path), name) for path, name in taken if path])


def _check_path(model: Chosen, slot: Slot, taken: Iterable[tuple[str, object]]) -> None:
    """Something below a read-only mount can't be mounted: the runtime can't make its directory. Ours may lie in
    another's."""
    for path, volume in taken:
        plain = "/" + "/".join(part for part in path.split("/") if part not in {"", "."})
        if plain == model.mount_path and volume == model.volume:
            continue
        if plain == model.mount_path or plain.startswith(f"{model.mount_path}/"):
            raise PodRefused(
                f"container {slot.name!r} has {path[:200]} mounted already, where model {model.name!r} would go; "
                f"choose another {names.MOUNT_PATH}"
            )


def _check_volumes(models: Iterable[Chosen], volumes: Iterable[Pod], mode: Mode) -> None:
    for volume in volumes:
        for model in models:
            if volume.get("name") == model.volume and not is_ours(volume, model, mode):
                raise PodRefused(f"the pod has a volume {model.volume!r} that is not model {model.name!r}; rename it")
