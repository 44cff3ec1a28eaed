"""The API through its own client and a real socket: what it answers, what it refuses, and that it waits for nobody."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from aiohttp import web

from cacheagent import __version__
from cacheagent.api import server
from cacheagent.api.answers import Answers
from cacheagent.api.client import AgentClient
from cacheagent.api.errors import STATUSES, from_answer, from_code, status_of, to_answer
from cacheagent.api.health import health_routes
from cacheagent.api.listen import LONGEST_PATH_BYTES, listen_tcp, listen_unix
from cacheagent.api.schema import ErrorAnswer, Wanted
from cacheagent.api.server import make_api
from cacheagent.errors import (
    AgentUnavailable,
    CacheAgentError,
    ConfigError,
    CorruptModel,
    ModelInUse,
    NoRoom,
    NotCached,
    OriginNotFound,
    PickleRefused,
    StoreBusy,
    UsageError,
)
from cacheagent.events import BACKLOG, EventHub
from cacheagent.flights import Flights
from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec, SourceSpec
from cacheagent.store import Store
from cacheagent.volumes import Volumes
from tests.fakes.memory import MemoryOrigin, MemoryTransport

pytestmark = pytest.mark.asyncio
REPOSITORY = Path(__file__).parents[2]
OBJECTS = {"config.json": b"{}", "weights.bin": b"w" * (PIECE_SIZE_BYTES + 5)}


def spec(name: str) -> ModelSpec:
    """A tree of that name from the origin of that name."""
    return ModelSpec(name=name, kind="tree", source=SourceSpec(uri=f"memory://{name}"))


class Settings:
    """What is configured."""

    def __init__(self, *specs: ModelSpec) -> None:
        self.specs = {each.name: each for each in specs}
        self.config_error = ""

    def model(self, name: str) -> ModelSpec | None:
        return self.specs.get(name)

    def wanted(self) -> tuple[Wanted, ...]:
        return tuple(
            Wanted(name=each.name, uri=each.source.uri, priority=each.priority, state="waiting")
            for each in self.specs.values()
        )


class Here:
    """One API over a real store and origins in memory."""

    def __init__(self, root: Path) -> None:
        self.socket = root / "agent.sock"
        self.origins = {f"memory://{name}": MemoryOrigin(dict(OBJECTS), endpoint=f"memory://{name}") for name in "ab"}
        self.transport = MemoryTransport(*self.origins.values())
        self.store = Store.open(root / "cache")
        self.hub = EventHub()
        self.flights = Flights(
            self.store, self.transport, lambda source: self.origins[source.uri], on_event=self.hub.publish
        )
        self.settings = Settings()
        self.counted: list[tuple[str, bool]] = []
        self.corrupt = 0
        self.volumes = Volumes(self.store, self.flights, demand=lambda _: 0.0, counts=self)
        self.answers = Answers(
            root / "cache", self.store, self.flights, self.settings, volumes=self.volumes, counts=self
        )

    def count_ensure(self, name: str, *, hit: bool) -> None:
        self.counted.append((name, hit))

    def count_corrupt(self) -> None:
        self.corrupt += 1

    def count_mount(self, model: str, *, hit: bool, waited_s: float, size_bytes: int) -> None:
        self.counted.append((model, hit))

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[aiohttp.ClientSession]:
        """HTTP without our client."""
        async with aiohttp.ClientSession("http://agent", connector=aiohttp.UnixConnector(str(self.socket))) as session:
            yield session


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that tells nobody when it happens."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on
            await asyncio.sleep(0.001)


@pytest_asyncio.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    """The API, listening."""
    made = Here(tmp_path)
    async with listen_unix(make_api(made.answers, made.hub), made.socket):
        yield made
        made.hub.close()
        await made.flights.close()
    made.store.close()


@pytest_asyncio.fixture
async def client(here: Here) -> AsyncIterator[AgentClient]:
    """A client of it."""
    async with AgentClient(here.socket) as made:
        yield made


async def test_a_model_is_brought_and_found_again(here: Here, client: AgentClient) -> None:
    """The first asking waits for the transfer, the second is a hit without the origin; both say where it is."""
    first = await client.ensure(spec("a"), wait_s=60)
    assert (first.phase, first.bytes_fetched) == ("ready", first.bytes_total)
    assert Path(first.path, "files/config.json").read_bytes() == b"{}"
    second = await client.ensure(spec("a"), wait_s=60)
    assert (second.phase, second.path, second.bytes_fetched) == ("ready", first.path, 0)
    assert here.origins["memory://a"].listings == 1
    assert here.counted == [("a", False), ("a", True)]


async def test_an_answer_at_once_and_one_that_waits(here: Here, client: AgentClient) -> None:
    """Without wait_s the state comes at once; a wait that is over gives the state as it is; the job goes on."""
    here.transport.hold("weights.bin")
    at_once = await client.ensure(spec("a"))
    assert not at_once.finished
    await here.transport.wait_until_started("weights.bin")
    waited = await client.ensure(spec("a"), wait_s=0.05)
    assert waited.phase == "fetching"
    here.transport.release("weights.bin")
    assert (await client.ensure(spec("a"), wait_s=60)).phase == "ready"
    assert here.transport.fetches["weights.bin"] == 1


async def test_a_client_that_leaves_cancels_nothing(here: Here, client: AgentClient) -> None:
    """Its connection is gone; the model arrives all the same."""
    here.transport.hold("weights.bin")
    async with AgentClient(here.socket) as leaving:
        asking = asyncio.create_task(leaving.ensure(spec("a"), wait_s=60))
        await here.transport.wait_until_started("weights.bin")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    here.transport.release("weights.bin")
    assert (await client.ensure(spec("a"), wait_s=60)).phase == "ready"
    assert here.transport.fetches["weights.bin"] == 1


async def test_a_failed_job_is_an_answer_with_its_reason(here: Here, client: AgentClient) -> None:
    """Whether one waits for it or looks later; `from_code` makes the error of it again."""
    here.origins["memory://a"].fail_listing = OriginNotFound("memory://a: no such bucket", hint="check the name")
    status = await client.ensure(spec("a"), wait_s=60)
    assert (status.phase, status.error, status.message) == ("failed", "not-found", "memory://a: no such bucket")
    error = from_code(status.error, status.message, status.hint)
    assert isinstance(error, OriginNotFound)
    assert error.hint == "check the name"
    here.origins["memory://a"].fail_listing = None
    assert (await client.ensure(spec("a"), wait_s=60)).phase == "ready"


async def test_names_mean_what_is_configured(here: Here, client: AgentClient) -> None:
    """A configured name is brought; before it is here the answer says why; an unknown one is refused."""
    here.settings.specs["llama"] = msgspec.structs.replace(spec("a"), name="llama")
    with pytest.raises(NotCached, match="llama is configured and not here yet: nobody has asked"):
        await client.model("llama")
    assert (await client.ensure("llama", wait_s=60)).phase == "ready"
    assert (await client.model("llama")).uri == "memory://a"
    with pytest.raises(NotCached, match="no model 'other' is in this cache") as caught:
        await client.ensure("other")
    assert caught.value.hint


async def test_a_configured_name_is_never_an_older_meaning(here: Here, client: AgentClient) -> None:
    """The name moved to another source: what is here under that name is not what is meant."""
    here.settings.specs["llama"] = msgspec.structs.replace(spec("a"), name="llama")
    await client.ensure("llama", wait_s=60)
    here.settings.specs["llama"] = msgspec.structs.replace(spec("b"), name="llama")
    with pytest.raises(NotCached, match="llama is configured and not here yet"):
        await client.lease("v1", "llama")
    await client.ensure("llama", wait_s=60)
    assert (await client.lease("v1", "llama")).digest == (await client.model("llama")).digest


async def test_a_cached_model_is_found_by_name_digest_and_prefix(here: Here, client: AgentClient) -> None:
    """And one that is only cached can be asked for by name."""
    status = await client.ensure(spec("a"), wait_s=60)
    await client.ensure(spec("b"), wait_s=60)
    for ref in ("a", status.digest, status.digest[:20], status.digest.removeprefix("sha256:")[:12]):
        model = await client.model(ref)
        assert (model.digest, model.name, model.files) == (status.digest, "a", 2)
        assert model.size_bytes == sum(len(content) for content in OBJECTS.values())
    assert (await client.ensure("a")).phase == "ready"
    assert [model.name for model in await client.models()] == ["a", "b"]
    for ref in ("sha256:", "0", "A", "a/../b", "sha256:" + "0" * 64):
        with pytest.raises(NotCached, match="no model"):
            await client.model(ref)


async def test_refresh_asks_the_origin_again(here: Here, client: AgentClient) -> None:
    """A changed source becomes another version; only a configured model says where to ask."""
    here.settings.specs["a"] = spec("a")
    first = await client.ensure("a", wait_s=60)
    here.origins["memory://a"].objects["config.json"] = b'{"new": true}'
    assert (await client.ensure("a", wait_s=60)).digest == first.digest
    assert not (await client.refresh("a")).finished
    second = await client.ensure(spec("a"), refresh=True, wait_s=60)
    assert second.digest != first.digest
    assert second.bytes_fetched == len(b'{"new": true}')
    await client.ensure(spec("b"), wait_s=60)
    for call in (client.refresh("b"), client.ensure("b", refresh=True)):
        with pytest.raises(UsageError, match="'b' is not in the agent's configuration"):
            await call


async def test_verify_pin_evict(here: Here, client: AgentClient) -> None:
    """A rotten byte is found and counted; pinned models stay; unpinned ones go and give their bytes back."""
    status = await client.ensure(spec("a"), wait_s=60)
    assert (await client.verify("a")).digest == status.digest
    weights = Path(status.path, "files/weights.bin")
    weights.chmod(0o644)
    with weights.open("r+b") as file:
        file.write(b"rot")
    with pytest.raises(
        CorruptModel, match=r"a: 1 piece\(s\) on disk differ from what was fetched.*weights.bin piece 0"
    ):
        await client.verify("a")
    assert here.corrupt == 1
    assert (await client.model("a")).suspect
    with pytest.raises(CorruptModel, match="takes no new volumes"):
        await client.lease("v1", "a")
    assert (await client.pin("a")).pin
    with pytest.raises(ModelInUse) as caught:
        await client.evict("a")
    assert caught.value.hint
    assert Path(status.path).exists()
    assert not (await client.unpin("a")).pin
    assert (await client.evict("a")).freed_bytes > 0
    assert not Path(status.path).exists()
    with pytest.raises(NotCached):
        await client.evict("a")


async def test_leases_hold_a_model(here: Here, client: AgentClient) -> None:
    """Written before it is answered; taken twice is taken; released, the model may go."""
    status = await client.ensure(spec("a"), wait_s=60)
    await client.lease("csi-1f", "a", owner="default/pod")
    lease = await client.lease("csi-1f", "a", owner="default/pod")
    assert (lease.path, lease.digest, lease.owner) == (status.path, status.digest, "default/pod")
    assert await client.leases() == (lease,)
    assert (await client.model("a")).leases == ("csi-1f",)
    with pytest.raises(ModelInUse):
        await client.evict("a")
    for _ in range(2):
        await client.release("csi-1f")
    assert await client.leases() == ()
    await client.evict("a")
    with pytest.raises(NotCached):
        await client.lease("csi-1f", "a")
    for bad in ("..", "a b", "x" * 300):
        with pytest.raises(CacheAgentError):
            await client.lease(bad, status.digest)
    assert await client.leases() == ()


async def test_status_is_everything_at_one_moment(here: Here, client: AgentClient) -> None:
    """Room, models, what is wanted, jobs, and why a reload was refused."""
    here.settings.specs["b"] = spec("b")
    here.settings.config_error = "models.yaml, line 3: …"
    await client.ensure(spec("a"), wait_s=60)
    status = await client.status()
    assert (await client.version()).version == status.version == __version__
    assert status.root.endswith("/cache")
    assert [model.name for model in status.models] == ["a"]
    assert [wanted.name for wanted in status.wanted] == ["b"]
    assert [(job.name, job.phase) for job in status.jobs] == [("a", "ready")]
    assert status.config_error == "models.yaml, line 3: …"
    assert status.usage.models == 1
    assert 0 < status.usage.used_bytes <= status.usage.capacity_bytes


async def test_events_tell_a_jobs_story(here: Here, client: AgentClient) -> None:
    """First what is known, then news; another model's news are not in a stream that asks for one."""
    await client.ensure(spec("b"), wait_s=60)
    seen: list[JobStatus] = []
    here.transport.hold("weights.bin")

    async def listen() -> None:
        async for status in client.events("a"):
            seen.append(status)
            if status.finished:
                return

    listening = asyncio.create_task(listen())
    await client.ensure(spec("a"))
    await here.transport.wait_until_started("weights.bin")
    here.transport.release("weights.bin")
    await asyncio.wait_for(listening, 60)
    assert {status.name for status in seen} == {"a"}
    assert seen[-1].phase == "ready"
    async for status in client.events():
        assert status.finished  # how the last jobs ended
        break


