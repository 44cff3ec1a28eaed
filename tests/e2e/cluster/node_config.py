"""The configuration files of a node's programs. Pure: text and values from addresses and paths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.e2e.cluster.archive import PAUSE_IMAGE
from tests.e2e.cluster.binaries import CNI_PROGRAMS


def holder_script(name: str, folder: Path, *, has_disk: bool) -> str:
    """What the first process of a node runs: mounts of its own, then it sleeps for good.

    It ignores SIGCHLD, so that the kernel reaps the orphans that become its children. `/run` is new with each start, as
    on a real node. Mounts made in it are shared with its pods and with nobody outside.
    """
    disk = f"mount -o loop '{folder}/cache-disk.ext4' /var/lib/cacheagent" if has_disk else ":"
    return f"""set -e
hostname {name}
mount --bind '{folder}/var-lib' /var/lib
mount --bind '{folder}/var-log' /var/log
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /run/lock
{disk}
mount --make-rshared /
touch '{folder}/is-mounted'
exec env --ignore-signal=CHLD sleep infinity
"""


def containerd(cni_folder: Path) -> str:
    """For containerd 1.6 of Debian 12."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "/run/containerd/containerd.sock"

[{cri}]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE nobody may lower it, and runc fails with "can't get final child's PID from pipe: EOF".
  restrict_oom_score_adj = true
  [{cri}.containerd]
    snapshotter = "overlayfs"
    [{cri}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [{cri}.containerd.runtimes.runc.options]
        SystemdCgroup = false
  [{cri}.cni]
    bin_dir = "{CNI_PROGRAMS}"
    conf_dir = "{cni_folder}"
"""


def cni(pod_subnet: str) -> str:
    """A bridge inside the node. Nothing is masqueraded: every pod reaches every other at its own address."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipMasq": False,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": pod_subnet}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}, indent=1)


def kubelet(*, address: str, authority: Path, cgroup: str, taints: Sequence[str], name_server: str) -> dict[str, Any]:
    """Nobody serves names at `name_server`: a question is refused at once, instead of timing out."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [name_server],
        "clusterDomain": "cluster.local",
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "registerWithTaints": [_taint(each) for each in taints],
        "healthzBindAddress": "127.0.0.1",
        # Several kubelets share few cores: what they look at on a schedule, they look at seldom.
        "volumeStatsAggPeriod": "5m",
        "runtimeRequestTimeout": "2m",
    }


def _taint(text: str) -> dict[str, str]:
    key, _, effect = text.partition(":")
    key, _, value = key.partition("=")
    return {"key": key, "effect": effect, **({"value": value} if value else {})}


def kube_proxy(name: str, kubeconfig: Path) -> dict[str, Any]:
    """Services by nftables in the node's network namespace, where the limits of connection tracking can't be set."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": name,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": "",
        "detectLocalMode": "InterfaceNamePrefix",
        "detectLocal": {"interfaceNamePrefix": "cni0"},
        "nftables": {"syncPeriod": "10m", "minSyncPeriod": "100ms"},
        "conntrack": {"maxPerCore": 0, "min": 0},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    }
