"""What a tenant can't do, whatever it writes into its pods; beside each refusal, the same where it is permitted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cacheagent.kube import names
from cacheagent.kube.names import API_VERSION
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.models import (
    READ_AND_STAY,
    Weights,
    clean_up,
    delete_models,
    events_of,
    model_cache,
    read_report,
    reading_pod,
    upload_checkpoint,
    wait_until_cached,
    wait_until_running,
)
from tests.e2e.cluster.node import CACHE_DIRECTORY, Node
from tests.e2e.cluster.process import CommandFailed
from tests.e2e.cluster.product import NAMESPACE, agent_pod
from tests.e2e.cluster.waiting import wait_until
from tests.e2e.cluster.workload import WAIT_FOR_EVER, host_path, python_pod

pytestmark = pytest.mark.kube

MODELS = "/mnt/models"
NOBODY_ELSES = {"ro", "nosuid", "nodev", "noexec"}

VANDAL = """
import ctypes, json, os, stat, sys
libc = ctypes.CDLL(None, use_errno=True)

def mount_again(path):
    if libc.mount(b"none", path.encode(), None, 0x20 | 0x1000, None):  # MS_REMOUNT | MS_BIND, without MS_RDONLY
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def attempts(root):
    path = next(os.path.join(top, name) for top, _, names in os.walk(root) for name in sorted(names))
    beside = os.path.join(os.path.dirname(path), "beside")
    return {
        "write": lambda: os.pwrite(os.open(path, os.O_RDWR), b"!", 0),
        "truncate": lambda: os.truncate(path, 1),
        "mode": lambda: os.chmod(path, 0o666),
        "mode of the directory": lambda: os.chmod(root, 0o777),
        "owner": lambda: os.chown(path, 4242, 4242),
        "time": lambda: os.utime(path, (0, 0)),
        "attribute": lambda: os.setxattr(path, b"user.x", b"y"),
        "link": lambda: os.link(path, beside + "-link"),
        "create": lambda: os.close(os.open(beside, os.O_CREAT | os.O_WRONLY)),
        "device": lambda: os.mknod(beside + "-null", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        "rename": lambda: os.rename(path, beside + "-moved"),
        "remove": lambda: os.unlink(beside + "-moved" if os.path.exists(beside + "-moved") else path),
        "mount again": lambda: mount_again(root),
    }

def outcome(attempt):
    try:
        attempt()
    except OSError as error:
        return error.strerror
    return ""

open("/scratch/a-file", "w").write("mine")
print(json.dumps({
    "user": os.getuid(),
    "group of scratch": os.stat("/scratch").st_gid,
    "weights": {what: outcome(attempt) for what, attempt in attempts("/mnt/models").items()},
    "scratch": {what: outcome(attempt) for what, attempt in attempts("/scratch").items()},
}))
"""
"""Tries everything that changes a file, in the weights and in an emptyDir: `""` where it succeeded, else the error."""


@pytest.fixture(scope="module")
def weights(product: Cluster) -> Weights:
    """Small ones: what is tested here doesn't depend on size."""
    return upload_checkpoint(product.object_store, "security", size_bytes=4_000_000)


@pytest.fixture(scope="module")
def tenants(product: Cluster, weights: Weights) -> Iterator[tuple[str, str]]:
    """Two namespaces: the first may use the model `guarded`, which is on n1 and n2, the second may not."""
    with product.namespace("permitted") as permitted, product.namespace("forbidden") as forbidden:
        where: dict[str, Any] = {"allowedNamespaces": {"names": [permitted]}, "nodeSelector": {"pool": "warm"}}
        product.apply(model_cache("guarded", weights, **where))
        wait_until_cached(product, "guarded", nodes=2)
        yield permitted, forbidden
        clean_up(product, permitted, "guarded")


def inline(**attributes: str) -> dict[str, Any]:
    """A volume of our driver as a person writes it by hand, without `readOnly`."""
    return {"name": "weights", "csi": {"driver": names.DRIVER, "volumeAttributes": attributes}}


def pod_with(
    volume: Mapping[str, Any], name: str, namespace: str, code: str = READ_AND_STAY, **more: Any
) -> dict[str, Any]:
    """A pod on n1 that has the volume `weights` where the annotation would put it."""
    mounts = [{"name": "weights", "mountPath": MODELS}]
    return python_pod(name, code, node="n1", namespace=namespace, volumes=[volume], mounts=mounts, **more)


def wait_until_refused(cluster: Cluster, namespace: str, pod: str, *words: str) -> str:
    """The event of a pod that can't be mounted for, once one has all these words."""

    def found() -> str:
        events = events_of(cluster, namespace, pod)
        assert cluster.get("pod", pod, "-n", namespace)["status"]["phase"] == "Pending"
        fitting = [
            event for event in events if event.startswith("FailedMount") and all(word in event for word in words)
        ]
        assert fitting, events
        return fitting[0]

    return wait_until(found, f"pod {pod} is refused with {words}", 60)


# --- the bytes


def state_of(node: Node, digest: str) -> str:
    """Hash, owner, mode, links and times of all there is of one version on the node's disk."""
    tree = f"{CACHE_DIRECTORY}/models/{digest.replace(':', '-')}"
    attributes = node.nsenter_command("find", tree, "-printf", r"%p %y %m %U:%G %n %s %T@ %C@\n").stdout
    hashes = node.nsenter_command("find", tree, "-type", "f", "-exec", "sha256sum", "{}", "+").stdout
    return "".join(sorted(attributes.splitlines(keepends=True)) + sorted(hashes.splitlines(keepends=True)))


@pytest.mark.parametrize("mode", ["csi", "pv"])
def test_root_with_a_group_and_without_read_only_changes_nothing(
    product: Cluster, namespace: str, weights: Weights, mode: str
) -> None:
    """Neither bytes nor owner nor mode, though the same pod does all of it in a directory of its own."""
    where: dict[str, Any] = {"nodeSelector": {"pool": "warm"}, "localPersistentVolumes": {"namespaces": [namespace]}}
    product.apply(model_cache("vandalized", weights, **where))
    digest = wait_until_cached(product, "vandalized", nodes=2)["digest"]
    node = product.node("n1")
    before = state_of(node, digest)
    claim = {"claimName": names.claim_name("vandalized", digest)}
    if mode == "pv":
        wait_until(lambda: product.get("pvc", claim["claimName"], "-n", namespace), "the claim is made")
    volume = inline(model="vandalized") if mode == "csi" else {"name": "weights", "persistentVolumeClaim": claim}
    mounts = [{"name": "weights", "mountPath": MODELS}, {"name": "scratch", "mountPath": "/scratch"}]
    product.apply(
        python_pod(
            "vandal",
            VANDAL + WAIT_FOR_EVER,
            node="n1",
            namespace=namespace,
            volumes=[volume, {"name": "scratch", "emptyDir": {}}],
            mounts=mounts,
            spec={"securityContext": {"runAsUser": 0, "fsGroup": 4242}},
        )
    )
    (pod,) = wait_until_running(product, namespace, "vandal")
    said = json.loads(wait_until(lambda: product.kubectl("logs", "-n", namespace, "vandal"), "it tried all"))
    assert (said["user"], said["group of scratch"]) == (0, 4242)
    refused_to_everybody = {"mount again"}
    assert {what for what, error in said["scratch"].items() if error} == refused_to_everybody
    assert {what for what, error in said["weights"].items() if error} == set(said["scratch"])
    assert set(said["weights"].values()) <= {"Read-only file system", "Operation not permitted"}
    assert said["weights"]["write"] == said["weights"]["owner"] == "Read-only file system"
    assert state_of(node, digest) == before
    mounted = [
        each for each in node.host_mounts() if pod["metadata"]["uid"] in each.mount_point and "models" in each.root
    ]
    assert mounted
    assert all(each.options >= NOBODY_ELSES for each in mounted), mounted
    product.kubectl("delete", "pod", "vandal", "-n", namespace, "--timeout=60s")
    assert state_of(node, digest) == before
    delete_models(product, "vandalized")


# --- who may use what


def test_a_volume_written_by_hand_asks_for_permission(
    product: Cluster, tenants: tuple[str, str], weights: Weights
) -> None:
    """By name or by digest, on a node that has the model: what a webhook didn't see is judged all the same."""
    permitted, forbidden = tenants
    digest = product.get("modelcache", "guarded")["status"]["digest"]
    wanted = {"by-name": inline(model="guarded"), "by-digest": inline(digest=digest)}
    product.apply(*(pod_with(volume, name, where) for where in tenants for name, volume in wanted.items()))
    for name in wanted:
        wait_until_refused(product, forbidden, name, "PermissionDenied", f"namespace '{forbidden}' may not mount")
        wait_until_running(product, permitted, name)
        assert read_report(product, permitted, name).files == weights.files


def test_a_persistent_volume_written_by_hand_asks_for_permission(
    product: Cluster, tenants: tuple[str, str], weights: Weights
) -> None:
    """An administrator who gives a namespace a volume of our driver gives it no permission by that."""
    permitted, forbidden = tenants
    digest = product.get("modelcache", "guarded")["status"]["digest"]
    for where in tenants:
        product.apply(*volume_and_claim(f"by-hand-{where}", where, digest))
        volume = {"name": "weights", "persistentVolumeClaim": {"claimName": f"by-hand-{where}"}}
        product.apply(pod_with(volume, "by-claim", where))
    wait_until_refused(product, forbidden, "by-claim", "PermissionDenied", f"namespace '{forbidden}' may not mount")
    wait_until_running(product, permitted, "by-claim")
    assert read_report(product, permitted, "by-claim").files == weights.files
    for where in tenants:
        product.kubectl("delete", "pod", "by-claim", "-n", where, "--timeout=60s")
        product.kubectl("delete", "pv", f"by-hand-{where}", "--wait=false")


def volume_and_claim(name: str, namespace: str, digest: str) -> list[dict[str, Any]]:
    """A PersistentVolume of our driver and the claim that it is for."""
    what = {"accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeMode": "Filesystem"}
    claim = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "name": name, "namespace": namespace}
    source = {"driver": names.DRIVER, "volumeHandle": digest, "readOnly": True}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                **what,
                "capacity": {"storage": "1Gi"},
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": claim,
                "csi": source,
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {**what, "volumeName": name, "resources": {"requests": {"storage": "1Gi"}}},
        },
    ]


