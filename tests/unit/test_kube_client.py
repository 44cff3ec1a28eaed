"""The client on a scripted server: what it sends, and what it makes of answers that a healthy server doesn't give."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import ssl
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

import cacheagent
from cacheagent.errors import ConfigError
from cacheagent.kube.access import KubeconfigAccess, PodAccess, find_access, find_kubeconfig
from cacheagent.kube.api import (
    MODEL_CACHES,
    PODS,
    KubeConflict,
    KubeError,
    KubeExpired,
    KubeNotFound,
    KubeRefused,
    KubeUnavailable,
)
from cacheagent.kube.client import KubeClient, open_client
from tests.fakes.tls import Tls

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TokenAccess:
    """An access whose token the server takes back after a while."""

    namespace = "default"
    tls: ssl.SSLContext | None = None
    tls_name = proxy = ""

    def __init__(self, server: str) -> None:
        self.server = server
        self.token = "old"

    def authorization(self) -> str:
        return f"Bearer {self.token}"

    async def renew(self) -> None:
        self.token = "new"


@asynccontextmanager
async def served(handler: Handler) -> AsyncGenerator[KubeClient, None]:
    """A client of a server that answers every request by `handler`."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(application) as server, aiohttp.ClientSession() as session:
        yield KubeClient(TokenAccess(str(server.make_url("")).rstrip("/")), session)


def status(code: int, message: str = "no", **details: str) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "message": message, "code": code, "details": details}
    return web.json_response(body, status=code)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, KubeRefused),
        (401, KubeRefused),
        (403, KubeRefused),
        (404, KubeNotFound),
        (409, KubeConflict),
        (410, KubeExpired),
        (413, KubeRefused),
        (422, KubeRefused),
        (429, KubeUnavailable),
        (500, KubeUnavailable),
        (503, KubeUnavailable),
        (504, KubeUnavailable),
    ],
)
@pytest.mark.asyncio
async def test_an_error_says_what_to_do_next(code: int, kind: type[KubeError]) -> None:
    """By its class, with the request and the server's own words in the message."""

    async def handler(_request: web.Request) -> web.Response:
        return status(code, "because of this")

    async with served(handler) as client:
        with pytest.raises(kind, match=r'get pods "a" in "shop": because of this') as error:
            await client.get(PODS, "a", namespace="shop")
    assert type(error.value) is kind
    assert error.value.status == code


@pytest.mark.asyncio
async def test_an_answer_that_is_not_the_api_servers() -> None:
    """A proxy's page is cut short; a page that says 200 is no object."""

    async def refusing(_request: web.Request) -> web.Response:
        return web.Response(status=502, text="<html>" + "x" * 1000)

    async with served(refusing) as client:
        with pytest.raises(KubeUnavailable, match=r"answered 502: <html>x+") as error:
            await client.list(PODS)
        assert len(error.value.message) < 300

    async def greeting(_request: web.Request) -> web.Response:
        return web.Response(text="<html>log in, please</html>")

    async with served(greeting) as client:
        with pytest.raises(KubeUnavailable, match="is no JSON"):
            await client.list(PODS)


@pytest.mark.asyncio
async def test_a_list_keeps_what_is_wanted_of_each_object() -> None:
    """Page after page; the bytes of the answers are counted, and an object is told what kind it is before."""
    received: list[tuple[str, str, int]] = []
    sent = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal sent
        more = "continue" not in request.query
        name, rest = ("a", {"continue": "next"}) if more else ("b", {})
        answer = web.json_response(
            {"metadata": {"resourceVersion": "5", **rest}, "items": [{"metadata": {"name": name}}]}
        )
        assert isinstance(answer.body, bytes)
        sent += len(answer.body)
        return answer

    async with served(handler) as client:
        client._on_received = lambda *what: received.append(what)
        kept = await client.list(PODS, keep=lambda item: {"kind": item["kind"], "is": item["metadata"]["name"]})
    assert kept == ([{"kind": "Pod", "is": "a"}, {"kind": "Pod", "is": "b"}], "5")
    assert {what[:2] for what in received} == {("list", "pods")}
    assert sum(size for _, _, size in received) == sent > 0


