"""What a ModelCache says of itself, and the version that is pinned in it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from cacheagent.kube.api import MODEL_CACHES
from cacheagent.kube.objects import ModelCacheStatus
from cacheagent.kube.plan.assign import Assignment
from cacheagent.kube.plan.changes import STEERS, TELLS, Change, Note, Regarding, merge_patch
from cacheagent.kube.plan.conditions import carried, degraded, ready, resolved, states
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.resolve import Answer, Resolution, Resolutions, refused_pin
from cacheagent.kube.plan.tally import Tally, tally
from cacheagent.kube.plan.world import World

NEWS_EVERY_S: Final = 5.0
"""A status in which only counts and progress moved is not written more often than this. Chosen: people look at it."""
MOST_PREVIOUS: Final = 16
"""Older versions that a status names. Chosen."""


def plan_status(
    world: World,
    facts: Mapping[str, Facts],
    assignment: Assignment,
    resolutions: Resolutions,
    agents: frozenset[str],
    now: float,
) -> list[Change]:
    """A patch for every ModelCache whose status is not what it shall be."""
    somewhere = _versions_somewhere(world)
    changes = []
    for name, each in facts.items():
        resolution = resolutions.of.get(name)
        answer = resolution.answer if resolution is not None and not refused_pin(each, resolution) else None
        # A version that is pinned now is ready nowhere else yet: nobody may take the old one's readiness for its own.
        look = resolutions.looks.get(name)
        counted = tally(name, answer.digest if answer else each.digest, assignment.by_model[name], agents)
        base = _looked(_pinned(each, answer, somewhere), each, look.answer if look is not None else None)
        wanted = _status(each, base, resolution, counted, now)
        if wanted != each.model.status:
            changes.append(_patch(each, wanted, now))
    return changes


def _versions_somewhere(world: World) -> set[str] | None:
    """Versions on any disk or under any volume; None while some node has not said what it has."""
    found = {volume.digest for volume in world.volumes.values()}
    for node in world.cache_nodes.values():
        if not node.reported:
            return None
        found |= node.on_disk
    return found


def _status(
    facts: Facts, base: ModelCacheStatus, resolution: Resolution | None, counted: Tally, now: float
) -> ModelCacheStatus:
    old, generation = facts.model.status, facts.model.meta.generation
    answer = resolution.answer if resolution is not None and not refused_pin(facts, resolution) else None
    conditions = (resolved(facts, resolution, answer), ready(facts, counted), degraded(facts, resolution, counted))
    return msgspec.structs.replace(
        base,
        observed_generation=generation,
        conditions=tuple(carried(each, old.conditions, generation, now) for each in conditions),
        content_digest=next(iter(counted.contents), base.content_digest),
        nodes=counted.counts,
        progress=_progress(counted),
    )


def _looked(base: ModelCacheStatus, facts: Facts, answer: Answer | None) -> ModelCacheStatus:
    """With what the origin was seen to hold, which changes nothing else."""
    if answer is None:
        return base
    return msgspec.structs.replace(base, looked_for=facts.look, origin_digest=answer.digest)


def _pinned(facts: Facts, answer: Answer | None, somewhere: set[str] | None) -> ModelCacheStatus:
    """With the answer pinned; the version before it stays known while anybody has it."""
    old = facts.model.status
    previous = old.previous_digests
    if answer is not None:
        if old.digest and old.digest != answer.digest:
            previous = (old.digest, *previous)
        old = msgspec.structs.replace(
            old,
            digest=answer.digest,
            resolved_for=facts.token,
            origin_digest="",
            revision=answer.revision,
            content_digest=answer.content_digest,
            files=answer.files,
            size_bytes=answer.size_bytes,
        )
    kept = tuple(
        digest
        for digest in dict.fromkeys(previous)
        if digest != old.digest and (somewhere is None or digest in somewhere)
    )
    return msgspec.structs.replace(old, previous_digests=kept[:MOST_PREVIOUS])


def _progress(counted: Tally) -> str:
    counts = counted.counts
    if not counts.assigned:
        return ""
    if counted.digest and counts.downloading:
        return counted.percent
    return f"{counts.ready}/{counts.assigned}"


def _patch(facts: Facts, wanted: ModelCacheStatus, now: float) -> Change:
    old = facts.model.status
    notes = _notes(facts, old, wanted)
    is_news = bool(notes) or (old.digest, old.resolved_for) != (wanted.digest, wanted.resolved_for)
    is_news = is_news or old.looked_for != wanted.looked_for
    is_news = is_news or states(old.conditions) != states(wanted.conditions)
    is_news = is_news or old.observed_generation != wanted.observed_generation
    return Change(
        verb="patch",
        resource=MODEL_CACHES,
        name=facts.name,
        subresource="status",
        body={"status": merge_patch(msgspec.to_builtins(wanted), msgspec.to_builtins(old))},
        urgency=STEERS if is_news else TELLS,
        lazy_s=0.0 if is_news else NEWS_EVERY_S,
        notes=notes,
    )


def _notes(facts: Facts, old: ModelCacheStatus, new: ModelCacheStatus) -> tuple[Note, ...]:
    """Events for conditions that turned, and for what turned out badly."""
    meta = facts.model.meta
    regarding = Regarding(MODEL_CACHES, meta.name, "", meta.uid)
    before = {each.type: each for each in old.conditions}
    notes = []
    for each in new.conditions:
        was = before.get(each.type)
        is_same = was is not None and (was.status, was.reason) == (each.status, each.reason)
        if is_same and not (each.type == "Resolved" and old.digest != new.digest):
            continue
        if (each.type, each.status) in {("Resolved", "True"), ("Ready", "True")}:
            notes.append(Note(regarding, "Normal", each.type, each.message))
        elif (each.type, each.status) == ("Degraded", "True"):
            notes.append(Note(regarding, "Warning", each.reason, each.message))
    return tuple(notes)
