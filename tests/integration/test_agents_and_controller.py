"""Agents and a controller, each a process, behind a real API server: from a ModelCache to mounted weights, and what
else the two say to each other."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from cacheagent.api.schema import MountedPath, MountsReport, Volume, VolumeRequest
from cacheagent.demo.child import free_ports
from cacheagent.errors import ModelInUse, NotCached, PolicyRefused
from cacheagent.kube.api import (
    MODEL_CACHE_NODES,
    MODEL_CACHE_PEERS,
    MODEL_CACHES,
    MODEL_WARMUPS,
    NODES,
    VOLUMES,
    KubeNotFound,
    Object,
)
from cacheagent.kube.client import KubeClient, open_client
from cacheagent.kube.names import LOOK, REFRESH, version_label
from tests.fakes.kube_cluster import install_definitions, make_namespaces, make_node
from tests.fakes.kube_server import ApiServer, running_api_server
from tests.fakes.models import checkpoint, write_files
from tests.fakes.origin import Origin
from tests.fakes.running_agent import PATIENCE_S, RunningAgent
from tests.fakes.worker import random_bytes

pytestmark = [pytest.mark.kube_api, pytest.mark.slow]

SYSTEM = "cacheagent"
T = TypeVar("T")


class Cluster:
    """An API server, a controller, and nodes of which there are objects and agents."""

    def __init__(self, folder: Path, server: ApiServer, origin: Origin) -> None:
        self.folder = folder
        self.server = server
        self.origin = origin
        self.agents: dict[str, RunningAgent] = {}
        self.settings: dict[str, Any] = {}
        self.stack = ExitStack()
        self.shared = folder / "shared"
        self.shared.mkdir()

    def kube(self, question: Callable[[KubeClient], Awaitable[T]]) -> T:
        """One call as the administrator."""

        async def call() -> T:
            async with open_client(self.server.kubeconfig) as api:
                return await question(api)

        return asyncio.run(call())

    def start_controller(self) -> None:
        """One replica that ends with the cluster."""
        health, webhook = free_ports(2)
        config = self.folder / "controller.yaml"
        rule = {"prefix": f"file://{self.shared}", "namespaces": ["team-a"]}
        config.write_text(
            yaml.safe_dump(
                {
                    "listen": f"127.0.0.1:{health}",
                    "webhook": {"listen": f"127.0.0.1:{webhook}"},
                    "on_demand": [rule],
                    "file_roots": [str(self.shared)],
                }
            )
        )
        command = [sys.executable, "-m", "cacheagent", "controller", "--config", str(config), "--namespace", SYSTEM]
        log = self.stack.enter_context((self.folder / "controller.log").open("wb"))
        environment = {**os.environ, "KUBECONFIG": str(self.server.kubeconfig)}
        child = subprocess.Popen([*command, "--identity", "one"], stdout=log, stderr=log, env=environment)
        self.stack.callback(child.wait)
        self.stack.callback(child.kill)
        self.controller = child

    def node(self, name: str, **labels: str) -> RunningAgent:
        """A node, its agent's pod, and the agent."""
        self.kube(lambda api: make_node(api, name, SYSTEM, labels=labels))
        (self.folder / name).mkdir()
        agent = RunningAgent(self.folder / name, file_roots=[str(self.shared)], **self.settings)
        agent.arguments = ("--node", name, "--kubeconfig", str(self.server.kubeconfig))
        self.agents[name] = self.stack.enter_context(agent)
        return agent

    def ready(self, model: str, count: int) -> bool:
        """Whether so many nodes have it, as people see it."""
        status = self.kube(lambda api: api.get(MODEL_CACHES, model)).get("status") or {}
        return bool(status.get("nodes", {}).get("ready") == count and status["nodes"]["assigned"] == count)

    def digest(self, model: str) -> str:
        """The pinned version."""
        return str(self.kube(lambda api: api.get(MODEL_CACHES, model))["status"]["digest"])

    def until(self, condition: Callable[[], object]) -> None:
        """Until it holds; a failure shows what everybody said."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.controller.poll() is None, (self.folder / "controller.log").read_text()
            logs = [self.folder / "controller.log", *(agent.log for agent in self.agents.values())]
            assert time.monotonic() < deadline, "\n".join(log.read_text()[-3000:] for log in logs)
            time.sleep(0.05)


async def _prepare(server: ApiServer) -> None:
    async with open_client(server.kubeconfig) as api:
        await install_definitions(api)
        await make_namespaces(api, SYSTEM, "team-a", "team-b")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """With a controller and without nodes."""
    objects = {
        "llama/weights.bin": b"llama" * 50_000,
        "other/weights.bin": b"other" * 50_000,
    }
    with Origin(objects) as origin, running_api_server(tmp_path / "kube") as server:
        for name in ("llama", "other"):
            origin.add_sums(name)
        asyncio.run(_prepare(server))
        made = Cluster(tmp_path, server, origin)
        with made.stack:
            made.start_controller()
            yield made


def model(cluster: Cluster, name: str = "llama", **spec: Any) -> Object:
    """A ModelCache."""
    source = {"uri": f"{cluster.origin.url}/{name}/"}
    return {"metadata": {"name": name}, "spec": {"source": source, "kind": "tree", **spec}}


def ask(agent: RunningAgent, volume_id: str, *, wait_s: float = PATIENCE_S, **request: Any) -> Volume:
    """What the CSI driver asks."""
    asked: dict[str, Any] = {"namespace": "team-a", "wait_s": wait_s} | request
    return agent.ask(lambda client: client.volume(volume_id, VolumeRequest(**asked)))


def test_a_model_reaches_its_nodes_and_those_that_ask(cluster: Cluster) -> None:
    """Resolved by one, pinned, fetched by both; asked for on a third; refused to a namespace; by URI; a new version
    beside the old one that is still mounted; a kill of the API server's clients in between changes nothing."""
    one, two, third = (cluster.node(name, pool=pool) for name, pool in (("n1", "gpu"), ("n2", "gpu"), ("n3", "cpu")))
    spec: Object = {"nodeSelector": {"pool": "gpu"}, "allowedNamespaces": {"names": ["team-a"]}}
    cluster.kube(lambda api: api.create(MODEL_CACHES, model(cluster, **spec)))
    cluster.until(lambda: cluster.ready("llama", 2))
    digest = cluster.digest("llama")
    granted = ask(one, "v1", model="llama")
    assert (granted.state, granted.digest) == ("ready", digest)
    assert (one.root / granted.path / "weights.bin").read_bytes() == b"llama" * 50_000
    cluster.until(lambda: _labels(cluster, "n1").get(version_label(digest)) == "ready")

    assert ask(third, "v1", model="llama").digest == digest, "on demand"
    cluster.until(lambda: cluster.ready("llama", 3))
    with pytest.raises(PolicyRefused, match="team-b"):
        ask(third, "v2", model="llama", namespace="team-b")
    with pytest.raises(NotCached, match="there is no ModelCache 'missing'"):
        ask(third, "v3", model="missing")

    files = checkpoint()
    write_files(cluster.shared / "m", files)
    uri = f"file://{cluster.shared}/m"
    with pytest.raises(PolicyRefused):
        ask(third, "v4", uri=uri, namespace="team-b")
    on_demand = ask(third, "v5", uri=uri)
    assert on_demand.state == "ready", on_demand
    for name, content in files.items():
        assert (third.root / on_demand.path / name).read_bytes() == content
    with pytest.raises(PolicyRefused):
        ask(third, "v6", uri=f"file://{cluster.shared}-not/m")

    changed = b"LLAMA" * 50_000
    cluster.origin.put("llama/weights.bin", changed)
    cluster.origin.put("llama/SHA256SUMS", f"{hashlib.sha256(changed).hexdigest()}  weights.bin\n".encode())
    mark: Object = {"metadata": {"annotations": {REFRESH: "now"}}}
    cluster.kube(lambda api: api.patch(MODEL_CACHES, "llama", mark))
    cluster.until(lambda: cluster.digest("llama") != digest and cluster.ready("llama", 3))
    newer = cluster.digest("llama")
    assert ask(two, "v1", model="llama").digest == newer
    assert ask(one, "v1", model="llama").digest == digest, "a volume keeps its version"
    assert ask(one, "v6", model="llama", digest=digest).digest == digest, "pods may name the older one"
    one.send(signal.SIGKILL)
    one.wait()
    one.start()
    assert ask(one, "v1", model="llama") == granted
    assert {each.digest for each in one.ask(lambda client: client.models())} == {digest, newer}


