"""Real KServe 0.20.0 (Standard mode) on the tests' cluster: what its pods read on nodes that hold the model.

The images of its storage-initializer and of its server can't be had here. In place of the first one is an image with a
`/bin/true`, and a program that never ends where the download would be; so a pod that runs has downloaded nothing. In
place of the server is a ServingRuntime of the namespace, with a small Python server that reads all of its weights."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from cacheagent.demo.checkpoint import write_checkpoint
from cacheagent.kube import names
from tests.e2e.cluster.archive import pause_program, true_program, write_archive
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.faults import apply_at_last
from tests.e2e.cluster.image import PRODUCT_IMAGE
from tests.e2e.cluster.models import (
    Seen,
    Weights,
    clean_up,
    delete_models,
    model_cache,
    pods_of,
    printed,
    upload_checkpoint,
    wait_until_cached,
    wait_until_running,
)
from tests.e2e.cluster.paced import PacedOrigin, paced_origin
from tests.e2e.cluster.product import driver_nodes
from tests.e2e.cluster.waiting import wait_until
from tests.fakes.hub import Hub
from tests.stacks.examples import GPU, NEXT_TO_NOTHING, SERVE, brought_in, read, set_gpus
from tests.stacks.kserve import Object, running_kserve

pytestmark = [pytest.mark.stacks, pytest.mark.kube, pytest.mark.timeout(1800)]

STACK: Final = "kserve"
NODES: Final = ("n1", "n2", "n3")
SIZE: Final = 60_000_000
INITIALIZER: Final = "docker.io/kserve/storage-initializer:v0.20.0"
HUB_MODEL: Final = "qwen-hub"
SERVER: Final = "kserve-container"
SERVICES: Final = "inferenceservices.serving.kserve.io"
STANDARD: Final = {"serving.kserve.io/deploymentMode": "Standard"}
"""As KServe's chart comes, it would ask Knative."""
RUNTIME: Final[Object] = {
    "apiVersion": "serving.kserve.io/v1alpha1",
    "kind": "ServingRuntime",
    "metadata": {"name": "small"},
    "spec": {
        "supportedModelFormats": [{"name": "huggingface", "autoSelect": True}],
        "containers": [
            {
                "name": SERVER,
                "image": PRODUCT_IMAGE,
                "command": ["/usr/bin/python3", "-u", "-c", SERVE],
                "env": [{"name": "PORT", "value": "8080"}],
            }
        ],
    },
}


class Scene(NamedTuple):
    """A cluster with KServe, where the example's model (`cached`) is on every node. `namespace` has the example's
    label, `elsewhere` has none."""

    cluster: Cluster
    weights: Weights
    origin: PacedOrigin
    cached: Object
    namespace: str
    elsewhere: str


