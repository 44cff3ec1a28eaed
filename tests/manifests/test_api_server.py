"""The chart on a real API server, without nodes: who may write what, what an upgrade and an uninstall leave alone."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from cacheagent.demo.child import free_ports, running_child, wait_until_ready
from cacheagent.kube.names import AGENT_COMPONENT
from tests.conftest import require
from tests.fakes.kube_server import ApiServer, running_api_server
from tests.manifests.chart import CHART, NAMESPACE, ROOT, Object, find_helm, parse

pytestmark = pytest.mark.kube_api

ACCOUNT: Final = f"system:serviceaccount:{NAMESPACE}:cacheagent-"
DEFINITIONS: Final = ("modelcaches", "modelcachenodes", "modelcachepeers", "modelwarmups")
EXAMPLES: Final = tuple(
    path
    for folder in ("kubernetes", "pytorch", "triton", "vllm")
    for path in sorted((ROOT / "examples" / folder).glob("*.yaml"))
    if not path.name.endswith(("values.yaml", "-patch.yaml")) and path.name != "pytorchjob.yaml"
)
"""Those whose kinds are all Kubernetes' own or ours."""


class Cluster:
    """kubectl and helm as its administrator."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.environment = os.environ | {"KUBECONFIG": str(server.kubeconfig), "HOME": str(server.folder)}
        self._kubectl = require("kubectl", "speaks to the API server")

    def run(self, *command: str | Path, given: str = "", ok: bool = True) -> str:
        answer = subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, env=self.environment, timeout=120
        )
        assert (answer.returncode == 0) is ok, (command, answer.stdout, answer.stderr)
        return answer.stdout if ok else answer.stderr

    def kubectl(self, *arguments: str | Path, given: str = "", ok: bool = True) -> str:
        return self.run(self._kubectl, *arguments, given=given, ok=ok)

    def helm(self, *arguments: str | Path) -> str:
        return self.run(find_helm(), *arguments, "--namespace", NAMESPACE)

    def get(self, kind: str, name: str) -> Any:
        return json.loads(self.kubectl("get", kind, name, "-n", NAMESPACE, "-o", "json"))

    def as_account(self, token: str, *arguments: str, given: str = "", ok: bool = True) -> str:
        """As whoever has this token, and with no other identity."""
        trust = f"--certificate-authority={self.server.certificate_authority}"
        server = f"--server={self.server.url}"
        return self.kubectl("--kubeconfig=/dev/null", server, trust, f"--token={token}", *arguments, given=given, ok=ok)

    def may(self, account: str, verb: str, resource: str, *more: str) -> bool:
        """What RBAC says about it, all names and namespaces unless `more` says otherwise."""
        where = more or ("--all-namespaces",)
        answer = subprocess.run(
            [self._kubectl, "auth", "can-i", verb, resource, *where, "--as", ACCOUNT + account],
            capture_output=True, text=True, check=False, env=self.environment, timeout=60,
        )  # fmt: skip
        said = answer.stdout.strip().splitlines()
        assert said, answer.stderr
        return said[-1] == "yes"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server with the chart installed by helm."""
    with running_api_server(tmp_path_factory.mktemp("api-server")) as server:
        here = Cluster(server)
        here.kubectl("create", "namespace", NAMESPACE)
        here.kubectl("create", "namespace", "tenant")
        here.helm("install", "cacheagent", CHART)
        for node in ("n1", "n2"):
            here.kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": on(node)}))
        yield here


def on(node: str) -> list[Object]:
    """A node, its agent's pod as the DaemonSet's controller would make it, and its ModelCacheNode."""
    return [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"agent-{node}", "namespace": NAMESPACE, "labels": AGENT_COMPONENT},
            "spec": {
                "nodeName": node,
                "serviceAccountName": "cacheagent-agent",
                "containers": [{"name": "agent", "image": "x"}],
            },
        },
        {"apiVersion": "cacheagent.io/v1alpha1", "kind": "ModelCacheNode", "metadata": {"name": node}},
    ]


def token_of(cluster: Cluster, node: str) -> str:
    """What the kubelet mounts into that pod: a token that names the node."""
    bound = ["--bound-object-kind=Pod", f"--bound-object-name=agent-{node}"] if node else []
    return cluster.kubectl("create", "token", "cacheagent-agent", "-n", NAMESPACE, *bound).strip()


def report(cluster: Cluster, token: str, node: str, *, ok: bool) -> str:
    """Write a status as agents do."""
    body = {
        "apiVersion": "cacheagent.io/v1alpha1",
        "kind": "ModelCacheNode",
        "metadata": {"name": node},
        "status": {"agentVersion": "test"},
    }
    return cluster.as_account(
        token,
        *("apply", "--server-side", "--force-conflicts", "--subresource=status", "--field-manager=cacheagent-agent"),
        *("-f", "-"),
        given=json.dumps(body),
        ok=ok,
    )


