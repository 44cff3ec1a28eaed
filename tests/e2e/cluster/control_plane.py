"""etcd, API server, controller manager and scheduler of the test cluster: processes of this machine, on its bridge."""

from __future__ import annotations

import signal
import ssl
import urllib.request
from pathlib import Path

from tests.e2e.cluster.binaries import Binaries
from tests.e2e.cluster.pki import Authority
from tests.e2e.cluster.process import Program, spawn
from tests.e2e.cluster.slot import SERVICES, Slot
from tests.e2e.cluster.waiting import wait_until

FIRST_SERVICE = "10.96.0.1"
"""The API server's own service."""
LEADERS = ("kube-controller-manager", "kube-scheduler")


class ControlPlane:
    """Starts and stops the four programs. `folder` holds their files, etcd's data and the logs."""

    def __init__(self, slot: Slot, binaries: Binaries, folder: Path, logs: Path) -> None:
        self._slot = slot
        self._binaries = binaries
        self._folder = folder
        self._logs = logs
        self.server = f"https://{slot.address}:6443"
        self.authority = Authority(folder / "pki")
        self.kubeconfig = self.authority.kubeconfig(
            "admin", "test-admin", server=self.server, groups=["system:masters"]
        )
        self._manager_config, self._scheduler_config = (
            self.authority.kubeconfig(name, f"system:{name}", server=self.server)
            for name in ("kube-controller-manager", "kube-scheduler")
        )
        self._account_key, self._account_public_key = self.authority.signing_key("service-accounts")
        self._serving = self.authority.issue(
            "kube-apiserver",
            "kube-apiserver",
            names=["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"],
            addresses=[slot.address, FIRST_SERVICE, "127.0.0.1"],
        )
        self._to_kubelets = self.authority.issue(
            "kube-apiserver-to-kubelets", "kube-apiserver", groups=["system:masters"]
        )
        self._programs: dict[str, Program] = {}

    def start(self) -> None:
        """Returns when the API server is ready; the other two get ready by themselves."""
        self._start_etcd()
        self._start_api_server()
        self._start_those_that_lead()

    def stop(self) -> None:
        """Kill whatever runs: nobody needs what it would write."""
        for name in reversed(list(self._programs)):
            self._programs.pop(name).stop(signal.SIGKILL)

    def start_api_server(self) -> None:
        """Returns when it is ready. Controller manager and scheduler begin anew with it.

        Where they have to hold a Lease they end when they can't renew it for 10 s, and are started again. Those that
        went on would look for it every 30 to 60 s at last, and until then take nodes for dead, by what they had read.
        """
        for name in LEADERS:
            self._programs.pop(name).stop(signal.SIGKILL)
        self._start_api_server()
        self._start_those_that_lead()

    def stop_api_server(self) -> None:
        """Kubelets, controllers and watches lose it at once, until `start_api_server`.

        Asked politely it would go on for a minute, for the sake of the watches.
        """
        self._programs.pop("kube-apiserver").stop(signal.SIGKILL)

    def restart_etcd(self) -> None:
        """Returns when the API server is ready again. What was written stays."""
        self._programs.pop("etcd").stop()
        self._start_etcd()
        wait_until(self._is_ready, "the API server gets ready after a restart of etcd", 60.0)

    def must_run(self) -> None:
        """Raises `ProgramEnded` when one of those that were started ended by itself."""
        for program in self._programs.values():
            program.must_run()

    def _spawn(self, name: str, program: Path, *arguments: str) -> None:
        self._programs[name] = spawn(name, [program, *arguments], self._logs / f"{name}.log")

    def _start_api_server(self) -> None:
        self._spawn("kube-apiserver", self._binaries.kube_apiserver, *self._api_server_arguments())
        wait_until(self._is_ready, "the API server gets ready", 60.0, pause=0.1)

    def _start_those_that_lead(self) -> None:
        self._spawn(
            "kube-controller-manager",
            self._binaries.kube_controller_manager,
            f"--kubeconfig={self._manager_config}",
            f"--service-account-private-key-file={self._account_key}",
            f"--root-ca-file={self.authority.certificate}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._slot.etcd_port + 2}",
        )
        self._spawn(
            "kube-scheduler",
            self._binaries.kube_scheduler,
            f"--kubeconfig={self._scheduler_config}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._slot.etcd_port + 3}",
        )

    def _start_etcd(self) -> None:
        own, peers = (f"http://127.0.0.1:{self._slot.etcd_port + offset}" for offset in (0, 1))
        self._spawn(
            "etcd",
            self._binaries.etcd,
            f"--data-dir={self._folder}/etcd",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={own}",
            f"--advertise-client-urls={own}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
        )

    def _api_server_arguments(self) -> list[str]:
        return [
            f"--etcd-servers=http://127.0.0.1:{self._slot.etcd_port}",
            "--secure-port=6443",
            f"--bind-address={self._slot.address}",
            f"--advertise-address={self._slot.address}",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            f"--client-ca-file={self.authority.certificate}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._account_public_key}",
            f"--service-account-signing-key-file={self._account_key}",
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--kubelet-client-certificate={self._to_kubelets.certificate}",
            f"--kubelet-client-key={self._to_kubelets.key}",
            "--kubelet-preferred-address-types=InternalIP",
            # This machine has no kube-proxy: a webhook's pods are called at their own addresses.
            "--enable-aggregator-routing=true",
            "--profiling=false",
        ]

    def _is_ready(self) -> bool:
        for program in self._programs.values():
            program.must_run()
        trusting = ssl.create_default_context(cafile=str(self.authority.certificate))
        with urllib.request.urlopen(f"{self.server}/readyz", timeout=5, context=trusting) as answer:
            return bool(answer.status == 200)
