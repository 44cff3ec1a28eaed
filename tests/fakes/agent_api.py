"""An agent's unix socket with a scripted node behind it: what the CSI driver asks, and what it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from aiohttp import web

from cacheagent.api.errors import status_of, to_answer
from cacheagent.api.schema import PREFIX, Done, Model, MountsReport, MountTimes, Volume, VolumeRequest
from cacheagent.errors import CacheAgentError, NotCached

T = TypeVar("T")
DIGEST = "sha256:" + "ab" * 32
TREE = DIGEST.replace(":", "-")
WAITING = "37 %, 52 of 141 GB, about 80 s left"


class FakeAgent:
    """Answers while its `async with` block runs. `publish` makes a model ready and lets those go who wait for it."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.paths: dict[str, str] = {}
        self.refusals: dict[str, CacheAgentError] = {}
        self.asked: list[tuple[str, VolumeRequest]] = []
        self.held_s: list[float] = []
        self.removed: list[str] = []
        self.reports: list[MountsReport] = []
        self.traced = False
        self.times: dict[str, MountTimes] = {}
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Like a new agent: on a new socket, knowing what it knew."""
        app = web.Application(middlewares=[_errors])
        app.router.add_put(f"{PREFIX}/volumes/{{id}}", self._volume)
        app.router.add_put(f"{PREFIX}/volumes/{{id}}/mount", self._mount)
        app.router.add_delete(f"{PREFIX}/volumes/{{id}}", self._remove)
        app.router.add_put(f"{PREFIX}/mounts", self._mounts)
        app.router.add_get(f"{PREFIX}/models/{{ref}}", self._model)
        self.socket.unlink(missing_ok=True)
        # A call that is given up ends here too: `held_s` tells it.
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=0.1, handler_cancellation=True
        )
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket)).start()

    async def stop(self) -> None:
        """Like one that is killed: its socket stays."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def publish(self, model: str, path: str = f"models/{TREE}/files") -> None:
        """The model is here from now on."""
        async with self._changed:
            self.paths[model] = path
            self._changed.notify_all()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until what the driver said makes it true."""
        async with self._changed, asyncio.timeout(60):
            await self._changed.wait_for(condition)

    def mounted(self) -> dict[str, str]:
        """The last report: paths by volume id."""
        return {mount.volume_id: mount.path for mount in self.reports[-1].mounts} if self.reports else {}

    async def _volume(self, request: web.Request) -> web.Response:
        volume_id, wanted = request.match_info["id"], await _body(request, VolumeRequest)
        began = time.monotonic()
        key = wanted.model or wanted.uri or wanted.digest
        async with self._changed:
            self.asked.append((volume_id, wanted))
            self._changed.notify_all()
            if key in self.refusals:
                raise self.refusals[key]
            try:
                async with asyncio.timeout(wanted.wait_s):
                    await self._changed.wait_for(lambda: key in self.paths)
            except TimeoutError:
                return _json(Volume(volume_id=volume_id, state="waiting", message=WAITING))
            finally:
                self.held_s.append(time.monotonic() - began)
                self._changed.notify_all()
            path = self.paths[key].replace("{id}", volume_id)
        return _json(Volume(volume_id=volume_id, state="ready", digest=DIGEST, path=path, traced=self.traced))

    async def _mount(self, request: web.Request) -> web.Response:
        times = await _body(request, MountTimes)
        async with self._changed:
            self.times[request.match_info["id"]] = times
            self._changed.notify_all()
        return _json(Done())

    async def _remove(self, request: web.Request) -> web.Response:
        async with self._changed:
            self.removed.append(request.match_info["id"])
            self._changed.notify_all()
        return _json(Done())

    async def _mounts(self, request: web.Request) -> web.Response:
        report = await _body(request, MountsReport)
        async with self._changed:
            self.reports.append(report)
            self._changed.notify_all()
        return _json(Done())

    async def _model(self, request: web.Request) -> web.Response:
        ref = request.match_info["ref"]
        if ref not in self.paths:
            raise NotCached(f"no model {ref!r} is here")
        now = time.time()
        return _json(
            Model(
                name=ref,
                digest=DIGEST,
                uri="s3://models/tiny",
                kind="checkpoint",
                files=1,
                size_bytes=1,
                published_at=now,
                last_used=now,
                path=self.paths[ref],
            )
        )


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def _body(request: web.Request, kind: type[T]) -> T:
    return msgspec.json.decode(await request.read(), type=kind)


@web.middleware
async def _errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    try:
        return await handler(request)
    except CacheAgentError as error:
        return _json(to_answer(error), status_of(error))
