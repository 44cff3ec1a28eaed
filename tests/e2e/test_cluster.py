"""The test cluster is a real one: what the scenarios take for granted is tried here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.cluster import process
from tests.e2e.cluster.binaries import ROOT
from tests.e2e.cluster.cluster import Cluster, running_cluster
from tests.e2e.cluster.node import NodeOptions
from tests.e2e.cluster.process import CommandFailed
from tests.e2e.cluster.slot import state_folder
from tests.e2e.cluster.waiting import wait_until
from tests.e2e.cluster.workload import WAIT_FOR_EVER, host_path, python_pod
from tests.privileges import as_root

pytestmark = pytest.mark.kube

SERVE_NAME = """
import http.server, os, socket
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.environ["HOSTNAME"].encode())
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""
ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
AS_ROOT = {"securityContext": {"runAsUser": 0}}


def pod_status(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    return dict(cluster.get("pod", name, "-n", namespace)["status"])


def command_of(each: psutil.Process) -> list[str]:
    """Empty for one that is gone."""
    try:
        return each.cmdline()
    except psutil.NoSuchProcess:
        return []


def test_three_nodes_are_ready(cluster: Cluster) -> None:
    """Each with its own name and address."""
    addresses = {
        node["metadata"]["name"]: [
            each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP"
        ]
        for node in cluster.get("nodes")["items"]
    }
    assert addresses == {node.name: [node.address] for node in cluster.nodes}
    assert len(addresses) == 3


def test_pods_reach_each_other_on_other_nodes_directly_and_by_a_service(cluster: Cluster, namespace: str) -> None:
    """A pod on each node; each asks each of the others."""
    nodes = [node.name for node in cluster.nodes]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "last", "namespace": namespace},
        "spec": {"selector": {"app": nodes[-1]}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    cluster.apply(service, *(python_pod(name, SERVE_NAME, node=name, namespace=namespace) for name in nodes))
    cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod", *nodes, "--timeout=60s")
    at = {name: f"http://{pod_status(cluster, namespace, name)['podIP']}:8080" for name in nodes}

    def ask(name: str, url: str) -> str:
        return cluster.kubectl("exec", "-n", namespace, name, "--", "python3", "-c", ASK, url).strip()

    for one in nodes:
        for other in nodes:
            assert wait_until(lambda one=one, other=other: ask(one, at[other]), f"{one} reaches {other}") == other  # type: ignore[misc]
    address = cluster.get("service", "last", "-n", namespace)["spec"]["clusterIP"]
    for one in nodes:
        assert wait_until(lambda one=one: ask(one, f"http://{address}"), f"{one} reaches it") == nodes[-1]  # type: ignore[misc]


def test_pods_reach_the_object_store_of_the_tests(cluster: Cluster, namespace: str) -> None:
    """At the same address as the test does; it knows no stranger."""
    code = f"""
import urllib.request, urllib.error
try:
    urllib.request.urlopen({cluster.object_store.endpoint!r}, timeout=10)
except urllib.error.HTTPError as error:
    print(error.code)
"""
    cluster.apply(python_pod("asks", code, namespace=namespace))
    cluster.kubectl("wait", "-n", namespace, "--for=jsonpath={.status.phase}=Succeeded", "pod/asks", "--timeout=60s")
    assert cluster.kubectl("logs", "-n", namespace, "asks").strip() == "403"


def test_a_host_path_is_the_nodes_own(cluster: Cluster, namespace: str) -> None:
    """Two pods write to the same path on two nodes; neither sees the other's file, and this machine sees none."""
    write = "import os; open('/cache/' + os.environ['HOSTNAME'], 'w').close(); print(sorted(os.listdir('/cache')))"
    path = "/var/lib/cacheagent/test-host-path"
    volumes, mounts = [host_path("cache", path)], [{"name": "cache", "mountPath": "/cache"}]
    names = [node.name for node in cluster.nodes[:2]]
    cluster.apply(
        *(
            python_pod(name, write, node=name, namespace=namespace, volumes=volumes, mounts=mounts, container=AS_ROOT)
            for name in names
        )
    )
    for name in names:
        succeeded = "--for=jsonpath={.status.phase}=Succeeded"
        cluster.kubectl("wait", "-n", namespace, succeeded, f"pod/{name}", "--timeout=60s")
        assert cluster.kubectl("logs", "-n", namespace, name).strip() == str([name])
        assert cluster.node(name).nsenter_command("ls", path).stdout.split() == [name]
        cluster.node(name).nsenter_command("rm", "-r", path)
    assert not Path(path).exists()


def test_a_restart_of_the_kubelet_keeps_pods_running(cluster: Cluster, namespace: str) -> None:
    """Also when it was killed: the container is the same one, and the kubelet takes new pods."""
    node = cluster.nodes[0]
    cluster.apply(python_pod("stays", node=node.name, namespace=namespace))
    cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/stays", "--timeout=60s")
    before = pod_status(cluster, namespace, "stays")["containerStatuses"][0]
    for number, how in enumerate((signal.SIGTERM, signal.SIGKILL)):
        node.restart_kubelet(how)
        cluster.apply(python_pod(f"new-{number}", node=node.name, namespace=namespace))
        cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", f"pod/new-{number}", "--timeout=60s")
        after = pod_status(cluster, namespace, "stays")["containerStatuses"][0]
        assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)
        assert "running" in after["state"]


