"""What operators order: warm-ups are made or joined, models are refreshed, pinned and let go. Thin writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from cacheagent.errors import CacheAgentError, UsageError, WaitTimedOut
from cacheagent.kube.api import MODEL_CACHES, MODEL_WARMUPS, KubeApi, KubeConflict, KubeNotFound, Object
from cacheagent.kube.convert import micro_time
from cacheagent.kube.names import REFRESH
from cacheagent.kube.objects import Source
from cacheagent.kube.ops.progress import (
    Progress,
    WarmupGone,
    check_origin,
    check_source,
    find_condition,
    progress_of,
)
from cacheagent.kube.ops.view import ClusterView
from cacheagent.kube.ops.warmup import Wish, model_of_uri, renewal
from cacheagent.kube.plan.facts import facts_of
from cacheagent.kube.plan.views import Model, Warmup, parse_model, parse_warmup
from cacheagent.kube.webhook.annotations import near

LOOK_S: Final = 1.0
"""Watches bring changes at once; this is how often the clock is looked at meanwhile."""
TOGETHER_S: Final = 0.2
"""Changes that come together are shown together."""


async def find_model(api: KubeApi, name: str) -> Model:
    """Raises KubeNotFound that suggests what may have been meant."""
    try:
        return parse_model(await api.get(MODEL_CACHES, name))
    except KubeNotFound as error:
        if error.hint:  # the kind itself is not known: the CRDs are missing
            raise
        known = [item["metadata"]["name"] for item in (await api.list(MODEL_CACHES)).items]
        meant = near(name, known)
        raise KubeNotFound(
            f"there is no ModelCache {name[:100]!r}{meant}",
            hint="`kubectl get modelcaches` lists them; a URI needs none",
            status=404,
        ) from error


async def make_model(api: KubeApi, name: str, source: Source) -> Model:
    """The ModelCache that stands for a URI, made if it is not there."""
    try:
        return parse_model(await api.create(MODEL_CACHES, model_of_uri(name, source, time.time())))
    except KubeConflict:
        return parse_model(await api.get(MODEL_CACHES, name))


async def order_warmup(api: KubeApi, wish: Wish) -> tuple[Warmup, Object, bool]:
    """The warm-up for this wish, as value and object; and whether it was there before."""
    for _ in range(5):
        try:
            made = await api.create(MODEL_WARMUPS, wish.body)
        except KubeConflict:
            joined = await _join(api, wish)
            if joined is not None:
                return parse_warmup(joined), joined, True
        else:
            return parse_warmup(made), made, False
        await asyncio.sleep(TOGETHER_S)  # its predecessor is just being deleted
    raise WarmupGone(f"the warm-up {wish.name} can't be made: one of that name is being deleted", hint="try again")


async def _join(api: KubeApi, wish: Wish) -> Object | None:
    try:
        there = await api.get(MODEL_WARMUPS, wish.name)
        warmup, now = parse_warmup(there), time.time()
        if warmup.meta.deleting or warmup.expires_at <= now:
            return None
        patch = renewal(wish, warmup, now)
        return await api.patch(MODEL_WARMUPS, wish.name, patch) if patch else there
    except KubeNotFound:
        return None


async def order_refresh(api: KubeApi, model: Model) -> Object:
    """Have the source looked at again; the object as it is then. Raises UsageError where that can't change anything."""
    if model.spec.digest:
        raise UsageError(
            f"{model.name} is held to {model.spec.digest[:19]} by spec.digest; looking again changes nothing",
            hint="change spec.digest, or take it away",
        )
    return await api.patch(MODEL_CACHES, model.name, {"metadata": {"annotations": {REFRESH: micro_time()}}})


async def wait_resolved(view: ClusterView, name: str) -> Model:
    """The model, once it is known what its source is now. Raises PolicyRefused, OriginWrong, WarmupGone."""
    while True:
        view.check()
        world = view.world()
        facts = facts_of(world).get(name)
        if facts is None:
            raise WarmupGone(f"there is no ModelCache {name!r} any more", hint="create it, then try again")
        if facts.resolved:
            return facts.model
        check_source(world, name)
        state = find_condition(facts.model.status.conditions, "Resolved")
        if state is not None and state.reason == "NoNode" and not _may_be_assigned(view, name):
            raise CacheAgentError(
                f"{name}: {state.message}", hint=f"warm it somewhere: cacheagent warm {name} --refresh"
            )
        await view.wait_changed(LOOK_S)
        await asyncio.sleep(TOGETHER_S)


def _may_be_assigned(view: ClusterView, name: str) -> bool:
    """Whether any node is to hold it, or will be in a moment."""
    world = view.world()
    assigned = any(name in node.assigned for node in world.cache_nodes.values())
    return assigned or any(warmup.spec.model == name for warmup in world.warmups.values())


async def wait_warm(
    view: ClusterView, warmup: Warmup, share: float, *, show: Callable[[Progress], None], pinned: bool
) -> Progress:
    """Return once enough nodes are ready. `show` is given each state. `pinned`: go on where the origin has moved.

    Raises OriginMoved, OriginWrong, PolicyRefused, WarmupGone: waiting longer would not help.
    """
    while True:
        view.check()
        world = view.world()
        present = world.warmups.get(warmup.meta.name)
        if present is None or present.meta.deleting or present.meta.uid != warmup.meta.uid:
            raise WarmupGone(
                f"the warm-up {warmup.meta.name} was deleted, or its time is over",
                hint="run the command again, with a longer --ttl",
            )
        progress = progress_of(world, present, share)
        show(progress)
        if progress.is_done:
            return progress
        check_source(world, progress.model)
        if not pinned:
            check_origin(progress)
        await view.wait_changed(LOOK_S)
        await asyncio.sleep(TOGETHER_S)


def timed_out(progress: Progress | None, model: str, timeout_s: float) -> WaitTimedOut:
    """Says which nodes are missing, and why each."""
    begin = f"{model}: not warm after {timeout_s:g} s"
    hint = "the warm-up goes on; the same command joins it"
    if progress is None:
        return WaitTimedOut(f"{begin}: nobody has said yet what the origin holds", hint=hint)
    if not progress.nodes:
        return WaitTimedOut(f"{begin}: no cache node matches", hint="kubectl get modelcachenodes --show-labels")
    lines = [f"{begin}: {progress.ready} of {len(progress.nodes)} nodes are ready, {progress.wanted} are wanted"]
    lines += [f"  {node.node}: {node.state}: {node.why}" for node in progress.missing]
    return WaitTimedOut("\n".join(lines), hint=hint)


async def order_spec(api: KubeApi, name: str, spec: Object) -> Model:
    """Change fields of a model's spec."""
    await find_model(api, name)
    return parse_model(await api.patch(MODEL_CACHES, name, {"spec": spec}))


async def end_warmups(api: KubeApi, model: str) -> list[str]:
    """Delete the warm-ups of a model; their names."""
    found = [parse_warmup(item) for item in (await api.list(MODEL_WARMUPS)).items]
    ended = [warmup for warmup in found if warmup.spec.model == model and not warmup.meta.deleting]
    for warmup in ended:
        await api.delete(MODEL_WARMUPS, warmup.meta.name, uid=warmup.meta.uid)
    return [warmup.meta.name for warmup in ended]