async def test_a_stream_without_news_shows_that_the_agent_lives(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty line now and then."""
    monkeypatch.setattr(server, "HEARTBEAT_S", 0.01)
    async with here.raw() as session, session.get("/v1/events") as response:
        assert await response.content.readline() == b"\n"
        assert await response.content.readline() == b"\n"


async def test_a_reader_that_does_not_read_is_cut_off_and_delays_nobody(
    here: Here, client: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub never waits; another listener hears everything."""
    monkeypatch.setattr(server, "SLOWEST_READER_S", 0.2)
    heard = 0
    news = JobStatus(name="a", uri="memory://a", phase="fetching", message="m" * 8192)
    slow = socket.socket(socket.AF_UNIX)
    slow.connect(str(here.socket))
    slow.sendall(b"GET /v1/events HTTP/1.1\r\nHost: agent\r\n\r\n")

    async def listen() -> None:
        nonlocal heard
        async for _ in client.events():
            heard += 1

    listening = asyncio.create_task(listen())
    await until(lambda: here.hub.listeners == 2)
    sent = 0
    while here.hub.listeners == 2:
        here.hub.publish(news)
        sent += 1
        await until(lambda: heard == sent)  # noqa: B023 - it is awaited here
    assert not listening.done()
    listening.cancel()
    slow.close()


async def test_a_listener_learns_that_the_agent_stops(here: Here, client: AgentClient) -> None:
    """A stream has no end of its own: its end is an error."""
    listening = asyncio.ensure_future(anext(client.events()))
    await until(lambda: here.hub.listeners == 1)
    here.hub.close()
    with pytest.raises(AgentUnavailable, match="ended the event stream"):
        await listening


async def test_a_stream_that_was_dropped_for_its_backlog_ends(here: Here, client: AgentClient) -> None:
    """Too many states in one go: what was queued is read, then the stream is over."""
    stream = client.events()
    listening = asyncio.ensure_future(anext(stream))
    await until(lambda: here.hub.listeners == 1)
    for _ in range(BACKLOG + 1):
        here.hub.publish(JobStatus(name="a", uri="memory://a", phase="fetching"))
    heard = [await listening]
    with pytest.raises(AgentUnavailable, match="read too slowly"):
        heard += [status async for status in stream]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/v1/ensure", b"{", 400, "Input data was truncated"),
        ("POST", "/v1/ensure", b"", 400, "Input data was truncated"),
        ("POST", "/v1/ensure", b"{}", 400, "expected either spec or name"),
        ("POST", "/v1/ensure", b'{"name": "a", "prio": 1}', 400, "unknown field `prio`"),
        ("POST", "/v1/ensure", b'{"spec": {"name": "A B", "source": {"uri": "s3://b"}}}', 400, "regex"),
        (
            "POST",
            "/v1/ensure",
            b'{"spec": {"name": "a", "source": {"uri": "https://h/x/?sig=hunter2"}}}',
            400,
            "the source's uri holds a user, a password or a query",
        ),
        ("POST", "/v1/ensure", b'{"spec": {"name": "a"}}', 400, "missing required field `source`"),
        ("PUT", "/v1/leases/v1", b'{"owner": "x"}', 400, "missing required field `ref`"),
        ("GET", "/v1/ensure", None, 405, "Method Not Allowed"),
        ("GET", "/v2/status", None, 404, "Not Found"),
        ("GET", "/v1/models/none", None, 404, "no model 'none'"),
        ("POST", "/v1/models/none/evict", None, 404, "no model 'none'"),
    ],
)
async def test_what_is_refused_says_why_in_one_form(
    here: Here, method: str, path: str, body: bytes | None, status: int, message: str
) -> None:
    """Whatever goes wrong, the body is code, message and hint; the agent goes on."""
    async with here.raw() as session:
        async with session.request(method, path, data=body) as response:
            assert response.status == status
            error = msgspec.json.decode(await response.read(), type=ErrorAnswer).error
        assert message in error.message
        assert error.code in {"usage", "not-cached"}
        assert error.hint
        async with session.get("/v1/version") as response:
            assert response.status == 200


