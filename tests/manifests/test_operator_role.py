"""The operators' ClusterRole on a real API server: with it and nothing else every command on the cluster works."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.kube_server import running_api_server
from tests.manifests.chart import CHART, NAMESPACE
from tests.manifests.test_api_server import Cluster, on

pytestmark = pytest.mark.kube_api


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The chart, two nodes, a model, and two people: one has the role. No controller plans."""
    with running_api_server(tmp_path_factory.mktemp("api-server")) as server:
        here = Cluster(server)
        for namespace in (NAMESPACE, "tenant"):
            here.kubectl("create", "namespace", namespace)
        here.helm("install", "cacheagent", CHART)
        for node in ("n1", "n2"):
            here.kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": on(node)}))
        model = {"metadata": {"name": "llama"}, "spec": {"source": {"uri": "s3://models/llama"}}}
        body = {"apiVersion": "cacheagent.io/v1alpha1", "kind": "ModelCache", **model}
        here.kubectl("apply", "-f", "-", given=json.dumps(body))
        for person in ("operator", "stranger"):
            here.kubectl("create", "serviceaccount", person, "-n", "tenant")
        binding = ("--clusterrole=cacheagent-operator", "--serviceaccount=tenant:operator")
        here.kubectl("create", "clusterrolebinding", "operators", *binding)
        yield here


class Person:
    """Somebody with a kubeconfig that holds a token and nothing else."""

    def __init__(self, cluster: Cluster, name: str, folder: Path) -> None:
        token = cluster.kubectl("create", "token", name, "-n", "tenant").strip()
        server = cluster.server
        where = {"server": server.url, "certificate-authority": str(server.certificate_authority)}
        context = {"cluster": "c", "user": "u", "namespace": "tenant"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": where}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": context}],
            "current-context": "x",
        }
        self._kubeconfig = folder / f"{name}.kubeconfig"
        self._kubeconfig.write_text(json.dumps(config))

    def run(self, *arguments: str, code: int = 0) -> str:
        """Standard output; what was said to people too, when it did not end well."""
        command = [sys.executable, "-m", "cacheagent", *arguments, "--kubeconfig", str(self._kubeconfig)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert ended.returncode == code, (arguments, ended.returncode, ended.stdout, ended.stderr)
        return ended.stdout if code == 0 else ended.stdout + ended.stderr


@pytest.fixture
def operator(cluster: Cluster, tmp_path: Path) -> Person:
    return Person(cluster, "operator", tmp_path)


@pytest.fixture
def stranger(cluster: Cluster, tmp_path: Path) -> Person:
    return Person(cluster, "stranger", tmp_path)


def test_an_operator_warms_a_model(cluster: Cluster, operator: Person) -> None:
    """The object passes the schema; joined, it is prolonged; nobody fetches here, so it times out."""
    name = operator.run("warm", "llama", "--ttl", "2m", "--timeout", "1m", "--no-wait").strip()
    assert cluster.get("modelwarmup", name)["spec"] == {"model": "llama", "nodeSelector": {}, "ttlSeconds": 120}
    said = operator.run("warm", "llama", "--ttl", "3h", "--timeout", "1s", code=3)
    assert "no cache node matches" in said  # these belong to no Node of this cluster
    rate = ("--max-origin-rate", "1.5GB/s")
    assert operator.run("warm", "llama", "--ttl", "3h", "--timeout", "2h", "--no-wait", *rate).strip() == name
    spec = cluster.get("modelwarmup", name)["spec"]
    assert spec["ttlSeconds"] > 3 * 3600
    assert spec["maxOriginRate"] == "1500MB/s"


def test_an_operator_warms_a_uri(cluster: Cluster, operator: Person) -> None:
    """Its ModelCache passes the schema."""
    operator.run("warm", "hf://org/name@v1", "--nodes", "pool=h100", "--no-wait")
    operator.run("warm", "hf://org/name@v1", "--nodes", "pool=h100", "--no-wait")
    models: Any = json.loads(cluster.kubectl("get", "modelcaches", "-o", "json"))
    assert {"uri": "hf://org/name@v1"} in [each["spec"]["source"] for each in models["items"]]


def test_an_operator_looks(cluster: Cluster, operator: Person) -> None:
    """status, nodes, explain of pods and workloads, as tables and as JSON."""
    pod = {"containers": [{"name": "main", "image": "x"}]}
    meta = {"name": "server", "namespace": "tenant"}
    template = {"metadata": {"labels": {"app": "server"}}, "spec": pod}
    items = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {"selector": {"matchLabels": {"app": "server"}}, "template": template},
        },
    ]
    cluster.kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    assert "s3://models/llama" in operator.run("cluster", "status")
    assert "the controller has not looked at it yet" in operator.run("cluster", "status", "llama")
    assert json.loads(operator.run("nodes", "-o", "json")) == []
    for what in ("pod/server", "deployment/server"):
        found = json.loads(operator.run("explain", what, "-o", "json"))
        assert found["first_missing"]["name"] == "annotation"
    refused = operator.run("warm", "llama", "--like", "deployment/server", code=1)
    assert "no cache node could take the pods of tenant/deployment/server" in refused


def test_an_operator_gives_orders(cluster: Cluster, operator: Person) -> None:
    operator.run("cluster", "pin", "llama")
    assert cluster.get("modelcache", "llama")["spec"]["pin"] is True
    operator.run("warm", "llama", "--nodes", "a=b", "--no-wait")
    operator.run("cluster", "evict", "llama")
    spec = cluster.get("modelcache", "llama")["spec"]
    assert (spec["pin"], spec["prefetch"]) == (False, False)
    warmups: Any = json.loads(cluster.kubectl("get", "modelwarmups", "-o", "json"))
    assert [each for each in warmups["items"] if each["spec"]["model"] == "llama"] == []
    assert "no answer after 1 s" in operator.run("refresh", "llama", "--timeout", "1s", code=3)
    assert "cacheagent.io/refresh" in cluster.get("modelcache", "llama")["metadata"]["annotations"]


def test_a_stranger_is_refused_with_the_servers_sentence(stranger: Person) -> None:
    """Exit 4: whoever runs the pipeline sees whom to ask."""
    for command in (["warm", "llama"], ["nodes"], ["cluster", "status"], ["explain", "pod/x"], ["cluster", "pin", "x"]):
        said = stranger.run(*command, code=4)
        assert 'User "system:serviceaccount:tenant:stranger" cannot' in said
        assert "RBAC" in said


def test_an_operator_can_do_no_more(cluster: Cluster) -> None:
    """No deleting of models, no writing of what the controller and agents write, no Secrets."""

    def answer(verb: str, resource: str, *more: str, ok: bool) -> str:
        who = ("--as", "system:serviceaccount:tenant:operator")
        said = cluster.kubectl("auth", "can-i", verb, resource, *more, *who, ok=ok)
        return said.strip()

    assert answer("get", "modelcachenodes", ok=True).endswith("yes")
    assert answer("create", "modelwarmups", ok=True).endswith("yes")
    answer("patch", "modelcaches", "--subresource=status", ok=False)
    for verb, resource in (
        ("delete", "modelcaches"),
        ("patch", "modelcachenodes"),
        ("list", "secrets"),
        ("patch", "nodes"),
        ("delete", "pods"),
        ("list", "leases"),
    ):
        answer(verb, resource, "--all-namespaces", ok=False)
