"""`KubeApi` over HTTP: raw JSON, pages, watches as a stream of lines, and errors by what to do next."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp.connector import NEEDS_CLEANUP_CLOSED

import cacheagent
from cacheagent.kube.access import Access, find_access
from cacheagent.kube.api import (
    Answer,
    Keep,
    KubeError,
    KubeExpired,
    KubeUnavailable,
    Object,
    ObjectList,
    Patch,
    Resource,
    WatchEvent,
)
from cacheagent.kube.refusals import error_of_answer, error_of_status

PAGE: Final = 500
"""Objects in one answer of a list, as kubectl and client-go ask for."""
ANSWER_LIMIT_S: Final = 30.0
"""For a request that is no watch. The API server gives up on its own after 60 s; nobody here can wait that long."""
CONNECT_LIMIT_S: Final = 10.0
WATCH_S: Final = (300, 600)
"""How long a watch may last, chosen at random as client-go does, so that a fleet doesn't come back as one."""
IDLE_LIMIT_S: Final = 240.0
"""A watch that says nothing so long is dead: at rest a bookmark comes every 60 to 120 s (seen on 1.37). Only Events
have none."""

T = TypeVar("T")

JSON: Final = "application/json"
APPLY_PATCH: Final = "application/apply-patch+yaml"  # JSON is YAML
MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"

ACCEPTED: Final[dict[Answer, str]] = {
    "object": JSON,
    "metadata": f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1,{JSON}",
}

OnRequest = Callable[[str, str, int], None]
"""(verb, plural, HTTP status or 0), as soon as a request is answered or has failed: for counting."""
OnReceived = Callable[[str, str, int], None]
"""(verb, plural, bytes of an answer's body that were read, after decompression), piece by piece for watches."""


class Call(NamedTuple):
    """One request, before it has a server."""

    verb: str
    method: str
    resource: Resource
    name: str = ""
    namespace: str = ""
    subresource: str = ""
    query: dict[str, str] = {}
    body: Object | list[Object] | None = None
    content_type: str = JSON
    accept: str = JSON

    @property
    def path(self) -> str:
        """As in the API's URLs."""
        resource = self.resource
        root = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
        inside = ["namespaces", self.namespace] if resource.namespaced and self.namespace else []
        parts = [*inside, resource.plural, self.name, self.subresource]
        return "/".join([root, *(quote(part, safe="") for part in parts if part)])

    @property
    def text(self) -> str:
        """For messages: `get pods "web-0" in "shop"`."""
        name = f' "{self.name}"' if self.name else ""
        subresource = f"/{self.subresource}" if self.subresource else ""
        where = f' in "{self.namespace}"' if self.namespace else ""
        return f"{self.verb} {self.resource.plural}{subresource}{name}{where}"


