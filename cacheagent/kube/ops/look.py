"""Asking what the origin holds now without pinning it: a mark on the model makes the controller have a node look."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from cacheagent.kube.api import MODEL_CACHES, KubeApi, KubeRefused
from cacheagent.kube.convert import micro_time
from cacheagent.kube.names import LOOK
from cacheagent.kube.ops.progress import WarmupGone, source_failure
from cacheagent.kube.ops.view import ClusterView
from cacheagent.kube.plan.facts import Facts, facts_of, living_cache_nodes, ready_agents
from cacheagent.kube.plan.resolve import SAME_EVERYWHERE
from cacheagent.kube.plan.world import World

LOOK_FOR_S: Final = 15.0
"""An agent lists a source and reports within a second or two; a pipeline should not stand still for an origin that does
not answer. Chosen."""
LOOK_S: Final = 1.0
"""Watches bring changes at once; this is how often the clock is looked at meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """`digest`: what the origin holds; empty where nobody can say, and `why`."""

    digest: str = ""
    why: str = ""


def may_answer(world: World, model: str) -> bool:
    """Whether a node that holds the model has an agent that could look."""
    ready = ready_agents(world)
    return any(name in ready and model in node.assigned for name, node in living_cache_nodes(world).items())


async def look_at_origin(api: KubeApi, view: ClusterView, model: str, timeout_s: float) -> Seen:
    """What the origin of a pinned model holds now, as one of its nodes sees it. Raises WarmupGone, KubeError."""
    mark = micro_time()
    try:
        view.wrote(MODEL_CACHES, await api.patch(MODEL_CACHES, model, _marked(mark)))
    except KubeRefused as error:
        return Seen(why=f"asking was refused: {error.message}")
    seen = Seen()
    try:
        async with asyncio.timeout(timeout_s):
            seen = await _wait_seen(view, model, mark)
    except TimeoutError:
        failed = source_failure(view.world(), _facts(view, model))
        why = f"{failed[0]} says: {failed[1].message or failed[1].code}" if failed else "no node has answered"
        seen = Seen(why=f"{why} within {timeout_s:g} s" if failed is None else why)
    finally:
        if not seen.digest:  # nobody waits for the answer any more
            await _withdraw(api, view, model, mark)
    return seen


async def _wait_seen(view: ClusterView, model: str, mark: str) -> Seen:
    while True:
        view.check()
        world, facts = view.world(), _facts(view, model)
        written = facts.model.meta.annotations.get(LOOK, "")
        if not written:
            return Seen(why="the question was withdrawn")
        if written >= mark and not facts.look:
            return Seen(digest=facts.model.status.origin_digest or facts.digest)
        failed = source_failure(world, facts)
        if failed is not None and failed[1].code in SAME_EVERYWHERE:
            return Seen(why=f"{failed[0]} says: {failed[1].message or failed[1].code}")
        await view.wait_changed(LOOK_S)


async def _withdraw(api: KubeApi, view: ClusterView, model: str, mark: str) -> None:
    if _facts(view, model).model.meta.annotations.get(LOOK) == mark:
        view.wrote(MODEL_CACHES, await api.patch(MODEL_CACHES, model, _marked(None)))


def _marked(mark: str | None) -> dict[str, object]:
    return {"metadata": {"annotations": {LOOK: mark}}}


def _facts(view: ClusterView, model: str) -> Facts:
    facts = facts_of(view.world()).get(model)
    if facts is None:
        raise WarmupGone(f"there is no ModelCache {model!r} any more", hint="create it, then try again")
    return facts
