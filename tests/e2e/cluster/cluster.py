"""The whole cluster, and what a test may do with it."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cacheagent.demo.seaweedfs import S3Server, running_seaweedfs
from tests.e2e.cluster import cgroups, evidence, network
from tests.e2e.cluster.binaries import Binaries, get_binaries
from tests.e2e.cluster.control_plane import ControlPlane
from tests.e2e.cluster.image import PRODUCT_IMAGE, get_template
from tests.e2e.cluster.node import Node, NodeOptions, Place
from tests.e2e.cluster.process import kill_left_ones, run
from tests.e2e.cluster.slot import Slot, take_slot
from tests.e2e.cluster.waiting import say, wait_until
from tests.privileges import as_root, keep_a_root_thread

INOTIFY_INSTANCES = 1024
THREE_NODES = tuple(NodeOptions(name=f"n{number}") for number in (1, 2, 3))


class Cluster:
    """Made by `running_cluster`."""

    def __init__(self, slot: Slot, binaries: Binaries, images: Path) -> None:
        self._slot = slot
        self._binaries = binaries
        self._images = images
        self._logs = slot.folder / "logs"
        self._control_plane = ControlPlane(slot, binaries, slot.folder / "control-plane", self._logs)
        self._nodes: dict[str, Node] = {}
        self._numbers = iter(range(1, 200))
        self._stack = contextlib.ExitStack()
        self._object_store: S3Server | None = None
        self.folder = slot.folder
        self.image = PRODUCT_IMAGE
        """The product's own image, on each node; it has a `python3`, so workloads of tests run it too."""

    # --- talking to it

    @property
    def kubeconfig(self) -> Path:
        """Of an administrator."""
        return self._control_plane.kubeconfig

    @property
    def address(self) -> str:
        """This machine's address that pods reach; servers of a test listen there."""
        return self._slot.address

    @property
    def bridge(self) -> str:
        """Name of the machine network's bridge; control groups and links begin with it."""
        return self._slot.bridge

    def kubectl(self, *arguments: str | Path, text: str | None = None, limit: float = 120.0) -> str:
        """What it prints. `text` is its input (`-f -`). Raises `CommandFailed` with its complaint."""
        options = (f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self.folder}/kubectl")
        return run(self._binaries.kubectl, *options, *arguments, text=text, limit=limit).stdout

    def get(self, *arguments: str) -> Any:
        """`kubectl get … -o json`, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """`kubectl apply` of objects as they are."""
        self.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def helm(self, *arguments: str | Path, limit: float = 300.0) -> str:
        """What it prints. Raises `CommandFailed` with its complaint."""
        variables = {f"HELM_{kind}_HOME": f"{self.folder}/helm/{kind.lower()}" for kind in ("CACHE", "CONFIG", "DATA")}
        return run(
            self._binaries.helm, f"--kubeconfig={self.kubeconfig}", *arguments, variables=variables, limit=limit
        ).stdout

    @contextlib.contextmanager
    def namespace(self, wish: str, labels: Mapping[str, str] | None = None) -> Iterator[str]:
        """A namespace with a name like `wish`, until the block ends; then it is deleted with all that is in it."""
        name = re.sub(r"[^a-z0-9]+", "-", wish.lower()).strip("-")[:40].strip("-") + f"-{secrets.token_hex(3)}"
        meta = {"name": name, "labels": dict(labels or {})}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
        wait_until(lambda: self.get("serviceaccount", "default", "-n", name), f"namespace {name} can be used")
        try:
            yield name
        finally:
            self.kubectl("delete", "pods", "--all", "-n", name, "--timeout=60s")
            self.kubectl("delete", "namespace", name, "--wait=false")  # it takes five seconds, for nobody

    # --- its nodes

    @property
    def nodes(self) -> list[Node]:
        return list(self._nodes.values())

    def node(self, name: str) -> Node:
        return self._nodes[name]

    def add_node(self, options: NodeOptions) -> Node:
        """Returns when it is ready and all nodes know it. One that was removed comes back with an empty disk."""
        (node,) = self._add_nodes([options])
        return node

    def remove_node(self, name: str) -> None:
        """As a machine that is gone: its power is cut, then its Node object is deleted."""
        self._nodes.pop(name).halt()
        self.kubectl("delete", "node", name, "--ignore-not-found", "--wait=false")

    def wait_until_ready(self, *names: str, limit: float = 90.0) -> None:
        """These nodes (all without names) are Ready and can run pods."""
        wanted = set(names or self._nodes)
        wait_until(lambda: wanted <= self._ready_nodes(), f"nodes {sorted(wanted)} get ready", limit)

    def cut_power(self, name: str) -> None:
        """Everything on it ends at once: processes, mounts, what was in `/run`. Its Node object and its disk stay."""
        self._nodes[name].halt()

    def power_on(self, name: str) -> None:
        """One whose power was cut, with the disk that it had. Returns when its kubelet has reported again, as Ready."""
        node = self._nodes[name]
        assert node.options.cache_disk_bytes is None, "a loop device may still be busy"
        before = self._heartbeat(name)
        node.start(self._images)
        node.know([other.number for other in self.nodes if other is not node])
        node.start_kubelet()
        wait_until(lambda: self._heartbeat(name) > before, f"the kubelet of {name} reports again", 90)
        self.kubectl("wait", "--for=condition=Ready", f"node/{name}", "--timeout=90s")  # it may be cordoned

    def load_image(self, archive: Path) -> None:
        """A docker-archive, on every node."""
        for node in self.nodes:
            node.load_image(archive)

    # --- its control plane

    def stop_api_server(self) -> None:
        self._control_plane.stop_api_server()

    def start_api_server(self) -> None:
        """Returns when it is ready."""
        self._control_plane.start_api_server()

    def restart_etcd(self) -> None:
        """Returns when the API server is ready again."""
        self._control_plane.restart_etcd()

    # --- what is beside it

    @property
    def object_store(self) -> S3Server:
        """A real S3 server that pods and tests reach at the same address; started by the first who asks."""
        if self._object_store is None:
            server = running_seaweedfs(self.folder / "object-store", address=self.address)
            # It ends with the thread that started it, so that must be one that stays.
            self._object_store = as_root(lambda: self._stack.enter_context(server))
        return self._object_store

    def keep_evidence(self, folder: Path) -> None:
        """Events, descriptions and logs of everything."""
        evidence.keep_evidence(folder, self.kubectl, self.nodes, self._logs)

    def must_run(self) -> None:
        """Raises `ProgramEnded` when a program of the cluster ended by itself."""
        self._control_plane.must_run()
        for node in self.nodes:
            node.must_run()

    # --- its life

    def start(self, nodes: Sequence[NodeOptions]) -> None:
        """Returns when all nodes are ready."""
        _allow_watches()
        network.make_bridge(self._slot)
        with ThreadPoolExecutor() as pool:
            plane = pool.submit(self._control_plane.start)
            self._add_nodes(nodes, after=plane.result)
        self.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=30s")

    def stop(self) -> None:
        """Ends everything; nothing is left but the logs."""
        self._stack.close()
        self._control_plane.stop()
        with ThreadPoolExecutor() as pool:
            halts = [pool.submit(node.halt) for node in self._nodes.values()]
        self._nodes.clear()
        for each in halts:
            each.result()

    def _add_nodes(self, wanted: Sequence[NodeOptions], after: Any = None) -> list[Node]:
        new = [self._make_node(options) for options in wanted]
        with ThreadPoolExecutor() as pool:
            started = [pool.submit(node.start, self._images) for node in new]
            if after:
                after()
                self._let_kube_proxies_work()
            for each in started:
                each.result()
        numbers = [node.number for node in self.nodes]
        for node in self.nodes:
            node.know([number for number in numbers if number != node.number])
        for node in new:
            node.start_kubelet()
        self.wait_until_ready(*(node.name for node in new))
        return new

    def _make_node(self, options: NodeOptions) -> Node:
        place = Place(
            slot=self._slot,
            number=next(self._numbers),
            folder=self._slot.folder / "nodes" / f"{options.name}",
            logs=self._logs / options.name,
            binaries=self._binaries,
        )
        run("rm", "-rf", place.folder)
        place.folder.mkdir(parents=True)
        node = self._nodes[options.name] = Node(place, options, self._control_plane)
        return node

    def _let_kube_proxies_work(self) -> None:
        """They come as a user of their own, as kubeadm does it."""
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "test-kube-proxy"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:kube-proxy"}],
        }
        self.apply(binding)

    def _heartbeat(self, name: str) -> str:
        """When the node last said that it is ready, or not; nothing if it has no Node object."""
        if not self.kubectl("get", "node", name, "--ignore-not-found", "-o", "name"):
            return ""
        conditions = self.get("node", name)["status"].get("conditions", [])
        return next((str(each["lastHeartbeatTime"]) for each in conditions if each["type"] == "Ready"), "")

    def _ready_nodes(self) -> set[str]:
        self.must_run()
        return {
            node["metadata"]["name"]
            for node in self.get("nodes")["items"]
            if any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])
            and not any(taint["key"].startswith("node.kubernetes.io/") for taint in node["spec"].get("taints", []))
        }


def _allow_watches() -> None:
    """A node's programs take ten of the 128 inotify instances that root may have by default, and with several clusters
    kubelets end with "too many open files". The limit stays raised."""
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    if int(limit.read_text()) < INOTIFY_INSTANCES:
        run("sysctl", "-qw", f"fs.inotify.max_user_instances={INOTIFY_INSTANCES}", check=False)


def clean_up(slot: Slot) -> None:
    """Take away what a cluster in this slot left, whatever ended it. The slot must be held."""
    kill_left_ones(slot.folder / "logs")
    for folder in cgroups.hierarchies():
        for left in folder.glob(f"{slot.bridge}-*"):
            cgroups.remove(left.name)
    network.remove_bridge(slot)
    for kind in ("nodes", "control-plane", "object-store", "kubectl", "helm"):
        run("rm", "-rf", "--one-file-system", slot.folder / kind)


@contextlib.contextmanager
def running_cluster(nodes: Sequence[NodeOptions] = THREE_NODES) -> Iterator[Cluster]:
    """A cluster until the block ends, however it ends: after a kill -9 the next one in its slot cleans up."""
    keep_a_root_thread()  # where tests run there is one; it must outlive the threads that start programs
    binaries = get_binaries()
    images = get_template()
    slot, lock = take_slot()
    begin = time.monotonic()
    with lock:
        clean_up(slot)
        run("rm", "-rf", slot.folder / "logs")
        slot.folder.mkdir(parents=True, exist_ok=True)
        say(f"starting {len(nodes)} nodes at {slot.address}, logs in {slot.folder}/logs")
        try:
            cluster = Cluster(slot, binaries, images)
            try:
                cluster.start(nodes)
                say(f"ready after {time.monotonic() - begin:.1f} s: export KUBECONFIG={cluster.kubeconfig}")
                yield cluster
            finally:
                cluster.stop()
        finally:
            clean_up(slot)
