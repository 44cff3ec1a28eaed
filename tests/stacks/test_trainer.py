"""Real Kubeflow Trainer 2.0.0 and JobSet on the tests' cluster: the example's TrainJob, whose runtime has a model
initializer, finds its model where its runtime looks for it.

The images of Trainer's initializers and of torchtune can't be had here. In place of the initializers' are images with a
`/bin/true`; the model initializer's own program is one that never ends, so that a job that runs has downloaded nothing.
In place of torchtune is a small Python program, which reads all of the model and writes beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest
import yaml

from tests.e2e.cluster.archive import pause_program, true_program, write_archive
from tests.e2e.cluster.binaries import ROOT
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.faults import apply_at_last
from tests.e2e.cluster.image import PRODUCT_IMAGE
from tests.e2e.cluster.models import (
    READ,
    Seen,
    Weights,
    condition,
    delete_models,
    model_cache,
    upload_checkpoint,
    wait_until_cached,
)
from tests.e2e.cluster.waiting import wait_until
from tests.stacks.examples import NEXT_TO_NOTHING, brought_in, read
from tests.stacks.trainer import running_trainer

pytestmark = [pytest.mark.stacks, pytest.mark.kube, pytest.mark.timeout(1800)]

STACK: Final = "kubeflow"
FIXTURE: Final = ROOT / "tests/fixtures/stacks/kubeflow/trainjob-torchtune.yaml"
SIZE: Final = 60_000_000
JOB: Final = "trainjobs.trainer.kubeflow.org"
STAND_INS: Final = {"dataset": "/bin/true", "model": "/download"}
"""Images of the initializers, and what each does unless it is told otherwise."""
TRAIN: Final = (
    'import os\nos.environ["WEIGHTS"] = "/workspace/model"\n'
    + READ
    + """
os.makedirs("/workspace/output", exist_ok=True)
with open("/workspace/output/adapter.safetensors", "w") as file:
    file.write("trained")
print(sorted(os.listdir("/workspace")))
"""
)

Object = dict[str, Any]


class Scene(NamedTuple):
    """A cluster with Trainer, where the example's model is on n1 and n2, and its other objects by their kinds."""

    cluster: Cluster
    weights: Weights
    namespace: str
    objects: dict[str, Object]