def test_agent_reports_for_its_own_node(cluster: Cluster) -> None:
    """With the token of its pod it writes the one status; the policy is in force (see the next test), and lets it."""
    report(cluster, token_of(cluster, "n1"), "n1", ok=True)
    assert cluster.get("modelcachenode", "n1")["status"]["agentVersion"] == "test"


def test_agent_does_not_report_for_another_node(cluster: Cluster) -> None:
    """Though RBAC lets it: the policy knows the node from the token, and says both names."""
    refused = report(cluster, token_of(cluster, "n1"), "n2", ok=False)
    assert 'the agent on node "n1" may only write its own ModelCacheNode, not "n2"' in refused
    assert "agentVersion" not in cluster.get("modelcachenode", "n2").get("status", {})


def test_token_without_a_node_writes_nothing(cluster: Cluster) -> None:
    """Whoever could make tokens for the account would gain no node by it."""
    assert "may only write its own" in report(cluster, token_of(cluster, ""), "n1", ok=False)


def test_policy_is_about_agents_only(cluster: Cluster) -> None:
    """The controller writes every node's spec."""
    controller = cluster.kubectl("create", "token", "cacheagent-controller", "-n", NAMESPACE).strip()
    patch = json.dumps({"spec": {"held": []}})
    cluster.as_account(controller, "patch", "modelcachenode", "n2", "--type=merge", "--patch", patch)


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("get", "secrets"),
        ("list", "secrets"),
        ("get", "nodes"),
        ("patch", "nodes"),
        ("get", "pods"),
        ("create", "pods"),
        ("create", "events"),
        ("create", "modelcachenodes"),
        ("update", "modelcachenodes"),
        ("patch", "modelcachenodes"),
        ("delete", "modelcachenodes"),
        ("get", "modelcaches"),
        ("create", "serviceaccounts/token"),
        ("get", "configmaps"),
    ],
)
def test_agent_may_not(cluster: Cluster, verb: str, resource: str) -> None:
    """RBAC itself says so."""
    assert not cluster.may("agent", verb, resource)


def test_agent_may(cluster: Cluster) -> None:
    """The control of the test before."""
    for verb in ("get", "list", "watch"):
        assert cluster.may("agent", verb, "modelcachenodes")
    assert cluster.may("agent", "patch", "modelcachenodes", "--subresource=status")


def test_controllers_secrets(cluster: Cluster) -> None:
    """The one with the webhook's certificates, in its own namespace, and no other."""
    here = ("--namespace", NAMESPACE)
    assert cluster.may("controller", "get", "secrets/cacheagent-webhook", *here)
    assert cluster.may("controller", "update", "secrets/cacheagent-webhook", *here)
    assert not cluster.may("controller", "get", "secrets/other", *here)
    assert not cluster.may("controller", "list", "secrets", *here)
    assert not cluster.may("controller", "get", "secrets/cacheagent-webhook", "--namespace", "tenant")
    assert not cluster.may("controller", "create", "secrets", "--namespace", "tenant")
    assert not cluster.may("controller", "patch", "mutatingwebhookconfigurations/other")
    assert cluster.may("controller", "patch", "mutatingwebhookconfigurations/z-cacheagent")


def pod(namespace: str, **annotations: str) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": "p-", "namespace": namespace, "annotations": annotations},
            "spec": {"containers": [{"name": "c", "image": "x"}]},
        }
    )


def test_only_pods_that_ask_need_the_webhook(cluster: Cluster) -> None:
    """No controller runs here: what asks for a model is refused, and nobody else notices."""
    refused = cluster.kubectl("create", "-f", "-", given=pod("tenant", **{"cacheagent.io/model": "m"}), ok=False)
    assert 'failed calling webhook "pods.cacheagent.io"' in refused
    for namespace, asked in (
        ("tenant", {}),
        ("tenant", {"cacheagent.io/mode": "pv"}),
        ("kube-system", {"cacheagent.io/model": "m"}),
        (NAMESPACE, {"cacheagent.io/model": "m"}),
    ):
        cluster.kubectl("create", "-f", "-", given=pod(namespace, **asked))


