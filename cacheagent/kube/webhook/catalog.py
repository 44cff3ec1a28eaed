"""What the webhook needs to know of models and namespaces, and how the controller's copies of the cluster answer it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from cacheagent.errors import UsageError
from cacheagent.kube.api import Object
from cacheagent.kube.names import model_name_of_uri
from cacheagent.kube.objects import ModelCacheSpec, ModelCacheStatus, Namespaces
from cacheagent.kube.plan.selectors import matches
from cacheagent.kube.uris import parse_uri, repository_of
from cacheagent.model import Value


class CatalogModel(Value):
    """One ModelCache. `digest`: the current version, empty while it is not known. `versions`: all that a pod may still
    name. `allowed` None: every namespace. `volume_namespaces`: those with local PersistentVolumes. `origin`: as of
    `origin_of`; `endpoint`: the server that is asked for it. `on_demand`: a URI that a pod wrote made it."""

    name: str
    digest: str = ""
    versions: tuple[str, ...] = ()
    repo_id: str = ""
    allowed: Namespaces | None = None
    volume_namespaces: tuple[str, ...] = ()
    deleting: bool = False
    origin: str = ""
    endpoint: str = ""
    on_demand: bool = False

    def permits(self, namespace: str, labels: Mapping[str, str] | None) -> bool:
        """Whether this namespace, with these labels (None: not seen yet), may use it."""
        if self.allowed is None or namespace in self.allowed.names:
            return True
        return self.allowed.selector is not None and labels is not None and matches(self.allowed.selector, labels)


class Catalog(Protocol):
    """Answers at once from memory; used from the event loop only."""

    def find(self, name: str) -> CatalogModel | None:
        """The ModelCache of that name."""

    def names(self) -> Iterable[str]:
        """Names of all ModelCaches."""

    def namespace_labels(self, namespace: str) -> Mapping[str, str] | None:
        """Labels of a namespace; None when it has not been seen yet."""


class MirrorCatalog:
    """A catalog over in-memory copies of the API server's objects: `{(namespace, name): object}`, kept up to date by
    others."""

    def __init__(self, models: Mapping[tuple[str, str], Object], namespaces: Mapping[tuple[str, str], Object]) -> None:
        self._models = models
        self._namespaces = namespaces

    def find(self, name: str) -> CatalogModel | None:
        """See `Catalog.find`."""
        raw = self._models.get(("", name))
        return None if raw is None else to_catalog_model(raw)

    def names(self) -> Iterable[str]:
        """See `Catalog.names`."""
        return [name for _, name in self._models]

    def namespace_labels(self, namespace: str) -> Mapping[str, str] | None:
        """See `Catalog.namespace_labels`."""
        raw = self._namespaces.get(("", namespace))
        return None if raw is None else raw["metadata"].get("labels") or {}


def to_catalog_model(raw: Object) -> CatalogModel:
    """What the webhook needs of a ModelCache as the API server sent it."""
    spec = msgspec.convert(raw["spec"], ModelCacheSpec)
    status = msgspec.convert(raw.get("status") or {}, ModelCacheStatus)
    digest = spec.digest or status.digest
    return CatalogModel(
        name=raw["metadata"]["name"],
        digest=digest,
        versions=tuple(
            dict.fromkeys(version for version in (digest, status.digest, *status.previous_digests) if version)
        ),
        repo_id=spec.source.repo_id or repository_of(spec.source.uri),
        allowed=spec.allowed_namespaces,
        volume_namespaces=spec.local_persistent_volumes.namespaces,
        deleting="deletionTimestamp" in raw["metadata"],
        origin=origin_of(spec.source.uri, spec.source.revision),
        endpoint=spec.source.endpoint,
        on_demand=raw["metadata"]["name"] == model_name_of_uri(spec.source.uri, spec.source.credentials),
    )


def origin_of(uri: str, revision: str = "") -> str:
    """One spelling for one origin, its server apart; `main` is what the Hub gives where no revision is written. Empty
    for a URI of a kind that is not known."""
    try:
        parsed = parse_uri(uri)
    except UsageError:
        return ""
    if parsed.scheme != "hf":
        return parsed.text
    return f"hf://{'/'.join(parsed.segments)}@{parsed.revision or revision or 'main'}"
