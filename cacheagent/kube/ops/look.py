"""Asking what the origin holds now without pinning it: a mark on the model makes the controller have a node look."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import dataclass
from typing import Final

from cacheagent.kube.api import MODEL_CACHES, KubeApi, KubeError, KubeRefused, Object
from cacheagent.kube.names import LOOK
from cacheagent.kube.objects import NodeModelStatus
from cacheagent.kube.ops.progress import WarmupGone, source_failure
from cacheagent.kube.ops.view import ClusterView
from cacheagent.kube.plan.facts import Facts, facts_of, living_cache_nodes, look_token, ready_agents
from cacheagent.kube.plan.resolve import SAME_EVERYWHERE
from cacheagent.kube.plan.views import parse_model
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
    mark = uuid.uuid4().hex  # nobody's clock says which of two questions is the later one
    replaced = look_token(_facts(view, model).model)
    try:
        marked = await api.patch(MODEL_CACHES, model, {"metadata": {"annotations": {LOOK: mark}}})
    except KubeRefused as error:
        return Seen(why=f"asking was refused: {error.message}")
    view.wrote(MODEL_CACHES, marked)
    answered_before = frozenset({replaced, parse_model(marked).status.looked_for})
    try:
        async with asyncio.timeout(timeout_s):
            return await _wait_seen(view, model, answered_before)
    except TimeoutError:
        failed = source_failure(view.world(), _facts(view, model))
        return Seen(why=_says(failed) if failed else f"no node has answered within {timeout_s:g} s")
    finally:
        await _withdraw(api, view, model, mark)


async def _wait_seen(view: ClusterView, model: str, answered_before: frozenset[str]) -> Seen:
    """Any answer counts that was not there before we asked: somebody who asks after us gets one for us, too."""
    while True:
        view.check()
        world, facts = view.world(), _facts(view, model)
        status = facts.model.status
        if status.looked_for not in answered_before:
            return Seen(digest=status.origin_digest or facts.digest)
        if LOOK not in facts.model.meta.annotations:
            return Seen(why="the question was withdrawn")
        failed = source_failure(world, facts)
        if failed is not None and failed[1].code in SAME_EVERYWHERE:
            return Seen(why=_says(failed))
        await view.wait_changed(LOOK_S)


async def _withdraw(api: KubeApi, view: ClusterView, model: str, mark: str) -> None:
    """A question that is answered, or whose answer nobody waits for, is asked no more; somebody else's stays."""
    path = f"/metadata/annotations/{LOOK.replace('/', '~1')}"
    ours: list[Object] = [{"op": "test", "path": path, "value": mark}, {"op": "remove", "path": path}]
    with contextlib.suppress(KubeError):  # it is somebody else's by now, or gone; or it stays, which harms nobody
        view.wrote(MODEL_CACHES, await api.patch(MODEL_CACHES, model, ours))


def _says(failed: tuple[str, NodeModelStatus]) -> str:
    node, entry = failed
    return f"{node} says: {entry.message or entry.code}"


def _facts(view: ClusterView, model: str) -> Facts:
    facts = facts_of(view.world()).get(model)
    if facts is None:
        raise WarmupGone(f"there is no ModelCache {model!r} any more", hint="create it, then try again")
    return facts
