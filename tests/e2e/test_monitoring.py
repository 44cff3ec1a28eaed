"""A real Prometheus finds everything on the cluster by the discovery that the chart's users configure; every panel has
data there, and alerts fire when their fault is made and stop when it is mended.

Nothing but the alerts' patience differs from what is shipped: they fire after seconds instead of minutes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.cluster.binaries import get_binaries
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.faults import container_status
from tests.e2e.cluster.models import (
    START_AND_STAY,
    clean_up,
    delete_models,
    model_cache,
    reading_pod,
    upload_checkpoint,
    wait_until_cached,
    wait_until_running,
)
from tests.e2e.cluster.node import CACHE_DIRECTORY
from tests.e2e.cluster.paced import paced_origin
from tests.e2e.cluster.product import NAMESPACE, agent_pod, wait_until_ready
from tests.e2e.cluster.waiting import wait_until
from tests.fakes.dashboards import Target, has_data, hasty_rules, rules, targets
from tests.fakes.discovery import Job, documented_jobs, from_outside, monitors_jobs
from tests.fakes.monitored import dcgm_text
from tests.fakes.origin import Origin
from tests.fakes.prometheus import Prometheus, running_with
from tests.manifests.chart import parse, render

pytestmark = pytest.mark.kube

ACCOUNT = "prometheus"
INTERVAL = "2s"
PATIENCE_S = 4
"""Of alerts: one scrape that a busy machine missed is no fault."""
LIMIT_S = 90.0
GPUS = {"n1": 4, "n2": 4, "n3": 4}
GPU = "nvidia.com/gpu"
ASK = """
import asyncio, pathlib
from cacheagent.api.client import AgentClient
async def ask():
    async with AgentClient(pathlib.Path("/run/cacheagent/agent.sock")) as client:
        await client.ensure("mon-warm")
asyncio.run(ask())
"""
"""Asks for a model over an agent's socket."""
MODELS = "mon-warm|mon-late|mon-slow"


