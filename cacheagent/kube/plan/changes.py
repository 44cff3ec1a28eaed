"""What a plan asks for: writes to objects, what must hold right before them, and what people are told. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from cacheagent.kube.api import Object, Resource

Urgency = Literal[0, 1, 2, 3]
POD_WAITS: Final[Urgency] = 0
"""A pod waits for this."""
STEERS: Final[Urgency] = 1
"""What nodes do depends on it."""
TELLS: Final[Urgency] = 2
"""Somebody reads it."""
TIDIES: Final[Urgency] = 3
"""Nobody waits for it."""


class Key(NamedTuple):
    """What a write is about. Two writes of one key never run at the same time, and the newer one replaces a waiting
    one."""

    plural: str
    namespace: str
    name: str
    subresource: str = ""


class Regarding(NamedTuple):
    """The object that an event is about."""

    resource: Resource
    name: str
    namespace: str
    uid: str


class Note(NamedTuple):
    """An event for people. `about` says what it is about within the object, so that news replace what was said
    before."""

    regarding: Regarding
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


class Unused(NamedTuple):
    """No pod that is not over uses one of these claims (namespace, name); with `node`, no pod bound to it. Asked of
    the API server right before the write, since people may write a claim into a pod that nobody watches."""

    claims: frozenset[tuple[str, str]]
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One write. `body`: the object to create, or a merge patch. `uid`: delete this very object only.

    `lazy_s`: it may wait until the object was not written for so many seconds. `unless_used`: what must hold right
    before; where it does not, `world.Memory.in_use` is told and the next plan decides anew. `notes`: told when it is
    done.
    """

    verb: Literal["create", "patch", "delete"]
    resource: Resource
    name: str
    namespace: str = ""
    body: Object = field(default_factory=dict)
    subresource: str = ""
    uid: str = ""
    urgency: Urgency = STEERS
    lazy_s: float = 0.0
    unless_used: Unused | None = None
    notes: tuple[Note, ...] = ()

    @property
    def key(self) -> Key:
        """What it is about."""
        return Key(self.resource.plural, self.namespace, self.name, self.subresource)


def merge_patch(wanted: Mapping[str, Any], present: Mapping[str, Any]) -> Object:
    """The merge patch that turns one mapping into the other at its first level: what is left out of `wanted` goes."""
    return {**dict.fromkeys(present.keys() - wanted.keys()), **{k: v for k, v in wanted.items() if present.get(k) != v}}
