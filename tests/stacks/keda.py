"""KEDA's real operator: built once from its own Go module into the cache of engines, and run beside the tests' cluster
as a process of this machine. Its adapter (metrics for the horizontal autoscaler) doesn't run: what is left is KEDA's
own work, a workload from zero and back, and the bounds that it gives to the autoscaler."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from cacheagent.demo.child import free_ports, running_child, wait_until_ready
from cacheagent.kube.webhook.certificates import CertificateSettings, take_step, utc_now
from tests.e2e.cluster.cluster import Cluster
from tests.stacks.go_modules import workshop

VERSION: Final = "v2.17.2"
MODULE: Final = "github.com/kedacore/keda/v2"
DEFINITIONS: Final = "config/crd/bases"
NAMESPACE: Final = "keda"
START_S: Final = 90.0

Object = dict[str, Any]


class Built(NamedTuple):
    """The program, and the module with its definitions."""

    operator: Path
    source: Path


def source() -> Path:
    """Its module. Skips the test where it can't be had."""
    with workshop(f"keda-{VERSION}", "KEDA's definitions are in its module") as shop:
        return shop.module(MODULE, VERSION)


def built() -> Built:
    """Build it where it is missing: some ten minutes of two cores, for it brings the clients of every cloud. Skips the
    test where Go or a module can't be had."""
    with workshop(f"keda-{VERSION}", "KEDA's operator is built from its module") as shop:
        module = shop.module(MODULE, VERSION)
        return Built(shop.program(module, "operator"), module)


def definitions(module: Path) -> list[Object]:
    """Its kinds."""
    return [yaml.safe_load(path.read_text()) for path in sorted((module / DEFINITIONS).glob("*.yaml"))]


@contextmanager
def running_keda(cluster: Cluster, folder: Path) -> Iterator[None]:
    """Its kinds are known and its operator works until the block ends; its log goes to the folder."""
    program = built()
    kinds = definitions(program.source)
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": kinds})
    # Too large for the annotation that `kubectl apply` would keep.
    cluster.kubectl("apply", "--server-side", "-f", "-", text=given)
    names = [f"crd/{kind['metadata']['name']}" for kind in kinds]
    cluster.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")
    try:
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        with _operator(program.operator, cluster.kubeconfig, folder):
            yield
    finally:
        cluster.kubectl("delete", *names, "--ignore-not-found", "--wait=false")
        cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")


@contextmanager
def _operator(program: Path, kubeconfig: Path, folder: Path) -> Iterator[None]:
    metrics, probe, service = free_ports(3)
    command: list[str | Path] = [
        program, f"--metrics-bind-address=127.0.0.1:{metrics}", f"--health-probe-bind-address=127.0.0.1:{probe}",
        f"--metrics-service-bind-address=127.0.0.1:{service}", f"--cert-dir={_certificates(folder)}",
    ]  # fmt: skip
    log = folder / "keda-operator.log"
    environment = {"KUBECONFIG": str(kubeconfig), "WATCH_NAMESPACE": "", "KEDA_CLUSTER_OBJECT_NAMESPACE": NAMESPACE}

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{probe}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with running_child(command, log_path=log, environment=environment) as child:
        wait_until_ready(child, is_ready, name="KEDA's operator", log_path=log, timeout_s=START_S)
        yield


def _certificates(folder: Path) -> Path:
    """What its adapter would know it by."""
    pair = take_step("create", None, ("localhost",), utc_now(), CertificateSettings())
    certificates = folder / "keda-certificates"
    certificates.mkdir()
    for name, content in {
        "ca.crt": pair.bundle_pem, "tls.crt": pair.serving.certificate, "tls.key": pair.serving.key,
    }.items():  # fmt: skip
        (certificates / name).write_bytes(content)
    return certificates
