"""What is true of a model for a whole round: who may use it, which version is pinned, what it would have to be asked.
Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from cacheagent.kube.names import LOOK, REFRESH
from cacheagent.kube.plan.selectors import matches
from cacheagent.kube.plan.views import CacheNode, Meta, Model
from cacheagent.kube.plan.world import World
from cacheagent.model import canonical_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`token`: names the question "what is this source now?". `digest`: the version in force, empty before the first.
    `resolved`: whether it answers that question. `look`: names the question "what does the origin hold?", whose answer
    changes nothing; empty if nobody asks or it is answered. `namespaces`: who may use it, None for everybody.
    `previous`: older versions that are still known.
    """

    model: Model
    token: str
    digest: str
    resolved: bool
    namespaces: tuple[str, ...] | None
    previous: tuple[str, ...]
    look: str = ""

    @property
    def question(self) -> str:
        """What a node is to be asked now; empty for nothing."""
        return self.look if self.resolved else self.token

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    def permits(self, namespace: str) -> bool:
        """Whether pods of this namespace may use it."""
        return self.namespaces is None or namespace in self.namespaces


def facts_of(world: World) -> dict[str, Facts]:
    """By name, sorted; without those that are being deleted."""
    return {
        name: _facts(model, world.namespaces) for name, model in sorted(world.models.items()) if not model.meta.deleting
    }


def _facts(model: Model, namespaces: Mapping[str, Meta]) -> Facts:
    spec, status = model.spec, model.status
    token = resolve_token(model)
    # A pinned version that is in force answers any question; see `resolve`.
    resolved = status.digest == spec.digest if spec.digest else bool(status.digest) and status.resolved_for == token
    return Facts(
        model=model,
        token=token,
        digest=status.digest,
        resolved=resolved,
        namespaces=permitted_namespaces(model, namespaces),
        previous=status.previous_digests,
        look=look if (look := look_token(model)) != status.looked_for else "",
    )


def resolve_token(model: Model) -> str:
    """Changes when the source has to be looked at again: with anything that changes what is found there, with the
    version that alone is accepted, and with every new value of the refresh annotation."""
    return _token(model, model.spec.digest, model.meta.annotations.get(REFRESH, ""))


def look_token(model: Model) -> str:
    """Changes with every new value of the look's annotation, and with the source; empty without an annotation."""
    mark = model.meta.annotations.get(LOOK, "")
    return _token(model, "look", mark) if mark else ""


def _token(model: Model, *more: str) -> str:
    spec = model.spec
    question = [msgspec.to_builtins(spec.source), spec.kind, msgspec.to_builtins(spec.policy), *more]
    return hashlib.sha256(canonical_json(question)).hexdigest()[:16]


def permitted_namespaces(model: Model, namespaces: Mapping[str, Meta]) -> tuple[str, ...] | None:
    """The names that `spec.allowedNamespaces` comes to today; None is every namespace."""
    allowed = model.spec.allowed_namespaces
    if allowed is None:
        return None
    selected = (
        {name for name, meta in namespaces.items() if matches(allowed.selector, meta.labels)}
        if allowed.selector is not None
        else set()
    )
    return tuple(sorted({*allowed.names, *selected}))


def living_cache_nodes(world: World) -> dict[str, CacheNode]:
    """Those whose Node is there, sorted by name. What belongs to a Node of the past goes with it."""
    return {
        name: each
        for name, each in sorted(world.cache_nodes.items())
        if not each.meta.deleting and (node := world.nodes.get(name)) is not None and node.meta.uid in each.meta.owners
    }


def ready_agents(world: World) -> frozenset[str]:
    """Nodes on which an agent answers."""
    return frozenset(agent.node for agent in world.agents.values() if agent.ready and agent.node)
