"""The API over HTTP: one table of routes, one of errors, and an event stream that waits for nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from aiohttp import web

from cacheagent.api.answers import Answers
from cacheagent.api.errors import INTERNAL, status_of, to_answer
from cacheagent.api.schema import (
    HEARTBEAT_S,
    PREFIX,
    EnsureRequest,
    ErrorAnswer,
    ErrorBody,
    LeaseRequest,
    MountsReport,
    MountTimes,
    VolumeRequest,
)
from cacheagent.errors import CacheAgentError, UsageError
from cacheagent.events import EventHub, Subscription
from cacheagent.progress import JobStatus

LOG: Final = logging.getLogger(__name__)

SLOWEST_READER_S: Final = 10.0
"""How long one line of the event stream may wait for its reader before the connection is cut. Chosen."""

T = TypeVar("T")


class Route(NamedTuple):
    """One endpoint. `answer` takes the request and returns what is sent as JSON."""

    method: str
    path: str
    answer: Callable[[Answers, web.Request], Any]


async def _ensure(answers: Answers, request: web.Request) -> JobStatus:
    return await answers.ensure(await _body(request, EnsureRequest))


async def _lease(answers: Answers, request: web.Request) -> Any:
    return await answers.lease(request.match_info["volume_id"], await _body(request, LeaseRequest))


async def _volume(answers: Answers, request: web.Request) -> Any:
    return await answers.volume(request.match_info["volume_id"], await _body(request, VolumeRequest))


async def _mount(answers: Answers, request: web.Request) -> Any:
    return answers.mount(request.match_info["volume_id"], await _body(request, MountTimes))


async def _mounted(answers: Answers, request: web.Request) -> Any:
    return await answers.volumes.mounted(await _body(request, MountsReport))


ROUTES: Final = (
    Route("GET", "/version", lambda answers, _: answers.version()),
    Route("GET", "/status", lambda answers, _: answers.status()),
    Route("GET", "/models", lambda answers, _: answers.models()),
    Route("GET", "/models/{ref}", lambda answers, request: answers.model(request.match_info["ref"])),
    Route("POST", "/models/{ref}/verify", lambda answers, request: answers.verify(request.match_info["ref"])),
    Route("POST", "/models/{ref}/pin", lambda answers, request: answers.pin(request.match_info["ref"])),
    Route("POST", "/models/{ref}/unpin", lambda answers, request: answers.unpin(request.match_info["ref"])),
    Route("POST", "/models/{ref}/evict", lambda answers, request: answers.evict(request.match_info["ref"])),
    Route("POST", "/models/{ref}/refresh", lambda answers, request: answers.refresh(request.match_info["ref"])),
    Route("POST", "/ensure", _ensure),
    Route("GET", "/leases", lambda answers, _: answers.leases()),
    Route("PUT", "/leases/{volume_id}", _lease),
    Route("DELETE", "/leases/{volume_id}", lambda answers, request: answers.release(request.match_info["volume_id"])),
    Route("PUT", "/volumes/{volume_id}", _volume),
    Route("PUT", "/volumes/{volume_id}/mount", _mount),
    Route(
        "DELETE",
        "/volumes/{volume_id}",
        lambda answers, request: answers.volumes.remove(request.match_info["volume_id"]),
    ),
    Route("PUT", "/mounts", _mounted),
)
"""Everything under `PREFIX` but the event stream."""


def make_api(answers: Answers, hub: EventHub) -> web.Application:
    """The application that the unix socket serves."""
    app = web.Application(middlewares=[_errors_as_json])
    for route in ROUTES:
        app.router.add_route(route.method, PREFIX + route.path, _as_json(route, answers))
    app.router.add_route("GET", f"{PREFIX}/events", _event_stream(answers, hub))
    return app


def json_response(value: Any, status: int = 200) -> web.Response:
    """One value as JSON."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _as_json(route: Route, answers: Answers) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        answer = route.answer(answers, request)
        return json_response(await answer if isawaitable(answer) else answer)

    return handle


async def _body(request: web.Request, wanted: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=wanted)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{request.method} {request.path}: {error}", hint="see docs/api.md") from error


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except CacheAgentError as error:
        return json_response(to_answer(error), status_of(error))
    except web.HTTPException as refusal:
        known = UsageError(f"{request.method} {request.path}: {refusal.reason}", hint="see docs/api.md")
        return json_response(to_answer(known), refusal.status)
    except ConnectionError:  # the client left in the middle of a stream
        raise
    except Exception as defect:
        LOG.exception("a defect in %s %s", request.method, request.path)
        body = ErrorBody(
            code=INTERNAL, message=f"a defect in the agent: {defect!r}"[:500], hint="report it with the log"
        )
        return json_response(ErrorAnswer(error=body), 500)


def _event_stream(answers: Answers, hub: EventHub) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        name = request.query.get("name", "")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        with hub.subscribe(name) as news:
            await response.prepare(request)
            try:
                for status in answers.jobs(name):
                    await _send(response, _line(status))
                while (line := await _next_line(news)) is not None:
                    await _send(response, line)
            except TimeoutError:
                LOG.warning("an event stream was cut: its reader was too slow")
                if request.transport is not None:
                    request.transport.abort()
        return response

    return handle


async def _next_line(news: Subscription) -> bytes | None:
    """The next state, an empty line when there was none for a while, None at the end."""
    try:
        async with asyncio.timeout(HEARTBEAT_S):
            status = await news.next()
    except TimeoutError:
        return b"\n"
    return None if status is None else _line(status)


async def _send(response: web.StreamResponse, line: bytes) -> None:
    async with asyncio.timeout(SLOWEST_READER_S):
        await response.write(line)


def _line(status: JobStatus) -> bytes:
    return msgspec.json.encode(status) + b"\n"
