"""What `warm` does, in order: find the model, choose the nodes, order the warm-up, watch it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
import msgspec

from cacheagent.cli.cluster.options import with_cluster
from cacheagent.cli.cluster.telling import INTERRUPTED, Telling, pinned_since
from cacheagent.cli.cluster.watchers import WARMUP
from cacheagent.cli.output import Format
from cacheagent.cli.watching import Watcher, watcher
from cacheagent.errors import CacheAgentError, PolicyRefused, UsageError
from cacheagent.kube.api import MODEL_CACHES, MODEL_WARMUPS, KubeApi
from cacheagent.kube.client import KubeClient
from cacheagent.kube.objects import Source
from cacheagent.kube.ops.case import permits
from cacheagent.kube.ops.look import LOOK_FOR_S, look_at_origin, may_answer
from cacheagent.kube.ops.orders import (
    find_model,
    make_model,
    order_refresh,
    order_warmup,
    timed_out,
    wait_resolved,
    wait_warm,
)
from cacheagent.kube.ops.placement import nodes_like, parse_reference, pod_of
from cacheagent.kube.ops.progress import OriginMoved, Progress, check_look
from cacheagent.kube.ops.view import ClusterView, view_cluster
from cacheagent.kube.ops.warmup import LONGEST_TTL_S, Wish, parse_selector, source_of_uri
from cacheagent.kube.plan.facts import facts_of
from cacheagent.kube.plan.rates import LEAST_RATE
from cacheagent.kube.plan.views import Model, Warmup
from cacheagent.kube.uris import is_uri
from cacheagent.quantity import rate_text

SHORTEST_TTL_S: Final = 60


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What was typed. Times in seconds; `timeout` 0 is none."""

    model: str
    selector: str
    like: str
    namespace: str
    percent: int
    wait: bool
    timeout: float
    ttl: float
    refresh: bool
    pinned: bool
    revision: str
    endpoint: str
    region: str
    credential: str
    max_origin_rate: int
    kubeconfig: Path | None
    context: str
    output: Format


def run_warm(request: Request) -> int:
    """The exit code. Raises what `main` makes a sentence and a code of."""
    _check(request)
    run = _Run(request)
    try:
        with_cluster(request.kubeconfig, request.context, run.work)
    except KeyboardInterrupt:
        run.interrupted()
        return INTERRUPTED
    except CacheAgentError as error:
        run.failed(error)
        raise
    return 0


def _check(request: Request) -> None:
    if 0 < request.max_origin_rate < LEAST_RATE:
        raise UsageError(
            f"--max-origin-rate must be at least {rate_text(LEAST_RATE)}, for all nodes together",
            hint="write --max-origin-rate 500MB/s, or leave it away for no limit",
        )
    if request.refresh and request.pinned:
        raise UsageError("--refresh and --pinned exclude each other", hint="give one")
    if request.like and request.selector:
        raise UsageError("--like and --nodes exclude each other", hint="give one")
    if not SHORTEST_TTL_S <= request.ttl <= LONGEST_TTL_S:
        raise UsageError("--ttl must be between one minute and a year", hint="write --ttl 24h")
    if not is_uri(request.model) and (request.revision or request.endpoint or request.region or request.credential):
        raise UsageError(
            f"{request.model!r} is a ModelCache: its source is in its spec",
            hint="--revision, --endpoint, --region and --credential go with a URI",
        )