@pytest.mark.asyncio
async def test_what_is_sent() -> None:
    """Paths, queries and content types of every verb."""
    seen: list[tuple[str, str, str]] = []
    bodies: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.method, request.path_qs, request.content_type if request.can_read_body else ""))
        bodies.append(await request.json() if request.can_read_body else None)
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})

    body = {"metadata": {"name": "a"}}
    async with served(handler) as client:
        await client.get(MODEL_CACHES, "a")
        await client.list(PODS, namespace="shop", fields="spec.nodeName=n", labels="a=b")
        await client.create(PODS, body, namespace="shop", dry_run=True)
        await client.replace(MODEL_CACHES, body, subresource="status")
        await client.patch(PODS, "a/b", {"x": 1}, namespace="shop")
        await client.patch(PODS, "a", [{"op": "remove", "path": "/x"}], namespace="shop")
        await client.apply(MODEL_CACHES, body, manager="us", subresource="status")
        await client.delete(PODS, "a", namespace="shop", uid="u")
    ours = "/apis/cacheagent.io/v1alpha1/modelcaches"
    pods = "/api/v1/namespaces/shop/pods"
    assert seen == [
        ("GET", f"{ours}/a", ""),
        ("GET", f"{pods}?fieldSelector=spec.nodeName%3Dn&labelSelector=a%3Db&limit=500", ""),
        ("POST", f"{pods}?dryRun=All", "application/json"),
        ("PUT", f"{ours}/a/status", "application/json"),
        ("PATCH", f"{pods}/a%2Fb", "application/merge-patch+json"),
        ("PATCH", f"{pods}/a", "application/json-patch+json"),
        ("PATCH", f"{ours}/a/status?fieldManager=us&force=true", "application/apply-patch+yaml"),
        ("DELETE", f"{pods}/a", "application/json"),
    ]
    assert bodies[2] == {"apiVersion": "v1", "kind": "Pod"} | body
    assert bodies[7]["preconditions"] == {"uid": "u"}


@pytest.mark.asyncio
async def test_a_token_that_is_no_longer_taken_is_renewed() -> None:
    """Once: a server that refuses the new one too is believed."""
    taken = {"Bearer new"}
    counted: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        if request.headers["Authorization"] not in taken:
            return status(401, "Unauthorized")
        return web.json_response({"metadata": {"name": "a"}})

    async with served(handler) as client:
        client._on_request = lambda _verb, _plural, code: counted.append(code)
        assert (await client.get(PODS, "a"))["metadata"]["name"] == "a"
        assert counted == [401, 200]
        taken.clear()
        with pytest.raises(KubeRefused, match="Unauthorized") as refused:
            await client.get(PODS, "a")
    assert counted == [401, 200, 401, 401]
    assert "log in again" in refused.value.hint