def test_a_mount_that_a_privileged_pod_makes_is_seen_by_the_node_and_by_pods(cluster: Cluster, namespace: str) -> None:
    """Bidirectional propagation, as a CSI driver needs it; the mount is gone from the node when it is unmounted."""
    node = cluster.nodes[1]
    path = "/var/lib/cacheagent/test-propagation"
    code = f"""
import subprocess, signal
subprocess.run(["mkdir", "-p", "/shared/mounted"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/shared/mounted"], check=True)
open("/shared/mounted/file", "w").write("seen")
{WAIT_FOR_EVER}
subprocess.run(["umount", "/shared/mounted"], check=True)
"""
    volumes = [host_path("shared", path)]
    both_ways = [{"name": "shared", "mountPath": "/shared", "mountPropagation": "Bidirectional"}]
    privileged = {"securityContext": {"runAsUser": 0, "privileged": True}}
    maker = python_pod(
        "maker", code, node=node.name, namespace=namespace, volumes=volumes, mounts=both_ways, container=privileged
    )
    cluster.apply(maker)

    def mounted() -> list[str]:
        return [mount.filesystem for mount in node.host_mounts() if mount.mount_point == f"{path}/mounted"]

    wait_until(lambda: mounted() == ["tmpfs"], "the node sees the mount", 60)
    one_way = [{"name": "shared", "mountPath": "/shared", "mountPropagation": "HostToContainer"}]
    read = "print(open('/shared/mounted/file').read())"
    cluster.apply(python_pod("reader", read, node=node.name, namespace=namespace, volumes=volumes, mounts=one_way))
    cluster.kubectl("wait", "-n", namespace, "--for=jsonpath={.status.phase}=Succeeded", "pod/reader", "--timeout=60s")
    assert cluster.kubectl("logs", "-n", namespace, "reader").strip() == "seen"
    assert f"{path}/mounted" not in Path("/proc/self/mountinfo").read_text()

    cluster.kubectl("delete", "pod", "-n", namespace, "maker", "--wait=false")
    wait_until(lambda: mounted() == [], "the mount is gone")
    node.nsenter_command("rm", "-r", path)


