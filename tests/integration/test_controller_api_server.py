"""`cacheagent controller` as a process behind a real API server: schemas, subresources, gates, taints, leaders, its
end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cacheagent.demo.child import free_ports
from cacheagent.kube.api import (
    CLAIMS,
    LEASES,
    MODEL_CACHE_NODES,
    MODEL_CACHES,
    NODES,
    PODS,
    VOLUMES,
    KubeNotFound,
    Object,
    Resource,
)
from cacheagent.kube.client import KubeClient, open_client
from cacheagent.kube.convert import now_text
from cacheagent.kube.names import (
    COLD_TAINT,
    DRIVER,
    GATE,
    INJECTED_LABEL,
    MODEL,
    WOKEN,
    claim_name,
    version_label,
)
from tests.fakes.kube_cluster import install_definitions, make_namespaces, make_node
from tests.fakes.kube_server import ApiServer, running_api_server
from tests.fakes.node_agents import NodeAgent, Origins, digest_of

pytestmark = [pytest.mark.kube_api, pytest.mark.slow]

SYSTEM = "cacheagent"
PATIENCE_S = 60.0
A1 = digest_of("a1")
COLD = {"key": COLD_TAINT, "effect": "NoSchedule"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with running_api_server(tmp_path_factory.mktemp("kube")) as running:
        asyncio.run(_prepare(running))
        yield running


async def _prepare(server: ApiServer) -> None:
    async with open_client(server.kubeconfig) as api:
        await install_definitions(api)
        await make_namespaces(api, SYSTEM, "shop")


async def until(true: Callable[[], Awaitable[object]], what: str = "") -> None:
    end = time.monotonic() + PATIENCE_S
    while not await true():
        assert time.monotonic() < end, f"never came true: {what or true}"
        await asyncio.sleep(0.05)


class Fleet:
    """Nodes of which there is nothing but their objects and what their agents would say."""

    def __init__(self, api: KubeClient) -> None:
        self.api = api
        self.origins = Origins()
        self.agents: dict[str, NodeAgent] = {}

    async def node(self, name: str, **labels: str) -> NodeAgent:
        await make_node(self.api, name, SYSTEM, labels={"pool": "gpu", **labels}, taints=[COLD])
        return self.agents.setdefault(name, NodeAgent(name, self.origins))

    async def pod(
        self, name: str, *, namespace: str = "shop", labels: Any = None, model: str = "", **spec: Any
    ) -> None:
        metadata: Object = {"name": name, "labels": labels or {INJECTED_LABEL: "true"}}
        if model:
            metadata["annotations"] = {MODEL: model}
            csi = {"driver": DRIVER, "readOnly": True, "volumeAttributes": {"model": model}}
            spec["volumes"] = [{"name": "weights", "csi": csi}]
        tolerations = [{"operator": "Exists"}]
        body = {"containers": [{"name": "c", "image": "i"}], "tolerations": tolerations, **spec}
        await self.api.create(PODS, {"metadata": metadata, "spec": body}, namespace=namespace)

    @asynccontextmanager
    async def reporting(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._report())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _report(self) -> None:
        said: dict[str, Object] = {}
        while True:
            for name, agent in self.agents.items():
                with suppress(KubeNotFound):
                    item = await self.api.get(MODEL_CACHE_NODES, name)
                    agent.evict((item.get("spec") or {}).get("held") or [])
                    status = agent.respond(item, said.get(name, {}).get("reportedAt") or now_text())
                    if status != said.get(name):
                        body = {"metadata": {"name": name}, "status": status}
                        await self.api.apply(MODEL_CACHE_NODES, body, manager="test-agent", subresource="status")
                        said[name] = status
            await asyncio.sleep(0.05)

    async def ready(self, model: str) -> bool:
        item = await self.api.get(MODEL_CACHES, model)
        conditions = (item.get("status") or {}).get("conditions") or ()
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    async def leader(self) -> str:
        with suppress(KubeNotFound):
            lease = await self.api.get(LEASES, "cacheagent-controller", namespace=SYSTEM)
            return lease["spec"].get("holderIdentity") or ""
        return ""


class Process:
    """One replica."""

    def __init__(self, server: ApiServer, folder: Path, identity: str) -> None:
        self.identity = identity
        self.health, self.webhook = free_ports(2)
        config = folder / f"{identity}.yaml"
        config.write_text(
            f"listen: 127.0.0.1:{self.health}\n"
            f"webhook: {{listen: '127.0.0.1:{self.webhook}'}}\n"
            "cold: {enabled: true}\nlogs: {format: json, level: debug}\n"
        )
        self.log = folder / f"{identity}.log"
        command = [sys.executable, "-m", "cacheagent", "controller", "--config", str(config), "--namespace", SYSTEM]
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                [*command, "--identity", identity],
                stdout=log,
                stderr=log,
                env={**os.environ, "KUBECONFIG": str(server.kubeconfig)},
            )

    async def answers(self, path: str = "/readyz") -> str:
        """The body, or nothing while it says no."""
        assert self.child.poll() is None, self.log.read_text()[-3000:]

        def ask() -> str:
            with (
                suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{self.health}{path}", timeout=5) as answer,
            ):
                return str(answer.read().decode())
            return ""

        return await asyncio.to_thread(ask)

    def metric(self, text: str, name: str) -> float:
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    def end(self) -> None:
        self.child.kill()
        self.child.wait()


@pytest.mark.asyncio
async def test_the_whole_story(server: ApiServer, tmp_path: Path) -> None:
    """Resolved, pinned, fetched, labelled, with volumes; taints taken off, a gate lifted, a pod woken; then rest."""
    async with open_client(server.kubeconfig) as api:
        fleet = Fleet(api)
        fleet.origins.digests["s3://models/llama"] = A1
        process = Process(server, tmp_path, "one")
        try:
            for name in ("n0", "n1"):
                (await fleet.node(name)).slowness = 10**6
            await api.create(MODEL_CACHES, _model())
            async with fleet.reporting():
                await until(process.answers, "ready")
                await fleet.pod("gated", model="llama", schedulingGates=[{"name": GATE}, {"name": "other.io/gate"}])
                await fleet.pod("waits", model="llama", nodeName="n0")
                await until(lambda: _event(api, "gated", "WaitingForWeights"), "the gated pod is told")
                await until(lambda: _status(api, "downloading", 2), "both are fetching")
                for agent in fleet.agents.values():
                    agent.slowness = 0
                await until(lambda: fleet.ready("llama"), "ready")
                await until(lambda: _has_labels(api), "labels and taints")
                await until(lambda: _gates_are(api, "gated", [{"name": "other.io/gate"}]), "the gate is lifted")
                await until(lambda: _woken(api, "waits"), "the pod is woken")
                await until(lambda: _claims(api), "the claim is there")
                (volume,) = (await api.list(VOLUMES)).items
                assert volume["spec"]["mountOptions"] == ["ro", "nosuid", "nodev", "noexec"]
                await until(lambda: _quiet(process), "rest")
                before = process.metric(await process.answers("/metrics"), "cacheagent_controller_writes_total")
                await api.patch(NODES, "n0", {"metadata": {"labels": {"seen": "yes"}}})
                await until(lambda: _quiet(process), "rest")
                text = await process.answers("/metrics")
                assert process.metric(text, "cacheagent_controller_writes_total") == before
                assert 'cacheagent_controller_models{condition="ready"} 1.0' in text
            item = await api.get(MODEL_CACHES, "llama")
            assert item["status"]["digest"] == A1
            assert item["status"]["progress"] == item["status"]["ready"] == "2/2"
            process.child.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.child.wait, 30) == 0
            assert await fleet.leader() == "", "the lease is given back"
            said = [json.loads(line) for line in process.log.read_text().splitlines()]
            assert not [line for line in said if line["level"] == "error"], said
        finally:
            process.end()


@pytest.mark.asyncio
async def test_a_killed_leader_is_followed_by_the_other_replica(server: ApiServer, tmp_path: Path) -> None:
    """Both answer the webhook; when the one that leads is gone for its lease's time, the other goes on."""
    async with open_client(server.kubeconfig) as api:
        fleet = Fleet(api)
        fleet.origins.digests["s3://models/second"] = A1
        first = Process(server, tmp_path, "first")
        second = None
        try:
            await until(first.answers, "the first is ready")
            await until(lambda: _is(fleet.leader(), "first"), "the first leads")
            second = Process(server, tmp_path, "second")
            await until(second.answers, "the second is ready as well")
            assert await fleet.leader() == "first"
            first.end()
            await fleet.node("n9", pool="late")
            await api.create(MODEL_CACHES, _model("second", nodeSelector={"pool": "late"}))
            async with fleet.reporting():
                await until(lambda: fleet.ready("second"), "the second does its work")
            assert await fleet.leader() == "second"
        finally:
            first.end()
            if second is not None:
                second.end()


