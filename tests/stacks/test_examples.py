"""Files of `examples/` as they are, on the tests' cluster: `kubectl apply -f`, and their pods run with their weights.

What the files take from elsewhere is there under the same names: buckets and repositories (an S3 server and a Hub of
ours, by the chart's values), node pools with GPUs, namespaces. The images can't be had here: in their places are ones
whose programs wait until they are killed. Stacks with controllers of their own have tests of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml

from cacheagent.demo.bucket import Bucket
from cacheagent.demo.checkpoint import write_checkpoint
from tests.e2e.cluster.archive import pause_program, write_archive
from tests.e2e.cluster.binaries import ROOT
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.models import NotYet, events_of
from tests.e2e.cluster.product import NAMESPACE, ON_EVERY_NODE, STORE, install
from tests.e2e.cluster.waiting import NotSeen, wait_until
from tests.fakes.hub import Hub
from tests.fakes.models import write_files
from tests.stacks.examples import set_gpus

pytestmark = [pytest.mark.stacks, pytest.mark.kube, pytest.mark.timeout(900, func_only=True)]

EXAMPLES: Final = ROOT / "examples"
BEFORE: Final = EXAMPLES / "kubernetes/modelcaches.yaml"
"""What other files of its folder name."""
FILES: Final = tuple(
    EXAMPLES / name
    for name in (
        "kubernetes/vllm.yaml", "kubernetes/pv.yaml", "kubernetes/init.yaml", "kubernetes/gate.yaml",
        "kubernetes/inline-volume.yaml", "kubernetes/on-demand.yaml", "vllm/path.yaml", "vllm/repo-id.yaml",
        "triton/deployment.yaml", "triton/vllm-backend.yaml", "pytorch/folder.yaml", "pytorch/shards.yaml",
        "gpu-operator/deployment.yaml", "autoscaling/deployment.yaml",
    )
)  # fmt: skip
NEEDED: Final = {"vllm-backend.yaml": EXAMPLES / "vllm/path.yaml"}
"""What the comment at a file's top says is to be there too."""
ON_DEMAND: Final = "s3://models/experiments/run-17"
POOLS: Final = {"n1": "h100", "n2": "inference", "n3": "l40s"}
OURS: Final = ("/models/sha256-", "/cacheagent/volumes/csi-")
"""Where the cache is below: a version itself, or the directory of a volume that an init container waits for."""
GPU_NODE: Final = "nvidia.com/gpu.present"
GPUS: Final = 64
"""Of each node: none of the files shall wait for another one's."""
TOKEN: Final = "hf_of_the_tests"  # the Hub here is ours

Object = dict[str, Any]


class Workload(NamedTuple):
    """`selector`: kubectl's arguments that find its pods. `models`: how many a pod mounts."""

    namespace: str
    selector: tuple[str, str]
    pods: int
    models: int


def read(path: Path) -> list[Object]:
    return list(yaml.safe_load_all(path.read_text()))


def workloads(path: Path) -> list[Workload]:
    """Those of a file, and how many pods they make."""
    found = []
    for item in read(path):
        name, spec = item["metadata"]["name"], item.get("spec", {})
        template = item if item["kind"] == "Pod" else spec.get("template")
        if template is None:
            continue
        labels = ",".join(f"{key}={value}" for key, value in template["metadata"].get("labels", {}).items())
        selector = {"Job": ("-l", f"job-name={name}"), "Pod": ("--field-selector", f"metadata.name={name}")}
        pods = spec.get("parallelism", 1) if item["kind"] == "Job" else spec.get("replicas", 1)
        asked = template["metadata"].get("annotations", {}).get("cacheagent.io/model", "one").split(",")
        by = selector.get(item["kind"], ("-l", labels))
        found.append(Workload(item["metadata"]["namespace"], by, pods, len(asked)))
    return found


def containers(path: Path) -> Iterator[Object]:
    for item in read(path):
        template = item if item["kind"] == "Pod" else item.get("spec", {}).get("template")
        if template is not None:
            yield from template["spec"]["containers"]


@pytest.fixture(scope="module")
def scene(product: Cluster) -> Iterator[Cluster]:
    """All that the files take from elsewhere is there."""
    with tempfile.TemporaryDirectory() as folder, Hub(host=product.address) as hub:
        hub.tokens.add(TOKEN)
        fill_origins(product, hub, Path(folder))
        load_images(product, Path(folder))
        before = {node: product.get("node", node)["metadata"]["labels"].get("pool") for node in POOLS}
        for node, pool in POOLS.items():
            product.kubectl("label", "node", node, f"pool={pool}", f"{GPU_NODE}=true", "--overwrite")
            set_gpus(product, node, GPUS)
        for namespace in sorted({each.namespace for path in FILES for each in workloads(path)}):
            product.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        secret = {"name": "hub-token", "namespace": NAMESPACE}
        product.apply({"apiVersion": "v1", "kind": "Secret", "metadata": secret, "stringData": {"token": TOKEN}})
        try:
            install(product, values(product, hub))
            product.kubectl("apply", "-f", BEFORE)
            yield product
        finally:
            for namespace in sorted({each.namespace for path in FILES for each in workloads(path)}):
                product.kubectl("delete", "deployments,statefulsets,jobs,pods", "--all", "-n", namespace)
                product.kubectl("delete", "namespace", namespace, "--wait=false")
            product.kubectl("delete", "modelcaches", "--all", "--timeout=60s")
            for node, pool in before.items():
                set_gpus(product, node, None)
                product.kubectl("label", "node", node, f"pool={pool}" if pool else "pool-", "--overwrite")
                product.kubectl("label", "node", node, f"{GPU_NODE}-")
            install(product)


