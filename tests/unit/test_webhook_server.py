"""The webhook as the API server meets it: HTTPS, answers to everything, restarts and new certificates under load."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from msgspec.structs import replace

from cacheagent.errors import ConfigError
from cacheagent.kube.names import ADMITTED, NOT_SERVED
from cacheagent.kube.webhook import server as server_module
from cacheagent.kube.webhook.catalog import Catalog, CatalogModel, MirrorCatalog
from cacheagent.kube.webhook.certificates import CertificateSettings, Pair, Stored, take_step
from cacheagent.kube.webhook.server import Result, make_webhook_app, serve_webhook
from cacheagent.kube.webhook.serving import ServingContext
from cacheagent.kube.webhook.settings import WebhookSettings
from tests.fakes.transfer import until
from tests.fakes.webhook import SETTINGS, apply_patch, catalog, cluster, model, pod

NAMES = ("webhook.ns.svc",)
RULES = CertificateSettings()


class Counted:
    """Counts of results."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def reviewed(self, result: Result, seconds: float) -> None:
        """One more."""
        assert seconds >= 0
        self.results.append(result)


def review(obj: Any, namespace: str = "team-a") -> bytes:
    """An AdmissionReview of a new pod."""
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    request = {"uid": "u1", "operation": "CREATE", "namespace": namespace, "kind": kind, "object": obj}
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


def certificates() -> Stored:
    """Fresh ones."""
    return take_step("create", None, NAMES, datetime.now(UTC), RULES)


class Client:
    """Asks as the API server does: by the service's name, trusting the bundle it is given."""

    def __init__(self, address: tuple[str, int], bundle: bytes, *, keep: bool = True) -> None:
        context = ssl.create_default_context(cadata=bundle.decode())
        connector = aiohttp.TCPConnector(ssl=context, force_close=not keep)
        self._session = aiohttp.ClientSession(connector=connector)
        self._url = f"https://{address[0]}:{address[1]}"

    async def close(self) -> None:
        await self._session.close()

    async def mutate(self, body: bytes, path: str = "/mutate") -> tuple[int, Any]:
        """Status and answer."""
        async with self._session.post(
            f"{self._url}{path}", data=io.BytesIO(body), server_hostname=NAMES[0]
        ) as response:
            text = await response.text()
            return response.status, json.loads(text) if response.status == 200 else text

    async def get(self, path: str) -> int:
        """Status."""
        async with self._session.get(f"{self._url}{path}", server_hostname=NAMES[0]) as response:
            return response.status


@asynccontextmanager
async def served(
    known: Catalog, counted: Counted | None = None, *, drain_s: float = 0.0, settings: WebhookSettings = SETTINGS
) -> AsyncIterator[tuple[Client, tuple[str, int], ServingContext, Stored]]:
    """A webhook on loopback and a client."""
    stored, serving = certificates(), ServingContext()
    serving.load(stored.serving)
    app = make_webhook_app(known, settings, counted)
    async with serve_webhook(app, serving.context, "127.0.0.1", 0, drain_s=drain_s) as address:
        client = Client(address, stored.bundle_pem)
        try:
            yield client, address, serving, stored
        finally:
            await client.close()


@pytest.mark.asyncio
async def test_a_pod_is_patched_over_tls() -> None:
    """The whole way: request in, patch out, counted."""
    counted = Counted()
    async with served(catalog(), counted) as (client, *_):
        status, answer = await client.mutate(review(pod({"model": "llama"})))
        assert status == 200
        assert answer["response"]["allowed"] is True
        assert answer["response"]["uid"] == "u1"
        assert answer["response"]["patchType"] == "JSONPatch"
        assert json.loads(base64.b64decode(answer["response"]["patch"]))[0]["path"] == "/spec/volumes"
        _, untouched = await client.mutate(review(pod({})))
        assert untouched["response"] == {"uid": "u1", "allowed": True}
        assert await client.get("/readyz") == await client.get("/healthz") == 200
    assert counted.results == ["patched", "unchanged"]


