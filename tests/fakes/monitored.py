"""Something to look at for Prometheus: real agents with real downloads, volumes and failures, a real controller behind
a real API server with nodes and pods that are objects only, and GPUs in the words of DCGM's exporter.

with running_scene(folder, nodes=["n1"]) as scene:
    scene.play()
    scene.prometheus.query(…)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from cacheagent.api.schema import VolumeRequest
from cacheagent.demo.child import free_ports
from cacheagent.kube.api import (
    MODEL_CACHE_NODES,
    MODEL_CACHES,
    PODS,
    KubeNotFound,
    Object,
)
from cacheagent.kube.client import KubeClient, open_client
from cacheagent.kube.convert import now_text
from cacheagent.kube.names import COLD_TAINT, DRIVER, INJECTED_LABEL, MODEL
from cacheagent.kube.plan.times import written_time
from cacheagent.model import PIECE_SIZE_BYTES
from tests.fakes.dashboards import RULES
from tests.fakes.faults import Reset
from tests.fakes.kube_cluster import install_definitions, make_namespaces, make_node
from tests.fakes.kube_server import ApiServer, running_api_server
from tests.fakes.node_agents import NodeAgent, Origins, digest_of
from tests.fakes.origin import Origin
from tests.fakes.prometheus import Prometheus, Target, running_prometheus, wait_for
from tests.fakes.running_agent import PATIENCE_S, RunningAgent
from tests.fakes.running_controller import RunningController

REPOSITORY: Final = Path(__file__).parents[2]
SYSTEM: Final = "cacheagent-system"
GPUS: Final = 4
BIG: Final = 2 * PIECE_SIZE_BYTES
"""More than one piece, so that pieces are timed."""
T = TypeVar("T")


def dcgm_text(node: str, busy: Sequence[int]) -> str:
    """What NVIDIA's exporter (4.2) shows of a node's GPUs. The last one is in MIG mode, as one instance."""
    lines = [
        "# HELP DCGM_FI_DEV_GPU_UTIL GPU utilization (in %).",
        "# TYPE DCGM_FI_DEV_GPU_UTIL gauge",
        "# HELP DCGM_FI_PROF_GR_ENGINE_ACTIVE Ratio of time the graphics engine is active.",
        "# TYPE DCGM_FI_PROF_GR_ENGINE_ACTIVE gauge",
    ]
    for number, percent in enumerate(busy):
        labels = {
            "gpu": str(number),
            "UUID": f"GPU-604ac76c-d9cf-fef3-62e9-d92044ab6{number:x}{node[-1]}2",
            "pci_bus_id": f"00000000:{number + 7:02X}:00.0",
            "device": f"nvidia{number}",
            "modelName": "NVIDIA H100 80GB HBM3",
            "Hostname": node,
            "DCGM_FI_DRIVER_VERSION": "570.86.15",
            "container": "engine" if percent else "",
            "namespace": "shop" if percent else "",
            "pod": f"engine-{number}" if percent else "",
        }
        is_mig = number == len(busy) - 1
        if is_mig:
            labels |= {"GPU_I_PROFILE": "7g.80gb", "GPU_I_ID": "0"}
        inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
        if not is_mig:
            lines.append(f"DCGM_FI_DEV_GPU_UTIL{{{inner}}} {percent}")
        lines.append(f"DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{inner}}} {percent / 100:.6f}")
    return "\n".join(lines) + "\n"


@dataclass(kw_only=True)
class Scene:
    """Everything that runs."""

    prometheus: Prometheus
    agents: dict[str, RunningAgent]
    controller: RunningController
    server: ApiServer
    origin: Origin
    slow: Origin
    exporter: Origin
    tree: Path

    def play(self) -> None:
        """Everything that is counted happens once at least; returns when it has."""
        for node, agent in self.agents.items():
            self._download(agent)
            self._wait_until_scraped_at_zero(node, "llama", "late")
            self._mount(node)
        self.controller.review("this is no review")
        self._start_pods()

    def _download(self, agent: RunningAgent) -> None:
        """Two that come whole, one that comes slowly, one whose bytes are wrong, three that are not there."""
        names = ("llama", "wrong", "gone-1", "gone-2", "gone-3")
        models = [_model(self.origin, name) for name in names]
        agent.configure(
            *models,
            {"name": "tree", "kind": "tree", "source": f"file://{self.tree}"},
            _model(self.slow, "slow"),
            *(_model(self.origin, name, keep_warm=False) for name in ("spare", "late")),
        )
        agent.send(signal.SIGHUP)
        agent.wait_until_ready("llama")
        agent.wait_until_ready("tree")
        agent.ask(lambda client: client.ensure("spare", wait_s=PATIENCE_S))
        agent.ask(lambda client: client.ensure("spare", wait_s=PATIENCE_S))
        agent.ask(lambda client: client.evict("spare"))

    def _wait_until_scraped_at_zero(self, node: str, *models: str) -> None:
        """Prometheus' `increase` does not see what was counted before it first saw the series."""
        mounts = f'cacheagent_volume_mounts_total{{node="{node}", model=~"{"|".join(models)}"}} == 0'
        results = 2
        wait_for(
            lambda: len(self.prometheus.query(mounts)) == results * len(models),
            lambda: self.prometheus.query("cacheagent_volume_mounts_total"),
        )

    def _mount(self, node: str) -> None:
        """A volume that finds its model, one that waits for it and gets it, one that waits on."""
        assert self.mount(node, "hit", "llama") == "ready"
        assert self.mount(node, "miss", "late") == "waiting"
        assert self.mount(node, "miss", "late", wait_s=PATIENCE_S) == "ready"
        assert self.mount(node, "waits", "slow") == "waiting"

    def mount(self, node: str, volume: str, model: str, *, wait_s: float = 0) -> str:
        """Ask for a volume as the CSI driver does; its state."""
        request = VolumeRequest(namespace="shop", pod=volume, model=model, wait_s=wait_s, page_cache=True)
        return self.agents[node].ask(lambda client: client.volume(f"{volume}-{node}", request)).state

    def bind(self, name: str, node: str, at: float) -> None:
        """A pod with eight GPUs that wants `llama` gets its node."""

        async def work() -> None:
            async with open_client(self.server.kubeconfig) as api:
                await _make_pod(api, name, node)
                await _reach(api, name, {"PodScheduled": at})

        asyncio.run(work())

    def start(self, name: str, bound_at: float, at: float) -> None:
        """It gets its weights."""

        async def work() -> None:
            async with open_client(self.server.kubeconfig) as api:
                await _reach(api, name, {"PodScheduled": bound_at, "PodReadyToStartContainers": at})

        asyncio.run(work())

    def load(self, node: str, busy: Sequence[int]) -> None:
        """So many percent of each GPU are used from now on."""
        self.exporter.put(f"{node}/metrics", dcgm_text(node, busy).encode())

    def _start_pods(self) -> None:
        """One gets its weights, one goes on waiting with its GPUs."""
        now = time.time()
        for name in ("starts", "waits"):
            self.bind(name, next(iter(self.agents)), now)
        self._wait_for_controller('cacheagent_controller_waiting_pods{stage="node"} 2.0')
        self.start("starts", now, now + 42)
        self._wait_for_controller("cacheagent_pod_weights_ready_seconds_count 1.0")

    def _wait_for_controller(self, line: str) -> None:
        wait_for(lambda: line in self.controller.metrics(), self.controller.metrics)


