"""Pods that KServe made, in namespaces that opted in: what KServe's init container would download, and no line changed
in the InferenceService, the node's cache shows in its place. Pure.

KServe adds no second init container of that name, and then touches nothing else of the pod. So it stays where it is,
with its arguments, by which a second call of ours finds the same again; only its command becomes one that does
nothing. Where anything is unclear, KServe is left to download for itself, and the pod says why."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from cacheagent.kube import names
from cacheagent.kube.webhook.catalog import Catalog, CatalogModel, origin_of
from cacheagent.kube.webhook.decide import volume_name
from cacheagent.kube.webhook.patch import Patch
from cacheagent.kube.webhook.pod import Pod, Slot, annotations_of, slots_of, volumes_of
from cacheagent.kube.webhook.refusal import PodRefused

STORAGE_INITIALIZER: Final = "storage-initializer"
NOTHING: Final = ("/bin/true",)
"""Ends at once, whatever its arguments say; KServe's own image, a Debian with Python, has it."""
_ENDPOINT: Final = "AWS_ENDPOINT_URL"
"""How KServe tells its init container of another S3 server than Amazon's, where the service account's secret does."""
_DECRYPTS: Final = "CONFIDENTIAL_ENABLED"
_ARCHIVES: Final = (".tar", ".tgz", ".gz", ".zip")
_DECIDED_BY_KSERVE: Final = (names.MOUNT_PATH, names.CONTAINERS, names.VIEW)


class Download(NamedTuple):
    """One thing that KServe would fetch, and the directory where its containers look for it."""

    uri: str
    path: str


class Takeover(NamedTuple):
    """A pod whose weights come from the cache. `annotations`: as if its author had asked for them; `pod`: with KServe's
    own download gone, by `operations`."""

    annotations: dict[str, str]
    pod: Pod
    operations: list[dict[str, Any]]


def take_over(pod: Pod, namespace: str, catalog: Catalog) -> Takeover | None:
    """None for what is none of our business: no download of KServe's, or one that no ModelCache has. Raises PodRefused
    where a ModelCache has it and can't serve it."""
    if names.MODEL in annotations_of(pod):
        return None
    initializer = next((slot for slot in slots_of(pod) if slot.init and slot.name == STORAGE_INITIALIZER), None)
    downloads = () if initializer is None else _downloads(initializer)
    if initializer is None or not downloads:
        return None
    found = [_model_of(download.uri, initializer, namespace, catalog) for download in downloads]
    models = [model for model in found if model is not None]
    if not models:
        return None
    if len(models) < len(found):
        unknown = next(download.uri for download, model in zip(downloads, found, strict=True) if model is None)
        raise PodRefused(f"no ModelCache has {unknown[:200]}, which the same pod needs; make one for each of its URIs")
    _require_plain_files(initializer, downloads)
    volume, base = _shared_directory(pod, initializer, downloads)
    patch = Patch(pod)
    readers = list(_readers(patch, volume, base, models, downloads))
    if not readers:
        return None
    if initializer.container.get("command") != [*NOTHING]:
        patch.put((*initializer.path, "command"), [*NOTHING])
    return Takeover(_asked(pod, models, downloads, readers), patch.pod, patch.operations)


def _require_plain_files(initializer: Slot, downloads: Sequence[Download]) -> None:
    """What KServe makes of its downloads, the cache doesn't."""
    if any(each.get("name") == _DECRYPTS and each.get("value") == "true" for each in initializer.env):
        raise PodRefused("KServe decrypts this model after its download")
    for download in downloads:
        if download.uri.lower().endswith(_ARCHIVES):
            raise PodRefused(f"KServe unpacks {download.uri[:200]}; let the ModelCache and storageUri name a directory")


def left_alone(pod: Pod, reason: str) -> list[dict[str, Any]]:
    """The operations for a pod that KServe downloads for: it says why, where its owner looks."""
    patch = Patch(pod)
    with contextlib.suppress(PodRefused):  # it has no place for annotations: the API server will say so
        if annotations_of(pod).get(names.NOT_SERVED) != reason:
            patch.put(("metadata", "annotations", names.NOT_SERVED), reason)
    return patch.operations


def _downloads(initializer: Slot) -> tuple[Download, ...]:
    """Its arguments are pairs of a URI and a directory; none where they are something else."""
    words = initializer.container.get("args")
    if not isinstance(words, list) or len(words) % 2 or not all(isinstance(word, str) for word in words):
        return ()
    pairs = zip(words[::2], words[1::2], strict=True)
    return tuple(Download(uri, posixpath.normpath(path)) for uri, path in pairs)


