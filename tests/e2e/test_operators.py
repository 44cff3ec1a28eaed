"""What operators type, with the chart's operators' role and nothing else, on a real cluster: each end has its exit
code and its sentence."""

from __future__ import annotations

import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.e2e.cluster.binaries import ROOT
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.faults import (
    agent_metrics_url,
    kill_container,
    metrics_at,
    slow_link,
    total,
    wait_until_started_again,
)
from tests.e2e.cluster.models import (
    START_AND_STAY,
    Weights,
    clean_up,
    delete_models,
    deployment,
    model_cache,
    printed,
    reading_pod,
    upload_checkpoint,
    wait_until_running,
)
from tests.e2e.cluster.node import NodeOptions
from tests.e2e.cluster.product import NAMESPACE, agent_pod, wait_until_ready
from tests.e2e.cluster.waiting import wait_until
from tests.e2e.figures import report

pytestmark = pytest.mark.kube

MODEL = "op-llama"
LIMIT_S = 150.0
PIPELINES = ROOT / "examples/pipelines"


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Person:
    """Somebody with a kubeconfig that holds a token; `cacheagent` and `kubectl` are on their PATH."""

    def __init__(self, cluster: Cluster, name: str, folder: Path) -> None:
        token = cluster.kubectl("create", "token", name, "-n", "default", "--duration=2h").strip()
        config = yaml.safe_load(cluster.kubectl("config", "view", "--raw", "--minify"))
        config["users"] = [{"name": config["contexts"][0]["context"]["user"], "user": {"token": token}}]
        self._kubeconfig = folder / f"{name}.kubeconfig"
        self._kubeconfig.write_text(json.dumps(config))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = os.environ | {"KUBECONFIG": str(self._kubeconfig), "PATH": path, "COLUMNS": "150"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cacheagent", *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        )

    def run(self, *arguments: str) -> Ended:
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return Ended(process.returncode, out, err)

    def on_terminal(self, *arguments: str) -> tuple[int, str]:
        """The exit code, and all that a terminal got to see."""
        mine, its = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "cacheagent", *arguments], stdout=its, stderr=its, env=self.environment
        )
        os.close(its)
        seen = b""
        try:
            while chunk := os.read(mine, 65536):
                seen += chunk
        except OSError:  # what Linux says when the other side is closed
            pass
        finally:
            os.close(mine)
        return process.wait(LIMIT_S), seen.decode()


@pytest.fixture(scope="module")
def people(product: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Person]]:
    """An operator, and a stranger without the role."""
    folder = tmp_path_factory.mktemp("people")
    for name in ("operator", "stranger"):
        product.kubectl("create", "serviceaccount", name, "-n", "default")
    account = "--serviceaccount=default:operator"
    product.kubectl("create", "clusterrolebinding", "operators", "--clusterrole=cacheagent-operator", account)
    yield {name: Person(product, name, folder) for name in ("operator", "stranger")}
    product.kubectl("delete", "clusterrolebinding", "operators")
    product.kubectl("delete", "serviceaccount", "operator", "stranger", "-n", "default")


@pytest.fixture
def operator(people: Mapping[str, Person]) -> Person:
    return people["operator"]


_seeds = itertools.count(700)


@pytest.fixture
def weights(product: Cluster) -> Weights:
    """Bytes that no node has from another test: models that were let go stay on disks until their room is needed."""
    seed = next(_seeds)
    return upload_checkpoint(product.object_store, f"{MODEL}-{seed}", size_bytes=60_000_000, shards=3, seed=seed)


@pytest.fixture
def model(product: Cluster, weights: Weights) -> Iterator[str]:
    """A model that no node has; gone with its warm-ups afterwards."""
    product.apply(model_cache(MODEL, weights, prefetch=False))
    yield MODEL
    delete_models(product, MODEL)
    product.kubectl("delete", "modelwarmups", "--all", "--timeout=60s")


def fetched(product: Cluster, *nodes: str) -> float:
    """Bytes that these nodes have received so far."""
    return sum(total(metrics_at(agent_metrics_url(product, node)), "cacheagent_transfer_bytes_total") for node in nodes)