@pytest.mark.asyncio
async def test_pages() -> None:
    """All of them; when the server forgets the list between two, it is read again in one piece."""
    asked: list[dict[str, str]] = []
    forgets = False

    async def handler(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        page = request.query.get("continue")
        if forgets and page:
            return status(410, "The provided continue parameter is too old")
        more = {"continue": "next"} if "limit" in request.query and not page else {}
        name = "second" if page else "first" if more else "all"
        return web.json_response({"metadata": {"resourceVersion": "7"} | more, "items": [{"metadata": {"name": name}}]})

    async with served(handler) as client:
        found = await client.list(PODS)
        assert [item["metadata"]["name"] for item in found.items] == ["first", "second"]
        assert found.items[0]["kind"] == "Pod"
        assert asked == [{"limit": "500"}, {"limit": "500", "continue": "next"}]
        forgets = True
        found = await client.list(PODS)
        assert [item["metadata"]["name"] for item in found.items] == ["all"]
        assert asked[-1] == {}


def line(kind: str, version: int, size: int = 0) -> bytes:
    item = {"kind": "Pod", "metadata": {"name": "a", "resourceVersion": str(version)}, "x": "y" * size}
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def streaming(*chunks: bytes, hangs: bool = False, breaks: bool = False) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.query["allowWatchBookmarks"] == "true"
        assert 300 <= int(request.query["timeoutSeconds"]) <= 600
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
            await asyncio.sleep(0.01)
        if hangs:
            await asyncio.Event().wait()
        if breaks:
            assert request.transport is not None
            request.transport.abort()
        return response

    return handler


async def listen(client: KubeClient, seen: list[str]) -> None:
    async for event in client.watch(PODS, "0"):
        seen.append(event.type)  # noqa: PERF401 - what was seen before an error counts


@pytest.mark.asyncio
async def test_lines_of_a_watch_however_they_are_cut() -> None:
    """Several in a chunk, one in several chunks, one that is longer than any buffer, one that the end cuts off."""
    whole = line("ADDED", 1) + line("MODIFIED", 2, size=3_000_000) + line("BOOKMARK", 3)
    chunks = [whole[:10], whole[10:200_000], whole[200_000:], line("ADDED", 4)[:20]]
    async with served(streaming(*chunks)) as client:
        events = [event async for event in client.watch(PODS, "0")]
    assert [event.type for event in events] == ["ADDED", "MODIFIED", "BOOKMARK"]
    assert len(events[1].object["x"]) == 3_000_000


@pytest.mark.parametrize(("code", "kind"), [(410, KubeExpired), (500, KubeUnavailable), (403, KubeRefused)])
@pytest.mark.asyncio
async def test_an_error_within_a_watch(code: int, kind: type[KubeError]) -> None:
    """It comes as a line; what came before it was told."""
    error = {"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "too old resource version"}}
    seen: list[str] = []
    async with served(streaming(line("ADDED", 1), json.dumps(error).encode() + b"\n")) as client:
        with pytest.raises(kind, match="watch pods: too old resource version"):
            await listen(client, seen)
    assert seen == ["ADDED"]


@pytest.mark.parametrize("junk", [b"<html>\n", b"{}\n", b"[]\n", b"\xff\n"])
@pytest.mark.asyncio
async def test_a_line_of_a_watch_that_is_no_event(junk: bytes) -> None:
    """Whatever stands between us and the API server: it is as good as away, and nothing ends by it."""
    seen: list[str] = []
    async with served(streaming(line("ADDED", 1), junk)) as client:
        with pytest.raises(KubeUnavailable, match="watch pods: the answer is no JSON"):
            await listen(client, seen)
    assert seen == ["ADDED"]


@pytest.mark.asyncio
async def test_a_watch_that_falls_silent_or_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is an end in order."""
    monkeypatch.setattr("cacheagent.kube.client.IDLE_LIMIT_S", 0.3)
    for handler, sentence in (
        (streaming(line("ADDED", 1), hangs=True), "did not answer in time"),
        (streaming(line("ADDED", 1), breaks=True), "no answer from the API server"),
    ):
        seen: list[str] = []
        async with served(handler) as client:
            with pytest.raises(KubeUnavailable, match=sentence):
                await listen(client, seen)
        assert seen == ["ADDED"]


@pytest.mark.asyncio
async def test_nobody_listens() -> None:
    """A refused connection is an unavailable server, and is counted with status 0."""
    counted: list[tuple[str, str, int]] = []
    async with aiohttp.ClientSession() as session:
        client = KubeClient(TokenAccess("http://127.0.0.1:9"), session, lambda *request: counted.append(request))
        with pytest.raises(KubeUnavailable, match=r"no answer from the API server http://127\.0\.0\.1:9") as error:
            await client.get(PODS, "a")
    assert error.value.status == 0
    assert "cluster-info" in error.value.hint
    assert counted == [("get", "pods", 0)]


# --- how a server is found


def write_kubeconfig(path: Path, server: str, user: dict[str, Any], **cluster: Any) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server} | cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "shop"}},
            {"name": "two", "context": {"cluster": "c", "user": "u"}},
        ],
        "current-context": "one",
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.asyncio
async def test_a_kubeconfig(tmp_path: Path) -> None:
    """Its server, its user, its context's namespace; and our name in the user agent."""

    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"seen": dict(request.headers)})

    application = web.Application()
    application.router.add_get("/{path:.*}", handler)
    async with TestServer(application) as server:
        url = str(server.make_url("")).rstrip("/")
        path = write_kubeconfig(tmp_path / "config", url, {"token": "abc"})
        async with open_client(path) as client:
            seen = (await client.get(PODS, "a"))["seen"]
            assert seen["Authorization"] == "Bearer abc"
            assert seen["User-Agent"] == f"cacheagent/{cacheagent.__version__}"
            assert (client.server, client.namespace) == (url, "shop")
        async with open_client(path, "two") as client:
            assert client.namespace == "default"