@pytest.mark.asyncio
@pytest.mark.parametrize("traced", [True, False])
async def test_when_a_pod_was_judged_is_written_on_it(*, traced: bool) -> None:
    """Where starts are traced, and only on pods that it changes; a second look at the same pod changes nothing."""

    async def operations(client: Client, raw: Any) -> list[dict[str, Any]]:
        response = (await client.mutate(review(raw)))[1]["response"]
        assert response["allowed"], response
        return json.loads(base64.b64decode(response["patch"])) if "patch" in response else []

    original = pod({"model": "llama"})
    async with served(catalog(), settings=replace(SETTINGS, traced=traced)) as (client, *_):
        rewritten = apply_patch(original, await operations(client, original))
        assert (ADMITTED in rewritten["metadata"]["annotations"]) == traced
        assert await operations(client, rewritten) == []
        assert await operations(client, pod({})) == []


def of_kserve(uri: str) -> dict[str, Any]:
    """A pod with KServe's init container, and nothing else of KServe's."""
    mount = {"name": "kserve-provision-location", "mountPath": "/mnt/models"}
    initializer = {"name": "storage-initializer", "args": [uri, "/mnt/models"], "volumeMounts": [mount]}
    return pod(
        {},
        containers=[{"name": "kserve-container", "volumeMounts": [{**mount, "readOnly": True}]}],
        initContainers=[initializer],
        volumes=[{"name": mount["name"], "emptyDir": {}}],
    )


@pytest.mark.asyncio
async def test_a_pod_of_kserves_is_served_or_left_alone_and_never_refused() -> None:
    """Where the cache can't serve it, the pod is made all the same, with the reason in a warning and on the pod; the
    other path doesn't look at it."""
    counted = Counted()
    async with served(catalog(), counted) as (client, *_):
        known, forbidden = of_kserve("s3://models/llama"), of_kserve("s3://models/secret")
        _, answer = await client.mutate(review(known), "/mutate-kserve")
        after = apply_patch(known, json.loads(base64.b64decode(answer["response"]["patch"])))
        assert after["spec"]["containers"][0]["volumeMounts"][0]["name"] == "cacheagent-llama"
        assert "warnings" not in answer["response"]
        _, answer = await client.mutate(review(forbidden), "/mutate-kserve")
        after = apply_patch(forbidden, json.loads(base64.b64decode(answer["response"]["patch"])))
        why = after["metadata"]["annotations"].pop(NOT_SERVED)
        assert why.startswith("KServe downloads the model by itself: namespace 'team-a' may not use")
        assert (answer["response"]["allowed"], answer["response"]["warnings"]) == (True, [f"cacheagent: {why}"])
        assert after == forbidden
        after["metadata"]["annotations"][NOT_SERVED] = why
        _, again = await client.mutate(review(after), "/mutate-kserve")
        assert "patch" not in again["response"]
        _, other = await client.mutate(review(known))
        assert other["response"] == {"uid": "u1", "allowed": True}
    assert counted.results == ["patched", "unchanged", "unchanged", "unchanged"]


@pytest.mark.asyncio
async def test_a_defect_is_nothing_to_kserve() -> None:
    """Its pod is made; the count and the log have it."""

    class Broken(MirrorCatalog):
        def find(self, name: str) -> CatalogModel | None:
            raise RuntimeError(name)

    counted = Counted()
    async with served(Broken(*cluster()), counted) as (client, *_):
        _, answer = await client.mutate(review(of_kserve("s3://models/llama")), "/mutate-kserve")
        assert answer["response"]["allowed"] is True
        assert "a defect in the webhook (RuntimeError)" in answer["response"]["warnings"][0]
    assert counted.results == ["defect"]