def test_a_version_that_a_persistent_volume_points_at_goes_in_two_steps(cluster: Cluster) -> None:
    """Announced by the agent, released by the controller, which has taken the label away; only then is it evicted."""
    agent = cluster.node("n1")
    spec: Object = {"prefetch": True, "localPersistentVolumes": {"namespaces": ["team-a"]}}
    cluster.kube(lambda api: api.create(MODEL_CACHES, model(cluster, **spec)))
    cluster.until(lambda: cluster.ready("llama", 1))
    digest = cluster.digest("llama")
    label = version_label(digest)
    cluster.until(lambda: digest in _spec(cluster, "n1").get("held", ()))
    cluster.until(lambda: cluster.kube(lambda api: api.list(VOLUMES)).items)
    mounted = MountedPath(volume_id="pv-1-weights", path=f"models/{digest.replace(':', '-')}/files")
    agent.ask(lambda client: client.mounted(MountsReport(mounts=(mounted,))))
    with pytest.raises(ModelInUse, match="mounted"):
        agent.ask(lambda client: client.evict(digest))
    agent.ask(lambda client: client.mounted(MountsReport(mounts=())))
    cluster.until(lambda: _labels(cluster, "n1").get(label) == "ready")
    with pytest.raises(ModelInUse, match="the controller was asked to let go of it"):
        agent.ask(lambda client: client.evict(digest))
    cluster.until(lambda: digest not in _spec(cluster, "n1").get("held", ()))
    assert label not in _labels(cluster, "n1")

    def evicted() -> bool:
        with suppress(ModelInUse):
            return agent.ask(lambda client: client.evict(digest)).digest == digest
        return False

    cluster.until(evicted)