def _model(origin: Origin, name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "tree", "source": f"{origin.url}/{name}/", **more}


@contextmanager
def running_scene(folder: Path, *, nodes: Sequence[str] = ("n1",), bytes_per_s: float = 2e6) -> Iterator[Scene]:
    """Until the block ends. Skips the test where a program is missing. `bytes_per_s`: of the model that is slow."""
    shard = os.urandom(1024) * (BIG // 1024)
    files = {f"{name}/weights.bin": shard for name in ("llama", "spare", "late")} | {"wrong/weights.bin": b"right"}
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(Origin(files))
        slow = stack.enter_context(Origin({"slow/weights.bin": shard[::-1] * 8}, bytes_per_s=bytes_per_s))
        for name in ("llama", "spare", "late", "wrong"):
            origin.add_sums(name)
        slow.add_sums("slow")
        origin.put("wrong/weights.bin", b"wrong")
        origin.inject(Reset(after_bytes=1000), path="llama/weights.bin")
        exporter = stack.enter_context(Origin({f"{node}/metrics": b"" for node in nodes}))
        for number, node in enumerate(nodes):
            exporter.put(f"{node}/metrics", dcgm_text(node, [0, 0, *[90 + number] * (GPUS - 2)]).encode())
        tree = folder / "tree"
        tree.mkdir()
        (tree / "weights.bin").write_bytes(shard)
        server = stack.enter_context(running_api_server(folder))
        asyncio.run(_prepare(server, nodes))
        controller = stack.enter_context(RunningController(folder, server, namespace=SYSTEM))
        stack.enter_context(_reporting(server, nodes))
        agents = {}
        for node, port in zip(nodes, free_ports(len(nodes)), strict=True):
            (folder / node).mkdir()
            settings = {
                "listen": f"127.0.0.1:{port}",  # the same after a restart
                "page_cache": {"min_memory": "1MiB"},
                "transfer": {"ingress_cap": "500MB/s"},
            }
            agents[node] = stack.enter_context(RunningAgent(folder / node, **settings))
        targets = [*_targets(agents, controller), *(_exporter_of(node, exporter) for node in nodes)]
        prometheus = stack.enter_context(running_prometheus(folder / "prometheus", targets, rules=[RULES]))
        wait_for(lambda: len(prometheus.query("up == 1")) == len(targets), lambda: prometheus.ask("targets"))
        yield Scene(
            prometheus=prometheus,
            agents=agents,
            controller=controller,
            server=server,
            origin=origin,
            slow=slow,
            exporter=exporter,
            tree=tree,
        )


def _targets(agents: dict[str, RunningAgent], controller: RunningController) -> list[Target]:
    """With the labels that the chart's monitors give."""
    found = [(node, "agent", agent.events("ready")[-1]["listen"]) for node, agent in agents.items()]
    found.append((next(iter(agents)), "controller", controller.address))
    return [
        Target(job="cacheagent", address=address, labels={"namespace": SYSTEM, "component": component, "node": node})
        for node, component, address in found
    ]


def _exporter_of(node: str, exporter: Origin) -> Target:
    """Found by a job of somebody else's, which knows nothing of nodes."""
    address = exporter.url.removeprefix("http://")
    return Target(
        job="dcgm-exporter",
        address=address,
        labels={"__metrics_path__": f"/{node}/metrics", "instance": f"dcgm-{node}"},
    )


async def _prepare(server: ApiServer, nodes: Sequence[str]) -> None:
    """Definitions, namespaces, cold nodes with an agent's pod each, and two models that ask for all of them."""
    async with open_client(server.kubeconfig) as api:
        await install_definitions(api)
        await make_namespaces(api, SYSTEM, "shop")
        for name in nodes:
            await make_node(api, name, SYSTEM, taints=[{"key": COLD_TAINT, "effect": "NoSchedule"}])
        for name in ("llama", "gone"):
            spec = {"source": {"uri": f"s3://models/{name}"}, "required": True}
            await api.create(MODEL_CACHES, {"metadata": {"name": name}, "spec": spec})


@contextmanager
def _reporting(server: ApiServer, nodes: Sequence[str]) -> Iterator[None]:
    """What the nodes' agents would say to the controller; `gone` is nowhere, so it is degraded and they stay cold."""
    origins = Origins(digests={"s3://models/llama": digest_of("a1")}, errors={"s3://models/gone": "not-found"})
    ended = threading.Event()

    async def report() -> None:
        agents = [NodeAgent(name, origins) for name in nodes]
        async with open_client(server.kubeconfig) as api:
            while not ended.is_set():
                for agent in agents:
                    with contextlib.suppress(KubeNotFound):
                        item = await api.get(MODEL_CACHE_NODES, agent.name)
                        body = {"metadata": {"name": agent.name}, "status": agent.respond(item, now_text())}
                        await api.apply(MODEL_CACHE_NODES, body, manager="test-agent", subresource="status")
                await asyncio.sleep(0.5)

    thread = threading.Thread(target=_run, args=(report(),), name="agents' reports")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def _make_pod(api: KubeClient, name: str, node: str) -> None:
    csi = {"driver": DRIVER, "readOnly": True, "volumeAttributes": {"model": "llama"}}
    metadata: Object = {"name": name, "labels": {INJECTED_LABEL: "true"}, "annotations": {MODEL: "llama"}}
    resources = {"limits": {"nvidia.com/gpu": "8"}, "requests": {"nvidia.com/gpu": "8"}}
    spec = {
        "nodeName": node,
        "containers": [{"name": "engine", "image": "i", "resources": resources}],
        "volumes": [{"name": "weights", "csi": csi}],
        "tolerations": [{"operator": "Exists"}],
    }
    await api.create(PODS, {"metadata": metadata, "spec": spec}, namespace="shop")


async def _reach(api: KubeClient, name: str, milestones: dict[str, float]) -> None:
    """As kubelet and scheduler say it: when which condition became true."""
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": written_time(moment)}
        for kind, moment in milestones.items()
    ]
    await api.patch(PODS, name, {"status": {"conditions": conditions}}, namespace="shop", subresource="status")
