"""What the product is for: a pod with only an annotation finds its weights in the node's cache, on a real cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from cacheagent.kube import names
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.models import (
    READ,
    READ_AND_STAY,
    START_AND_STAY,
    Weights,
    allow_volumes,
    deployment,
    events_of,
    job,
    model_status,
    our_volumes,
    printed,
    read_report,
    reading_pod,
    wait_until_running,
)
from tests.e2e.cluster.workload import python_pod
from tests.e2e.figures import median, report

pytestmark = pytest.mark.kube

SAFE = {"ro", "nosuid", "nodev", "noexec"}
WARM = {"n1", "n2"}
PAIRS = 6


def mounts_of(product: Cluster, pod: Mapping[str, Any]) -> list[tuple[str, set[str]]]:
    """Where and how the node itself has mounted weights for a pod."""
    node = product.node(pod["spec"]["nodeName"])
    return [
        (mount.mount_point, SAFE & mount.options)
        for mount in node.host_mounts()
        if pod["metadata"]["uid"] in mount.mount_point and mount.root.endswith(("/files", "/hf"))
    ]


def check_hashes(product: Cluster, namespace: str, pod: str, origin: Weights) -> None:
    """The pod read what the origin has, no more and no less, and could not write."""
    seen = read_report(product, namespace, pod)
    assert seen.files == origin.files
    assert seen.write == "Read-only file system"


def files_below(models: Mapping[str, Weights]) -> dict[str, str]:
    """Of all models, by their paths behind a beginning for each."""
    return {f"{begin}{path}": digest for begin, model in models.items() for path, digest in model.files.items()}


@pytest.mark.parametrize("model", ["llama", "minilm"])
def test_a_deployment_with_only_the_annotation_reads_what_the_origin_has(
    product: Cluster, namespace: str, model: str, request: pytest.FixtureRequest
) -> None:
    """Two of three nodes are warm and attract the pods; their own hash of every file equals the origin's."""
    origin: Weights = request.getfixturevalue(model)
    status = model_status(product, model)
    assert (status["files"], status["sizeBytes"]) == (len(origin.files), origin.size_bytes)
    product.apply(deployment("server", namespace, reading_pod("server", namespace, model), replicas=2))
    pods = wait_until_running(product, namespace, "server", pods=2)
    assert {pod["spec"]["nodeName"] for pod in pods} <= WARM
    for pod in pods:
        check_hashes(product, namespace, pod["metadata"]["name"], origin)
        ((_, options),) = mounts_of(product, pod)
        assert options == SAFE
        reasons = {event.partition(":")[0] for event in events_of(product, namespace, pod)}
        assert {"Scheduled", "Created", "Started"} <= reasons
        assert "FailedMount" not in reasons  # nothing to wait for, so nothing to tell


def test_several_models_in_one_pod(product: Cluster, namespace: str, llama: Weights, minilm: Weights) -> None:
    """Each below /mnt/models by its name, or where the pod wants it; init containers read them as well."""
    default = reading_pod("default", namespace, "llama,minilm")
    mapped = reading_pod(
        "mapped",
        namespace,
        "llama,minilm",
        options={"mount-path": "llama=/large,minilm=/small"},
        container={"env": [{"name": "WEIGHTS", "value": "/large:/small"}]},
    )
    first = {"name": "first", "image": product.image, "command": ["/usr/bin/python3", "-u", "-c", READ]}
    mapped["spec"]["initContainers"] = [{**first, "env": [{"name": "WEIGHTS", "value": "/large:/small"}]}]
    product.apply(default, mapped)
    for name in ("default", "mapped"):
        wait_until_running(product, namespace, name)
    expected = files_below({"llama/": llama, "minilm/": minilm})
    assert read_report(product, namespace, "default").files == expected
    expected = files_below({"/large/": llama, "/small/": minilm})
    assert read_report(product, namespace, "mapped").files == expected
    assert json.loads(printed(product, namespace, "mapped", container="first"))["files"] == expected