def test_a_warmups_rate_slows_its_nodes_down_and_no_pod(cluster: Cluster) -> None:
    """Shared out, obeyed in the middle of a download, given out again, lifted for a pod and with the warm-up's limit;
    and a look at the origin finds out that it has moved, and changes nothing."""
    one, two = (cluster.node(name) for name in ("n1", "n2"))
    content = random_bytes(40_000_000)  # 40 s at a node's share
    _put(cluster.origin, content)
    cluster.kube(lambda api: api.create(MODEL_CACHES, model(cluster, "big", prefetch=False, peers="never")))
    limited: Object = {"model": "big", "nodeSelector": {}, "maxOriginRate": "2MB/s"}
    cluster.kube(lambda api: api.create(MODEL_WARMUPS, {"metadata": {"name": "gently"}, "spec": limited}))
    cluster.until(lambda: [_limit(one), _limit(two)] == [1_000_000, 1_000_000])
    cluster.until(lambda: "; its warm-up lets this node take 1 MB/s" in _message(cluster, "n2"))
    granted = ask(one, "v1", model="big")
    assert granted.state == "ready", "a pod does not wait for a gentle warm-up"
    assert (one.root / granted.path / "weights.bin").read_bytes() == content
    cluster.until(lambda: _limit(two) == 2_000_000)
    cluster.kube(lambda api: api.patch(MODEL_WARMUPS, "gently", {"spec": {"maxOriginRate": None}}))
    cluster.until(lambda: cluster.ready("big", 2))

    digest = cluster.digest("big")
    assert _look(cluster, "first") == digest
    _put(cluster.origin, content[:-1])
    assert _look(cluster, "second") not in {"", digest}
    assert cluster.digest("big") == digest
    assert cluster.ready("big", 2)


def _put(origin: Origin, content: bytes) -> None:
    origin.put("big/weights.bin", content)
    origin.put("big/SHA256SUMS", f"{hashlib.sha256(content).hexdigest()}  weights.bin\n".encode())


def _limit(agent: RunningAgent) -> int:
    """Of the job that runs, bytes/s."""
    return next((job.limit_bytes_per_s for job in agent.status().jobs if job.phase == "fetching"), -1)


def _message(cluster: Cluster, node: str) -> str:
    status = cluster.kube(lambda api: api.get(MODEL_CACHE_NODES, node)).get("status") or {}
    return "".join(each.get("message", "") for each in status.get("models") or ())