async def test_a_defect_is_an_answer_and_a_logged_traceback(
    here: Here, client: AgentClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody gets a broken connection, and whoever mends it gets the place."""

    def broken() -> None:
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr(here.answers, "models", broken)
    with pytest.raises(CacheAgentError, match=r"a defect in the agent: KeyError.'nobody foresaw this'"):
        await client.models()
    assert caplog.records[-1].exc_info is not None
    assert (await client.version()).version == __version__


def _all(root: type[CacheAgentError]) -> list[type[CacheAgentError]]:
    return [root] + [kind for child in root.__subclasses__() for kind in _all(child)]


async def test_every_error_survives_the_way() -> None:
    """Code, class, message and hint on both ends; a code of a newer agent is still an error."""
    for kind in (kind for kind in _all(CacheAgentError) if kind.__module__ == "cacheagent.errors"):
        error = kind("what and where", hint="what next")
        again = from_answer(status_of(error), msgspec.json.encode(to_answer(error)))
        assert type(again).code == kind.code
        assert (again.message, again.hint) == ("what and where", "what next")
    assert status_of(PickleRefused("x")) == 403
    assert status_of(NoRoom("x")) == 507
    assert type(from_code("of-tomorrow", "m", "h")) is CacheAgentError
    foreign = from_answer(502, b"<html>proxy</html>")
    assert "502" in foreign.message
    assert "<html>" in foreign.message


async def test_the_documentation_is_what_is_routed(here: Here) -> None:
    """Every endpoint has its section and every section its endpoint; every code of an error its status."""
    app = make_api(here.answers, here.hub)
    app.add_routes(health_routes({}, {}, _no_metrics))
    routed = {
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    text = (REPOSITORY / "docs/api.md").read_text()
    assert set(re.findall(r"^### `(.+?)`$", text, re.MULTILINE)) == routed
    documented = {
        code: int(status)
        for status, codes in re.findall(r"^\| (\d{3}) \| (.+) \|$", text, re.MULTILINE)
        for code in re.findall(r"`([a-z-]+)`", codes)
    }
    ours = [kind for kind in _all(CacheAgentError) if kind.__module__ == "cacheagent.errors"]
    assert {kind.code: status_of(kind("")) for kind in ours} | {"internal": 500} == documented
    assert {status for _, status in STATUSES} == set(documented.values())


async def _no_metrics() -> bytes:
    return b""


async def test_no_agent_is_an_error_that_says_where(tmp_path: Path) -> None:
    """No socket, a dead socket, a silent one: one sentence each."""
    missing, dead = tmp_path / "none.sock", tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    for path in (missing, dead):
        async with AgentClient(path) as client:
            with pytest.raises(AgentUnavailable, match=f"no agent answers on {path}") as caught:
                await client.status()
            assert "cacheagent agent" in caught.value.hint
            with pytest.raises(AgentUnavailable):
                await anext(client.events())
    with pytest.raises(RuntimeError, match="outside of its `async with` block"):
        await AgentClient(missing).status()


async def test_the_socket_is_for_its_group_and_goes_with_its_owner(tmp_path: Path) -> None:
    """Mode 0660 from the first moment; a dead one is replaced, a living one never, a file never."""
    app, path = web.Application, tmp_path / "run" / "agent.sock"
    async with listen_unix(app(), path):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        with pytest.raises(StoreBusy, match=f"another agent answers on {path}"):
            async with listen_unix(app(), path):
                pass
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
            assert (await session.get("http://agent/")).status == 404
    assert list(path.parent.iterdir()) == []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    async with listen_unix(app(), path):
        pass
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        async with listen_unix(app(), path):
            pass
    assert path.read_text() == "mine"
    long = tmp_path / ("x" * LONGEST_PATH_BYTES)
    with pytest.raises(ConfigError, match=f"may have {LONGEST_PATH_BYTES - 1}"):
        async with listen_unix(app(), long):
            pass


async def test_probes_say_what_is_wrong() -> None:
    """Health is about what a restart mends; readiness asks for more; both are 200 when nothing is wrong."""
    wrong: dict[str, str] = {}
    app = web.Application()
    app.add_routes(
        health_routes(
            {"disk": lambda: wrong.get("disk", "")}, {"workers": lambda: wrong.get("workers", "")}, _no_metrics
        )
    )
    async with AsyncExitStack() as stack:
        host, port = await stack.enter_async_context(listen_tcp(app, "127.0.0.1", 0))
        session = await stack.enter_async_context(aiohttp.ClientSession(f"http://{host}:{port}"))

        async def ask(path: str) -> tuple[int, Any]:
            async with session.get(path) as response:
                return response.status, await response.json()

        assert (await ask("/healthz"))[0] == (await ask("/readyz"))[0] == 200
        wrong["workers"] = "none runs"
        assert (await ask("/healthz"))[0] == 200
        assert await ask("/readyz") == (
            503,
            {"ok": False, "checks": ["disk", "workers"], "wrong": {"workers": "none runs"}},
        )
        wrong["disk"] = "read-only"
        assert (await ask("/healthz"))[0] == 503
        with pytest.raises(ConfigError, match=f"can't listen on {host}:{port}: "):
            async with listen_tcp(app, host, port):
                pass
