"""KServe's real manager (controllers and webhooks): built once from its own Go module into the cache of engines, and
run beside a real API server, with nodes or without, as a process of this machine. What it makes of an InferenceService
is a Deployment; of its pods, what its webhook says."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from cacheagent.demo.child import free_ports, running_child, wait_until_ready
from cacheagent.kube.webhook.certificates import CertificateSettings, take_step, utc_now
from tests.conftest import require
from tests.manifests.chart import find_helm
from tests.stacks.go_modules import workshop

VERSION: Final = "v0.20.0"
MODULE: Final = "github.com/kserve/kserve"
CONFIGURATION: Final = "inferenceservice.serving.kserve.io"
NOT_HERE: Final = {"Certificate", "Issuer", "Deployment", "Service", "ValidatingWebhookConfiguration"}
"""Of its chart: what needs a cert-manager or nodes, and the webhooks that change nothing; the others are reached by a
URL."""
UNKNOWN: Final = {"Certificate", "Issuer", "ClusterStorageContainer"}
"""Kinds that are never there, or gone with their definitions."""
LATER: Final = "zz-kserve"
"""A name of its webhooks behind ours."""
NUMBERED: Final = ("uid", "creationTimestamp", "name", "namespace", "resourceVersion", "managedFields", "generation")
PATIENCE_S: Final = 90.0

Object = dict[str, Any]


class Built(NamedTuple):
    """The program, and the module with its charts."""

    manager: Path
    source: Path


def built() -> Built:
    """Build it where it is missing: four minutes of two cores. Skips the test where Go or the module can't be had."""
    with workshop(f"kserve-{VERSION}", "KServe's manager is built from its module") as shop:
        source = shop.module(MODULE, VERSION)
        return Built(shop.program(source, "manager"), source)


class KServe:
    """An installed one, as its administrator sees it."""

    def __init__(self, kubeconfig: Path, folder: Path, source: Path) -> None:
        self._kubectl = require("kubectl", "speaks to the API server")
        self._environment = os.environ | {"KUBECONFIG": str(kubeconfig), "HOME": str(folder)}
        self._source = source
        self._pair = take_step("create", None, ("localhost",), utc_now(), CertificateSettings())
        self.port = 0

    def kubectl(self, *arguments: str, given: str = "") -> str:
        """What it prints. Raises CalledProcessError."""
        return subprocess.run(
            [self._kubectl, *arguments],
            input=given, check=True, capture_output=True, text=True, env=self._environment, timeout=120,
        ).stdout  # fmt: skip

    def apply(self, *objects: Object) -> None:
        """As their only owner."""
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=given)

    def install(self, serving: Path) -> None:
        """Definitions, roles, configuration and runtimes from its charts; the serving certificate into that folder."""
        self.apply(*self._charts("kserve-crd"))
        for kind in ("clusterstoragecontainers", "clusterservingruntimes", "inferenceservices"):
            self._until(partial(self.kubectl, "get", f"{kind}.serving.kserve.io", "-A"))
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kserve"}})
        resources = self._charts("kserve-resources")
        self.apply(*(each for each in resources if each["kind"] not in {*NOT_HERE, "MutatingWebhookConfiguration"}))
        self.apply(*self._charts("kserve-runtime-configs", "kserve.servingruntime.enabled=true"))
        serving.mkdir(parents=True)
        (serving / "tls.crt").write_bytes(self._pair.serving.certificate)
        (serving / "tls.key").write_bytes(self._pair.serving.key)

    def configure(self, name: str) -> None:
        """Its webhooks, under that name alone: names say who is called first."""
        (configuration,) = (
            each for each in self._charts("kserve-resources") if each["kind"] == "MutatingWebhookConfiguration"
        )
        configuration["metadata"]["name"] = name
        for hook in configuration["webhooks"]:
            path = hook["clientConfig"]["service"]["path"]
            bundle = base64.b64encode(self._pair.bundle_pem).decode()
            hook["clientConfig"] = {"url": f"https://localhost:{self.port}{path}", "caBundle": bundle}
        self.apply(configuration)

    def remove(self, name: str) -> None:
        """A configuration of them."""
        self.kubectl("delete", "mutatingwebhookconfiguration", name)

    def uninstall(self) -> None:
        """Its webhooks first: nobody answers them soon. With the definitions go the objects of its kinds."""
        self.kubectl("delete", "mutatingwebhookconfiguration", CONFIGURATION, LATER, "--ignore-not-found")
        rest = [
            *self._charts("kserve-resources"),
            *self._charts("kserve-crd"),
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kserve"}},
        ]
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": [e for e in rest if e["kind"] not in UNKNOWN]})
        self.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", given=given)

    def template_of(self, service: str, namespace: str) -> Object:
        """A pod as the controller describes it in the Deployment of an InferenceService, once there is one."""
        found = self._until(
            lambda: self.kubectl("get", "deployment", f"{service}-predictor", "-n", namespace, "-o", "json")
        )
        template: Object = json.loads(found)["spec"]["template"]
        metadata = {key: value for key, value in template["metadata"].items() if value and key not in NUMBERED}
        metadata["generateName"] = f"{service}-predictor-7d4b9c6f5d-"
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}

    def _until(self, ask: Callable[[], str]) -> str:
        """The answer, once there is one. Raises CalledProcessError with the last refusal."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask()
            except subprocess.CalledProcessError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.1)

    def _charts(self, chart: str, *values: str) -> list[Object]:
        command: list[str | Path] = [
            find_helm(),
            "template",
            "kserve",
            self._source / "charts" / chart,
            "--namespace",
            "kserve",
        ]
        command += [word for value in values for word in ("--set", value)]
        rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [each for each in yaml.safe_load_all(rendered) if each]


@contextmanager
def running_kserve(kubeconfig: Path, folder: Path) -> Iterator[KServe]:
    """Installed and ready until the block ends; its log goes to the folder."""
    program = built()
    kserve = KServe(kubeconfig, folder, program.source)
    kserve.install(folder / "kserve/k8s-webhook-server/serving-certs")
    metrics, kserve.port, probe = free_ports(3)
    command: list[str | Path] = [
        program.manager, f"--metrics-addr=127.0.0.1:{metrics}", f"--webhook-port={kserve.port}",
        f"--health-probe-addr=127.0.0.1:{probe}",
    ]  # fmt: skip
    log = folder / "kserve-manager.log"
    environment = {
        "KUBECONFIG": str(kubeconfig),
        "TMPDIR": str(folder / "kserve"),
        "POD_NAMESPACE": "kserve",
    }

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{probe}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with running_child(command, log_path=log, environment=environment) as child:
        wait_until_ready(child, is_ready, name="KServe's manager", log_path=log, timeout_s=PATIENCE_S)
        kserve.configure(CONFIGURATION)
        yield kserve
