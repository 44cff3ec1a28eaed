"""Knative Serving's real programs: built once from its own Go module into the cache of engines, and installed in the
tests' cluster by the module's own manifests. There is no networking layer, so whoever asks for a service speaks to the
activator, as an ingress would; and no registry, so tags of images are not resolved."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from tests.e2e.cluster.archive import write_archive
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.waiting import wait_until
from tests.stacks.go_modules import Workshop, workshop
from tests.stacks.name_server import serving_names

VERSION: Final = "v0.50.0"
MODULE: Final = "knative.dev/serving"
IMAGE: Final = f"localhost/knative-serving:{VERSION}"
PROGRAMS: Final = ("controller", "webhook", "autoscaler", "activator", "queue")
SYSTEM: Final = "knative-serving"
NOT_HERE: Final = {"Image", "Certificate", "HorizontalPodAutoscaler"}
"""Of its manifests: what asks for a registry, for a cert-manager, for a metrics server."""
SETTINGS: Final = {
    "config-deployment": {"queue-sidecar-image": IMAGE, "registries-skipping-tag-resolving": "index.docker.io"},
    "config-autoscaler": {"stable-window": "10s", "scale-to-zero-grace-period": "6s"},
}
"""Beside the defaults: images that no registry has (to Knative, `localhost/…` is one of Docker Hub), and less patience
with an idle revision. Features are as installed."""
INGRESS: Final = "ingresses.networking.internal.knative.dev"
ROUTES: Final = ("NetworkConfigured", "LoadBalancerReady", "Ready")
"""Conditions of an Ingress that a networking layer sets."""
NAMED: Final = {"namespace": "inference", "uid": "3f0d5d6c-7a49-4b7e-9b1e-0c8c6f2d1a11", "creator": "somebody"}
"""What differs each time, as fixtures have it."""

Object = dict[str, Any]


class Built(NamedTuple):
    """An image of its programs, as an archive; and the folders with its manifests, definitions first."""

    archive: Path
    manifests: tuple[Path, ...]


def built() -> Built:
    """Build it where it is missing: some minutes of two cores. Skips the test where Go or a module can't be had."""
    with workshop(f"knative-{VERSION}", "Knative's programs are built from their module") as shop:
        serving, archive = shop.module(MODULE, VERSION), shop.folder / "image.tar"
        if not archive.exists():
            _build(shop, serving, archive)
        versions = dict(re.findall(r"^\s+(knative\.dev/\w+) (\S+)$", (serving / "go.mod").read_text(), re.MULTILINE))
        beside = [shop.module(name, versions[name]) for name in ("knative.dev/networking", "knative.dev/caching")]
    core = serving / "config/core"
    parts = ("300-resources", ".", "200-roles", "configmaps", "deployments", "webhooks")
    return Built(archive, (*(each / "config" for each in beside), *(core / part for part in parts)))


def _build(shop: Workshop, serving: Path, archive: Path) -> None:
    programs = shop.folder / "programs"
    programs.mkdir(exist_ok=True)
    shop.build(serving, f"{programs}/", *(f"./cmd/{name}" for name in PROGRAMS))
    beside = shop.folder / "image.new"
    write_archive(beside, IMAGE, {name: (programs / name).read_bytes() for name in PROGRAMS}, entrypoint="/queue")
    beside.rename(archive)
    shutil.rmtree(programs)


def objects(manifests: tuple[Path, ...]) -> list[Object]:
    """What an operator applies, with our image and `SETTINGS`."""
    found = []
    for path in (path for folder in manifests for path in sorted(folder.glob("*.yaml"))):
        found += [item for item in yaml.safe_load_all(path.read_text()) if item and item["kind"] not in NOT_HERE]
    for item in found:
        if item["kind"] == "ConfigMap":
            item["data"] |= SETTINGS.get(item["metadata"]["name"], {})
        if item["kind"] == "Deployment":
            (container,) = item["spec"]["template"]["spec"]["containers"]
            container |= {"image": IMAGE, "command": [f"/{item['metadata']['name']}"]}
    return found