@pytest.fixture(scope="module")
def scene(product: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Both are installed, each as it comes."""
    folder = tmp_path_factory.mktemp("trainer")
    weights = upload_checkpoint(product.object_store, STACK, size_bytes=SIZE, shards=2, seed=95)
    load_stand_ins(product, folder)
    with running_trainer(product, folder), product.namespace(STACK) as namespace:
        found = {item["kind"]: item for item in read(STACK, "trainjob.yaml")}
        cached = found.pop("ModelCache")
        cached["spec"]["source"] = model_cache("", weights)["spec"]["source"]
        cached["spec"]["nodeSelector"] = {"pool": "warm"}
        for item in found.values():
            item["metadata"]["namespace"] = namespace
        volume = workspace(found["PersistentVolumeClaim"])
        try:
            product.apply(cached, volume)
            wait_until_cached(product, cached["metadata"]["name"], nodes=2)
            yield Scene(product, weights, namespace, found)
        finally:
            product.kubectl("delete", JOB, "--all", "-n", namespace, "--timeout=60s")
            product.kubectl("delete", "pods", "--all", "-n", namespace, "--grace-period=2", "--timeout=90s")
            product.kubectl("delete", "pvc", "--all", "-n", namespace, "--timeout=60s")
            product.kubectl("delete", "pv", namespace, "--ignore-not-found", "--timeout=60s")
            delete_models(product, cached["metadata"]["name"])


def load_stand_ins(cluster: Cluster, folder: Path) -> None:
    programs = {"bin/true": true_program(), "download": pause_program()}
    for name, entrypoint in STAND_INS.items():
        archive = folder / f"{name}.tar"
        reference = f"ghcr.io/kubeflow/trainer/{name}-initializer:v2.0.0"
        write_archive(archive, reference, programs, entrypoint=entrypoint)
        cluster.load_image(archive)


def workspace(claim: Object) -> Object:
    """The volume that the claim gets: the cluster has nobody who would make one. It is a directory of each node."""
    metadata = claim["metadata"]
    name = metadata["namespace"]
    claim["spec"]["volumeName"] = name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "200Gi"},
            "accessModes": claim["spec"]["accessModes"],
            "claimRef": {"name": metadata["name"], "namespace": name},
            "hostPath": {"path": f"/var/lib/{name}", "type": "DirectoryOrCreate"},
        },
    }


def job_of(runtime: Object, name: str) -> Object:
    """A pod template of a runtime."""
    jobs = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (found,) = (job["template"]["spec"]["template"] for job in jobs if job["name"] == name)
    return dict(found)


def adapted(objects: dict[str, Object]) -> list[Object]:
    """With our small trainer in place of torchtune, without its GPUs; root, since the workspace is a node's."""
    made: dict[str, Object] = json.loads(json.dumps(objects))
    node = job_of(made["TrainingRuntime"], "node")["spec"]
    del node["containers"][0]["resources"]
    node["containers"][0]["securityContext"] = {"runAsUser": 0}
    trainer = {"numNodes": 1, "image": PRODUCT_IMAGE, "command": ["/usr/bin/python3", "-u", "-c", TRAIN]}
    made["TrainJob"]["spec"]["trainer"] = trainer
    return list(made.values())


def test_the_examples_trainjob_finds_its_model_and_writes_beside_it(scene: Scene) -> None:
    """On a node that has it: nothing is brought in, by the initializer or by us, and the job is complete."""
    cluster, namespace = scene.cluster, scene.namespace
    before = brought_in(cluster)
    assert before >= scene.weights.size_bytes
    apply_at_last(cluster, *adapted(scene.objects))

    def complete() -> bool:
        status = cluster.get(JOB, "tune", "-n", namespace).get("status", {})
        assert condition(status, "Complete") == "True", status
        return True

    wait_until(complete, "the TrainJob is complete", 300)
    node, initializer = pod_of(cluster, namespace, "node"), pod_of(cluster, namespace, "model-initializer")
    seen, beside = cluster.kubectl("logs", node["metadata"]["name"], "-n", namespace, "-c", "node").splitlines()
    report = msgspec.json.decode(seen, type=Seen)
    assert (report.files, report.write) == (scene.weights.files, "Read-only file system")
    assert beside == "['model', 'output']"
    assert node["spec"]["nodeName"] in {"n1", "n2"}
    (container,) = initializer["spec"]["containers"]
    uri = scene.objects["TrainJob"]["spec"]["initializer"]["model"]["storageUri"]
    assert {"name": "STORAGE_URI", "value": uri} in container["env"]
    assert container["command"] == ["/bin/true"]
    assert brought_in(cluster) - before < NEXT_TO_NOTHING


def pod_of(cluster: Cluster, namespace: str, job: str) -> Object:
    (pod,) = cluster.get("pods", "-n", namespace, "-l", f"jobset.sigs.k8s.io/replicatedjob-name={job}")["items"]
    return dict(pod)


def test_the_fixture_is_what_trainer_makes(scene: Scene) -> None:
    """Of the example as it is, but for the model's name: the trainer's pod, as its Job describes it."""
    cluster = scene.cluster
    with cluster.namespace("fixture") as namespace:
        objects: dict[str, Object] = json.loads(json.dumps(scene.objects))
        for item in objects.values():
            item["metadata"]["namespace"] = namespace
        del objects["PersistentVolumeClaim"]
        (job_of(objects["TrainingRuntime"], "node")["metadata"]["annotations"])["cacheagent.io/model"] = "llama"
        jobs = objects["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
        del jobs[2]["dependsOn"]
        apply_at_last(cluster, *objects.values())
        arguments = ("job", "tune-node-0", "-n", namespace)
        found = wait_until(lambda: cluster.get(*arguments), "the TrainJob has its Job", 90)
        cluster.kubectl("delete", JOB, "--all", "-n", namespace, "--timeout=60s")
    assert fixture_of(found["spec"]["template"]) == yaml.safe_load(FIXTURE.read_text())


def fixture_of(template: Object) -> Object:
    """A pod of it, without what Kubernetes numbers."""
    of_jobset = ("jobset.sigs.k8s.io/jobset-uid", "jobset.sigs.k8s.io/job-key")
    numbered = ("batch.kubernetes.io/controller-uid", "controller-uid", *of_jobset)
    metadata = template["metadata"]
    made = {
        key: {name: text for name, text in metadata[key].items() if name not in numbered}
        for key in ("labels", "annotations")
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "tune-node-0-0-", **made},
        "spec": template["spec"],
    }
