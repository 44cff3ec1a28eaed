"""A real API server with a fleet's objects in it, and the processes that use it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.arena import say
from benchmarks.scale.agents import Done, Order
from benchmarks.scale.fleet import NAMESPACE, WARMED, Size, agent_pod, cache_node, model, node, resolved
from benchmarks.scale.stub import Pretence
from cacheagent.demo.child import ChildEnded, free_ports, running_child, wait_until_ready
from cacheagent.kube.api import (
    MODEL_CACHE_NODES,
    MODEL_CACHES,
    NODES,
    PODS,
    KubeApi,
    Object,
    Resource,
)
from cacheagent.kube.client import KubeClient
from tests.fakes.kube_cluster import install_definitions, make_namespaces
from tests.fakes.kube_server import ApiServer

REPOSITORY: Final = Path(__file__).parents[2]
BINDINGS: Final = Resource(
    "rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False
)
AT_ONCE: Final = 16
HEARTBEAT_S: Final = 300.0
"""The kubelet's nodeStatusReportFrequency."""


class Users:
    """Kubeconfigs. Controller and agents are service accounts, as in a cluster, so that the API server's priority and
    fairness treats them as such; their exact rights are tested elsewhere."""

    def __init__(self, server: ApiServer) -> None:
        account = f"system:serviceaccount:{NAMESPACE}"
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}")
        # Renamed, because a colon in $KUBECONFIG separates files.
        folder = server.kubeconfig.parent
        self.controller = server.kubeconfig_of(f"{account}:controller", *groups).rename(folder / "controller")
        self.agents = server.kubeconfig_of(f"{account}:agent", *groups).rename(folder / "agents")
        self.kubelets = server.kubeconfig_of("kubelets", "system:masters")


async def install(api: KubeClient) -> None:
    """Definitions, namespace, rights."""
    await install_definitions(api)
    await make_namespaces(api, NAMESPACE)
    subject = {
        "kind": "Group",
        "apiGroup": "rbac.authorization.k8s.io",
        "name": f"system:serviceaccounts:{NAMESPACE}",
    }
    role = {"kind": "ClusterRole", "apiGroup": "rbac.authorization.k8s.io", "name": "cluster-admin"}
    await api.create(BINDINGS, {"metadata": {"name": "scale"}, "subjects": [subject], "roleRef": role})


async def populate(api: KubeApi, size: Size) -> None:
    """A fleet that is in order, but for what its agents report: models, nodes with agents' pods, and orders."""
    models: list[Object] = []
    for number, name in enumerate(size.model_names):
        made = await api.create(MODEL_CACHES, model(name, size.pool_of(number)))
        await api.patch(MODEL_CACHES, name, {"status": resolved(made)}, subresource="status")
        models.append(made)
    await api.create(MODEL_CACHES, model(WARMED, prefetch=False))
    names = size.node_names

    async def one(number: int) -> None:
        here = [each for index, each in enumerate(models) if size.is_on(index, number)]
        labelled = node(names[number], size.pool_of(number), [each["metadata"]["name"] for each in here])
        made, pod = await api.create(NODES, labelled), agent_pod(names[number])
        await api.create(MODEL_CACHE_NODES, cache_node(made, here))
        await api.create(PODS, pod)
        ready = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
        await api.patch(PODS, pod["metadata"]["name"], ready, namespace=NAMESPACE, subresource="status")

    turns = asyncio.Semaphore(AT_ONCE)

    async def in_turn(number: int) -> None:
        async with turns:
            await one(number)

    async with asyncio.TaskGroup() as group:
        for number in range(size.nodes):
            group.create_task(in_turn(number))


async def until(true: Callable[[], Awaitable[object]], what: str, at_most_s: float, every_s: float = 0.25) -> None:
    """Return when it is true. Raises TimeoutError naming it."""
    end = time.monotonic() + at_most_s
    while not await true():
        if time.monotonic() > end:
            raise TimeoutError(f"not so after {at_most_s:.0f} s: {what}")
        await asyncio.sleep(every_s)


class Agents:
    """A process of stub agents."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def done(self) -> Done:
        """So far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the stub agents ended")
        return msgspec.json.decode(line, type=Done)


@contextlib.asynccontextmanager
async def running_agents(users: Users, size: Size, fetch_s: tuple[float, float]) -> AsyncIterator[Agents]:
    """One stub for each node. Only the model that is warmed takes time to fetch."""
    order = Order(
        kubeconfig=str(users.agents),
        kubelets_kubeconfig=str(users.kubelets),
        nodes=tuple(size.node_names),
        pretence=Pretence(fetch_s={WARMED: fetch_s}),
        heartbeat_s=HEARTBEAT_S,
    )
    path = users.agents.parent / "order.json"
    path.write_bytes(msgspec.json.encode(order))
    command = [sys.executable, "-m", "benchmarks.scale.agents", str(path)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=REPOSITORY, limit=1 << 26)
    try:
        yield Agents(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(30):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


class Controller:
    """A running one."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.pid = process.pid
        self._url = f"http://127.0.0.1:{port}/metrics"

    def metrics(self) -> str:
        """What Prometheus would scrape. Blocking."""
        with urllib.request.urlopen(self._url, timeout=30) as answer:
            return bytes(answer.read()).decode()


@contextlib.contextmanager
def running_controller(users: Users, folder: Path, name: str) -> Iterator[Controller]:
    """The real program, with defaults, but for the webhook: nobody calls it here."""
    (port,) = free_ports(1)
    config, log = folder / f"{name}.yaml", folder / f"{name}.log"
    config.write_text(json.dumps({"listen": f"127.0.0.1:{port}", "webhook": {"listen": ""}}))  # JSON is YAML
    command = [sys.executable, "-m", "cacheagent", "controller", "--config", str(config), "--namespace", NAMESPACE]
    environment = {"KUBECONFIG": str(users.controller), "POD_NAME": name}
    with running_child(command, log_path=log, environment=environment, stop_timeout_s=60) as child:
        controller = Controller(child, port)

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return bool(controller.metrics())
            return False

        wait_until_ready(child, answers, name="controller", log_path=log, timeout_s=60)
        say(f"  {name} runs, its log is {log}")
        yield controller
        if child.poll() is not None:
            raise ChildEnded(f"the controller ended: {log.read_text()[-2000:]}")
