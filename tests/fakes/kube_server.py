"""A real API server over a real etcd on loopback, without nodes and controllers: three seconds, 300 MB, no root.

with running_api_server(scratch) as server:
    async with open_client(server.kubeconfig) as client: ...
"""

from __future__ import annotations

import contextlib
import json
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from cacheagent.demo.child import on_free_ports, running_child, wait_until_ready
from tests.conftest import IN_CI, missing
from tests.e2e.cluster.pki import Authority, Pair

REPOSITORY: Final = Path(__file__).parents[2]
SCRIPT: Final = REPOSITORY / "scripts/kube_binaries.py"
READY_TIMEOUT_S: Final = 90.0


def kube_programs() -> dict[str, Path]:
    """Name -> path of what `scripts/kube_binaries.py` builds. Where it has built nothing yet the test is skipped, since
    that takes ten minutes; under CI=true they are built now.
    """
    if not IN_CI and subprocess.run([sys.executable, SCRIPT, "--ready"], check=False).returncode != 0:
        missing("a Kubernetes API server", "python scripts/kube_binaries.py builds one, once, in about ten minutes")
    answer = subprocess.run([sys.executable, SCRIPT, "--json"], check=True, stdout=subprocess.PIPE)
    return {name: Path(path) for name, path in json.loads(answer.stdout).items()}


class ApiServer:
    """A running one. `kubeconfig`: its administrator's. `pid`, `etcd_pid`: of its processes."""

    def __init__(self, folder: Path, programs: dict[str, Path], ports: list[int]) -> None:
        self.folder = folder
        self._programs = programs
        self._etcd_port, self._peer_port, self._port = ports
        self.url = f"https://127.0.0.1:{self._port}"
        self._authority = Authority(folder / "pki")
        self._serving = self._authority.issue("serving", "kube-apiserver", names=["localhost"], addresses=["127.0.0.1"])
        self._key, self._public_key = self._authority.signing_key("service-accounts")
        self.kubeconfig = self.kubeconfig_of("admin", "system:masters")
        self.certificate_authority = self._authority.certificate
        self.pid = self.etcd_pid = 0
        self._running = contextlib.ExitStack()

    def kubeconfig_of(self, user: str, *groups: str) -> Path:
        """A kubeconfig of somebody, who may do what RBAC says."""
        return self._authority.kubeconfig(user, user, server=self.url, groups=groups)

    def issue(self, user: str) -> Pair:
        """A client certificate."""
        return self._authority.issue(user, user)

    def start(self) -> None:
        """Return when it is ready. What etcd holds is still there. Raises ChildEnded."""
        log = self.folder / "kube-apiserver.log"
        child = self._running.enter_context(running_child(self._command(), log_path=log, stop_signal=signal.SIGKILL))
        self.pid = child.pid
        wait_until_ready(child, self._is_ready, name="kube-apiserver", log_path=log, timeout_s=READY_TIMEOUT_S)

    def stop(self) -> None:
        """Everybody loses it, until `start`. It leaves as one that crashes, without saying goodbye to watches."""
        self._running.close()

    @contextlib.contextmanager
    def etcd(self) -> Iterator[None]:
        """etcd, for as long as the block lasts."""
        own, peers = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._peer_port))
        options = [
            f"--data-dir={self.folder}/etcd",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={own}",
            f"--advertise-client-urls={own}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
        ]
        with running_child([self._programs["etcd"], *options], log_path=self.folder / "etcd.log") as child:
            self.etcd_pid = child.pid
            yield

    def _command(self) -> list[str | Path]:
        return [
            self._programs["kube-apiserver"],
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--secure-port={self._port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=192.0.2.1",  # it must not be a loopback address, and nobody uses it
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            f"--client-ca-file={self._authority.certificate}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._public_key}",
            f"--service-account-signing-key-file={self._key}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",  # as everywhere: containers that mount need it
            "--disable-admission-plugins=ServiceAccount",  # no controller makes the accounts that pods would need
            "--profiling=false",
        ]

    def _is_ready(self) -> bool:
        trusting = ssl.create_default_context(cafile=str(self._authority.certificate))
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5, context=trusting) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextlib.contextmanager
def running_api_server(folder: Path) -> Iterator[ApiServer]:
    """An API server until the block ends; files and logs go to `folder`. Skips the test where programs are missing."""
    programs = kube_programs()

    def start(ports: list[int]) -> AbstractContextManager[ApiServer]:
        return _running(ApiServer(folder, programs, ports))

    with on_free_ports(3, start) as server:
        yield server


@contextlib.contextmanager
def _running(server: ApiServer) -> Iterator[ApiServer]:
    with server.etcd():
        try:
            server.start()
            yield server
        finally:
            server.stop()