@pytest.mark.asyncio
async def test_a_plug_in_of_a_kubeconfig(tmp_path: Path) -> None:
    """It is run at first, and again when the server no longer takes what it said."""
    counter = tmp_path / "counter"
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        f"import json, pathlib\n"
        f"counter = pathlib.Path({str(counter)!r})\n"
        f"count = int(counter.read_text()) + 1 if counter.exists() else 1\n"
        f"counter.write_text(str(count))\n"
        f"status = {{'token': f'token-{{count}}', 'expirationTimestamp': '2099-01-01T00:00:00Z'}}\n"
        f"print(json.dumps({{'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential',"
        f" 'status': status}}))\n"
    )
    command = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": sys.executable,
        "args": [str(plugin)],
        "interactiveMode": "Never",
    }
    access = await find_access(write_kubeconfig(tmp_path / "config", "http://127.0.0.1:9", {"exec": command}))
    assert access.authorization() == "Bearer token-1"
    await access.renew()
    assert access.authorization() == "Bearer token-2"


@pytest.mark.asyncio
async def test_certificates_of_a_kubeconfig(tmp_path: Path, tls: Tls) -> None:
    """A CA of its own, given as data; without TLS checks only if it says so."""
    data = base64.b64encode(tls.ca_bundle.read_bytes()).decode()
    path = write_kubeconfig(
        tmp_path / "one", "https://127.0.0.1:9", {"token": "x"}, **{"certificate-authority-data": data}
    )
    access = await find_access(path)
    assert access.tls is not None
    assert access.tls.check_hostname
    assert len(access.tls.get_ca_certs()) == 1
    path = write_kubeconfig(
        tmp_path / "two", "https://127.0.0.1:9", {"token": "x"}, **{"insecure-skip-tls-verify": True}
    )
    access = await find_access(path)
    assert access.tls is not None
    assert not access.tls.check_hostname


@pytest.mark.parametrize(
    ("content", "context", "sentence"),
    [
        (None, "", "there is no kubeconfig"),
        ("", "", "cannot be used"),
        ("not: a kubeconfig", "", "cannot be used"),
        ("good", "three", "cannot be used: .*three"),
    ],
)
@pytest.mark.asyncio
async def test_a_kubeconfig_that_is_none(tmp_path: Path, content: str | None, context: str, sentence: str) -> None:
    """One sentence instead of a traceback."""
    path = tmp_path / "config"
    if content == "good":
        write_kubeconfig(path, "http://127.0.0.1:9", {"token": "x"})
    elif content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        await KubeconfigAccess.load(str(path), context)


