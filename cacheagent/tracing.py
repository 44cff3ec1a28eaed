"""Spans of how a pod starts, as values.

Whoever takes part in a start knows the pod's UID and nothing else of the others, so the ids come from the UID: no
context travels between webhook, controller, agent and csi.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Result = Literal["sent", "failed", "dropped"]
"""What became of a span: the receiver took it; it did not; there was no room in the queue, or no time at the end."""

Count = Callable[[Result, int], None]
"""Told how many spans ended so. From any thread."""

Attributes = Mapping[str, str | int | float | bool]


class Ref(NamedTuple):
    """What names a span anywhere: 128 and 64 bits, neither is 0."""

    trace_id: int
    span_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span that is over. Times are seconds since the epoch. `parent`: None for the first of a trace. `error`: the
    code of what went wrong, never its sentence, which may name what belongs to others."""

    name: str
    ref: Ref
    parent: Ref | None
    began_at: float
    ended_at: float
    attributes: Attributes
    links: tuple[Ref, ...] = ()
    error: str = ""


Send = Callable[[Span], None]
"""Takes a span to be sent some time. Returns at once and never raises."""


class Pod(NamedTuple):
    """Whose start it is."""

    uid: str
    namespace: str = ""
    name: str = ""

    @property
    def attributes(self) -> dict[str, str]:
        """In the words of OpenTelemetry's conventions."""
        named = {"k8s.pod.uid": self.uid, "k8s.namespace.name": self.namespace, "k8s.pod.name": self.name}
        return {key: value for key, value in named.items() if value}


def start_of(pod_uid: str) -> Ref:
    """The span of a pod's whole start. SHA-256 of the UID: its first 16 bytes are the trace's id, the next 8 the
    span's."""
    digest = hashlib.sha256(pod_uid.encode()).digest()
    return Ref(int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:24]) or 1)


def new_trace() -> Ref:
    """The first span of a trace that belongs to no pod."""
    return Ref(secrets.randbits(128) or 1, secrets.randbits(64) or 1)


def child_of(parent: Ref) -> Ref:
    """Another span of the same trace."""
    return Ref(parent.trace_id, secrets.randbits(64) or 1)