def test_in_a_pipe_and_for_machines(product: Cluster, operator: Person, model: str, namespace: str) -> None:
    """Ready means that a pod there starts without a download: counted by the agents. A second run joins and is done."""
    ended = operator.run("warm", model, "--nodes", "pool=warm", "--timeout", "2m")
    assert ended.code == 0, ended
    digest = product.get("modelcache", model)["status"]["digest"]
    assert ended.out == f"{model}: {digest} is verified and published on 2 of 2 nodes\n"
    assert "warming what its source holds on nodes with pool=warm" in ended.err
    before = fetched(product, "n1", "n2")
    product.apply(reading_pod("reader", namespace, model, START_AND_STAY, node="n2"))
    wait_until_running(product, namespace, "reader")
    assert fetched(product, "n1", "n2") == before
    again = operator.run("warm", model, "--nodes", "pool=warm", "--max-origin-rate", "500MB/s", "-o", "json")
    assert again.code == 0, again
    looked, first, last = again.events[0], again.events[1], again.events[-1]
    assert (looked["event"], looked["moved"], looked["origin"]) == ("looked", False, digest)
    assert (first["event"], first["joined"], first["digest"]) == ("warming", True, digest)
    assert (last["event"], last["ready"], last["nodes"], last["exit_code"]) == ("ready", 2, 2, 0)
    (warmup,) = product.get("modelwarmups")["items"]
    assert warmup["spec"]["maxOriginRate"] == "500MB/s"
    state = operator.run("cluster", "status", model)
    assert f"digest    {digest} (pinned since 2" in state.out
    assert "ready     2 of 2 nodes" in state.out
    rows = {line.split("\t")[0]: line.split("\t") for line in operator.run("nodes").out.splitlines()}
    assert {"n1", "n2", "n3"} <= rows.keys()
    node = product.get("modelcachenode", "n1")  # other scenarios' models may be among its own, also ones that failed
    assigned = {each["name"] for each in node["spec"]["models"]}
    ready = {each["name"] for each in node["status"]["models"] if each["phase"] == "ready"} & assigned
    assert model in ready
    assert rows["n1"][-2] == f"{len(ready)}/{len(assigned)}"


def test_on_a_terminal(product: Cluster, operator: Person, model: str) -> None:
    """A live table of the nodes, with how far each is; agents report every 15 seconds, so it takes longer than that."""
    with slow_link(product, "n1", 20), slow_link(product, "n2", 28):
        code, seen = operator.on_terminal("warm", model, "--nodes", "pool=warm", "--timeout", "2m")
    assert code == 0, seen
    for word in (
        "NODE",
        "STATE",
        "DONE",
        "WHY",
        "fetching",
        "%",
        "left",
        "n1",
        "n2",
        "verified and published on 2 of 2 nodes",
    ):
        assert word in seen
    (ROOT / "reports").mkdir(exist_ok=True)
    (ROOT / "reports/warm-on-a-terminal.txt").write_text(seen)


def test_a_cordoned_node_is_warmed_but_not_like_a_deployment(
    product: Cluster, operator: Person, model: str, namespace: str
) -> None:
    """A selector means all its nodes; `--like` those where the pods could run now."""
    pod = reading_pod("server", namespace, model)
    pod["spec"]["nodeSelector"] = {"pool": "warm"}
    product.apply(deployment("server", namespace, pod, replicas=0))
    product.kubectl("cordon", "n2")
    try:
        like = operator.run("warm", model, "--like", "deployment/server", "-n", namespace, "-o", "json")
        assert like.code == 0, like
        assert (like.events[-1]["ready"], like.events[-1]["nodes"]) == (1, 1)
        both = operator.run("warm", model, "--nodes", "pool=warm")
        assert both.code == 0, both
        assert "on 2 of 2 nodes" in both.out
    finally:
        product.kubectl("uncordon", "n2")


