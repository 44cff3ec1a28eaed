"""What the controller assigns to a node, as the agent's own values. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import Final

import msgspec

from cacheagent.addresses import LOCAL_NETWORKS
from cacheagent.assignment import Assigned, Assignment, Reason, Refused
from cacheagent.errors import CacheAgentError, PolicyRefused, UsageError
from cacheagent.kube.names import model_name_of_uri
from cacheagent.kube.objects import ModelCacheNodeSpec, NodeModel, Source
from cacheagent.kube.uris import parse_uri
from cacheagent.model import Value
from cacheagent.spec import ModelSpec

UNDECIDED: Final = "the controller has not said yet which version of it is to be mounted"
FAILED: Final = "its source can't be listed: {}; it is tried again"
SHARED: Final = "it is being found out which other nodes want it too, so that they exchange what they fetch"
LOOKED_UP: Final = "its source is being listed, so that the controller can say which version is to be mounted"


class Found(Value):
    """What a source was found to hold for one question (token) of the controller."""

    digest: str
    revision: str = ""
    repo_id: str = ""
    files: int = 0
    size_bytes: int = 0


class NodePolicy(Value):
    """`file_roots`: directories below which `file://` trees may lie; none refuses them. `on_demand_roots`: those of
    on-demand URIs, as far as they lie below the others; none means the same. `refused_networks`: CIDRs that on-demand
    URIs fetch nothing from, beside the local ones."""

    file_roots: tuple[str, ...] = ()
    on_demand_roots: tuple[str, ...] = ()
    refused_networks: tuple[str, ...] = ()

    def roots(self, *, on_demand: bool) -> tuple[str, ...]:
        """Where the tree of a `file://` source must lie."""
        if not on_demand or not self.on_demand_roots:
            return self.file_roots
        return tuple(
            root for root in self.on_demand_roots if any(PurePath(root).is_relative_to(top) for top in self.file_roots)
        )


def assignment_of(
    spec: ModelCacheNodeSpec,
    found: Mapping[str, Found],
    policy: NodePolicy,
    errors: Mapping[str, CacheAgentError] = MappingProxyType({}),
    waits: Callable[[NodeModel, str], bool] = lambda _model, _digest: False,
) -> tuple[Assignment, dict[str, CacheAgentError]]:
    """The assignment, and what is wrong with models that can't be understood or are refused, by name. `found`: answers
    to the controller's questions, by token; `errors`: why one has none yet; `waits`: whether a model's version is not
    to be fetched yet because nobody has said who else wants it."""
    models, wrong = [], dict[str, CacheAgentError]()
    refusals = [
        Refused(model=each.model, namespace=each.namespace, error=Reason(code=each.code, message=each.message))
        for each in spec.refusals
    ]
    for model in spec.models:
        try:
            assigned = _assigned(model, found.get(model.resolve) if model.resolve else None, policy)
        except CacheAgentError as error:
            wrong[model.name] = error
            refusals += _refusals(model, error)
            continue
        if assigned.pending and (failure := errors.get(model.resolve)) is not None:
            assigned = msgspec.structs.replace(assigned, pending=FAILED.format(failure), trouble=failure.code)
        if not assigned.pending and waits(model, assigned.spec.digest):
            assigned = msgspec.structs.replace(assigned, pending=SHARED)
        models.append(assigned)
    return Assignment(models=tuple(models), refusals=tuple(refusals), open_ended=True), wrong


def spell_uri(uri: str) -> str:
    """The one spelling of a URI that a volume asks for, which is that of the on-demand model. Raises UsageError."""
    return parse_uri(uri).text


def source_spec(model: NodeModel, policy: NodePolicy) -> ModelSpec:
    """What to ask the source with, whichever version it holds. Raises UsageError, PolicyRefused."""
    return _spec(model, "", "", policy)


def version_of(model: NodeModel, found: Found | None) -> str:
    """The digest that the node is to have now; empty while nobody knows."""
    return model.digest or (found.digest if found is not None else "")


def priorities_of(spec: ModelCacheNodeSpec, found: Mapping[str, Found]) -> dict[str, int]:
    """How important each version is that the controller wants here: as its most important model."""
    priorities: dict[str, int] = {}
    for model in spec.models:
        if digest := version_of(model, found.get(model.resolve)):
            priorities[digest] = max(model.priority, priorities.get(digest, model.priority))
    return priorities


def _refusals(model: NodeModel, error: CacheAgentError) -> list[Refused]:
    """What those are told who may use a model that this node can't have, by whatever name they ask for it."""
    reason = Reason(code=error.code, message=error.message, hint=error.hint)
    named = (model.name, model.source.uri)
    return [Refused(model=name, namespace=space, error=reason) for name in named for space in model.namespaces or ()]


def _assigned(model: NodeModel, found: Found | None, policy: NodePolicy) -> Assigned:
    digest = version_of(model, found)
    revision = model.revision if model.digest else (found.revision if found is not None else "")
    pending = "" if digest else (LOOKED_UP if model.resolve else UNDECIDED)
    return Assigned(
        spec=_spec(model, digest, revision, policy),
        uri=model.source.uri,
        namespaces=model.namespaces,
        versions=model.versions,
        page_cache=model.page_cache,
        max_origin_bytes_per_s=model.max_origin_bytes_per_s,
        pending=pending,
    )


def _spec(model: NodeModel, digest: str, revision: str, policy: NodePolicy) -> ModelSpec:
    """Parsed as a configuration file is. Pins are the controller's own: they end with the assignment, and so are not
    written into the version's record."""
    written = {
        "name": model.name,
        "source": _source(model.source, revision)
        | _restrictions(model, policy)
        | {"include": model.source.include, "exclude": model.source.exclude},
        "kind": model.kind,
        "policy": {"allow_pickle": model.policy.allow_pickle},
        "priority": model.priority,
        # What only demand keeps here makes room for what a pod waits for, once nobody uses it.
        "keep_warm": not model.on_demand,
        "repo_id": model.source.repo_id,
        "digest": digest,
        "content_digest": model.content_digest,
        "peers": model.peers,
    }
    try:
        return msgspec.convert(written, ModelSpec)
    except msgspec.ValidationError as error:
        raise UsageError(f"model {model.name[:100]!r} can't be understood: {error}") from error


def _source(source: Source, revision: str) -> dict[str, object]:
    """With the commit in place of the branch, once that is known."""
    uri = source.uri
    if revision and uri.lower().startswith("hf://"):
        uri = uri.partition("@")[0]
    else:
        revision = source.revision
    return {
        "uri": uri,
        "revision": revision,
        "endpoint": source.endpoint,
        "region": source.region,
        "credential": source.credentials,
        "ca_bundle": source.ca_bundle,
        "path_style": source.path_style,
    }


def _restrictions(model: NodeModel, policy: NodePolicy) -> dict[str, object]:
    """What a model of the cluster may not do that one of the node's own configuration file may."""
    source = model.source
    on_demand = model.name == model_name_of_uri(source.uri, source.credentials)
    scheme = source.uri.partition(":")[0].lower()
    roots = policy.roots(on_demand=on_demand)
    if scheme == "file" and not roots:
        raise PolicyRefused(
            f"{source.uri[:200]}: no directory of this node is permitted as a source",
            hint="the administrator lists directories in the agent's file_roots, or uses nfs:// with a mount",
        )
    refused = (*LOCAL_NETWORKS, *policy.refused_networks) if on_demand and scheme in {"http", "https"} else ()
    return {
        "roots": roots if scheme == "file" else (),
        "refused_networks": refused,
        "plain_path": on_demand and scheme in {"file", "nfs"},
    }