@pytest.fixture(scope="module")
def access(product: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A kubeconfig and a token of an account that may do what docs/operations.md says, and read services besides, as
    the Prometheus Operator's may."""
    folder = tmp_path_factory.mktemp("access")
    read = ["get", "list", "watch"]
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": ACCOUNT},
        "rules": [
            {"apiGroups": [""], "resources": ["pods", "nodes", "services"], "verbs": read},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
            {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
        ],
    }
    with product.namespace("monitoring") as namespace:
        product.apply(role)
        product.kubectl("create", "serviceaccount", ACCOUNT, "-n", namespace)
        account = f"--serviceaccount={namespace}:{ACCOUNT}"
        product.kubectl("create", "clusterrolebinding", ACCOUNT, f"--clusterrole={ACCOUNT}", account)
        token = product.kubectl("create", "token", ACCOUNT, "-n", namespace, "--duration=2h").strip()
        (folder / "token").write_text(token)
        config = yaml.safe_load(product.kubectl("config", "view", "--raw", "--minify"))
        config["users"] = [{"name": config["contexts"][0]["context"]["user"], "user": {"token": token}}]
        (folder / "kubeconfig").write_text(json.dumps(config))
        yield {"kubeconfig": folder / "kubeconfig", "token": folder / "token"}
        product.kubectl("delete", "clusterrolebinding", ACCOUNT)
        product.kubectl("delete", "clusterrole", ACCOUNT)


@contextlib.contextmanager
def watching(folder: Path, jobs: list[Job], *rule_files: Path) -> Iterator[Prometheus]:
    with running_with(get_binaries().prometheus, folder, jobs, rules=rule_files, interval=INTERVAL) as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def prometheus(
    product: Cluster, access: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """As docs/operations.md configures it, with the chart's rules, and beside it a job of somebody else's for GPUs."""
    folder = tmp_path_factory.mktemp("prometheus")
    rule_file = folder / "alerts.yaml"
    rule_file.write_text(hasty_rules(PATIENCE_S))
    texts = {f"{node}/metrics": dcgm_text(node, [0, 0, *[90] * (gpus - 2)]).encode() for node, gpus in GPUS.items()}
    with Origin(texts, host=product.address) as exporter:
        address = exporter.url.removeprefix("http://")
        gpus = {
            "job_name": "dcgm-exporter",
            "static_configs": [
                {"targets": [address], "labels": {"__metrics_path__": f"/{path}", "instance": path}} for path in texts
            ],
            "fallback_scrape_protocol": "PrometheusText0.0.4",  # this server tells no type of content
        }
        with watching(folder, [*from_outside(documented_jobs(), **access), gpus], rule_file) as running:
            yield running


def fail(what: object) -> bool:
    """For a wait: not yet, and what is in the way."""
    raise LookupError(str(what))


def found(prometheus: Prometheus, *, job: str) -> dict[str, dict[str, str]]:
    """Address → labels of what answers."""
    active = prometheus.ask("targets")["activeTargets"]
    ours = [each for each in active if each["labels"]["job"] == job]
    assert all(each["health"] == "up" for each in ours), ours
    return {each["scrapeUrl"]: each["labels"] for each in ours}


def expected(product: Cluster) -> set[tuple[str, str, str, str]]:
    """Component, node, pod, address of all that should be found."""
    pods = product.get("pods", "-n", NAMESPACE)["items"]
    ports = {"agent": 9471, "controller": 9472}
    return {
        (component, pod["spec"]["nodeName"], pod["metadata"]["name"], f"{pod['status']['podIP']}:{ports[component]}")
        for pod in pods
        for component in [pod["metadata"]["labels"]["app.kubernetes.io/component"]]
    }


def those(labels: Mapping[str, Mapping[str, str]]) -> set[tuple[str, str, str, str]]:
    return {(each["component"], each["node"], each["pod"], each["instance"]) for each in labels.values()}


def test_everything_is_found(product: Cluster, prometheus: Prometheus) -> None:
    """Three agents and two controllers with the labels that alerts want, and nothing else. The driver has no network:
    kubelets count its calls."""
    wait_until(lambda: those(found(prometheus, job="cacheagent")) == expected(product), "all are up", LIMIT_S)
    labels = found(prometheus, job="cacheagent").values()
    assert sorted(each["component"] for each in labels) == ["agent"] * 3 + ["controller"] * 2
    assert {each["namespace"] for each in labels} == {NAMESPACE}
    assert {each["node"] for each in labels if each["component"] == "agent"} == {"n1", "n2", "n3"}
    wait_until(lambda: len(found(prometheus, job="kubelet")) == len(product.nodes), "the kubelets are up", LIMIT_S)


def test_the_charts_monitors_find_the_same(
    product: Cluster, prometheus: Prometheus, access: Mapping[str, Path], tmp_path: Path
) -> None:
    """What the Prometheus Operator makes of them gives the same targets, and every label of the plain configuration."""
    chart = parse(render({"monitoring": {"podMonitor": True, "serviceMonitor": True}}))
    (service,) = [each for each in chart.all("Service") if each["spec"].get("clusterIP") == "None"]
    product.apply(service)
    try:
        jobs = from_outside(monitors_jobs(chart.objects), **access)
        assert len(jobs) == 2
        with watching(tmp_path, jobs) as operators:
            wait_until(lambda: those(found(operators, job="cacheagent")) == expected(product), "all are up", LIMIT_S)
            plain = found(prometheus, job="cacheagent")
            for address, labels in found(operators, job="cacheagent").items():
                assert plain[address].items() <= labels.items()
    finally:
        product.kubectl("delete", "service", service["metadata"]["name"], "-n", NAMESPACE)


@pytest.fixture
def gpus(product: Cluster) -> Iterator[None]:
    """Nodes that say they have some, as with NVIDIA's device plugin."""
    name = GPU.replace("/", "~1")
    for node, count in GPUS.items():
        add = {"op": "add", "value": str(count)}
        patch = [{**add, "path": f"/status/{part}/{name}"} for part in ("capacity", "allocatable")]
        product.kubectl("patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(patch))
    yield
    for node in GPUS:
        patch = [{"op": "remove", "path": f"/status/{part}/{name}"} for part in ("capacity", "allocatable")]
        product.kubectl("patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(patch))


def engine(name: str, namespace: str, model: str, node: str) -> dict[str, Any]:
    """A pod with two GPUs."""
    more = {"container": {"resources": {"limits": {GPU: "2"}}}}
    return reading_pod(name, namespace, model, START_AND_STAY, node=node, options={"page-cache": "true"}, **more)


def publishing_nodes(prometheus: Prometheus) -> set[str]:
    """Nodes whose kubelet has counted a volume that the driver published."""
    calls = 'csi_operations_seconds_count{method_name=~".*NodePublishVolume", grpc_status_code="OK"} > 0'
    return {labels["node"] for labels, _ in prometheus.query(calls)}


def test_every_panel_has_data(product: Cluster, prometheus: Prometheus, namespace: str, gpus: None) -> None:
    """With a model that pods find on their node, one that comes because a pod waits, and one that is slow."""
    wanted = targets(MODELS)
    assert len(wanted) > 80
    store = product.object_store
    uploads = {
        name: upload_checkpoint(store, name, size_bytes=size, shards=1, seed=800 + number)
        for number, (name, size) in enumerate(
            {"mon-warm": 40_000_000, "mon-late": 40_000_000, "mon-slow": 8_000_000}.items()
        )
    }
    with paced_origin(store.endpoint, 40_000) as slow:
        try:
            product.apply(
                model_cache("mon-warm", uploads["mon-warm"], nodeSelector={"pool": "warm"}),
                model_cache("mon-late", uploads["mon-late"], prefetch=False),
                model_cache("mon-slow", uploads["mon-slow"], source={"endpoint": slow.endpoint}, prefetch=False),
            )
            product.apply(engine("slow", namespace, "mon-slow", "n3"), engine("late", namespace, "mon-late", "n3"))
            wait_until_cached(product, "mon-warm", nodes=2)
            seen = 'count(cacheagent_volume_mounts_total{model="mon-warm", node=~"n1|n2", result="hit"} == 0)'
            wait_until(lambda: prometheus.query(seen)[0][1] == 2, "its counters are seen at zero", LIMIT_S)
            product.apply(*(engine(f"warm-{node}", namespace, "mon-warm", node) for node in ("n1", "n2")))
            for pod in ("warm-n1", "warm-n2", "late"):
                wait_until_running(product, namespace, pod)
            product.kubectl(
                "exec", "-n", NAMESPACE, agent_pod(product, "n1"), "-c", "agent", "--", "python3", "-c", ASK
            )

            def empty() -> list[Target]:
                return [each for each in wanted if not has_data(prometheus, each.expression)]

            wait_until(lambda: not empty() or fail(empty()), "every panel has data", LIMIT_S)
            wait_until(lambda: publishing_nodes(prometheus) >= {"n1", "n2", "n3"}, "the driver's calls count", LIMIT_S)
        finally:
            slow.bytes_per_s = None
            clean_up(product, namespace, *uploads)


def first_process(product: Cluster, node: str) -> str:
    """Of the agent there: its id as the node sees it."""
    status = container_status(product, NAMESPACE, agent_pod(product, node), "agent")
    container = str(status["containerID"]).removeprefix("containerd://")
    (pid,) = [line.split()[1] for line in product.node(node).ctr("tasks", "ls").splitlines() if container in line]
    return pid


@contextlib.contextmanager
def frozen_agent(product: Cluster, node: str) -> Iterator[None]:
    """It is there and does not answer."""
    pid = first_process(product, node)
    product.node(node).nsenter_command("kill", "-STOP", pid)
    try:
        yield
    finally:
        product.node(node).nsenter_command("kill", "-CONT", pid)


@contextlib.contextmanager
def read_only_disk(product: Cluster, node: str) -> Iterator[None]:
    """As a file system is to the agent after an error."""
    inside = ("nsenter", "--mount", f"--target={first_process(product, node)}", "mount", "-o")
    product.node(node).nsenter_command(*inside, "remount,bind,ro", CACHE_DIRECTORY)
    try:
        yield
    finally:
        product.node(node).nsenter_command(*inside, "remount,bind,rw", CACHE_DIRECTORY)


def firing(prometheus: Prometheus) -> set[tuple[str, str]]:
    """Names of alerts, and what they are about."""
    return {
        (each["labels"]["alertname"], each["labels"].get("node") or each["labels"].get("model", ""))
        for each in prometheus.alerts()
        if each["state"] == "firing"
    }


def test_alerts_fire_when_their_fault_is_made_and_stop_when_it_is_mended(
    product: Cluster, prometheus: Prometheus
) -> None:
    """An agent that does not answer, a disk that takes no writes, a model whose origin is empty; and nothing else."""
    for group in prometheus.ask("rules")["groups"]:
        assert {rule["health"] for rule in group["rules"]} == {"ok"}, group
    for rule in rules():
        prometheus.query(rule["expr"])
    made = {
        ("CacheagentAgentDown", "n1"),
        ("CacheagentDiskNotWritable", "n2"),
        ("CacheagentModelDegraded", "mon-broken"),
    }
    assert not firing(prometheus) & made
    before = firing(prometheus)
    uri = "s3://models/mon-broken"
    weights = upload_checkpoint(product.object_store, "mon-other", size_bytes=4_000_000, shards=1, seed=810)
    broken = model_cache("mon-broken", weights, source={"uri": uri}, nodeSelector={"kubernetes.io/hostname": "n3"})
    try:
        with frozen_agent(product, "n1"), read_only_disk(product, "n2"):
            product.apply(broken)
            wait_until(lambda: made <= firing(prometheus) or fail(firing(prometheus)), "they fire", LIMIT_S)
            kinds = {name for name, _ in made}
            assert {each for each in firing(prometheus) - before if each[0] in kinds} == made
            upload_checkpoint(product.object_store, "mon-broken", size_bytes=4_000_000, shards=1, seed=810)
        wait_until(lambda: not firing(prometheus) & made or fail(firing(prometheus)), "they stop", LIMIT_S)
        wait_until_cached(product, "mon-broken", nodes=1)
    finally:
        delete_models(product, "mon-broken")


def test_that_nobody_leads_is_an_alert_until_somebody_does(product: Cluster, prometheus: Prometheus) -> None:
    """No replica is left, so nobody is there to say so; the alert sees that too."""

    def alerts() -> set[tuple[str, str]]:
        return {each for each in firing(prometheus) if each[0] == "CacheagentNoLeader"}

    scale = ("scale", "deployment", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=controller")
    assert not alerts()
    product.kubectl(*scale, "--replicas=0")
    try:
        wait_until(alerts, "it fires", LIMIT_S)
    finally:
        product.kubectl(*scale, "--replicas=2")
    wait_until_ready(product)
    wait_until(lambda: not alerts(), "it stops", LIMIT_S)