def test_tricks_in_volume_attributes(product: Cluster, tenants: tuple[str, str]) -> None:
    """Paths where names belong, what is no attribute, and a namespace that the pod isn't in."""
    permitted, forbidden = tenants
    digest = product.get("modelcache", "guarded")["status"]["digest"]
    sound = {"model": "guarded"}
    tricks = {
        "model": ({"model": "../../records"}, "InvalidArgument", "model '../../records' can't be one"),
        "digest": ({"digest": f"{digest}/../.."}, "InvalidArgument", "can't be one"),
        "view": ({**sound, "view": "../../../records"}, "InvalidArgument", "can't be had"),
        "attribute": ({**sound, "path": "/"}, "InvalidArgument", "which means nothing here"),
        "two": ({**sound, "uri": "s3://models/security"}, "InvalidArgument", "both 'model' and 'uri'"),
        "file": ({"uri": "file:///var/lib/cacheagent/records"}, "PermissionDenied", "may not use file:///"),
        "dots": ({"uri": "s3://models/../security"}, "InvalidArgument", "'.' or '..' segment"),
        "namespace": ({**sound, "csi.storage.k8s.io/pod.namespace": permitted}, "PermissionDenied", forbidden),
    }
    product.apply(*(pod_with(inline(**each[0]), f"trick-{name}", forbidden) for name, each in tricks.items()))
    product.apply(pod_with(inline(**sound), "sound", permitted))
    for name, (_, *words) in tricks.items():
        wait_until_refused(product, forbidden, f"trick-{name}", *words)
    wait_until_running(product, permitted, "sound")
    targets = [each.mount_point for each in product.node("n1").host_mounts() if names.DRIVER in each.mount_point]
    uids = {pod["metadata"]["uid"] for pod in product.get("pods", "-n", forbidden)["items"]}
    assert not [target for target in targets if any(uid in target for uid in uids)]