def test_a_rollout_behind_the_gate_downloads_nothing_on_its_way(
    product: Cluster, operator: Person, namespace: str
) -> None:
    """Two pods start where the weights are already; beside it the same rollout without `warm`."""
    seconds = {}
    try:
        for name, gated in (("gated", True), ("plain", False)):
            own = upload_checkpoint(
                product.object_store, f"op-{name}", size_bytes=60_000_000, shards=3, seed=len(name) + 100 * gated
            )
            product.apply(model_cache(name, own, prefetch=False))
            pod = reading_pod(name, namespace, name, START_AND_STAY)
            pod["spec"]["nodeSelector"] = {"pool": "warm"}
            product.apply(deployment(name, namespace, pod, replicas=0))
            with slow_link(product, "n1", 160), slow_link(product, "n2", 160):
                if gated:
                    told = operator.run("warm", name, "--like", f"deployment/{name}", "-n", namespace)
                    assert told.code == 0, told
                before, begin = fetched(product, "n1", "n2"), time.time()
                product.kubectl("scale", f"deployment/{name}", "-n", namespace, "--replicas=2")
                pods = wait_until_running(product, namespace, name, pods=2)
                starts = [float(printed(product, namespace, each["metadata"]["name"])) for each in pods]
                seconds[name] = max(starts) - begin
                if gated:
                    assert fetched(product, "n1", "n2") == before
        report("rollout of two pods", gated_s=seconds["gated"], without_warm_s=seconds["plain"], link_mbit_s=160)
        assert seconds["gated"] < seconds["plain"]
    finally:
        product.kubectl("delete", "deployments", "--all", "-n", namespace)
        delete_models(product, "gated", "plain")
        product.kubectl("delete", "modelwarmups", "--all", "--timeout=60s")


