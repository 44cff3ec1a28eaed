"""The webhook behind a real API server: configured as the chart does it, with certificates that the API server
trusts."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from msgspec.structs import replace

from cacheagent.kube import names
from cacheagent.kube.api import NAMESPACES, PODS, WEBHOOKS, KubeError, Object
from cacheagent.kube.client import KubeClient, open_client
from cacheagent.kube.webhook.certificates import CertificateSettings
from cacheagent.kube.webhook.keeper import CertificateKeeper, KeeperSettings
from cacheagent.kube.webhook.server import Result, make_webhook_app, serve_webhook
from cacheagent.kube.webhook.serving import ServingContext
from tests.fakes.kube_server import ApiServer
from tests.fakes.webhook import SETTINGS, catalog, pod

CONFIGURATION = "z-cacheagent"
RENDERED: Final = Path(__file__).parents[2] / "daemonset/kustomize/base/cacheagent.yaml"
OPTED_IN: Final = "kserve-models"
"""A namespace whose pods of KServe's are served."""
T = TypeVar("T")


class OnLoopback(KeeperSettings):
    """The API server reaches a URL here and not a service."""

    @property
    def dns_names(self) -> tuple[str, ...]:
        return ("localhost",)


class Scene:
    """The API server with our webhook configured and one administrator's client, on an event loop in a thread."""

    def __init__(self, server: ApiServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self._loop = loop
        self.client: KubeClient
        self.results: Counter[Result] = Counter()

    def reviewed(self, result: Result, seconds: float) -> None:
        """See `Counts.reviewed`."""
        self.results[result] += 1

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """From the test's own thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=120)

    async def try_pod(self, body: Object, namespace: str = "team-a") -> Object:
        """What the API server would store."""
        return await self.client.create(PODS, body, namespace=namespace, dry_run=True)

    @asynccontextmanager
    async def up(self, certificates: CertificateSettings) -> AsyncIterator[CertificateKeeper]:
        """Webhook and keeper, configured and trusted."""
        async with AsyncExitStack() as stack:
            self.client = await stack.enter_async_context(open_client(self.server.kubeconfig))
            serving = ServingContext()
            app = make_webhook_app(catalog(), replace(SETTINGS, traced=True), self)
            _, port = await stack.enter_async_context(serve_webhook(app, serving.context, "127.0.0.1", 0, drain_s=0))
            for name, labels in (
                ("team-a", {}),
                ("team-b", {}),
                ("strict", {"pod-security.kubernetes.io/enforce": "restricted"}),
                ("cacheagent", {}),
                (OPTED_IN, {names.KSERVE_LABEL: names.KSERVE_ENABLED}),
            ):
                body = {"metadata": {"name": name, "labels": labels}}
                await self.client.apply(NAMESPACES, body, manager="tests")
            await self.configure(port)
            keeper = CertificateKeeper(
                self.client, OnLoopback(namespace="cacheagent", certificates=certificates), serving, lambda: True
            )
            task = asyncio.create_task(keeper.run())
            await self.until_trusted()
            yield keeper
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await until_all_is_closed()

    async def configure(self, port: int) -> None:
        """As the chart does, but for the address; without a bundle, so this also takes it away."""
        hook = {
            "name": "pods.cacheagent.io",
            "clientConfig": {"url": f"https://localhost:{port}/mutate"},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            "matchConditions": [
                {
                    "name": "asks",
                    "expression": "has(object.metadata.annotations) && "
                    "'cacheagent.io/model' in object.metadata.annotations",
                }
            ],
            "admissionReviewVersions": ["v1"],
            "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            "sideEffects": "None",
            "timeoutSeconds": 10,
        }
        of_kserve = rendered_webhook("kserve.pods.cacheagent.io")
        of_kserve["clientConfig"] = {"url": f"https://localhost:{port}/mutate-kserve"}
        await self.client.apply(WEBHOOKS, webhooks(CONFIGURATION, hook, of_kserve), manager="helm")

    async def until_trusted(self) -> None:
        """The API server learns of its own configuration by a watch: until a pod is patched."""
        async with asyncio.timeout(60):
            while True:
                try:
                    tried = await self.try_pod(pod({"model": "llama"}))
                except KubeError:
                    tried = {}
                if names.INJECTED_LABEL in tried.get("metadata", {}).get("labels", {}):
                    return
                await asyncio.sleep(0.05)


def rendered_webhook(name: str) -> Object:
    """As the chart has it."""
    documents = yaml.safe_load_all(RENDERED.read_text(encoding="utf-8"))
    (configuration,) = (each for each in documents if each["kind"] == "MutatingWebhookConfiguration")
    hook: Object = next(each for each in configuration["webhooks"] if each["name"] == name)
    return hook


def webhooks(name: str, *hooks: Object) -> Object:
    """A configuration of them."""
    return {"metadata": {"name": name}, "webhooks": list(hooks)}


async def until_all_is_closed() -> None:
    """TLS says farewell when a server has ended already, and waits for the other side's; a loop that is closed before
    leaves sockets open, which the garbage collector reports in the middle of somebody else's test."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    async with asyncio.timeout(60):
        while len(selector.get_map()) > 1:  # noqa: ASYNC110 - nothing tells of it; the one is the loop's own
            await asyncio.sleep(0.02)


@contextmanager
def in_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """hypothesis calls plain functions; what they talk to runs beside them."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="scene")
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(until_all_is_closed(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