@pytest.mark.parametrize("wait", ["mount", "init", "gate"])
def test_a_restricted_namespace(product: Cluster, weights: Weights, wait: str) -> None:
    """PodSecurity admits what the webhook adds, and such a pod reads its weights as a user of its own."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    product.apply(model_cache("for-all", weights, nodeSelector={"pool": "warm"}))
    wait_until_cached(product, "for-all", nodes=2)
    with product.namespace(f"restricted-{wait}", labels) as namespace:
        with pytest.raises(CommandFailed, match="violates PodSecurity"):
            product.apply(reading_pod("lax", namespace, "for-all", options={"wait": wait}))
        product.apply(reading_pod("strict", namespace, "for-all", options={"wait": wait}, **AS_RESTRICTED))
        (pod,) = wait_until_running(product, namespace, "strict")
        seen = read_report(product, namespace, "strict").files
        assert {path: found for path, found in seen.items() if not path.startswith(".cacheagent/")} == weights.files
        waiting = [each["name"] for each in pod["spec"].get("initContainers", [])]
        assert waiting == (["cacheagent-wait"] if wait == "init" else [])


AS_RESTRICTED: Mapping[str, Any] = {
    "spec": {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1234, "seccompProfile": {"type": "RuntimeDefault"}}
    },
    "container": {"securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}},
}


# --- the agent and the driver

TOKEN = "/run/secrets/kubernetes.io/serviceaccount/token"
"""In containers; /var/run is a link there, which from outside leads elsewhere."""


def process_of(node: Node, command: str) -> int:
    """The oldest process on the node whose command has these words."""
    return int(node.nsenter_command("pgrep", "--oldest", "--full", command).stdout)


def as_agent(cluster: Cluster, node: str, folder: Path) -> Path:
    """A kubeconfig with nothing but the token that the kubelet put into the agent's container on that node."""
    pid = process_of(cluster.node(node), "cacheagent agent --config")
    found = cluster.node(node).nsenter_command("cat", f"/proc/{pid}/root{TOKEN}").stdout
    written = yaml.safe_load(cluster.kubectl("config", "view", "--raw"))
    (user,) = written["users"]
    user["user"] = {"token": found}
    path = folder / f"agent-{node}.kubeconfig"
    path.write_text(yaml.safe_dump(written))
    return path