class Knative:
    """An installed one, as its users and its ingress see it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @property
    def activator(self) -> str:
        """The address of its pod; its HTTP port is 8012."""
        (pod,) = self._cluster.get("pods", "-n", SYSTEM, "-l", "app=activator")["items"]
        return str(pod["status"]["podIP"])

    def review(self, service: Object) -> None:
        """As `kubectl apply` of it, but nothing is made. Raises CommandFailed with what the webhook says."""
        self._cluster.kubectl("apply", "--dry-run=server", "-f", "-", text=json.dumps(service))

    @contextmanager
    def feature(self, name: str) -> Iterator[None]:
        """One of its flags is set until the block ends; it takes a moment for its webhook to know."""
        self._set_feature(name, "enabled")
        try:
            yield
        finally:
            self._set_feature(name, "disabled")

    def _set_feature(self, name: str, state: str) -> None:
        patch = ("--type=merge", "-p", json.dumps({"data": {name: state}}))
        self._cluster.kubectl("patch", "configmap", "config-features", "-n", SYSTEM, *patch)

    def wait_until_served(self, name: str, namespace: str, limit: float = 180.0) -> None:
        """The Service is Ready: its revision was, and this stands in for a networking layer that says so too."""

        def served() -> bool:
            self._say_that_it_routes(name, namespace)
            status = self._cluster.get("ksvc", name, "-n", namespace).get("status", {})
            states = {each["type"]: each["status"] for each in status.get("conditions", [])}
            assert states.get("Ready") == "True", status
            return True

        wait_until(served, f"the Knative Service {name} is ready", limit)

    def _say_that_it_routes(self, name: str, namespace: str) -> None:
        """Nothing does: it is only told, so that the Route, and with it the Service, can become ready."""
        ingress = self._cluster.get(INGRESS, name, "-n", namespace)
        since = ingress["metadata"]["creationTimestamp"]
        balancer = {"ingress": [{"domainInternal": f"activator-service.{SYSTEM}.svc.cluster.local"}]}
        status = {
            "observedGeneration": ingress["metadata"]["generation"],
            "conditions": [{"type": kind, "status": "True", "lastTransitionTime": since} for kind in ROUTES],
            "publicLoadBalancer": balancer,
            "privateLoadBalancer": balancer,
        }
        patch = ("--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
        self._cluster.kubectl("patch", INGRESS, name, "-n", namespace, *patch)

    def wait_until_zero(self, revision: str, namespace: str, limit: float = 240.0) -> None:
        """Its autoscaler took the last pod away, and that one is gone."""

        def zero() -> bool:
            found = self._cluster.get("deployment", f"{revision}-deployment", "-n", namespace)
            return found["spec"]["replicas"] == 0 and not self.pods(revision, namespace)

        wait_until(zero, f"{revision} is scaled to zero", limit)

    def template_of(self, revision: str, namespace: str) -> Object:
        """A pod as the controller describes it in a revision's Deployment, with fixed names in place of the test's."""
        arguments = ("deployment", f"{revision}-deployment", "-n", namespace)
        found = wait_until(lambda: self._cluster.get(*arguments), f"{revision} has a Deployment", 60)
        template = json.loads(json.dumps(found["spec"]["template"]).replace(namespace, NAMED["namespace"]))
        meta = {key: value for key, value in template["metadata"].items() if value}
        meta["labels"] |= {key: NAMED["uid"] for key in meta["labels"] if key.endswith("UID")}
        meta["annotations"]["serving.knative.dev/creator"] = NAMED["creator"]
        meta["generateName"] = f"{revision}-deployment-"
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}

    def pods(self, revision: str, namespace: str) -> list[Object]:
        """Of a revision; those that are ending too."""
        selector = f"serving.knative.dev/revision={revision}"
        return list(self._cluster.get("pods", "-n", namespace, "-l", selector)["items"])


@contextmanager
def running_knative(cluster: Cluster) -> Iterator[Knative]:
    """Installed and ready until the block ends; then nothing is left but its definitions."""
    program = built()
    cluster.load_image(program.archive)
    wanted = objects(program.manifests)
    definitions = [item for item in wanted if item["kind"] == "CustomResourceDefinition"]
    rest = [item for item in wanted if item["kind"] != "CustomResourceDefinition"]
    with serving_names(cluster):
        cluster.apply(*definitions)
        for item in definitions:
            name = item["metadata"]["name"]
            cluster.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=60s")
        try:
            cluster.apply(*(item for item in rest if item["kind"] == "Namespace"))
            cluster.apply(*(item for item in rest if item["kind"] != "Namespace"))
            for name in ("webhook", "controller", "autoscaler", "activator"):
                cluster.kubectl("rollout", "status", f"deployment/{name}", "-n", SYSTEM, "--timeout=180s", limit=200)
            yield Knative(cluster)
        finally:
            _remove(cluster, rest)


def _remove(cluster: Cluster, rest: list[Object]) -> None:
    """Its webhooks first: nobody answers them soon."""
    rest = sorted(rest, key=lambda item: "Webhook" not in item["kind"])
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": rest})
    cluster.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", text=given)
    cluster.kubectl("delete", "pods", "--all", "-n", SYSTEM, "--wait=false", "--grace-period=2")