def test_the_shell_recipe(product: Cluster, operator: Person, model: str, namespace: str) -> None:
    """It warms, restarts and waits; and doesn't restart anything when the warm-up fails."""
    pod = reading_pod("server", namespace, model, START_AND_STAY)
    pod["spec"]["nodeSelector"] = {"pool": "warm"}
    product.apply(deployment("server", namespace, pod))
    may = ("--clusterrole=edit", "--serviceaccount=default:operator", "-n", namespace)
    product.kubectl("create", "rolebinding", "rollouts", *may)
    variables = {"MODEL": model, "DEPLOYMENT": "server", "NAMESPACE": namespace, "TIMEOUT": "2m"}
    script = PIPELINES / "rollout.sh"
    done = subprocess.run(
        [script], env=operator.environment | variables, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.returncode == 0, done
    assert "successfully rolled out" in done.stdout
    generation = product.get("deployment", "server", "-n", namespace)["metadata"]["generation"]
    wrong = subprocess.run(
        [script], env=operator.environment | variables | {"MODEL": "nobody"}, capture_output=True, text=True,
        check=False, timeout=LIMIT_S,
    )  # fmt: skip
    assert wrong.returncode == 1, wrong
    assert product.get("deployment", "server", "-n", namespace)["metadata"]["generation"] == generation


def test_the_hook_job_of_argo_cd_and_helm(product: Cluster, model: str, namespace: str) -> None:
    """The Job as it stands, with this cluster's image and names: it completes when the model is warm."""
    text = (PIPELINES / "hook-job.yaml").read_text()
    text = text.replace("namespace: serving", f"namespace: {namespace}").replace("llama-3-70b", model)
    text = text.replace("pool=h100", "pool=warm").replace("ghcr.io/example/cacheagent:0.1.0", product.image)
    product.kubectl("apply", "-f", "-", text=text)
    try:
        product.kubectl("wait", "-n", namespace, "--for=condition=Complete", "job/warm-llama", "--timeout=120s")
        assert "published on 2 of 2 nodes" in product.kubectl("logs", "-n", namespace, "job/warm-llama")
    finally:
        product.kubectl("delete", "clusterrolebinding", "serving-warm")


def test_a_node_that_is_full(product: Cluster, operator: Person, namespace: str) -> None:
    """Time-out: the node is named with the numbers; `explain` says the same of a pod that waits there."""
    big = upload_checkpoint(product.object_store, "op-big", size_bytes=400_000_000, shards=4, seed=72)
    product.apply(model_cache("op-big", big, prefetch=False))
    product.add_node(NodeOptions(name="n-small", labels={"disk": "small"}, cache_disk_bytes=300_000_000))
    try:
        wait_until_ready(product)
        ended = operator.run("warm", "op-big", "--nodes", "disk=small", "--timeout", "20s", "-o", "json")
        assert ended.code == 3, ended
        last = ended.events[-1]
        assert (last["event"], last["exit_code"]) == ("timed-out", 3)
        ((node, code, why),) = [(each["node"], each["code"], each["why"]) for each in last["missing"]]
        assert (node, code) == ("n-small", "no-room")
        assert "needs" in why
        assert "n-small: failed: " in ended.err
        product.apply(reading_pod("waits", namespace, "op-big", node="n-small"))
        wait_until(
            lambda: "✗ download       op-big on n-small: " in operator.run("explain", "pod/waits", "-n", namespace).out,
            "explain names the disk", 60,
        )  # fmt: skip
    finally:
        clean_up(product, namespace, "op-big")
        product.kubectl("delete", "modelwarmups", "--all", "--timeout=60s")
        product.remove_node("n-small")


def test_a_node_whose_agent_is_dead(product: Cluster, operator: Person, model: str, namespace: str) -> None:
    """A share of the nodes may do; for all of them it times out and says why; a pod there is explained."""
    pod = agent_pod(product, "n2")
    killed = ""
    for _ in range(3):  # the kubelet waits longer each time: in the end for twenty seconds at least
        if killed:
            wait_until_started_again(product, NAMESPACE, pod, "agent", killed)
        killed = kill_container(product, NAMESPACE, pod, "agent")
    most = operator.run("warm", model, "--nodes", "pool=warm", "--percent", "50")
    assert most.code == 0, most
    assert "on 1 of 2 nodes" in most.out
    assert f"{model}: without n2: no agent: its agent is not ready" in most.err
    wait_until_started_again(product, NAMESPACE, pod, "agent", killed)
    both = operator.run("warm", model, "--nodes", "pool=warm", "--timeout", "2m")
    assert both.code == 0, both


def test_a_source_that_is_broken(product: Cluster, operator: Person, weights: Weights, namespace: str) -> None:
    """Exit 1 at once with what the agent says of it; a pod that waits for it is explained."""
    product.apply(model_cache("op-broken", weights, source={"uri": "s3://models/op-nothing"}, prefetch=False))
    try:
        ended = operator.run("warm", "op-broken", "--nodes", "pool=warm", "--timeout", "90s")
        assert ended.code == 1, ended
        assert "op-broken: the source is not usable: n" in ended.err
        product.apply(reading_pod("waits", namespace, "op-broken", node="n1"))
        wait_until(
            lambda: "can't look at the source of op-broken" in operator.run("explain", "waits", "-n", namespace).out,
            "explain names the source", 60,
        )  # fmt: skip
    finally:
        clean_up(product, namespace, "op-broken")
        product.kubectl("delete", "modelwarmups", "--all", "--timeout=60s")


def test_refused(product: Cluster, people: Mapping[str, Person], weights: Weights, namespace: str) -> None:
    """By RBAC, and by the model's namespaces: exit 4 with the server's or our own sentence."""
    stranger = people["stranger"].run("warm", "x")
    assert stranger.code == 4, stranger
    assert 'User "system:serviceaccount:default:stranger" cannot' in stranger.err
    product.apply(model_cache("op-closed", weights, allowedNamespaces={"names": ["lab"]}, prefetch=False))
    try:
        closed = people["operator"].run("warm", "op-closed", "-n", namespace, "--nodes", "pool=warm")
        assert closed.code == 4, closed
        assert f"namespace '{namespace}' may not use the model 'op-closed'" in closed.err
        pod = reading_pod("server", namespace, "op-closed")
        product.apply(deployment("server", namespace, pod))

        def told() -> bool:
            return (
                "may not use model 'op-closed'"
                in people["operator"].run("explain", "deployment/server", "-n", namespace).out
            )

        wait_until(told, "explain has the webhook's sentence")
    finally:
        product.kubectl("delete", "deployments", "--all", "-n", namespace)
        delete_models(product, "op-closed")


def test_interrupted(product: Cluster, operator: Person, model: str, namespace: str) -> None:
    """Ctrl-C leaves the warm-up running; a pod that waits meanwhile is explained with its progress."""
    with (
        slow_link(product, "n1", 12),
        slow_link(product, "n2", 12),
        operator.start("warm", model, "--nodes", "pool=warm") as process,
    ):
        wait_until(lambda: product.get("modelcache", model)["status"]["nodes"]["downloading"], "it downloads", 60)
        product.apply(reading_pod("waits", namespace, model, START_AND_STAY, node="n1"))
        wait_until(
            lambda: f"… download       {model} on n1: " in operator.run("explain", "waits", "-n", namespace).out,
            "explain tells how far it is", 30,
        )  # fmt: skip
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
        (warmup,) = product.get("modelwarmups")["items"]
        assert f"interrupted; the warm-up {warmup['metadata']['name']} goes on" in err
    assert operator.run("warm", model, "--nodes", "pool=warm", "--timeout", "2m").code == 0
    wait_until_running(product, namespace, "waits")
    found = json.loads(operator.run("explain", "waits", "-n", namespace, "-o", "json").out)
    assert found["first_missing"] is None, found


def test_explained(product: Cluster, operator: Person, llama: Weights, namespace: str) -> None:
    """A handful of set-ups that have nothing to do with downloads."""
    no_gpu = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    product.apply(
        reading_pod("no-gpu", namespace, "llama", container=no_gpu),
        reading_pod("crashes", namespace, "llama", "raise SystemExit(7)", node="n1"),
        {**reading_pod("plain", namespace, "llama", node="n1"), "metadata": {"name": "plain", "namespace": namespace}},
    )

    def first(pod: str) -> str:
        found = json.loads(operator.run("explain", pod, "-n", namespace, "-o", "json").out)["first_missing"]
        return f"{found['name']}: {found['text']}" if found else ""

    wait_until(lambda: "Insufficient nvidia.com/gpu" in first("no-gpu"), "the scheduler's reason")
    wait_until(lambda: "container main fails by itself: exit code 7" in first("crashes"), "the crash", 60)
    assert first("plain").startswith("annotation: pod/plain has no annotation cacheagent.io/model")


def test_refresh_pin_and_evict(product: Cluster, operator: Person, weights: Weights, model: str) -> None:
    """The origin moves: `refresh` says so; `evict` lets all nodes give it up."""
    assert operator.run("warm", model, "--nodes", "pool=warm", "--timeout", "2m").code == 0
    old = product.get("modelcache", model)["status"]["digest"]
    same = operator.run("refresh", model)
    assert (same.code, same.out) == (0, f"{model}: the origin holds {old}, as before\n")
    prefix = weights.uri.rpartition("/")[2]
    upload_checkpoint(product.object_store, prefix, size_bytes=60_000_000, shards=3, seed=next(_seeds))
    stale = operator.run("warm", model, "--nodes", "pool=warm", "--timeout", "90s")
    assert stale.code == 1, stale  # both nodes have what is pinned, and one was asked to look
    assert f"the origin has moved since {old} was pinned" in stale.err
    assert "--refresh warms what the origin holds now" in stale.err
    assert product.get("modelcache", model)["status"]["digest"] == old
    elsewhere = operator.run("warm", model, "--nodes", "kubernetes.io/hostname=n3", "--pinned", "--timeout", "5s")
    assert elsewhere.code == 3, elsewhere  # n3 finds another version than it is to fetch
    moved = operator.run("warm", model, "--nodes", "pool=warm", "--refresh", "--timeout", "2m")
    assert moved.code == 0, moved
    new = product.get("modelcache", model)["status"]["digest"]
    assert new != old
    assert f"it holds {new} now" in stale.err
    assert f"the origin has moved: {old[:19]} was pinned, {new[:19]} is now" in moved.err
    assert operator.run("cluster", "pin", model).code == 0
    gone = operator.run("cluster", "evict", model)
    assert "no node keeps it any more" in gone.out
    wait_until(lambda: operator.run("cluster", "status", model, "-o", "json").events[0]["nodes"] == [], "given up")