class _Run:
    """One command. Knows how far it came, for the last word."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._warmup: Warmup | None = None
        self._progress: Progress | None = None
        self._tell = Telling(is_json=request.output == "json")

    async def work(self, api: KubeClient) -> None:
        """Everything. Raises WaitTimedOut, OriginWrong, PolicyRefused, KubeError."""
        request = self._request
        async with view_cluster(api) as view:
            model = await self._model(api)
            wish = await self._wish(api, view, model)
            may_look = self._asks_origin(view, model)
            has_looked = may_look and may_answer(view.world(), model.name)
            if has_looked:
                await self._look(api, view, model)
            if request.refresh:
                view.wrote(MODEL_CACHES, await order_refresh(api, model))
            warmup, item, joined = await order_warmup(api, wish)
            view.wrote(MODEL_WARMUPS, item)
            self._warmup = warmup
            self._tell.ordered(model, wish, warmup, "" if request.refresh else model.status.digest, joined=joined)
            if may_look and not has_looked:  # no node had it, so nobody could look before
                await self._look(api, view, model, made=None if joined else warmup)
            if not request.wait:
                if request.output != "json":
                    click.echo(warmup.meta.name)
                return
            await self._wait(view, model, warmup)

    def failed(self, error: CacheAgentError) -> None:
        """It ends with this."""
        self._tell.failed(error, self._request.model, self._progress)

    def interrupted(self) -> None:
        """Somebody pressed Ctrl-C."""
        self._tell.interrupted(self._warmup.meta.name if self._warmup is not None else "")

    async def _model(self, api: KubeApi) -> Model:
        request = self._request
        if not is_uri(request.model):
            return await find_model(api, request.model)
        asked = Source(
            uri=request.model, endpoint=request.endpoint, region=request.region, credentials=request.credential
        )
        name, source = source_of_uri(asked, request.revision)
        return await make_model(api, name, source)

    def _asks_origin(self, view: ClusterView, model: Model) -> bool:
        """Whether the origin may have moved, and somebody wants to know."""
        facts = facts_of(view.world()).get(model.name)
        is_held = bool(model.spec.digest)  # to one version, whatever the origin holds
        return not (facts is None or not facts.resolved or is_held or self._request.refresh or self._request.pinned)

    async def _look(self, api: KubeApi, view: ClusterView, model: Model, made: Warmup | None = None) -> None:
        """Raises OriginMoved; then the warm-up that was `made` for the version before ends."""
        seen = await look_at_origin(api, view, model.name, min(LOOK_FOR_S, self._request.timeout or LOOK_FOR_S))
        facts = facts_of(view.world())[model.name]
        self._tell.looked(facts, seen)
        try:
            check_look(facts, pinned_since(facts.model), seen.digest)
        except OriginMoved:
            if made is not None:
                await api.delete(MODEL_WARMUPS, made.meta.name, uid=made.meta.uid)
            raise

    async def _wish(self, api: KubeClient, view: ClusterView, model: Model) -> Wish:
        request, namespace = self._request, self._request.namespace
        least_s = min(request.ttl, request.timeout or request.ttl)
        wish = Wish(model=model.name, ttl_s=int(request.ttl), least_s=least_s, max_origin_rate=request.max_origin_rate)
        if request.like:
            namespace = namespace or api.namespace
            resource, name = parse_reference(request.like)
            pod = pod_of(await api.get(resource, name, namespace=namespace))
            nodes = nodes_like(view.world(), pod)
            like = f"{namespace}/{resource.kind.lower()}/{name}"
            if not nodes:
                raise CacheAgentError(
                    f"no cache node could take the pods of {like}: its node selector, affinity and tolerations exclude "
                    "all of them",
                    hint="cacheagent nodes lists the cache nodes; kubectl get nodes --show-labels their labels",
                )
            wish = replace(wish, like=like, nodes=nodes)
        elif request.selector:
            wish = replace(wish, selector=parse_selector(request.selector))
        else:
            wish = replace(wish, selector=dict(model.spec.node_selector))
        facts = facts_of(view.world()).get(model.name)
        judged = bool(namespace) and not is_uri(request.model)  # of a URI the administrator's rules decide
        if judged and facts is not None and not permits(view.world(), facts, namespace):
            raise PolicyRefused(
                f"namespace {namespace!r} may not use the model {model.name!r}, so its pods would be refused",
                hint="have the namespace added to spec.allowedNamespaces of the ModelCache",
            )
        return wish

    async def _wait(self, view: ClusterView, model: Model, warmup: Warmup) -> None:
        request = self._request
        limit = request.timeout or None
        try:
            async with asyncio.timeout(limit):
                with watcher(request.output, WARMUP) as shown:
                    if request.refresh:
                        self._tell.refreshed(model, await wait_resolved(view, model.name))
                    progress = await wait_warm(
                        view,
                        warmup,
                        request.percent / 100,
                        show=lambda progress: self._show(shown, progress),
                        pinned=request.pinned,
                    )
        except TimeoutError:
            raise timed_out(self._progress, model.name, request.timeout) from None
        self._tell.ready(progress)

    def _show(self, shown: Watcher[Progress], progress: Progress) -> None:
        self._progress = progress
        shown.show(progress)
