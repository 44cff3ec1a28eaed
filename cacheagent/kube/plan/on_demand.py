"""What pods ask for where nobody planned it: which of it is assigned, what is refused, what a URI makes. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import msgspec

from cacheagent.errors import NotCached, PolicyRefused, UsageError
from cacheagent.kube.api import MODEL_CACHES
from cacheagent.kube.names import API_VERSION, LAST_USED, MANAGED_BY, MANAGED_BY_US
from cacheagent.kube.objects import ModelCacheSpec, Namespaces, Refusal, Wanted
from cacheagent.kube.plan.changes import POD_WAITS, TIDIES, Change
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.times import seconds_of, written_time
from cacheagent.kube.plan.views import CacheNode, Pod
from cacheagent.kube.plan.world import World
from cacheagent.kube.uris import PermittedUri, find_rule, get_rule, is_uri

LINGER_S: Final = 3600.0
"""How long a model stays assigned to a node after the last pod there asked for it or used it. Chosen: longer than a
rollout or a crash loop takes, short against what a disk is worth."""
REFRESHED_AFTER: Final = 1 / 4
"""The part of `uri_idle_s` after which the mark of use is written again."""


@dataclass(slots=True)
class Demand:
    """`asked`: (node, model) that a pod asks for or uses now, and may. `refusals`: by node. `permits`: of the URIs
    that are asked for, with the namespaces that ask."""

    asked: set[tuple[str, str]] = field(default_factory=set)
    refusals: dict[str, set[Refusal]] = field(default_factory=lambda: defaultdict(set))
    permits: dict[str, tuple[PermittedUri, set[str]]] = field(default_factory=dict)


def demand_of(world: World, facts: Mapping[str, Facts], nodes: Mapping[str, CacheNode]) -> Demand:
    """What agents report as wanted, and what the pods on cache nodes name."""
    demand = Demand()
    for name, node in nodes.items():
        for wanted in node.status.wanted:
            try:
                _ask(demand, world, facts, name, wanted)
            except (NotCached, PolicyRefused, UsageError) as error:
                refusal = Refusal(
                    model=wanted.model or wanted.uri,
                    namespace=wanted.namespace,
                    code=error.code,
                    message=str(error),
                )
                demand.refusals[name].add(refusal)
    for pod in world.pods.values():
        if pod.node in nodes and not pod.over:
            for wanted in wanted_of(pod):
                with suppress(NotCached, PolicyRefused, UsageError):
                    _ask(demand, world, facts, pod.node, wanted)
    return demand


def wanted_of(pod: Pod) -> list[Wanted]:
    """What a pod names, as its agent would report it."""
    refs = pod.refs or tuple(uses.uri or uses.model for uses in pod.inline)
    return [
        Wanted(model="", uri=ref, namespace=pod.meta.namespace)
        if is_uri(ref)
        else Wanted(model=ref, namespace=pod.meta.namespace)
        for ref in refs
    ]


def _ask(demand: Demand, world: World, facts: Mapping[str, Facts], node: str, wanted: Wanted) -> None:
    """Raises NotCached, PolicyRefused, UsageError. What a *pod* names was judged by the webhook, and where that
    matters it is judged again by the agent's report, so only reports are answered."""
    model = _permitted_model(demand, world, facts, wanted)
    if model in facts:
        demand.asked.add((node, model))


def _permitted_model(demand: Demand, world: World, facts: Mapping[str, Facts], wanted: Wanted) -> str:
    """The name of what may be used. Raises NotCached, PolicyRefused, UsageError."""
    if wanted.uri:
        permit = get_rule(wanted.uri, wanted.namespace, world.settings.allow_list)
        demand.permits.setdefault(permit.model, (permit, set()))[1].add(wanted.namespace)
        return permit.model
    known = facts.get(wanted.model)
    if known is None:
        raise NotCached(
            f"there is no ModelCache {wanted.model[:100]!r}", hint="create it, or correct the pod's annotation"
        )
    if not known.permits(wanted.namespace):
        raise PolicyRefused(
            f"namespace {wanted.namespace!r} may not use the model {wanted.model!r}",
            hint="its administrator permits namespaces by spec.allowedNamespaces",
        )
    return wanted.model


def plan_uris(world: World, facts: Mapping[str, Facts], demand: Demand, now: float) -> list[Change]:
    """ModelCaches for URIs: made when the first pod asks, opened for further namespaces, marked while they are used,
    removed when nobody used them for long."""
    changes = [
        _made(permit, namespaces, now)
        for name, (permit, namespaces) in demand.permits.items()
        if name not in world.models
    ]
    used = {model for _, model in demand.asked} | {
        model for node in world.cache_nodes.values() for model in node.mounted
    }
    used |= {warmup.spec.model for warmup in world.warmups.values() if now < warmup.expires_at}
    for name, each in facts.items():
        meta = each.model.meta
        if meta.labels.get(MANAGED_BY) != MANAGED_BY_US or LAST_USED not in meta.annotations:
            continue
        idle_s = now - seconds_of(meta.annotations[LAST_USED])
        asking = demand.permits[name][1] if name in demand.permits else set()
        present = set((each.model.spec.allowed_namespaces or Namespaces()).names)
        permitted = {ns for ns in present if _still_permits(world, each, ns)} | asking
        body: dict[str, object] = {}
        if permitted != present:
            body["spec"] = {"allowedNamespaces": {"names": sorted(permitted)}}
        if name in used and idle_s > world.settings.uri_idle_s * REFRESHED_AFTER:
            body["metadata"] = {"annotations": {LAST_USED: written_time(now)}}
        if body:
            changes.append(Change(verb="patch", resource=MODEL_CACHES, name=name, body=body, urgency=POD_WAITS))
        elif name not in used and idle_s > world.settings.uri_idle_s:
            changes.append(Change(verb="delete", resource=MODEL_CACHES, name=name, uid=meta.uid, urgency=TIDIES))
    return changes


def _still_permits(world: World, facts: Facts, namespace: str) -> bool:
    """A rule that the administrator took back closes what it opened."""
    try:
        rule = find_rule(facts.model.spec.source.uri, namespace, world.settings.allow_list)
    except UsageError:
        return False
    return rule is not None and rule.model == facts.name


def _made(permit: PermittedUri, namespaces: set[str], now: float) -> Change:
    spec = ModelCacheSpec(
        source=permit.source, prefetch=False, allowed_namespaces=Namespaces(names=tuple(sorted(namespaces)))
    )
    body = {
        "apiVersion": API_VERSION,
        "kind": MODEL_CACHES.kind,
        "metadata": {
            "name": permit.model,
            "labels": {MANAGED_BY: MANAGED_BY_US},
            "annotations": {LAST_USED: written_time(now)},
        },
        "spec": msgspec.to_builtins(spec),
    }
    return Change(verb="create", resource=MODEL_CACHES, name=permit.model, body=body, urgency=POD_WAITS)