def test_a_node_may_join_with_labels_taints_and_a_disk_of_its_own_and_leave(cluster: Cluster) -> None:
    """The disk has the size that was asked for and takes O_DIRECT, as an NVMe's file system would."""
    options = NodeOptions(
        name="n4",
        labels={"pool": "h100"},
        taints=("cacheagent.io/cold:NoSchedule",),
        cache_disk_bytes=256 * 1024 * 1024,
    )
    node = cluster.add_node(options)
    try:
        seen = cluster.get("node", "n4")
        assert seen["metadata"]["labels"]["pool"] == "h100"
        assert {"key": "cacheagent.io/cold", "effect": "NoSchedule"} in seen["spec"]["taints"]
        (disk,) = [mount for mount in node.host_mounts() if mount.mount_point == "/var/lib/cacheagent"]
        assert disk.filesystem == "ext4"
        direct = "dd if=/dev/zero of=/var/lib/cacheagent/file bs=1M count=4 oflag=direct && df -B1 --output=size"
        size = node.nsenter_command("sh", "-c", f"{direct} /var/lib/cacheagent").stdout.split()[-1]
        assert 200 << 20 < int(size) < 256 << 20
    finally:
        cluster.remove_node("n4")
    wait_until(
        lambda: "n4" not in [each["metadata"]["name"] for each in cluster.get("nodes")["items"]], "n4 is gone", 30
    )


def test_killed_containers_are_started_again(cluster: Cluster, namespace: str) -> None:
    """All processes of one pod get `kill -9`; another pod on the node doesn't notice."""
    node = cluster.nodes[2]
    always = {"restartPolicy": "Always"}
    cluster.apply(*(python_pod(name, node=node.name, namespace=namespace, spec=always) for name in ("hit", "spared")))
    cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/hit", "pod/spared", "--timeout=60s")
    uid = cluster.get("pod", "hit", "-n", namespace)["metadata"]["uid"]
    before = node.container_pids(uid)
    assert len(before) == 2, "its own process and the pause process"
    node.kill_containers(uid)

    def restarts(name: str) -> int:
        return int(pod_status(cluster, namespace, name)["containerStatuses"][0]["restartCount"])

    wait_until(lambda: restarts("hit") >= 1, "the pod is started again", 60)
    cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/hit", "--timeout=60s")
    assert not set(before) & set(node.container_pids(uid))
    assert restarts("spared") == 0


def test_pods_outlive_the_api_server_and_etcd(cluster: Cluster, namespace: str) -> None:
    """What was written is there again, the pod is the same, and new ones run."""
    cluster.apply(python_pod("stays", namespace=namespace))
    cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/stays", "--timeout=60s")
    before = pod_status(cluster, namespace, "stays")["containerStatuses"][0]["containerID"]
    cluster.stop_api_server()
    with pytest.raises(CommandFailed, match="refused"):
        cluster.kubectl("get", "nodes")
    cluster.start_api_server()
    cluster.restart_etcd()
    cluster.apply(python_pod("new", namespace=namespace))
    cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/new", "--timeout=60s")
    assert pod_status(cluster, namespace, "stays")["containerStatuses"][0]["containerID"] == before


@pytest.mark.slow
def test_a_cluster_starts_where_another_was_killed(cluster: Cluster) -> None:
    """The processes of the killed one end, the next one takes its place and runs a pod, and then nothing is left."""
    command = [sys.executable, "-m", "tests.e2e.cluster", "--bare", "--nodes", "1"]
    first = as_root(lambda: subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    assert first.stdout is not None
    folder = ""
    for line in first.stdout:
        if "KUBECONFIG" in line:
            folder = line.rpartition("=")[2].strip().partition("/control-plane")[0]
            break
    assert Path(folder).parent == state_folder()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    first.stdout.close()
    with running_cluster([NodeOptions(name="m1")]) as second:
        assert str(second.folder) == folder
        second.apply(python_pod("runs", "print('well')"))
        second.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/runs", "--timeout=60s")
        assert [node["metadata"]["name"] for node in second.get("nodes")["items"]] == ["m1"]
        bridge = second.bridge
        assert bridge in process.run("ip", "link").stdout
    assert bridge not in process.run("ip", "link").stdout
    assert bridge not in process.run("ip", "route").stdout
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{bridge}-*"))
    assert folder not in Path("/proc/self/mountinfo").read_text()
    assert not [each for each in psutil.process_iter() if f"{folder}/" in " ".join(command_of(each))]