def test_controller_works_with_its_rights(cluster: Cluster, tmp_path: Path) -> None:
    """The real program, with the chart's configuration and nothing but its account's token: it leads, makes its
    certificates, publishes them, takes in a model and gives it to the nodes; nothing that it tries is forbidden."""
    items = [
        *on("n3")[:2],
        {
            "apiVersion": "cacheagent.io/v1alpha1",
            "kind": "ModelCache",
            "metadata": {"name": "m"},
            "spec": {"source": {"uri": "s3://bucket/m"}, "localPersistentVolumes": {"namespaces": ["tenant"]}},
        },
    ]
    cluster.kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    probes, webhook = free_ports(2)
    written = cluster.get("configmap", "cacheagent-controller")["data"]["controller.yaml"]
    config = tmp_path / "controller.yaml"
    config.write_text(
        written.replace("0.0.0.0:9472", f"127.0.0.1:{probes}").replace("0.0.0.0:9443", f"127.0.0.1:{webhook}")
    )
    command = [sys.executable, "-m", "cacheagent", "controller", "--config", str(config), "--namespace", NAMESPACE]
    log = tmp_path / "controller.log"
    environment = {"KUBECONFIG": str(kubeconfig(cluster, "cacheagent-controller", tmp_path)), "POD_NAME": "one"}

    def is_done() -> bool:
        published = cluster.get("mutatingwebhookconfiguration", "z-cacheagent")["webhooks"]
        known = cluster.kubectl("get", "modelcachenodes", "-o", "jsonpath={.items[*].spec.models[*].name}")
        status = cluster.get("modelcache", "m").get("status", {})
        trusted = all("caBundle" in webhook["clientConfig"] for webhook in published)
        return trusted and known == "m m m" and bool(status.get("conditions"))

    with running_child(command, log_path=log, environment=environment, stop_timeout_s=40) as child:
        wait_until_ready(child, is_done, name="controller", log_path=log, timeout_s=90)
        assert cluster.get("lease", "cacheagent-controller")["spec"]["holderIdentity"] == "one"
        assert cluster.get("secret", "cacheagent-webhook")["data"]
    assert child.returncode == 0, log.read_text()
    assert "orbidden" not in log.read_text()
    cluster.kubectl("delete", "modelcache", "m")


def kubeconfig(cluster: Cluster, account: str, folder: Path) -> Path:
    """Of an account of the chart, by a token."""
    path = folder / "kubeconfig"
    trust = {"server": cluster.server.url, "certificate-authority": str(cluster.server.certificate_authority)}
    token = cluster.kubectl("create", "token", account, "-n", NAMESPACE).strip()
    named = {
        "clusters": [{"name": "here", "cluster": trust}],
        "users": [{"name": "account", "user": {"token": token}}],
        "contexts": [{"name": "one", "context": {"cluster": "here", "user": "account"}}],
    }
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "one", **named}))
    return path


@pytest.mark.parametrize("way", ["--server-side=true", "--server-side=false"])
def test_upgrade_keeps_the_certificate_authority(cluster: Cluster, way: str) -> None:
    """What the controller wrote stays, and is no conflict, in both ways in which helm writes; the rest is upgraded."""
    authority = base64.b64encode(cluster.server.certificate_authority.read_bytes()).decode()
    change = [{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": authority}]
    controller = cluster.kubectl("create", "token", "cacheagent-controller", "-n", NAMESPACE).strip()
    cluster.as_account(
        controller,
        *("patch", "mutatingwebhookconfiguration", "z-cacheagent", "--type=json", "--patch", json.dumps(change)),
    )
    seconds = 7 if way.endswith("true") else 8
    cluster.helm("upgrade", "cacheagent", CHART, way, "--set", f"webhook.timeoutSeconds={seconds}")
    webhook, _ = cluster.get("mutatingwebhookconfiguration", "z-cacheagent")["webhooks"]
    assert (webhook["timeoutSeconds"], webhook["clientConfig"]["caBundle"]) == (seconds, authority)


def test_upgrade_changes_definitions_and_uninstall_keeps_them(cluster: Cluster, tmp_path: Path) -> None:
    """With the objects in them; a new installation takes them over; what was made beside the chart stays as well."""
    newer = tmp_path / "chart"
    subprocess.run(["cp", "-r", CHART, newer], check=True)
    file = newer / "files/crds/modelcaches.yaml"
    file.write_text(file.read_text().replace("shortNames:\n", "shortNames:\n    - weights\n", 1))
    cluster.helm("upgrade", "cacheagent", newer)
    names = cluster.get("crd", "modelcaches.cacheagent.io")["spec"]["names"]["shortNames"]
    assert "weights" in names
    cluster.helm("uninstall", "cacheagent")
    assert "cacheagent" not in cluster.kubectl("get", "daemonsets,deployments", "-n", NAMESPACE, "-o", "name")
    for kind in DEFINITIONS:
        cluster.get("crd", f"{kind}.cacheagent.io")
    assert cluster.get("modelcachenode", "n1")
    # While it is away its pods are made by nobody's leave, so the examples can be judged by the API server alone.
    for namespace in ("inference", "training"):
        cluster.kubectl("create", "namespace", namespace)
    for path in EXAMPLES:
        assert parse(path.read_text()).objects
        cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", path)
    cluster.helm("install", "cacheagent", CHART)
    cluster.helm("uninstall", "cacheagent")


def test_kustomize_base_installs(cluster: Cluster) -> None:
    """In the end, on the definitions that helm left: this test runs last, and wants the namespace without a release."""
    base = ROOT / "daemonset/kustomize/base"
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", base)
    labels = cluster.get("namespace", NAMESPACE)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"
    assert cluster.get("daemonset", "cacheagent-node")
