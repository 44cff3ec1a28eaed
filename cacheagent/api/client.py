"""The typed client of the agent's API. Knows the schema and the errors, nothing of store or transfer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from cacheagent.api.errors import from_answer
from cacheagent.api.schema import (
    HEARTBEAT_S,
    PREFIX,
    Done,
    EnsureRequest,
    Evicted,
    Lease,
    LeaseRequest,
    Leases,
    Model,
    Models,
    MountsReport,
    MountTimes,
    Status,
    Version,
    Volume,
    VolumeRequest,
)
from cacheagent.errors import AgentUnavailable
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec

ANSWER_LIMIT_S: Final = 30.0
"""How long an agent may take over something that does not wait for a transfer. Chosen."""

T = TypeVar("T")


class AgentClient:
    """One agent, reached by its unix socket. An async context manager; safe for concurrent calls in one event loop.

    Every method raises `AgentUnavailable` when nobody answers, and otherwise the error that the agent met, as the same
    class (`cacheagent.errors`). Cancelling a call leaves alone what it started in the agent.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._socket)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def version(self) -> Version:
        """Who answers."""
        return await self._call("GET", "/version", Version)

    async def status(self) -> Status:
        """The whole agent at one moment."""
        return await self._call("GET", "/status", Status)

    async def models(self) -> tuple[Model, ...]:
        """Everything that is published on this node."""
        return (await self._call("GET", "/models", Models)).models

    async def model(self, ref: str) -> Model:
        """One published version by name, digest or unique prefix of a digest. Raises NotCached."""
        return await self._call("GET", f"/models/{_segment(ref)}", Model)

    async def ensure(
        self,
        wanted: ModelSpec | str,
        *,
        priority: int | None = None,
        refresh: bool = False,
        wait_s: float = 0.0,
    ) -> JobStatus:
        """Bring a model, given whole or by name, and return how far it is after at most `wait_s` seconds.

        A job that failed is an answer (`phase == "failed"`), not an exception: `cacheagent.api.errors.from_code` makes
        one of it. Raises UsageError, NotCached (an unknown name).
        """
        request = EnsureRequest(
            spec=wanted if isinstance(wanted, ModelSpec) else None,
            name=wanted if isinstance(wanted, str) else "",
            priority=priority,
            refresh=refresh,
            wait_s=wait_s,
        )
        return await self._call("POST", "/ensure", JobStatus, request, limit_s=wait_s + ANSWER_LIMIT_S)

    async def refresh(self, ref: str) -> JobStatus:
        """Ask the origin again what a configured model is now; return at once with the job's state."""
        return await self._call("POST", f"/models/{_segment(ref)}/refresh", JobStatus)

    async def verify(self, ref: str) -> Done:
        """Re-read and compare everything, however long it takes. Raises CorruptModel, NotCached."""
        return await self._call("POST", f"/models/{_segment(ref)}/verify", Done, limit_s=None)

    async def pin(self, ref: str) -> Model:
        """Never evict it."""
        return await self._call("POST", f"/models/{_segment(ref)}/pin", Model)

    async def unpin(self, ref: str) -> Model:
        """Let it be evicted again."""
        return await self._call("POST", f"/models/{_segment(ref)}/unpin", Model)

    async def evict(self, ref: str) -> Evicted:
        """Remove it now. Raises ModelInUse, NotCached."""
        return await self._call("POST", f"/models/{_segment(ref)}/evict", Evicted)

    async def lease(self, volume_id: str, ref: str, *, owner: str = "") -> Lease:
        """Note that a volume uses a model, before it is mounted; the same again is fine. Raises NotCached."""
        return await self._call("PUT", f"/leases/{_segment(volume_id)}", Lease, LeaseRequest(ref=ref, owner=owner))

    async def release(self, volume_id: str) -> Done:
        """The volume is no longer mounted; one that is not known is fine."""
        return await self._call("DELETE", f"/leases/{_segment(volume_id)}", Done)

    async def leases(self) -> tuple[Lease, ...]:
        """All mounted volumes."""
        return (await self._call("GET", "/leases", Leases)).leases

    async def volume(self, volume_id: str, request: VolumeRequest) -> Volume:
        """A volume is to be mounted: what to mount, with its lease taken, or why it has to wait (after `wait_s` at
        most).

        Raises NotCached (no such model or version), PolicyRefused (not for this namespace), NoRoom, UsageError.
        """
        path = f"/volumes/{_segment(volume_id)}"
        return await self._call("PUT", path, Volume, request, limit_s=request.wait_s + ANSWER_LIMIT_S)

    async def mount_took(self, volume_id: str, times: MountTimes) -> Done:
        """When a volume was mounted whose answer said `traced`."""
        return await self._call("PUT", f"/volumes/{_segment(volume_id)}/mount", Done, times)

    async def remove_volume(self, volume_id: str) -> Done:
        """The volume is unmounted, or never will be mounted: its lease, what was remembered of it and its own directory
        go. One that is not known is fine."""
        return await self._call("DELETE", f"/volumes/{_segment(volume_id)}", Done)

    async def mounted(self, report: MountsReport) -> Done:
        """Everything of ours that is mounted on this node now; leases are made and given back by it."""
        return await self._call("PUT", "/mounts", Done, report)

    async def events(self, name: str = "") -> AsyncGenerator[JobStatus, None]:
        """Job states as they change, of one model or of all: first what is known now, then news, until the caller
        stops. The stream has no end of its own: AgentUnavailable when the agent stops, falls silent for three
        heartbeats, or drops a client that reads too slowly.
        """
        limit = aiohttp.ClientTimeout(total=None, sock_read=3 * HEARTBEAT_S)
        params = {"name": name} if name else {}
        try:
            async with self._request("GET", "/events", params=params, timeout=limit) as response:
                if response.status != 200:
                    raise from_answer(response.status, await response.read())
                async for line in response.content:
                    if line.strip():
                        yield msgspec.json.decode(line, type=JobStatus)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unavailable(error) from error
        raise AgentUnavailable(
            f"the agent on {self._socket} ended the event stream: it is stopping, or this client read too slowly",
            hint="ask for the status, then listen again",
        )

    async def _call(
        self,
        method: str,
        path: str,
        answer: type[T],
        body: msgspec.Struct | None = None,
        *,
        limit_s: float | None = ANSWER_LIMIT_S,
    ) -> T:
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._request(method, path, data=data, timeout=aiohttp.ClientTimeout(total=limit_s)) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unavailable(error) from error
        if response.status != 200:
            raise from_answer(response.status, content)
        return msgspec.json.decode(content, type=answer)

    def _request(self, method: str, path: str, **options: Any) -> Any:
        if self._session is None:
            raise RuntimeError("AgentClient is used outside of its `async with` block")
        headers = {"Content-Type": "application/json"}
        return self._session.request(method, f"http://agent{PREFIX}{path}", headers=headers, **options)

    def _unavailable(self, error: BaseException) -> AgentUnavailable:
        if isinstance(error, TimeoutError):
            return AgentUnavailable(
                f"the agent on {self._socket} did not answer in time", hint="its log and /healthz say whether it lives"
            )
        if isinstance(getattr(error, "os_error", error), PermissionError):
            return AgentUnavailable(
                f"the agent's socket {self._socket} may not be opened by this user",
                hint="run as the agent's user, or as a member of the socket's group",
            )
        return AgentUnavailable(
            f"no agent answers on {self._socket}: {error}",
            hint="start one with `cacheagent agent --config models.yaml`",
        )


def _segment(text: str) -> str:
    return quote(text, safe="")
