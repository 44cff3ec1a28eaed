"""The ModelWarmup that a command makes: the same command gives the same name, so that it joins what it began. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from cacheagent.errors import UsageError
from cacheagent.kube.api import MODEL_CACHES, MODEL_WARMUPS, Object
from cacheagent.kube.convert import to_json
from cacheagent.kube.names import LAST_USED, MANAGED_BY, MANAGED_BY_US, model_name_of_uri
from cacheagent.kube.objects import ModelCacheSpec, ModelWarmupSpec, Namespaces, Source
from cacheagent.kube.plan.times import written_time
from cacheagent.kube.plan.views import Warmup
from cacheagent.kube.uris import parse_uri
from cacheagent.model import canonical_json
from cacheagent.quantity import rate_text

LONGEST_TTL_S: Final = 31536000
_PAIR: Final = re.compile(r"([A-Za-z0-9./_-]+)=([A-Za-z0-9._-]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be warm, and where. `selector`: labels of nodes, empty for every cache node. `like`: the workload
    (`namespace/deployment/name`) that `nodes` were chosen for; then the selector does not count. `least_s`: how long
    the warm-up must live from now on. `max_origin_rate`: bytes/s that all nodes together may take from the origin; 0
    for no limit."""

    model: str
    selector: Mapping[str, str] = field(default_factory=dict)
    like: str = ""
    nodes: tuple[str, ...] = ()
    ttl_s: int = 86400
    least_s: float = 0.0
    max_origin_rate: int = 0

    @property
    def name(self) -> str:
        """Of the ModelWarmup."""
        where = {"like": self.like} if self.like else {"selector": dict(self.selector)}
        mark = hashlib.sha256(canonical_json([self.model, where])).hexdigest()[:10]
        return f"{self.model[:50].rstrip('-')}-{mark}"

    @property
    def spec(self) -> ModelWarmupSpec:
        """Of the ModelWarmup."""
        return ModelWarmupSpec(
            model=self.model,
            nodes=self.nodes if self.like else (),
            node_selector=None if self.like else dict(self.selector),
            ttl_seconds=self.ttl_s,
            max_origin_rate=self.written_rate,
        )

    @property
    def written_rate(self) -> str:
        """As it stands in the object."""
        return rate_text(self.max_origin_rate) if self.max_origin_rate else ""

    @property
    def body(self) -> Object:
        """The object to create."""
        metadata = {"name": self.name, "labels": {MANAGED_BY: MANAGED_BY_US}}
        spec = to_json(self.spec) | {"ttlSeconds": self.ttl_s}
        return {
            "apiVersion": MODEL_WARMUPS.api_version,
            "kind": MODEL_WARMUPS.kind,
            "metadata": metadata,
            "spec": spec,
        }

    @property
    def where(self) -> str:
        """For people."""
        if self.like:
            return f"{len(self.nodes)} nodes where {self.like.partition('/')[2]} could run"
        if not self.selector:
            return "every cache node"
        return "nodes with " + ",".join(f"{key}={value}" for key, value in sorted(self.selector.items()))


def renewal(wish: Wish, there: Warmup, now: float) -> Object:
    """The merge patch that makes a warm-up which is there do for this wish; empty when it does already."""
    spec: Object = {}
    if wish.like and there.spec.nodes != wish.nodes:
        spec["nodes"] = list(wish.nodes)
    if there.origin_rate != wish.max_origin_rate:
        spec["maxOriginRate"] = wish.written_rate or None
    if there.expires_at < now + wish.least_s:
        spec["ttlSeconds"] = min(LONGEST_TTL_S, int(now - there.meta.created_at) + wish.ttl_s)
    return {"spec": spec} if spec else {}


def parse_selector(written: str) -> dict[str, str]:
    """`pool=h100,zone=a`. Raises UsageError."""
    found: dict[str, str] = {}
    for part in filter(None, (each.strip() for each in written.split(","))):
        match = _PAIR.fullmatch(part.replace("==", "=", 1))
        if match is None:
            raise UsageError(
                f"{part[:100]!r} is no label that a node has to have",
                hint="write --nodes pool=h100 or --nodes pool=h100,zone=a; --like chooses by a workload",
            )
        found[match[1]] = match[2]
    if not found:
        raise UsageError("--nodes names no label", hint="write --nodes pool=h100, or leave it away")
    return found


def source_of_uri(source: Source, revision: str = "") -> tuple[str, Source]:
    """The name of the ModelCache that stands for a URI, and its source: as a pod that names this URI gets them where
    the administrator's rule says the same. Raises UsageError."""
    parsed = parse_uri(source.uri)
    text = parsed.text
    if revision:
        if parsed.scheme != "hf" or parsed.revision:
            raise UsageError("--revision is for hf:// URIs that name none", hint="leave it away")
        text = parse_uri(f"{text}@{revision}").text
    return model_name_of_uri(text, source.credentials), msgspec.structs.replace(source, uri=text)


def model_of_uri(name: str, source: Source, now: float) -> Object:
    """The ModelCache to create for a URI. Nobody may use it before a rule of the administrator lets them: the
    controller opens it for the namespaces that ask."""
    spec = ModelCacheSpec(source=source, prefetch=False, allowed_namespaces=Namespaces())
    return {
        "apiVersion": MODEL_CACHES.api_version,
        "kind": MODEL_CACHES.kind,
        "metadata": {
            "name": name,
            "labels": {MANAGED_BY: MANAGED_BY_US},
            "annotations": {LAST_USED: written_time(now)},
        },
        "spec": msgspec.to_builtins(spec),
    }