def test_an_agents_token_writes_its_own_object_and_nothing_else(product: Cluster, tmp_path: Path) -> None:
    """Taken from the container by somebody who broke in: another node's report, secrets and nodes stay closed."""
    stolen = f"--kubeconfig={as_agent(product, 'n1', tmp_path)}"
    assert f"{NAMESPACE}:cacheagent-agent" in product.kubectl(stolen, "auth", "whoami")

    def report(node: str) -> None:
        meta = {"apiVersion": API_VERSION, "kind": "ModelCacheNode", "metadata": {"name": node}}
        body = json.dumps({**meta, "status": {"agentVersion": "stolen"}})
        how = ("--server-side", "--force-conflicts", "--subresource=status", "--field-manager=thief")
        product.kubectl(stolen, "apply", *how, "-f", "-", text=body)

    before = product.get("modelcachenode", "n2")["status"]["agentVersion"]
    report("n1")
    with pytest.raises(CommandFailed, match='the agent on node "n1" may only write its own ModelCacheNode, not "n2"'):
        report("n2")
    assert product.get("modelcachenode", "n2")["status"]["agentVersion"] == before
    product.kubectl(stolen, "get", "modelcachenode", "n1")
    for refused in (
        ("get", "secret", "store", "-n", NAMESPACE),
        ("get", "secrets", "--all-namespaces"),
        ("label", "node", "n1", "stolen=true"),
        ("patch", "modelcachenode", "n1", "--type=merge", "--patch", '{"spec": {"held": []}}'),
        ("get", "pods", "--all-namespaces"),
        ("create", "token", "cacheagent-controller", "-n", NAMESPACE),
        ("delete", "modelcachenode", "n1"),
    ):
        with pytest.raises(CommandFailed, match=r"(?i)forbidden"):
            product.kubectl(stolen, *refused)
    assert product.get("secret", "store", "-n", NAMESPACE)["data"], "there is one that could have been read"


