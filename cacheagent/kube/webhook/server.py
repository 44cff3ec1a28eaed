"""The webhook over HTTPS. It answers every review; a rolling restart of it fails none.

The order of an end: `/readyz` says no, so that the service sends new connections elsewhere; for some seconds
everything is still answered, and each answer closes its connection; then what is in flight is finished."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, Protocol

from aiohttp import web

from cacheagent.errors import ConfigError, UsageError
from cacheagent.kube.start_traces import Review, admission
from cacheagent.kube.webhook.catalog import Catalog
from cacheagent.kube.webhook.kserve import left_alone
from cacheagent.kube.webhook.refusal import PodRefused
from cacheagent.kube.webhook.review import AdmissionRequest, allow, deny, parse_review, patch_for, takeover_for
from cacheagent.kube.webhook.settings import WebhookSettings

LOG: Final = logging.getLogger(__name__)

LARGEST_BODY_BYTES: Final = 8 * 1024 * 1024
"""etcd takes objects of 1.5 MiB, the API server requests of 3 MiB, and a review holds the object once."""
BODY_TIME_LIMIT_S: Final = 10.0
"""As the webhook configuration's own `timeoutSeconds`."""
IDLE_LIMIT_S: Final = 300.0
"""Longer than the API server keeps an idle connection (Go's client: 90 s), so that it never sends into one that we are
closing."""
DRAIN_S: Final = 8.0
"""From `/readyz` saying no to the end. Chosen: endpoints and their rules on nodes change within a few seconds."""
LAST_REQUESTS_S: Final = 5.0
SECOND_LOOKS: Final = 10
SECOND_LOOK_S: Final = 0.1
"""An unknown model may have been made a moment ago (one `kubectl apply` of both): our copy of the cluster gets one
second."""

Result = Literal["patched", "unchanged", "refused", "malformed", "defect"]


class Counts(Protocol):
    """Who wants to know how reviews ended."""

    def reviewed(self, result: Result, seconds: float) -> None:
        """One review was answered, after so long."""


class NoCounts:
    """Nobody does."""

    def reviewed(self, result: Result, seconds: float) -> None:
        """See `Counts.reviewed`."""


class Drain:
    """Whether the end has begun."""

    def __init__(self) -> None:
        self.begun = False


DRAIN: Final = web.AppKey("drain", Drain)


def make_webhook_app(
    catalog: Catalog,
    settings: WebhookSettings,
    counts: Counts | None = None,
    *,
    ready: Callable[[], str] = lambda: "",
) -> web.Application:
    """`POST /mutate` for pods that ask, `POST /mutate-kserve` for pods of KServe's, `/healthz`, `/readyz`. `ready` says
    what is missing still (copies of the cluster), or nothing."""
    app = web.Application(client_max_size=LARGEST_BODY_BYTES)
    app[DRAIN] = Drain()
    counts = counts if counts is not None else NoCounts()

    async def readyz(_: web.Request) -> web.Response:
        wrong = "stopping" if app[DRAIN].begun else ready()
        return web.Response(text=wrong or "ok", status=503 if wrong else 200)

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    app.router.add_post("/mutate", _Mutate(catalog, settings, counts).handle)
    app.router.add_post("/mutate-kserve", _TakeOver(catalog, settings, counts).handle)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/healthz", healthz)
    app.on_response_prepare.append(_close_when_draining)
    return app


@asynccontextmanager
async def serve_webhook(
    app: web.Application, context: ssl.SSLContext, host: str, port: int, *, drain_s: float = DRAIN_S
) -> AsyncIterator[tuple[str, int]]:
    """Serve for the length of the block; yields the address that it really is. Leaving the block drains, so what
    answers need (copies of the cluster) must live longer: open it outside. Raises ConfigError when it can't listen."""
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, shutdown_timeout=LAST_REQUESTS_S, keepalive_timeout=IDLE_LIMIT_S
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, ssl_context=context).start()
        except OSError as error:
            raise ConfigError(
                f"the webhook can't listen on {host}:{port}: {error.strerror or error}", hint="choose another address"
            ) from error
        address: tuple[str, int] = runner.addresses[0][:2]
        yield address
        app[DRAIN].begun = True
        await asyncio.sleep(drain_s)
    finally:
        app[DRAIN].begun = True
        await runner.cleanup()


class _Mutate:
    def __init__(self, catalog: Catalog, settings: WebhookSettings, counts: Counts) -> None:
        self._catalog = catalog
        self._settings = settings
        self._counts = counts

    async def handle(self, request: web.Request) -> web.Response:
        """Never a 500: a defect is logged, and told to the person as a refusal."""
        began, began_at = time.monotonic(), time.time()
        try:
            async with asyncio.timeout(BODY_TIME_LIMIT_S):
                review = parse_review(await request.read())
        except (UsageError, TimeoutError, web.HTTPRequestEntityTooLarge) as error:
            self._counts.reviewed("malformed", time.monotonic() - began)
            reason = error.message if isinstance(error, UsageError) else "the body is too large or came too slowly"
            return web.Response(text=reason, status=400)
        result, body = await self._answer(review, began_at)
        self._counts.reviewed(result, time.monotonic() - began)
        return web.Response(body=body, content_type="application/json")

    async def _answer(self, review: AdmissionRequest, began_at: float) -> tuple[Result, bytes]:
        try:
            operations = await self._patch(review)
            if operations and self._settings.traced:  # beside what we add, annotations are there
                operations.append(admission(Review(began_at, time.time())))
        except PodRefused as refusal:
            return self._refuse(review, refusal)
        except Exception as defect:
            LOG.exception("a defect in the webhook", extra={"namespace": review.namespace})
            sentence = f"a defect in the webhook ({type(defect).__name__}); report it with the log of the controller"
            return "defect", self._fail(review, sentence)
        return ("patched" if operations else "unchanged"), allow(review.uid, operations)

    async def _patch(self, review: AdmissionRequest) -> list[dict[str, Any]]:
        for _ in range(SECOND_LOOKS):
            try:
                return self._look(review)
            except PodRefused as refusal:
                if not refusal.may_pass:
                    raise
                await asyncio.sleep(SECOND_LOOK_S)
        return self._look(review)

    def _look(self, review: AdmissionRequest) -> list[dict[str, Any]]:
        return patch_for(review, self._catalog, self._settings)

    def _refuse(self, review: AdmissionRequest, refusal: PodRefused) -> tuple[Result, bytes]:
        LOG.info("a pod was refused: %s", refusal.message, extra={"namespace": review.namespace})
        return "refused", deny(review.uid, refusal.message, refusal.status)

    def _fail(self, review: AdmissionRequest, sentence: str) -> bytes:
        return deny(review.uid, sentence, 500)


class _TakeOver(_Mutate):
    """For pods that didn't ask for us: none is ever refused, since KServe can do without."""

    def _look(self, review: AdmissionRequest) -> list[dict[str, Any]]:
        return takeover_for(review, self._catalog, self._settings)

    def _refuse(self, review: AdmissionRequest, refusal: PodRefused) -> tuple[Result, bytes]:
        sentence = f"KServe downloads the model by itself: {refusal.message}"
        LOG.info("a pod was left to KServe: %s", refusal.message, extra={"namespace": review.namespace})
        return "unchanged", allow(review.uid, left_alone(review.object, sentence), sentence)

    def _fail(self, review: AdmissionRequest, sentence: str) -> bytes:
        return allow(review.uid, [], sentence)


async def _close_when_draining(request: web.Request, response: web.StreamResponse) -> None:
    """The API server then opens its next connection, to a replica that stays."""
    if request.app[DRAIN].begun:
        response.force_close()