def _look(cluster: Cluster, mark: str) -> str:
    """What the origin is seen to hold."""

    def status() -> Object:
        return dict(cluster.kube(lambda api: api.get(MODEL_CACHES, "big"))["status"])

    before = status().get("lookedFor", "")
    mark_it: Object = {"metadata": {"annotations": {LOOK: mark}}}
    cluster.kube(lambda api: api.patch(MODEL_CACHES, "big", mark_it))
    cluster.until(lambda: status().get("lookedFor", "") != before)
    return str(status().get("originDigest", ""))


BIG = 6 * 16 * 2**20 + 12345


def test_nodes_exchange_what_they_fetch(cluster: Cluster) -> None:
    """Three nodes cost the origin one copy, also the one that resolved; a node that comes later takes its own share at
    most; what may not be exchanged is fetched by each; one whose key is gone goes on with the next one, which all
    know."""
    cluster.settings = {"peers": {"listen": "127.0.0.1:0"}}
    agents = [cluster.node(f"n{number}") for number in (1, 2, 3)]
    cluster.until(lambda: all(_status(cluster, f"n{number}").get("publicKey") for number in (1, 2, 3)))
    content = random.Random(7).randbytes(BIG)
    for name in ("big", "closed"):
        cluster.origin.put(f"{name}/weights.bin", content)
        cluster.origin.add_sums(name)
    cluster.kube(lambda api: api.create(MODEL_CACHES, model(cluster, "big")))
    cluster.until(lambda: cluster.ready("big", 3))
    (peers,) = cluster.kube(lambda api: api.list(MODEL_CACHE_PEERS)).items
    assert [each["name"] for each in peers["spec"]["members"]] == ["n1", "n2", "n3"]
    assert peers["spec"]["digests"] == [cluster.digest("big")]
    taken = cluster.origin.body_bytes_sent("big/weights.bin")
    assert taken <= BIG * 1.02, f"{taken / BIG:.2f} copies"
    for number, agent in enumerate(agents):
        granted = ask(agent, f"v{number}", model="big")
        assert (agent.root / granted.path / "weights.bin").read_bytes() == content

    late = cluster.node("n4")
    cluster.until(lambda: cluster.ready("big", 4))
    share = 2 * 16 * 2**20
    assert cluster.origin.body_bytes_sent("big/weights.bin") <= taken + share * 1.02
    assert (late.root / ask(late, "v", model="big").path / "weights.bin").read_bytes() == content

    cluster.kube(lambda api: api.create(MODEL_CACHES, model(cluster, "closed", peers="never")))
    cluster.until(lambda: cluster.ready("closed", 4))
    assert cluster.origin.body_bytes_sent("closed/weights.bin") == 4 * BIG

    before = _status(cluster, "n2")["publicKey"]
    assert before in _keys(cluster)
    agents[1].send(signal.SIGKILL)
    agents[1].wait()
    (agents[1].root / "node.key").unlink()
    agents[1].start()
    cluster.until(lambda: _status(cluster, "n2")["publicKey"] != before)
    after = _status(cluster, "n2")["publicKey"]
    (present, following), (used, new) = before.split(","), after.split(",")
    assert used == following
    assert new not in {present, following}
    cluster.until(lambda: after in _keys(cluster))
    assert before not in _keys(cluster)


def _status(cluster: Cluster, node: str) -> Object:
    with suppress(KubeNotFound):
        return dict(cluster.kube(lambda api: api.get(MODEL_CACHE_NODES, node)).get("status") or {})
    return {}


def _keys(cluster: Cluster) -> set[str]:
    lists = cluster.kube(lambda api: api.list(MODEL_CACHE_PEERS)).items
    return {member["key"] for item in lists for member in item["spec"]["members"]}


def _labels(cluster: Cluster, node: str) -> dict[str, str]:
    return dict(cluster.kube(lambda api: api.get(NODES, node))["metadata"].get("labels") or {})


def _spec(cluster: Cluster, node: str) -> Object:
    with suppress(KubeNotFound):
        return dict(cluster.kube(lambda api: api.get(MODEL_CACHE_NODES, node)).get("spec") or {})
    return {}
