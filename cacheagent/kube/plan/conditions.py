"""Conditions: what is so, the reason in one word, and a sentence for a person. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from cacheagent.kube.objects import Condition
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.resolve import Answer, Resolution, refused_pin
from cacheagent.kube.plan.tally import Tally
from cacheagent.kube.plan.times import written_time
from cacheagent.quantity import size_text

MOST_CHARACTERS: Final = 1024
"""Of a condition's message (the schema allows 32,768)."""

_Status = Literal["True", "False", "Unknown"]


def condition(kind: str, status: _Status, reason: str, message: str = "") -> Condition:
    """One, not yet dated."""
    return Condition(type=kind, status=status, reason=reason, message=message[:MOST_CHARACTERS])


def resolved(facts: Facts, resolution: Resolution | None, answer: Answer | None) -> Condition:
    """Whether it is known what the source is now. `answer`: the one that is being pinned."""
    if facts.resolved or answer is not None:
        status = facts.model.status
        digest, revision, files, size = (
            (answer.digest, answer.revision, answer.files, answer.size_bytes)
            if answer is not None
            else (status.digest, status.revision, status.files, status.size_bytes)
        )
        at = f" at {revision[:40]}" if revision else ""
        return condition("Resolved", "True", "Resolved", f"{digest[:19]}{at}: {files} files, {size_text(size)}")
    if resolution is None or not resolution.asked:
        why = "no node with a ready agent is to hold this model, so nobody can look at its source"
        return condition("Resolved", "Unknown", "NoNode", why)
    if resolution.answer is not None:
        return condition("Resolved", "False", "DigestMismatch", _mismatch(facts, resolution.answer))
    if resolution.failure is not None:
        failure = resolution.failure
        return condition(
            "Resolved", "False", _reason(failure.code), f"{resolution.asked}: {failure.message or failure.code}"
        )
    return condition("Resolved", "Unknown", "Resolving", f"{resolution.asked} looks at the source")


def _mismatch(facts: Facts, answer: Answer) -> str:
    return (
        f"the source is {answer.digest} now (seen by {answer.node}), and spec.digest accepts only "
        f"{facts.model.spec.digest}; change spec.digest, or the source"
    )


def ready(facts: Facts, counted: Tally) -> Condition:
    """Whether the version in force is on every node that shall have it; else how far, and who is furthest behind."""
    counts = counted.counts
    if not counts.assigned:
        if not facts.model.spec.prefetch:
            return condition("Ready", "Unknown", "OnDemand", "fetched where a pod or a warm-up asks for it")
        return condition("Ready", "False", "NoNodes", "no cache node matches spec.nodeSelector")
    if counts.ready == counts.assigned:
        return condition("Ready", "True", "AllNodesReady", counted.text)
    part = f", {counted.percent}" if counted.fraction and counts.downloading else ""
    behind = f"; {counted.worst[0]}: {counted.worst[1]}" if counted.worst else ""
    reason = "Failed" if counts.failed else "Fetching" if counted.digest else "NotResolved"
    return condition("Ready", "False", reason, f"{counted.text}{part}{behind}")


def degraded(facts: Facts, resolution: Resolution | None, counted: Tally) -> Condition:
    """Whether somebody should look at it."""
    if refused_pin(facts, resolution) and resolution is not None and resolution.answer is not None:
        return condition("Degraded", "True", "DigestMismatch", _mismatch(facts, resolution.answer))
    if resolution is not None and resolution.failure is not None:
        failure = resolution.failure
        return condition("Degraded", "True", _reason(failure.code), f"{resolution.asked}: {failure.message}")
    expected = facts.model.spec.content_digest
    contents = {**counted.contents, **({expected: "spec.contentDigest"} if expected else {})}
    if len(contents) > 1:
        (one, here), (other, there) = list(contents.items())[:2]
        why = f"one version, different bytes: {here} has {one}, {there} {other}; verify, and evict the wrong one"
        return condition("Degraded", "True", "ContentMismatch", why)
    if counted.failed is not None:
        node, sentence, code = counted.failed
        others = counted.counts.failed - 1
        more = f" (and {others} more node{'s' if others > 1 else ''})" if others else ""
        return condition("Degraded", "True", _reason(code), f"{node}: {sentence}{more}")
    return condition("Degraded", "False", "AsExpected")


def _reason(code: str) -> str:
    """`origin-unavailable` as a condition's reason: `OriginUnavailable`."""
    return "".join(word[:1].upper() + word[1:] for word in code.replace("_", "-").split("-")) or "Failed"


def carried(new: Condition, old: Iterable[Condition], generation: int, now: float) -> Condition:
    """With the time of the last change of its status."""
    before = next((each for each in old if each.type == new.type), None)
    since = before.last_transition_time if before is not None and before.status == new.status else ""
    return msgspec.structs.replace(new, observed_generation=generation, last_transition_time=since or written_time(now))


def states(conditions: Iterable[Condition]) -> list[tuple[str, str, str]]:
    """What of them is news when it changes."""
    return [(each.type, each.status, each.reason) for each in conditions]
