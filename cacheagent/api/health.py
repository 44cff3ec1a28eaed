"""What probes and Prometheus ask: three plain endpoints, also on TCP, without anything that needs protection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from cacheagent.api.server import json_response
from cacheagent.metrics import CONTENT_TYPE

Check = Callable[[], str]
"""Says what is wrong, or an empty string. Must return at once."""


def health_routes(
    live: Mapping[str, Check], ready: Mapping[str, Check], scrape: Callable[[], Awaitable[bytes]]
) -> list[web.RouteDef]:
    """`/healthz`: that it answers shows that the event loop lives; `live` are the other things that a restart might
    mend. `/readyz`: those and `ready`. Both answer 200, or 503 with what is wrong. `/metrics`: what `scrape` gives.
    """

    async def healthz(_: web.Request) -> web.Response:
        return _answer(live)

    async def readyz(_: web.Request) -> web.Response:
        return _answer({**live, **ready})

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=await scrape(), headers={"Content-Type": CONTENT_TYPE})

    return [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)]


def _answer(checks: Mapping[str, Check]) -> web.Response:
    wrong = {name: reason for name, check in checks.items() if (reason := check())}
    return json_response({"ok": not wrong, "checks": sorted(checks), "wrong": wrong}, 503 if wrong else 200)