class KubeClient:
    """One API server; `open_client` makes it, `KubeApi` tells of the verbs. For concurrent calls in one event loop."""

    def __init__(
        self,
        access: Access,
        session: aiohttp.ClientSession,
        on_request: OnRequest | None = None,
        on_received: OnReceived | None = None,
    ) -> None:
        self._access = access
        self._session = session
        self._on_request = on_request or (lambda _verb, _plural, _status: None)
        self._on_received = on_received or (lambda _verb, _plural, _size: None)

    @property
    def server(self) -> str:
        """Its URL."""
        return self._access.server

    @property
    def namespace(self) -> str:
        """The one that a person means who names none (the kubeconfig's context), or the pod's own."""
        return self._access.namespace

    async def get(self, resource: Resource, name: str, *, namespace: str = "") -> Object:
        return await self._object(Call("get", "GET", resource, name, namespace))

    async def list(
        self, resource: Resource, *, namespace: str = "", fields: str = "", labels: str = "", keep: Keep | None = None
    ) -> ObjectList:
        """In pages; if the server forgets where we were between two of them, all at once."""
        query, keep = _selectors(fields, labels), keep or _as_it_is
        try:
            return await self._pages(resource, namespace, query | {"limit": str(PAGE)}, keep)
        except KubeExpired:
            return await self._pages(resource, namespace, query, keep)

    async def watch(
        self, resource: Resource, resource_version: str, *, namespace: str = "", fields: str = "", labels: str = ""
    ) -> AsyncGenerator[WatchEvent, None]:
        """Ends when the server ends it. Raises KubeUnavailable when the connection breaks or falls silent."""
        query = _selectors(fields, labels) | {
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*WATCH_S)),
        }
        call = Call("watch", "GET", resource, namespace=namespace, query=query)
        limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_LIMIT_S, sock_read=IDLE_LIMIT_S)
        async with self._answer(call, limit) as response:
            async for line in _lines(response, partial(self._on_received, call.verb, resource.plural)):
                event = _decoded(line, _Event, call)
                if event.type == "ERROR":
                    raise error_of_status(event.object, call.text)
                yield WatchEvent(event.type, event.object)

    async def create(self, resource: Resource, body: Object, *, namespace: str = "", dry_run: bool = False) -> Object:
        query = {"dryRun": "All"} if dry_run else {}
        namespace = namespace or body.get("metadata", {}).get("namespace", "")
        return await self._object(
            Call("create", "POST", resource, namespace=namespace, query=query, body=_typed(resource, body))
        )

    async def replace(self, resource: Resource, body: Object, *, namespace: str = "", subresource: str = "") -> Object:
        metadata = body["metadata"]
        namespace = namespace or metadata.get("namespace", "")
        body = _typed(resource, body)
        return await self._object(Call("replace", "PUT", resource, metadata["name"], namespace, subresource, body=body))

    async def patch(
        self, resource: Resource, name: str, body: Patch, *, namespace: str = "", subresource: str = ""
    ) -> Object:
        kind = JSON_PATCH if isinstance(body, list) else MERGE_PATCH
        return await self._object(
            Call("patch", "PATCH", resource, name, namespace, subresource, body=body, content_type=kind)
        )

    async def apply(
        self,
        resource: Resource,
        body: Object,
        *,
        manager: str,
        namespace: str = "",
        subresource: str = "",
        answer: Answer = "object",
    ) -> Object:
        metadata = body["metadata"]
        namespace = namespace or metadata.get("namespace", "")
        query = {"fieldManager": manager, "force": "true"}
        call = Call("apply", "PATCH", resource, metadata["name"], namespace, subresource, query)
        return await self._object(
            call._replace(body=_typed(resource, body), content_type=APPLY_PATCH, accept=ACCEPTED[answer])
        )

    async def delete(self, resource: Resource, name: str, *, namespace: str = "", uid: str = "") -> None:
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        options = body | ({"preconditions": {"uid": uid}} if uid else {})
        try:
            await self._object(Call("delete", "DELETE", resource, name, namespace, body=options))
        except KubeError as error:
            if error.status != 404:
                raise

    async def _pages(self, resource: Resource, namespace: str, query: dict[str, str], keep: Keep) -> ObjectList:
        # Items of a list don't say what they are.
        named = {"apiVersion": resource.api_version, "kind": resource.kind}
        items: list[Object] = []
        while True:
            call = Call("list", "GET", resource, namespace=namespace, query=query)
            page = _decoded(await self._content(call), _Page, call)
            items += (keep(named | _decoded(item, Object, call)) for item in page.items or ())
            if not page.metadata.get("continue"):
                return ObjectList(items, page.metadata["resourceVersion"])
            query = query | {"continue": page.metadata["continue"]}

    async def _object(self, call: Call) -> Object:
        return _decoded(await self._content(call), Object, call)

    async def _content(self, call: Call) -> bytes:
        limit = aiohttp.ClientTimeout(total=ANSWER_LIMIT_S, sock_connect=CONNECT_LIMIT_S)
        async with self._answer(call, limit) as response:
            content = await response.read()
        self._on_received(call.verb, call.resource.plural, len(content))
        return content

    @asynccontextmanager
    async def _answer(self, call: Call, limit: aiohttp.ClientTimeout) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that means success, or our error; also for what happens while its body is read."""
        try:
            response = await self._sent(call, limit)
            if response.status == 401:
                response.release()
                await self._access.renew()
                response = await self._sent(call, limit)
            async with response:
                try:
                    if response.status >= 400:
                        raise error_of_answer(response.status, await response.read(), call.text)
                    yield response
                finally:
                    _break_off(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unavailable(error, call) from error

    async def _sent(self, call: Call, limit: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        access = self._access
        headers = {"Accept": call.accept} | ({"Content-Type": call.content_type} if call.body is not None else {})
        if authorization := access.authorization():
            headers["Authorization"] = authorization
        status = 0
        try:
            response = await self._session.request(
                call.method,
                access.server + call.path,
                params=call.query,
                data=None if call.body is None else msgspec.json.encode(call.body),
                headers=headers,
                timeout=limit,
                proxy=access.proxy or None,
                server_hostname=access.tls_name or None,
            )
            status = response.status
        finally:
            self._on_request(call.verb, call.resource.plural, status)
        return response

    def _unavailable(self, error: BaseException, call: Call) -> KubeUnavailable:
        if isinstance(error, TimeoutError):
            return KubeUnavailable(f"{call.text}: the API server {self.server} did not answer in time")
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return KubeUnavailable(
                f"{call.text}: {self.server} shows a certificate that is not trusted: {error.certificate_error}",
                hint="the kubeconfig's certificate authority is not that of this server",
            )
        reason = str(error) or type(error).__name__
        return KubeUnavailable(
            f"{call.text}: no answer from the API server {self.server}: {reason[:200]}",
            hint="kubectl cluster-info says whether it can be reached from here",
        )


@asynccontextmanager
async def open_client(
    kubeconfig: Path | None = None,
    context: str = "",
    *,
    on_request: OnRequest | None = None,
    on_received: OnReceived | None = None,
) -> AsyncIterator[KubeClient]:
    """The cluster that kubectl would use, or the one that this pod is in. Asks nothing yet. Raises ConfigError."""
    access = await find_access(kubeconfig, context)
    tls: ssl.SSLContext | bool = access.tls if access.tls is not None else True
    headers = {"User-Agent": f"cacheagent/{cacheagent.__version__}"}
    # Requests that are cancelled before their answer begins are cut by aiohttp itself, where Python needs that.
    connector = aiohttp.TCPConnector(ssl=tls, enable_cleanup_closed=NEEDS_CLEANUP_CLOSED)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        yield KubeClient(access, session, on_request, on_received)


def _break_off(response: aiohttp.ClientResponse) -> None:
    """What was not read to its end (a watch that nobody wants any more) is cut at once. aiohttp would say farewell by
    TLS instead and wait for the server's with nobody watching, so that a program that ends then leaves its sockets
    open. It must not close a transport that was cut: in the Python of Debian 12 (3.11.2) that one can't be cut again,
    as aiohttp does at the end."""
    if response.connection is not None and response.connection.protocol is not None:
        response.connection.protocol.abort()
        response.close()


async def _lines(response: aiohttp.ClientResponse, received: Callable[[int], None]) -> AsyncIterator[bytes]:
    """Whole lines, however long (aiohttp's own end at 128 KB). A line that the end cuts short was no event."""
    begun: list[bytes] = []
    async for chunk in response.content.iter_any():
        received(len(chunk))
        first, *rest = chunk.split(b"\n")
        begun.append(first)
        for part in rest:
            if line := b"".join(begun):
                yield line
            begun = [part]


class _Page(msgspec.Struct):
    """A part of a list. Its items are decoded one by one: as objects, a page is five times its size as text."""

    metadata: dict[str, Any]
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    """A line of a watch."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: Object


def _decoded(content: bytes | msgspec.Raw, kind: type[T], call: Call) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise KubeUnavailable(f"{call.text}: the answer is no JSON: {bytes(content)[:200]!r}") from error


def _as_it_is(item: Object) -> Object:
    return item


def _selectors(fields: str, labels: str) -> dict[str, str]:
    return ({"fieldSelector": fields} if fields else {}) | ({"labelSelector": labels} if labels else {})


def _typed(resource: Resource, body: Object) -> dict[str, Any]:
    """With what the server wants to read in each body, so that callers need not say it."""
    return {"apiVersion": resource.api_version, "kind": resource.kind} | body
