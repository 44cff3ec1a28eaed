"""A node: namespaces of its own (mounts, network, processes, host name), in them containerd, kubelet and kube-proxy.

Everything in it ends with its first process, at whatever moment that is killed: the kernel ends the processes, and
with the last of them go the mounts, the loop device and the link. Only its folder and its cgroups are left to remove.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec
import yaml

from tests.e2e.cluster import cgroups, network, node_config
from tests.e2e.cluster.binaries import Binaries
from tests.e2e.cluster.control_plane import ControlPlane
from tests.e2e.cluster.image import clone_template
from tests.e2e.cluster.mounts import HostMount, parse_mountinfo
from tests.e2e.cluster.process import Program, run, spawn
from tests.e2e.cluster.slot import Slot
from tests.e2e.cluster.waiting import wait_until

CACHE_DIRECTORY = "/var/lib/cacheagent"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


class NodeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a node is to be. Taints are `key[=value]:Effect`, put on when it registers for the first time.

    The cache directory is a plain folder of this machine's disk, or an ext4 of `cache_disk_bytes` of its own.
    """

    name: str
    labels: Mapping[str, str] = {}
    taints: tuple[str, ...] = ()
    cache_disk_bytes: int | None = None


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node is: the cluster that it belongs to, its number in it, its folders."""

    slot: Slot
    number: int
    folder: Path
    logs: Path
    binaries: Binaries

    @property
    def address(self) -> str:
        return self.slot.node_address(self.number)


class Node:
    """A running node. Commands in it see its mounts, its network and its processes."""

    def __init__(self, place: Place, options: NodeOptions, control_plane: ControlPlane) -> None:
        self.options = options
        self.name = options.name
        self.address = place.address
        self.number = place.number
        self._place = place
        self._control_plane = control_plane
        self._programs: dict[str, Program] = {}

    # --- its life

    def start(self, images: Path) -> None:
        """Returns when containerd answers, with the images of a template; then the kubelet can be started."""
        if not self._file("var-lib/containerd").exists():  # else it was on before
            clone_template(images, self._file("var-lib/containerd"))
        cgroups.make(self._place.slot.cgroup(self.name))
        self._start_holder()
        network.connect(self._place.slot, self.number, self._holder_pid)
        self._write_configuration()
        self.nsenter_command("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self._start("containerd", "containerd", "--config", self._file("containerd.toml"))
        wait_until(self._containerd_answers, f"containerd of {self.name} answers", 60.0, pause=0.1)

    def start_kubelet(self) -> None:
        """The kubelet, and kube-proxy when it doesn't run yet. Readiness is the cluster's to see."""
        labels = ",".join(f"{key}={value}" for key, value in self.options.labels.items())
        self._start(
            "kubelet",
            self._place.binaries.kubelet,
            f"--config={self._file('kubelet.yaml')}",
            f"--kubeconfig={self._kubeconfig('kubelet')}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            *([f"--node-labels={labels}"] if labels else []),
            "--housekeeping-interval=20s",
            "--v=2",
        )
        if "kube-proxy" not in self._programs:
            self._start("kube-proxy", self._place.binaries.kube_proxy, f"--config={self._file('kube-proxy.yaml')}")

    def stop_kubelet(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Pods stay as they are; nothing new is mounted or started."""
        self._programs.pop("kubelet").stop(how)

    def restart_kubelet(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it by a signal and start it again."""
        self.stop_kubelet(how)
        self.start_kubelet()

    def kill_containers(self, pod_uid: str | None = None) -> None:
        """`kill -9` to each process of one pod, or of all pods, the pause process included."""
        cgroups.kill(self._place.slot.cgroup(self.name), pod_uid)

    def container_pids(self, pod_uid: str | None = None) -> list[int]:
        """Process ids of one pod's containers, or of all pods', as this machine sees them."""
        return cgroups.pids(self._place.slot.cgroup(self.name), pod_uid)

    def halt(self) -> None:
        """As if the power was cut: everything in it ends at once. Then what it left on this machine is removed."""
        holder = self._programs.pop("holder", None)
        if holder:
            holder.stop(signal.SIGKILL)
        for program in self._programs.values():
            program.stop(signal.SIGKILL)
        self._programs.clear()
        network.disconnect(self._place.slot, self.number)
        cgroups.remove(self._place.slot.cgroup(self.name))

    # --- what a test asks it

    def nsenter_command(
        self, *command: str | Path, check: bool = True, text: str | None = None, limit: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the node. Raises `CommandFailed` when it fails and is checked."""
        return run(*self._enter(), *command, check=check, text=text, limit=limit)

    def host_mounts(self) -> list[HostMount]:
        """What the node itself has mounted, pods' mounts apart."""
        return parse_mountinfo(self.nsenter_command("cat", "/proc/self/mountinfo").stdout)

    def ctr(self, *arguments: str | Path, check: bool = True) -> str:
        """containerd's own command line, in the namespace of Kubernetes' images and containers."""
        return self.nsenter_command(
            "ctr", "--address", CONTAINERD_SOCKET, "-n", "k8s.io", *arguments, check=check
        ).stdout

    def load_image(self, archive: Path) -> None:
        """Import a docker-archive, beside the images that every node begins with."""
        self.ctr("images", "import", "--snapshotter=overlayfs", archive)

    def must_run(self) -> None:
        """Raises `ProgramEnded` when one of its programs ended by itself."""
        for program in self._programs.values():
            program.must_run()

    def know(self, others: list[int]) -> None:
        """Tell it which other nodes there are."""
        network.introduce(self._place.slot, self.number, self._holder_pid, others)

    # --- how it is made

    def _start_holder(self) -> None:
        """The first process in the namespaces. It mounts what a node has of its own, says so by a file, and sleeps."""
        folder = self._place.folder
        for name in ("var-lib", "var-log", "etc-cni"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("cacheagent", "kubelet", "cni"):
            (folder / "var-lib" / name).mkdir(exist_ok=True)
        if self.options.cache_disk_bytes is not None:
            self._make_cache_disk(self.options.cache_disk_bytes)
        ready = folder / "is-mounted"
        ready.unlink(missing_ok=True)
        script = folder / "holder.sh"
        script.write_text(node_config.holder_script(self.name, folder, has_disk=self._disk.exists()))
        new = ["--mount", "--net", "--pid", "--uts", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        self._programs["holder"] = spawn(
            f"{self.name} holder",
            ["sh", script],
            self._place.logs / "holder.log",
            enters=["unshare", *new, "--propagation", "private"],
        )
        wait_until(self._is_mounted, f"the mounts of {self.name} are made", 20.0, pause=0.02)

    def _is_mounted(self) -> bool:
        self._programs["holder"].must_run()
        return (self._place.folder / "is-mounted").exists()

    @property
    def _disk(self) -> Path:
        return self._place.folder / "cache-disk.ext4"

    def _make_cache_disk(self, size: int) -> None:
        with self._disk.open("wb") as file:
            file.truncate(size)
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", self._disk)

    @property
    def _holder_pid(self) -> int:
        return self._programs["holder"].pid

    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self._holder_pid), "--mount", "--net", "--pid", "--uts"]

    def _start(self, name: str, *command: str | Path) -> None:
        log = self._place.logs / f"{name}.log"
        self._programs[name] = spawn(f"{self.name} {name}", command, log, enters=self._enter())

    def _file(self, name: str) -> Path:
        return self._place.folder / name

    def _kubeconfig(self, name: str) -> Path:
        return self._file(f"pki/{name}.kubeconfig")

    def _write_configuration(self) -> None:
        slot, authority = self._place.slot, self._control_plane.authority
        pki = self._file("pki")
        pki.mkdir(exist_ok=True)
        users = {"kubelet": (f"system:node:{self.name}", ["system:nodes"]), "kube-proxy": ("system:kube-proxy", [])}
        for name, (user, groups) in users.items():
            made = authority.kubeconfig(f"{self.name}-{name}", user, server=self._control_plane.server, groups=groups)
            made.rename(pki / f"{name}.kubeconfig")
        self._file("containerd.toml").write_text(node_config.containerd(self._file("etc-cni")))
        self._file("etc-cni/10-bridge.conflist").write_text(node_config.cni(slot.pod_subnet(self.number)))
        kubelet = node_config.kubelet(
            address=self.address,
            authority=authority.certificate,
            cgroup=slot.cgroup(self.name),
            taints=self.options.taints,
            name_server=slot.address,
        )
        self._file("kubelet.yaml").write_text(yaml.safe_dump(kubelet))
        proxy = node_config.kube_proxy(self.name, self._kubeconfig("kube-proxy"))
        self._file("kube-proxy.yaml").write_text(yaml.safe_dump(proxy))

    def _containerd_answers(self) -> bool:
        self._programs["containerd"].must_run()
        return self.ctr("version") != ""