@pytest.fixture(scope="module")
def scene(product: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Both are installed; each node has one GPU, so that replicas don't share one."""
    folder = tmp_path_factory.mktemp("kserve-nodes")
    weights = upload_checkpoint(product.object_store, STACK, size_bytes=SIZE, shards=3, seed=94)
    load_initializer(product, folder)
    labels = read(STACK, "inferenceservice.yaml")[0]["metadata"]["labels"]
    with (
        paced_origin(weights.endpoint, None) as origin,
        running_kserve(product.kubeconfig, folder) as kserve,
        product.namespace(STACK, labels) as namespace,
        product.namespace("elsewhere") as elsewhere,
    ):
        for node in NODES:
            set_gpus(product, node, 1)
        cached = model_of_the_example(weights, origin, namespace)
        try:
            product.apply(cached)
            wait_until_cached(product, cached["metadata"]["name"], nodes=len(NODES))
            for each in (namespace, elsewhere):
                runtime = copy.deepcopy(RUNTIME)
                runtime["metadata"]["namespace"] = each
                apply_at_last(product, runtime)
            yield Scene(product, weights, origin, cached, namespace, elsewhere)
        finally:
            for each in (namespace, elsewhere):
                product.kubectl("delete", SERVICES, "--all", "-n", each, "--timeout=60s")
                product.kubectl("delete", "pods", "--all", "-n", each, "--grace-period=2", "--timeout=90s")
            clean_up(product, namespace, cached["metadata"]["name"])
            for node in NODES:
                set_gpus(product, node, None)
            kserve.uninstall()


def load_initializer(cluster: Cluster, folder: Path) -> None:
    archive = folder / "storage-initializer.tar"
    programs = {"bin/true": true_program(), "download": pause_program()}
    write_archive(archive, INITIALIZER, programs, entrypoint="/download")
    cluster.load_image(archive)


def model_of_the_example(weights: Weights, origin: PacedOrigin, namespace: str) -> Object:
    """With this cluster's source, namespace and nodes."""
    cached = read(STACK, "inferenceservice.yaml")[1]
    cached["spec"]["source"] = model_cache("", weights, source={"endpoint": origin.endpoint})["spec"]["source"]
    cached["spec"]["allowedNamespaces"]["names"] = [namespace]
    cached["spec"]["nodeSelector"] = {"kubernetes.io/os": "linux"}
    return cached


def service_of(file: str, uri: str, namespace: str, name: str = "") -> Object:
    """An example's InferenceService with another URI, and a GPU in place of what its server would need."""
    (service,) = (item for item in read(STACK, file) if item["kind"] == "InferenceService")
    metadata = service["metadata"]
    metadata |= {"namespace": namespace, "name": name or metadata["name"]}
    metadata["annotations"] = {**metadata.get("annotations", {}), **STANDARD}
    service["spec"]["predictor"]["model"] |= {"storageUri": uri, "resources": {"limits": {GPU: "1"}}}
    return service


def seen_by(scene: Scene, pod: Object) -> Seen:
    line = printed(scene.cluster, scene.namespace, pod["metadata"]["name"], container=SERVER, limit=90)
    return msgspec.json.decode(line, type=Seen)


def initializer_of(pod: Object) -> Object:
    (container,) = (each for each in pod["spec"]["initContainers"] if each["name"] == "storage-initializer")
    return dict(container)


def test_the_example_is_served_by_the_nodes_from_one_replica_to_three(scene: Scene) -> None:
    """Its pods read what the origin has, on each of three warm nodes, and nobody downloads: not KServe, and not we."""
    cluster, namespace = scene.cluster, scene.namespace
    before, sent = brought_in(cluster), scene.origin.bytes_sent
    assert min(before, sent) >= scene.weights.size_bytes
    service = service_of("inferenceservice.yaml", scene.weights.uri, namespace)
    name = service["metadata"]["name"]
    app = f"isvc.{name}-predictor"
    apply_at_last(cluster, service)
    wait_until_running(cluster, namespace, app, limit=180)
    cluster.kubectl("wait", "--for=condition=Ready", f"{SERVICES}/{name}", "-n", namespace, "--timeout=90s")

    more = {"spec": {"predictor": {"minReplicas": 3}}}
    cluster.kubectl("patch", SERVICES, name, "-n", namespace, "--type=merge", "-p", json.dumps(more))
    pods = wait_until_running(cluster, namespace, app, pods=3, limit=300)
    assert {pod["spec"]["nodeName"] for pod in pods} == set(NODES)
    for pod in pods:
        seen = seen_by(scene, pod)
        assert (seen.files, seen.write) == (scene.weights.files, "Read-only file system")
        assert initializer_of(pod)["command"] == ["/bin/true"]
        (ended,) = pod["status"]["initContainerStatuses"]
        assert ended["state"]["terminated"]["reason"] == "Completed"
        assert pod["metadata"]["labels"][names.INJECTED_LABEL] == "true"
    assert brought_in(cluster) - before < NEXT_TO_NOTHING
    assert scene.origin.bytes_sent - sent < NEXT_TO_NOTHING
    cluster.kubectl("delete", SERVICES, name, "-n", namespace, "--timeout=60s")
    wait_until(lambda: not pods_of(cluster, namespace, app), "its pods are gone", 90)


def test_a_repository_of_the_hub_is_served_as_the_example_names_it(scene: Scene, tmp_path: Path) -> None:
    """`hf://org/name`, and the same with KServe's way to write a revision: read on nodes that fetched it from a Hub
    before, while nobody asks the Hub again."""
    cluster, namespace = scene.cluster, scene.namespace
    _, example, service = read(STACK, "inferenceservice.yaml")
    uri = service["spec"]["predictor"]["model"]["storageUri"]
    assert example["spec"]["source"]["uri"] == uri
    written = write_checkpoint(tmp_path, size_bytes=SIZE // 3, shards=2, seed=95)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written}
    with Hub(host=cluster.address) as hub:
        hub.create(uri.removeprefix("hf://")).commit({path.name: path for path in written})
        cached = copy.deepcopy(scene.cached)
        cached["metadata"]["name"] = HUB_MODEL
        cached["spec"]["source"] = {"uri": uri, "endpoint": hub.url}
        cluster.apply(cached)
        wait_until_cached(cluster, HUB_MODEL, nodes=len(NODES))
        before = brought_in(cluster)
        asked = [len(server.requests) for server in (hub, hub.storage)]
        assert min(asked) >= len(NODES)
        by_name = {"plain": uri, "revision": f"{uri}:main"}
        apply_at_last(
            cluster, *(service_of("inferenceservice.yaml", each, namespace, name) for name, each in by_name.items())
        )
        for name, each in by_name.items():
            (pod,) = wait_until_running(cluster, namespace, f"isvc.{name}-predictor", limit=180)
            seen = seen_by(scene, pod)
            assert (seen.files, seen.write) == (digests, "Read-only file system")
            assert (initializer_of(pod)["command"], initializer_of(pod)["args"][0]) == (["/bin/true"], each)
            assert f"cacheagent-{HUB_MODEL}" in {volume["name"] for volume in pod["spec"]["volumes"]}
        assert brought_in(cluster) - before < NEXT_TO_NOTHING
        assert [len(server.requests) for server in (hub, hub.storage)] == asked
        cluster.kubectl("delete", SERVICES, *by_name, "-n", namespace, "--timeout=60s")
        for name in by_name:
            wait_until(lambda name=name: not pods_of(cluster, namespace, f"isvc.{name}-predictor"), "it is gone", 90)  # type: ignore[misc]
        delete_models(cluster, HUB_MODEL)


def test_a_claim_of_ours_is_a_storage_uri(scene: Scene, driverless: Cluster) -> None:
    """`pvc://` and the claim's name: KServe mounts it itself. Our webhook has nothing to do, our driver isn't there."""
    assert not driver_nodes(driverless)
    cluster, cached = scene.cluster, copy.deepcopy(scene.cached)
    model = cached["metadata"]["name"]
    cached["spec"]["localPersistentVolumes"] = {"namespaces": [scene.namespace]}
    cluster.apply(cached)
    claim = names.claim_name(model, wait_until_cached(cluster, model, nodes=len(NODES))["digest"])
    wait_until(lambda: cluster.get("pvc", claim, "-n", scene.namespace), "there is the claim", 60)
    before = brought_in(cluster)
    service = service_of("claim.yaml", f"pvc://{claim}", scene.namespace)
    name = service["metadata"]["name"]
    apply_at_last(cluster, service)
    (pod,) = wait_until_running(cluster, scene.namespace, f"isvc.{name}-predictor", limit=180)
    seen = seen_by(scene, pod)
    assert (seen.files, seen.write) == (scene.weights.files, "Read-only file system")
    assert "initContainers" not in pod["spec"]
    assert names.INJECTED_LABEL not in pod["metadata"]["labels"]
    assert brought_in(cluster) - before < NEXT_TO_NOTHING
    cluster.kubectl("delete", SERVICES, name, "-n", scene.namespace, "--timeout=60s")
    wait_until(lambda: not pods_of(cluster, scene.namespace, f"isvc.{name}-predictor"), "its pod is gone", 90)
    cluster.apply(scene.cached)


def test_what_no_model_cache_has_is_downloaded_by_kserve(scene: Scene) -> None:
    """The pod is the same in a namespace with the label and in one without, where a known URI is KServe's own too."""
    cluster = scene.cluster
    both = (scene.namespace, scene.elsewhere)
    unknown = [service_of("inferenceservice.yaml", "s3://elsewhere/iris", each, "unknown") for each in both]
    known = service_of("inferenceservice.yaml", scene.weights.uri, scene.elsewhere, "known")
    apply_at_last(cluster, *unknown, known)
    here, there = (downloading(cluster, each, "unknown") for each in both)
    assert comparable(here) == comparable(there)
    for pod in (here, there, downloading(cluster, scene.elsewhere, "known")):
        assert "command" not in initializer_of(pod)
        assert not {names.INJECTED_LABEL, names.NOT_SERVED} & {
            *pod["metadata"]["labels"], *pod["metadata"]["annotations"]
        }  # fmt: skip
    for each in both:
        cluster.kubectl("delete", SERVICES, "--all", "-n", each, "--timeout=60s")


def downloading(cluster: Cluster, namespace: str, name: str) -> Any:
    """The pod of an InferenceService, once its storage-initializer runs: the stand-in never ends."""

    def found() -> Any:
        (pod,) = pods_of(cluster, namespace, f"isvc.{name}-predictor")
        (status,) = pod["status"]["initContainerStatuses"]
        return pod if "running" in status["state"] else None

    return wait_until(found, f"{name} in {namespace} downloads", 180)


def comparable(pod: Object) -> Object:
    """Its specification, without what the cluster decides for each pod anew."""
    text = re.sub(r"kube-api-access-\w+", "kube-api-access", json.dumps(pod["spec"]))
    spec: Object = json.loads(text)
    del spec["nodeName"]
    return spec