def test_a_hugging_face_library_finds_the_model_by_its_repository(
    product: Cluster, namespace: str, minilm: Weights
) -> None:
    """With `view: hf` and nothing else: injected variables keep the library offline, and it gets the mounted files."""
    code = """
import hashlib, json, os, time
from huggingface_hub import snapshot_download
folder = snapshot_download("sentence-transformers/all-MiniLM-L6-v2")
files = {}
for directory, _, names in os.walk(folder):
    for name in names:
        path = os.path.join(directory, name)
        with open(path, "rb") as file:
            files[os.path.relpath(path, folder)] = hashlib.file_digest(file, "sha256").hexdigest()
print(json.dumps({"started": 0, "read": 0, "files": files, "write": folder}))
"""
    command = ["python3", "-u", "-c", code + "time.sleep(600)"]  # the Python that has the product's own libraries
    product.apply(reading_pod("library", namespace, "minilm", options={"view": "hf"}, container={"command": command}))
    wait_until_running(product, namespace, "library")
    seen = read_report(product, namespace, "library")
    assert seen.files == minilm.files
    assert seen.write.startswith("/mnt/models")
    pod = product.get("pod", "library", "-n", namespace)
    environment = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
    assert environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "Job"])
def test_pods_of_every_kind_of_workload(product: Cluster, namespace: str, llama: Weights, kind: str) -> None:
    """The annotation stands in the template, whatever makes the pods of it."""
    pod = reading_pod("work", namespace, "llama")
    pod["spec"]["nodeSelector"] = {"pool": "warm"}
    if kind == "Job":
        product.apply(job("work", namespace, pod, pods=2))
    else:
        more = {"serviceName": "work"} if kind == "StatefulSet" else {}
        product.apply(deployment("work", namespace, pod, replicas=2, kind=kind, **more))
    for made in wait_until_running(product, namespace, "work", pods=2):
        check_hashes(product, namespace, made["metadata"]["name"], llama)


def test_a_volume_written_by_hand(product: Cluster, namespace: str, llama: Weights) -> None:
    """No annotation, so no webhook: the driver's own inline volume."""
    volume = {
        "name": "weights",
        "csi": {"driver": names.DRIVER, "readOnly": True, "volumeAttributes": {"model": "llama"}},
    }
    mounts = [{"name": "weights", "mountPath": "/mnt/models"}]
    product.apply(python_pod("by-hand", READ, node="n1", namespace=namespace, volumes=[volume], mounts=mounts))
    check_hashes(product, namespace, "by-hand", llama)


def test_the_same_by_a_local_persistent_volume(product: Cluster, namespace: str, llama: Weights) -> None:
    """`mode: pv`, and a claim that people name themselves: a warm node is picked, and the mount is as safe."""
    allow_volumes(product, "llama", namespace)
    claim = names.claim_name("llama", model_status(product, "llama")["digest"])
    pod = reading_pod("server", namespace, "llama", options={"mode": "pv"})
    volume = {"name": "weights", "persistentVolumeClaim": {"claimName": claim}}
    mounts = [{"name": "weights", "mountPath": "/mnt/models"}]
    own = python_pod("own-claim", READ_AND_STAY, namespace=namespace, volumes=[volume], mounts=mounts)
    product.apply(deployment("server", namespace, pod, replicas=2), own)
    pods = wait_until_running(product, namespace, "server", pods=2)
    pods += wait_until_running(product, namespace, "own-claim")
    for each in pods:
        assert each["spec"]["nodeName"] in WARM
        check_hashes(product, namespace, each["metadata"]["name"], llama)
        assert [options for _, options in mounts_of(product, each)] == [SAFE]
    assert len(our_volumes(product, namespace)) == 1
    allow_volumes(product, "llama")


def test_a_pod_starts_as_fast_as_one_without_weights(product: Cluster, namespace: str, llama: Weights) -> None:
    """From creation to its container's first line, on the same node, in turn: within a second of each other."""

    def start(name: str, pod: Mapping[str, Any]) -> float:
        begin = time.time()
        product.apply(pod)
        seconds = float(printed(product, namespace, name)) - begin
        product.kubectl("delete", "pod", name, "-n", namespace, "--wait=false")
        return seconds

    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(PAIRS):
        with_weights, without = f"with-{number}", f"without-{number}"
        pods = {
            with_weights: reading_pod(with_weights, namespace, "llama", START_AND_STAY, node="n1"),
            without: python_pod(without, START_AND_STAY, node="n1", namespace=namespace),
        }
        for name in (with_weights, without) if number % 2 else (without, with_weights):
            seconds[name.partition("-")[0]].append(start(name, pods[name]))
    differences = [one - other for one, other in zip(seconds["with"], seconds["without"], strict=True)]
    report(
        "warm start",
        with_weights_s=seconds["with"],
        without_s=seconds["without"],
        median_difference_s=median(differences),
        bar_s=1.0,
    )
    assert median(differences) < max(1.0, median(seconds["without"]))  # a machine that is busy otherwise takes longer