def _model_of(uri: str, initializer: Slot, namespace: str, catalog: Catalog) -> CatalogModel | None:
    """The one ModelCache of this origin that the namespace may use; None when there is none at all."""
    origin = origin_of(_plainly(uri))
    if not origin:
        return None
    every = [model for name in catalog.names() if (model := catalog.find(name)) is not None]
    known = [model for model in every if model.origin == origin and not model.deleting and not model.on_demand]
    labels = catalog.namespace_labels(namespace)
    usable = [model for model in known if model.permits(namespace, labels)]
    if known and not usable:
        raise PodRefused(
            f"namespace {namespace!r} may not use the ModelCache of {uri[:200]}; "
            "ask for it to be in spec.allowedNamespaces of the ModelCache",
            status=403,
            may_pass=labels is None,
        )
    if len(usable) > 1:
        told = " and ".join(sorted(model.name for model in usable)[:4])
        raise PodRefused(f"the ModelCaches {told} have {uri[:200]}; leave the namespace one of them")
    for model in usable:
        _require_same_server(model, initializer)
    return usable[0] if usable else None


def _plainly(uri: str) -> str:
    """KServe writes a revision of the Hub behind a colon, and knows no '@'."""
    if not uri.startswith("hf://"):
        return uri
    repository, _, revision = uri.removeprefix("hf://").partition(":")
    return "" if "@" in uri else f"hf://{repository}" + (f"@{revision}" if revision else "")


def _require_same_server(model: CatalogModel, initializer: Slot) -> None:
    """Two servers may have buckets of one name. What a secret says can't be seen from here."""
    told = [each.get("value") for each in initializer.env if each.get("name") == _ENDPOINT]
    if not model.origin.startswith("s3://") or not told or not isinstance(told[0], str) or not told[0]:
        return
    if _server(told[0]) != _server(model.endpoint):
        ours = model.endpoint or "Amazon's"
        raise PodRefused(
            f"the secret of the service account names the S3 server {told[0][:200]}, and model {model.name!r} comes "
            f"from {ours[:200]}; correct spec.source.endpoint of the ModelCache"
        )


def _server(endpoint: str) -> str:
    """The host, and a port that is no default; empty is Amazon."""
    scheme, _, rest = endpoint.lower().rpartition("://")
    host = rest.partition("/")[0].removesuffix(":80" if scheme == "http" else ":443")
    return "" if host == "amazonaws.com" or host.endswith(".amazonaws.com") else host


def _shared_directory(pod: Pod, initializer: Slot, downloads: Sequence[Download]) -> tuple[str, str]:
    """The empty volume that KServe would fill, and where it is mounted: at the directory, or above several."""
    empty = {volume.get("name") for volume in volumes_of(pod) if isinstance(volume.get("emptyDir"), dict)}
    for mount in initializer.mounts:
        base = posixpath.normpath(str(mount.get("mountPath")))
        if mount.get("name") in empty and all(_is_below(download.path, base) for download in downloads):
            return str(mount["name"]), base
    raise PodRefused(f"{STORAGE_INITIALIZER} has no empty volume at {downloads[0].path[:200]}, unlike KServe's own")


def _is_below(path: str, base: str) -> bool:
    return path == base or path.startswith(f"{base.rstrip('/')}/")


def _readers(
    patch: Patch, volume: str, base: str, models: Sequence[CatalogModel], downloads: Sequence[Download]
) -> Iterator[str]:
    """Names of the containers that look for the weights. KServe's mount in them becomes the first model's; those of
    further models are added like everywhere."""
    ours = {"name": volume_name(models[0].name), "mountPath": downloads[0].path, "readOnly": True}
    for slot in list(slots_of(patch.pod)):
        if slot.name == STORAGE_INITIALIZER:
            continue
        for index, mount in enumerate(slot.mounts):
            if mount.get("name") == volume:
                _require_plain(slot, mount, base)
                patch.replace((*slot.path, "volumeMounts", str(index)), ours)
            if mount.get("name") in {volume, ours["name"]}:
                yield slot.name


def _require_plain(slot: Slot, mount: Mapping[str, Any], base: str) -> None:
    if mount.get("readOnly") is not True:
        raise PodRefused(
            f"container {slot.name!r} may write beside its model, and the cache is read-only; "
            'remove the annotation storage.kserve.io/readonly: "false"'
        )
    plain = posixpath.normpath(str(mount.get("mountPath"))) == base
    if not plain or mount.get("subPath") or mount.get("subPathExpr"):
        raise PodRefused(f"container {slot.name!r} mounts a part of KServe's volume; let it mount the whole at {base}")


def _asked(
    pod: Pod, models: Sequence[CatalogModel], downloads: Sequence[Download], readers: Sequence[str]
) -> dict[str, str]:
    """The pod's annotations with what KServe says in ours."""
    written = annotations_of(pod)
    for key in _DECIDED_BY_KSERVE:
        if key in written:
            raise PodRefused(f"KServe decides what {key} would; remove it, or write {names.MODEL} and no storageUri")
    paths = [f"{model.name}={download.path}" for model, download in zip(models, downloads, strict=True)]
    return {
        **written,
        names.MODEL: ",".join(model.name for model in models),
        names.MOUNT_PATH: ",".join(paths),
        names.CONTAINERS: ",".join(dict.fromkeys(readers)),
    }