@pytest.mark.asyncio
async def test_where_it_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As kubectl: KUBECONFIG, then the home folder, then the pod's own account; else it says so."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="no cluster is configured"):
        await find_access()
    (tmp_path / ".kube").mkdir()
    write_kubeconfig(tmp_path / ".kube/config", "http://127.0.0.1:9", {"token": "home"})
    assert (await find_access()).authorization() == "Bearer home"
    named = write_kubeconfig(tmp_path / "named", "http://127.0.0.1:9", {"token": "named"})
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/nowhere:{named}")
    assert find_kubeconfig() == f"{tmp_path}/nowhere:{named}"
    assert (await find_access()).authorization() == "Bearer named"


@pytest.fixture
def account(tmp_path: Path, tls: Tls) -> Path:
    """What the kubelet projects into a pod."""
    (tmp_path / "ca.crt").write_bytes(tls.ca_bundle.read_bytes())
    (tmp_path / "token").write_text("one\n")
    (tmp_path / "namespace").write_text("cacheagent-system")
    return tmp_path


@pytest.mark.asyncio
async def test_a_pods_own_account(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is read again as it rotates, and at once when the server refuses it."""
    access = PodAccess("10.96.0.1", "443", account)
    assert access.server == "https://10.96.0.1:443"
    assert access.namespace == "cacheagent-system"
    assert access.authorization() == "Bearer one"
    (account / "token").write_text("two")
    assert access.authorization() == "Bearer one"
    await access.renew()
    assert access.authorization() == "Bearer two"
    monkeypatch.setattr("cacheagent.kube.access.TOKEN_KEPT_S", -1.0)
    (account / "token").write_text("three")
    assert access.authorization() == "Bearer three"
    (account / "token").unlink()
    assert access.authorization() == "Bearer three", "while the file is being replaced the old one is used"
    assert PodAccess("fd00::1", "443", account).server == "https://[fd00::1]:443"


def test_an_account_without_a_token(account: Path) -> None:
    """The message names the file."""
    (account / "token").unlink()
    with pytest.raises(ConfigError, match=f"{account}/token"):
        PodAccess("10.96.0.1", "443", account).authorization()
    (account / "ca.crt").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        PodAccess("10.96.0.1", "443", account)


def serve_one_watch(listener: socket.socket, tls: Tls, done: threading.Event) -> None:
    """A server that sends one event and then neither ends the watch nor answers a farewell."""
    accepted, _ = listener.accept()
    with tls.server_context().wrap_socket(accepted, server_side=True) as connection:
        while b"\r\n\r\n" not in connection.recv(65536):
            pass
        event = line("ADDED", 1)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(event), event))
        done.wait()


def open_sockets() -> int:
    """Of this process."""
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith("socket:") for link in links if os.path.lexists(link))


def abort_of_debian_12(transport: Any) -> None:
    """Of Python 3.11.2: it fails where somebody closed the transport after it was cut."""
    transport._closed = True
    transport._ssl_protocol._abort()


def test_a_watch_that_is_left_leaves_no_socket(tmp_path: Path, tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the program ends at once, and the server is in no hurry to say farewell."""
    monkeypatch.setattr(asyncio.sslproto._SSLProtocolTransport, "abort", abort_of_debian_12)  # type: ignore[attr-defined]

    async def look(server: str) -> None:
        authority = base64.b64encode(tls.ca_bundle.read_bytes()).decode()
        path = write_kubeconfig(tmp_path / "config", server, {}, **{"certificate-authority-data": authority})
        async with open_client(path) as client:
            events = client.watch(PODS, "0")
            assert (await anext(events)).type == "ADDED"
            await events.aclose()

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        before = open_sockets()
        server = threading.Thread(target=serve_one_watch, args=(listener, tls, done))
        server.start()
        try:
            asyncio.run(look(f"https://127.0.0.1:{listener.getsockname()[1]}"))
            assert open_sockets() == before + 1  # the server's own
        finally:
            done.set()
            server.join()
