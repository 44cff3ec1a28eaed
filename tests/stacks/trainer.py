"""Kubeflow Trainer's and JobSet's real controllers with their webhooks: built once from their own Go modules into the
cache of engines, and installed in the tests' cluster by the charts in these modules."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from tests.e2e.cluster.archive import write_archive
from tests.e2e.cluster.cluster import Cluster
from tests.manifests.chart import find_helm
from tests.stacks.go_modules import workshop

VERSION: Final = "v2.0.0"
JOBSET_VERSION: Final = "v0.10.1"
IMAGE: Final = f"localhost/kubeflow-trainer:{VERSION}"
SYSTEM: Final = "kubeflow-system"
PROGRAMS: Final = {"kubeflow-trainer-controller-manager": "/trainer", "jobset-controller": "/jobset"}
"""By their Deployments."""
PATIENCE: Final = "--timeout=300s"
"""They wait until the kubelet shows them the certificate that they have just written: a minute and more."""

Object = dict[str, Any]


class Built(NamedTuple):
    """An image of both programs, as an archive; and their modules."""

    archive: Path
    trainer: Path
    jobset: Path


def built() -> Built:
    """Build it where it is missing: some minutes of two cores. Skips the test where Go or a module can't be had."""
    with workshop(f"trainer-{VERSION}", "Kubeflow Trainer is built from its module") as shop:
        trainer = shop.module("github.com/kubeflow/trainer/v2", VERSION)
        jobset = shop.module("sigs.k8s.io/jobset", JOBSET_VERSION)
        archive = shop.folder / "image.tar"
        if not archive.exists():
            programs = shop.folder / "programs"
            programs.mkdir(exist_ok=True)
            shop.build(trainer, programs / "trainer", "./cmd/trainer-controller-manager")
            shop.build(jobset, programs / "jobset", ".")
            files = {name: (programs / name).read_bytes() for name in ("trainer", "jobset")}
            write_archive(shop.folder / "image.new", IMAGE, files, entrypoint="/trainer")
            (shop.folder / "image.new").rename(archive)
            shutil.rmtree(programs)
    return Built(archive, trainer, jobset)


def objects(program: Built, folder: Path) -> list[Object]:
    """What an operator installs, with our image. The one chart would fetch the other one: its copy doesn't."""
    copy = folder / "kubeflow-trainer"
    subprocess.run(["cp", "-r", "--no-preserve=mode", program.trainer / "charts/kubeflow-trainer", copy], check=True)
    description = yaml.safe_load((copy / "Chart.yaml").read_text())
    del description["dependencies"]
    (copy / "Chart.yaml").write_text(yaml.safe_dump(description))
    found = [*_rendered("jobset", program.jobset / "charts/jobset"), *_rendered("kubeflow-trainer", copy)]
    for item in found:
        if item["kind"] == "Deployment":
            (container,) = item["spec"]["template"]["spec"]["containers"]
            command = [PROGRAMS[item["metadata"]["name"]]]
            container |= {"image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": command}
    return found


def _rendered(release: str, chart: Path) -> list[Object]:
    command: list[str | Path] = [
        find_helm(), "template", release, chart, "--include-crds", "--namespace", SYSTEM,
    ]  # fmt: skip
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [each for each in yaml.safe_load_all(text) if each]


@contextmanager
def running_trainer(cluster: Cluster, folder: Path) -> Iterator[None]:
    """Installed and ready until the block ends; then nothing is left."""
    program = built()
    cluster.load_image(program.archive)
    wanted = objects(program, folder)
    definitions = [item for item in wanted if item["kind"] == "CustomResourceDefinition"]
    rest = [item for item in wanted if item["kind"] != "CustomResourceDefinition"]
    # Too large for the annotation that `kubectl apply` would keep.
    _server_side(cluster, definitions)
    for item in definitions:
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{item['metadata']['name']}", "--timeout=60s")
    try:
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
        _server_side(cluster, rest)
        for name in PROGRAMS:
            cluster.kubectl("rollout", "status", f"deployment/{name}", "-n", SYSTEM, PATIENCE, limit=320)
        yield
    finally:
        _remove(cluster, [*rest, *definitions])


def _server_side(cluster: Cluster, items: list[Object]) -> None:
    """Into the release's namespace where they don't say one, as helm does it."""
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    cluster.kubectl("apply", "--server-side", "-n", SYSTEM, "-f", "-", text=given)


def _remove(cluster: Cluster, items: list[Object]) -> None:
    """Webhooks first: nobody answers them soon."""
    items = sorted(items, key=lambda item: "Webhook" not in item["kind"])
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    cluster.kubectl("delete", "--ignore-not-found", "--wait=false", "-n", SYSTEM, "-f", "-", text=given)
    cluster.kubectl("delete", "namespace", SYSTEM, "--ignore-not-found", "--wait=false")