def values(cluster: Cluster, hub: Hub) -> Object:
    """Of the chart: credentials by the names that the files use, at the origins of the test."""
    example = read(EXAMPLES / "kubernetes/values.yaml")[0]
    models = {"kind": "aws", "secretName": STORE, "endpoint": cluster.object_store.endpoint}
    agent = {**ON_EVERY_NODE["agent"], "extraEnv": [{"name": "HF_ENDPOINT", "value": hub.url}]}
    return {
        **ON_EVERY_NODE,
        "agent": agent,
        "credentials": {**ON_EVERY_NODE["credentials"], "models": models, "hub": example["credentials"]["hub"]},
        "onDemand": {**ON_EVERY_NODE["onDemand"], "rules": example["onDemand"]["rules"]},
    }


def fill_origins(cluster: Cluster, hub: Hub, folder: Path) -> None:
    """Something small under each URI of the files."""
    found = [item for path in (BEFORE, *FILES) for item in read(path) if item["kind"] == "ModelCache"]
    wanted = {item["spec"]["source"]["uri"]: item["spec"] for item in found}
    for number, (uri, spec) in enumerate({**wanted, ON_DEMAND: {}}.items()):
        directory = folder / str(number)
        if spec.get("kind") == "tree":
            (pattern,) = spec["source"].get("include", ["*/model.bin"])
            write_files(
                directory, {pattern.replace("*", str(part)): bytes([number, part]) * 5_000 for part in range(5)}
            )
        else:
            write_checkpoint(directory, size_bytes=2_000_000, shards=1, seed=number)
        scheme, _, rest = uri.partition("://")
        if scheme == "hf":
            hub.create(rest).commit({path.name: path for path in directory.iterdir()})
        else:
            bucket, _, prefix = rest.partition("/")
            Bucket(cluster.object_store, bucket).upload(directory, prefix)


def load_images(cluster: Cluster, folder: Path) -> None:
    """Under each name that a file has, with the programs that it starts; their entry point waits as well."""
    programs: dict[str, set[str]] = {}
    for path in FILES:
        for container in containers(path):
            programs.setdefault(container["image"], set()).update(container.get("command", [])[:1])
    for number, (image, started) in enumerate(programs.items()):
        host, _, _ = image.partition("/")
        reference = image if "." in host else f"docker.io/{image}"
        archive = folder / f"image-{number}.tar"
        write_archive(
            archive, reference, {name: pause_program() for name in ("pause", *(f"bin/{each}" for each in started))},
            entrypoint="/pause",
        )  # fmt: skip
        cluster.load_image(archive)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_its_pods_run_with_their_weights(scene: Cluster, path: Path) -> None:
    """Each mounts a verified version of each of its models, read-only; nothing in the file was changed."""
    files = [each for each in (NEEDED.get(path.name), path) if each]
    try:
        for file in files:
            scene.kubectl("apply", "-f", file)
        for each in workloads(path):
            for pod in until_running(scene, each):
                must_see_weights(scene, pod, each.models)
    finally:
        for file in reversed(files):
            scene.kubectl("delete", "-f", file, "--grace-period=2", "--ignore-not-found", "--timeout=90s")


def must_see_weights(cluster: Cluster, pod: Object, models: int) -> None:
    """So many read-only mounts of ours are in it, and each shows files."""
    node = cluster.node(pod["spec"]["nodeName"])
    mounts = [
        mount
        for mount in node.host_mounts()
        if f"/pods/{pod['metadata']['uid']}/" in mount.mount_point and any(root in mount.root for root in OURS)
    ]
    assert len(mounts) >= models
    for mount in mounts:
        assert mount.is_read_only
        assert node.nsenter_command("find", "-L", mount.mount_point, "-type", "f").stdout


def until_running(cluster: Cluster, wanted: Workload) -> list[Object]:
    """Its pods, once all of their containers run."""

    def running() -> list[Object]:
        pods = cluster.get("pods", "-n", wanted.namespace, *wanted.selector)["items"]
        states = [status["state"] for pod in pods for status in pod["status"].get("containerStatuses", [])]
        if len(pods) != wanted.pods or len(states) < len(pods) or not all("running" in state for state in states):
            raise NotYet(f"{[pod['metadata']['name'] for pod in pods]}: {states}")
        return list(pods)

    try:
        return wait_until(running, f"{wanted.pods} pods of {wanted.selector[1]} run", 120)
    except NotSeen as error:
        pods = cluster.get("pods", "-n", wanted.namespace, *wanted.selector)["items"]
        told = [each for pod in pods for each in events_of(cluster, wanted.namespace, pod)]
        raise NotSeen(f"{error}\nevents: {told}") from None