@pytest.mark.asyncio
async def test_a_refusal_carries_its_sentence() -> None:
    """Where `kubectl` and the ReplicaSet's events show it."""
    async with served(catalog()) as (client, *_):
        _, answer = await client.mutate(review(pod({"model": "llama", "mode": "x"})))
    assert answer["response"]["allowed"] is False
    assert answer["response"]["status"]["code"] == 400
    assert answer["response"]["status"]["message"] == "cacheagent: cacheagent.io/mode is 'x'; it can be csi or pv"


@pytest.mark.asyncio
async def test_a_model_that_was_made_a_moment_ago() -> None:
    """One `kubectl apply` of model and pod: the copy of the cluster is given a second to catch up."""
    models, namespaces = cluster()
    async with served(MirrorCatalog(models, namespaces)) as (client, *_):
        asking = asyncio.ensure_future(client.mutate(review(pod({"model": "new"}))))
        await asyncio.sleep(0.2)
        assert not asking.done()
        models["", "new"] = model("new")
        assert (await asking)[1]["response"]["allowed"] is True
        _, answer = await client.mutate(review(pod({"model": "never"})))
        assert "no ModelCache 'never'" in answer["response"]["status"]["message"]


@pytest.mark.asyncio
@pytest.mark.parametrize("body", [b"", b"{}", b"[" * 50_000, b"\xff", b"x" * (server_module.LARGEST_BODY_BYTES + 1)])
async def test_what_is_no_review_is_a_bad_request(body: bytes) -> None:
    """400 and never 500, and the next one is answered."""
    counted = Counted()
    async with served(catalog(), counted) as (client, *_):
        status, _ = await client.mutate(body)
        assert status == 400
        assert (await client.mutate(review(pod({"model": "llama"}))))[0] == 200
    assert counted.results == ["malformed", "patched"]


@pytest.mark.asyncio
async def test_a_defect_is_a_sentence_too(caplog: pytest.LogCaptureFixture) -> None:
    """What should not happen is logged with its traceback, and refused; never a 500."""

    class Broken(MirrorCatalog):
        def find(self, name: str) -> Any:
            raise ZeroDivisionError(name)

    counted = Counted()
    async with served(Broken(*cluster()), counted) as (client, *_):
        status, answer = await client.mutate(review(pod({"model": "llama"})))
    assert status == 200
    assert answer["response"]["allowed"] is False
    assert "a defect in the webhook (ZeroDivisionError)" in answer["response"]["status"]["message"]
    assert "Traceback" in caplog.text
    assert counted.results == ["defect"]


@pytest.mark.asyncio
async def test_it_is_not_ready_before_it_knows_the_cluster() -> None:
    """A webhook that knows no models yet would refuse them all."""
    serving, stored = ServingContext(), certificates()
    serving.load(stored.serving)
    missing = ["models are not listed yet"]
    app = make_webhook_app(catalog(), SETTINGS, ready=lambda: "".join(missing))
    async with serve_webhook(app, serving.context, "127.0.0.1", 0, drain_s=0) as address:
        client = Client(address, stored.bundle_pem)
        assert await client.get("/readyz") == 503
        missing.clear()
        assert await client.get("/readyz") == 200
        await client.close()


@pytest.mark.asyncio
async def test_a_port_that_is_taken() -> None:
    """Said at once, with the address."""
    async with served(catalog()) as (_, address, serving, _):
        with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1:{address[1]}"):
            async with serve_webhook(make_webhook_app(catalog(), SETTINGS), serving.context, *address):
                pass


