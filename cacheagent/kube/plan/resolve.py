"""One node asks the origin what a model is now; what it answers is pinned for all. Pure.

The controller needs no credentials and no way to the origin. The old version stays in force until an answer is pinned.
In the same way a node is asked to look, where somebody wants to know whether the origin has moved: then nothing is
pinned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cacheagent.errors import (
    ChecksumMismatch,
    IncompleteModel,
    OriginForbidden,
    OriginNotFound,
    OriginWrong,
    PickleRefused,
    PolicyRefused,
    SourceChanged,
    UnsafeContent,
    UsageError,
)
from cacheagent.kube.objects import NodeModelStatus
from cacheagent.kube.plan.digests import is_digest
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.views import CacheNode
from cacheagent.kube.plan.world import World

SAME_EVERYWHERE: Final = frozenset(
    error.code
    for error in (
        ChecksumMismatch,
        IncompleteModel,
        OriginForbidden,
        OriginNotFound,
        OriginWrong,
        PickleRefused,
        PolicyRefused,
        SourceChanged,
        UnsafeContent,
        UsageError,
    )
)
"""Failures that another node would meet as well: the one that met it tries again by itself."""
FAILED_FOR_S: Final = 300.0
"""How long a node that failed is asked only if there is no other. Chosen: as long as a job's own patience."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a node found: the version and what is known of it."""

    node: str
    digest: str
    revision: str = ""
    content_digest: str = ""
    files: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """How far one model is: who is asked, what that node answered, or why it can't."""

    asked: str = ""
    answer: Answer | None = None
    failure: NodeModelStatus | None = None


@dataclass(slots=True)
class Resolutions:
    """By model, of those that are not resolved. `looks`: of those that are, and that a node is to look at. `failed`: as
    in `Memory`. `deadline`: seconds since the epoch."""

    of: dict[str, Resolution] = field(default_factory=dict)
    looks: dict[str, Resolution] = field(default_factory=dict)
    failed: dict[tuple[str, str, str], float] = field(default_factory=dict)
    deadline: float = float("inf")

    def asked(self) -> Iterator[tuple[str, Resolution]]:
        """Of whichever kind, by model."""
        yield from self.of.items()
        yield from self.looks.items()


def resolve(
    world: World, facts: Iterable[Facts], assigned: Mapping[str, Sequence[CacheNode]], ready: frozenset[str], now: float
) -> Resolutions:
    """Ask about every model that is assigned somewhere and has a question without an answer."""
    found = Resolutions()
    asks: Counter[str] = Counter()
    for each in facts:
        if not each.question:
            continue
        told = found.looks if each.resolved else found.of
        nodes = assigned.get(each.name, ())
        failures = _failures(world, each, nodes, now)
        found.failed |= failures
        if not each.resolved and (answer := _known_pinned(each, nodes)):
            told[each.name] = Resolution(asked=answer.node, answer=answer)
            continue
        chosen = _choose(each, nodes, ready, failures, asks)
        if chosen is None:
            told[each.name] = Resolution()
            continue
        asks[chosen.name] += 1
        told[each.name] = _heard(each, chosen)
    found.deadline = min((at + FAILED_FOR_S for at in found.failed.values()), default=float("inf"))
    return found


def _known_pinned(facts: Facts, nodes: Sequence[CacheNode]) -> Answer | None:
    """A version that `spec.digest` goes back to is on some disk and need not be asked for."""
    wanted = facts.model.spec.digest
    if not wanted or wanted not in facts.previous:
        return None
    for node in nodes:
        for entry in node.entries.get(facts.name, ()):
            if entry.digest == wanted and entry.phase == "ready":
                return _answer(node, entry)
    return None


def _choose(
    facts: Facts,
    nodes: Sequence[CacheNode],
    ready: frozenset[str],
    failures: Mapping[tuple[str, str, str], float],
    asks: Counter[str],
) -> CacheNode | None:
    """The node that is asked already as long as it may answer; else one whose agent is up, has not failed, has the old
    version (so that a new one costs it least) and has least to do."""
    for node in nodes:
        if _is_asked(facts, node) and node.name in ready and (facts.name, facts.question, node.name) not in failures:
            return node

    def key(node: CacheNode) -> tuple[bool, bool, bool, bool, int, str]:
        failed = (facts.name, facts.question, node.name) in failures
        is_asked = _is_asked(facts, node)
        return (
            node.name not in ready,
            failed,
            not is_asked,
            facts.digest not in node.on_disk,
            node.busy + asks[node.name],
            node.name,
        )

    best = min(nodes, key=key, default=None)
    if best is None or (best.name not in ready and not _is_asked(facts, best)):
        return None
    return best


def _is_asked(facts: Facts, node: CacheNode) -> bool:
    assigned = node.assigned.get(facts.name)
    return assigned is not None and assigned.resolve == facts.question


def _heard(facts: Facts, node: CacheNode) -> Resolution:
    if not _is_asked(facts, node):  # what a node says unasked is not believed
        return Resolution(asked=node.name)
    for entry in node.entries.get(facts.name, ()):
        if entry.resolved_for == facts.question and is_digest(entry.digest):
            return Resolution(asked=node.name, answer=_answer(node, entry))
    return Resolution(asked=node.name, failure=failure_to_resolve(facts, node))


def _answer(node: CacheNode, entry: NodeModelStatus) -> Answer:
    return Answer(
        node=node.name,
        digest=entry.digest,
        revision=entry.revision,
        content_digest=entry.content_digest,
        files=entry.files,
        size_bytes=entry.size_bytes,
    )


def failure_to_resolve(facts: Facts, node: CacheNode) -> NodeModelStatus | None:
    """What the asked node says of why it can't. A failure of the old version's download is another matter."""
    for entry in node.entries.get(facts.name, ()):
        if entry.phase == "failed" and (not entry.digest or entry.resolved_for == facts.question):
            return entry
    return None


def _failures(world: World, facts: Facts, nodes: Sequence[CacheNode], now: float) -> dict[tuple[str, str, str], float]:
    """Remembered ones that are young enough, and the one of the node that is asked now, if another may do better."""
    failures = {
        key: at
        for key, at in world.memory.failed.items()
        if key[:2] == (facts.name, facts.question) and now < at + FAILED_FOR_S
    }
    for node in nodes:
        if _is_asked(facts, node):
            failure = failure_to_resolve(facts, node)
            if failure is not None and failure.code not in SAME_EVERYWHERE:
                failures.setdefault((facts.name, facts.question, node.name), now)
    return failures


def refused_pin(facts: Facts, resolution: Resolution | None) -> bool:
    """Whether the source answered with another version than the one that is accepted."""
    answer = resolution.answer if resolution else None
    return bool(answer and facts.model.spec.digest and answer.digest != facts.model.spec.digest)