def _model(name: str = "llama", **spec: Any) -> Object:
    source = {"uri": f"s3://models/{name}"}
    more = {"nodeSelector": {"pool": "gpu"}, "required": True, "localPersistentVolumes": {"namespaces": ["shop"]}}
    return {"metadata": {"name": name}, "spec": {"source": source, **more, **spec}}


async def _status(api: KubeClient, count: str, wanted: int) -> bool:
    item = await api.get(MODEL_CACHES, "llama")
    return bool(item["status"]["nodes"][count] == wanted)


async def _is(answer: Awaitable[object], wanted: object) -> bool:
    return bool(await answer == wanted)


async def _event(api: KubeClient, pod: str, reason: str) -> bool:
    events = Resource("", "v1", "events", "Event", True)
    found = (await api.list(events, namespace="shop", fields=f"involvedObject.name={pod}")).items
    return any(event["reason"] == reason for event in found)


async def _has_labels(api: KubeClient) -> bool:
    """And no cold taint any more; the API server itself puts `not-ready` on every new Node."""
    nodes = [await api.get(NODES, name) for name in ("n0", "n1")]
    return all(
        node["metadata"]["labels"].get(version_label(A1)) == "ready"
        and COLD_TAINT not in [taint["key"] for taint in node["spec"].get("taints") or ()]
        for node in nodes
    )


async def _gates_are(api: KubeClient, pod: str, gates: list[Object]) -> bool:
    item = await api.get(PODS, pod, namespace="shop")
    return bool(item["spec"].get("schedulingGates") == gates)


async def _woken(api: KubeClient, pod: str) -> bool:
    item = await api.get(PODS, pod, namespace="shop")
    return WOKEN in item["metadata"]["annotations"]


async def _claims(api: KubeClient) -> bool:
    return [item["metadata"]["name"] for item in (await api.list(CLAIMS, namespace="shop")).items] == [
        claim_name("llama", A1)
    ]


async def _quiet(process: Process) -> bool:
    """Two looks, a second apart, at how much was written; nothing is planned in between."""
    looks = []
    for _ in range(2):
        text = await process.answers("/metrics")
        looks.append((
            process.metric(text, "cacheagent_controller_writes_total"),
            process.metric(text, "cacheagent_controller_planned_changes"),
            process.metric(text, "cacheagent_controller_plan_duration_seconds_count"),
        ))  # fmt: skip
        await asyncio.sleep(1)
    return looks[0] == looks[1] and looks[0][1] == 0