def test_the_driver_has_no_network_and_no_credentials(product: Cluster) -> None:
    """The privileged container can reach nobody and has nothing to show; the agent beside it has both."""
    node = product.node("n1")
    agent, driver = process_of(node, "cacheagent agent --config"), process_of(node, "python3 -m csi")

    def links(pid: int) -> set[str]:
        shown = node.nsenter_command("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-o", "link").stdout
        return {line.split(": ")[1].partition("@")[0] for line in shown.splitlines()}

    def has(pid: int, path: str) -> bool:
        return node.nsenter_command("test", "-e", f"/proc/{pid}/root{path}", check=False).returncode == 0

    assert (links(agent), links(driver)) == ({"lo", "eth0"}, {"lo"})
    for path in (TOKEN, "/etc/cacheagent/credentials"):
        assert has(agent, path)
        assert not has(driver, path)
    variables = node.nsenter_command("cat", f"/proc/{driver}/environ").stdout
    assert not [each for each in variables.split("\0") if each.startswith(("AWS_", "HF_", "CACHEAGENT_"))]
    status = node.nsenter_command("cat", f"/proc/{agent}/status").stdout
    assert "Uid:\t65532\t65532" in status
    assert "CapEff:\t0000000000000000" in status


ORDERS: Mapping[str, tuple[str, str]] = {
    "status": ("GET", "/v1/status"),
    "models": ("GET", "/v1/models"),
    "ensure": ("POST", "/v1/ensure"),
    "evict": ("POST", "/v1/models/guarded/evict"),
    "volume": ("PUT", "/v1/volumes/x"),
}
ASK = """
import http.client, json, os, socket
asked = json.loads(os.environ["ASK"])
host = os.environ["HOST"]
answers = {}
for name, (method, path) in asked.items():
    connection = http.client.HTTPConnection(host, 9471, timeout=10)
    connection.request(method, path, body="{}" if method != "GET" else None)
    answers[name] = connection.getresponse().status
answers["sockets"] = [os.path.join(top, name) for top, _, names in os.walk("/") if not top.startswith(("/proc", "/sys"))
                      for name in names if name.endswith(".sock")]
print(json.dumps(answers))
"""


def test_tenants_reach_nothing_that_takes_orders(product: Cluster, tenants: tuple[str, str], tmp_path: Path) -> None:
    """The address that a pod can reach tells of health and metrics only; the socket is in no pod, and a namespace that
    admits no hostPath can't get at it. On the node, root gets its answer there."""
    permitted, _ = tenants
    pod = product.get("pod", agent_pod(product, "n1"), "-n", NAMESPACE)
    asked = {**ORDERS, "health": ("GET", "/healthz"), "metrics": ("GET", "/metrics")}
    environment = [{"name": "ASK", "value": json.dumps(asked)}, {"name": "HOST", "value": pod["status"]["podIP"]}]
    container = {"env": environment, "securityContext": {"runAsUser": 0}}
    product.apply(pod_with(inline(model="guarded"), "asks", permitted, ASK + WAIT_FOR_EVER, container=container))
    wait_until_running(product, permitted, "asks")
    answers = json.loads(wait_until(lambda: product.kubectl("logs", "-n", permitted, "asks"), "it asked"))
    assert (answers.pop("health"), answers.pop("metrics"), answers.pop("sockets")) == (200, 200, [])
    assert set(answers.values()) == {404}
    node = product.node("n1")
    run = f"/var/lib/kubelet/pods/{pod['metadata']['uid']}/volumes/kubernetes.io~empty-dir/run/agent.sock"
    answer = node.nsenter_command("curl", "--silent", "--unix-socket", run, "http://agent/v1/status").stdout
    assert json.loads(answer)["models"]
    with product.namespace("baseline", {"pod-security.kubernetes.io/enforce": "baseline"}) as baseline:
        thief = {"volumes": [host_path("weights", "/var/lib/kubelet/pods")]}
        with pytest.raises(CommandFailed, match="hostPath"):
            product.apply(pod_with(thief["volumes"][0], "thief", baseline))
        product.apply(pod_with({"name": "weights", "emptyDir": {}}, "honest", baseline))