class Load:
    """Reviews without a pause, some on connections that stay, some on a new one each. Every failure counts."""

    def __init__(self, address: tuple[str, int], bundle: bytes) -> None:
        self.clients = [Client(address, bundle, keep=keep) for keep in (True, True, False, False)]
        self.answered = 0
        self.stopped = False

    async def run(self, client: Client) -> None:
        """Until stopped."""
        body = review(pod({"model": "llama"}))
        while not self.stopped:
            status, answer = await client.mutate(body)
            assert status == 200
            assert answer["response"]["allowed"] is True
            self.answered += 1

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        goal = self.answered + count
        await until(lambda: self.answered >= goal, "reviews are answered")

    @asynccontextmanager
    async def on(self) -> AsyncIterator[Load]:
        """For the length of the block; raises what failed."""
        async with asyncio.TaskGroup() as group:
            for client in self.clients:
                group.create_task(self.run(client))
            try:
                yield self
            finally:
                self.stopped = True
        for client in self.clients:
            await client.close()


@pytest.mark.asyncio
async def test_certificates_change_under_load() -> None:
    """Renewals and a whole change of authority: connections go on, new ones meet the new certificate, none is
    refused."""
    async with served(catalog()) as (_, address, serving, stored):
        now = datetime.now(UTC)
        staged = take_step("stage", stored, NAMES, now, RULES)
        async with Load(address, staged.bundle_pem).on() as load:
            await load.more(20)
            at_rest = staged
            for step in ("renew", "renew", "promote", "renew"):
                at_rest = take_step(step, at_rest, NAMES, now, RULES)
                assert serving.load(at_rest.serving)
                await load.more(20)
        newest = Client(address, at_rest.ca.certificate, keep=False)
        assert await newest.get("/healthz") == 200
        await newest.close()


@pytest.mark.asyncio
async def test_a_pair_that_does_not_fit_changes_nothing() -> None:
    """The certificate before is served as if nothing had been tried."""
    async with served(catalog()) as (client, _, serving, stored):
        with pytest.raises(ssl.SSLError):
            serving.load(Pair(certificates().serving.certificate, stored.serving.key))
        assert serving.loaded == stored.serving
        assert not serving.load(stored.serving)
        assert await client.get("/healthz") == 200


@pytest.mark.asyncio
async def test_two_replicas_are_rolled_under_load() -> None:
    """As a Deployment does it: the old one drains while the new one serves. No review is lost, on kept connections
    neither."""
    stored = certificates()
    fronts: list[tuple[str, int]] = []

    class Service(aiohttp.abc.AbstractResolver):
        """The cluster's service: new connections go to who is ready."""

        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[aiohttp.abc.ResolveResult]:
            address = fronts[-1]
            return [{"hostname": host, "host": address[0], "port": address[1], "family": 2, "proto": 0, "flags": 0}]

        async def close(self) -> None:
            pass

    @asynccontextmanager
    async def replica() -> AsyncIterator[None]:
        serving = ServingContext()
        serving.load(stored.serving)
        app: web.Application = make_webhook_app(catalog(), SETTINGS)
        async with serve_webhook(app, serving.context, "127.0.0.1", 0, drain_s=0.5) as address:
            fronts.append(address)
            yield
            fronts.remove(address)  # `/readyz` says no now; the service sends nobody new

    context = ssl.create_default_context(cadata=stored.bundle_pem.decode())
    connector = aiohttp.TCPConnector(ssl=context, resolver=Service(), use_dns_cache=False)
    answered = 0
    stopped = asyncio.Event()

    async def ask(session: aiohttp.ClientSession) -> None:
        nonlocal answered
        body = review(pod({"model": "llama"}))
        while not stopped.is_set():
            async with session.post(f"https://{NAMES[0]}/mutate", data=body) as response:
                assert (await response.json())["response"]["allowed"] is True
            answered += 1

    async def more(count: int) -> None:
        goal = answered + count
        await until(lambda: answered >= goal, "reviews are answered")

    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        first = replica()
        await first.__aenter__()
        for _ in range(4):
            group.create_task(ask(session))
        for _ in range(3):
            await more(20)
            second = replica()
            await second.__aenter__()
            await first.__aexit__(None, None, None)
            first = second
        await more(20)
        stopped.set()
    await first.__aexit__(None, None, None)
