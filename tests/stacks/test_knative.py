"""Real Knative Serving (controller, webhook, autoscaler, activator, queue proxy) on the tests' cluster: the example's
Service scales from zero onto a node that holds the model, and onto one that doesn't.

There is no networking layer. The test asks the activator, with the headers that an ingress would send along, and stands
in for the layer where Knative waits to be told that it routes (`Knative.wait_until_served`). The engine is a small
Python server, which reads all of its weights before it listens."""

from __future__ import annotations

import contextlib
import copy
import http.client
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
import pytest
import yaml

from cacheagent.kube import names
from tests.e2e.cluster.binaries import ROOT
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.faults import apply_at_last, node_model, slow_link
from tests.e2e.cluster.image import PRODUCT_IMAGE
from tests.e2e.cluster.models import (
    READ,
    Seen,
    Weights,
    allow_volumes,
    delete_models,
    model_cache,
    model_status,
    upload_checkpoint,
    wait_until_cached,
)
from tests.e2e.cluster.process import CommandFailed
from tests.e2e.cluster.product import driver_nodes
from tests.e2e.cluster.waiting import wait_until
from tests.e2e.figures import median, report
from tests.stacks.knative import Knative, running_knative

pytestmark = [pytest.mark.stacks, pytest.mark.kube, pytest.mark.timeout(1800)]

MODEL: Final = "llama-3-8b"
SIZE: Final = 200_000_000
FIXTURE: Final = ROOT / "tests/fixtures/stacks/knative/revision.yaml"
REVISION: Final = "llama-00001"
LINK_MBIT: Final = 160
"""Of the cold node; 20 MB a second."""
WARM_ROUNDS: Final = 2
SERVER: Final = (
    "import io, sys\nsys.stdout = io.StringIO()\n"
    + READ
    + """
import http.server, signal
said = sys.stdout.getvalue().encode()

class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Answers).serve_forever()
"""
)
"""Answers what it read, once it has read it."""


class Scene(NamedTuple):
    """A cluster with Knative, where the model is on n1 and n2; `namespace` is where its Services are."""

    cluster: Cluster
    knative: Knative
    weights: Weights
    namespace: str


class Answered(NamedTuple):
    """From the request to the first byte of its answer, and who gave it."""

    seconds: float
    seen: Seen
    pod: dict[str, Any]


@pytest.fixture(scope="module")
def scene(product: Cluster) -> Iterator[Scene]:
    """Both are installed, each as it comes."""
    weights = upload_checkpoint(product.object_store, "knative", size_bytes=SIZE, shards=4, seed=50)
    with running_knative(product) as knative, product.namespace("knative") as namespace:
        product.apply(model_cache(MODEL, weights, nodeSelector={"pool": "warm"}))
        wait_until_cached(product, MODEL, nodes=2)
        yield Scene(product, knative, weights, namespace)
        product.kubectl("delete", "ksvc", "--all", "-n", namespace, "--timeout=60s")
        product.kubectl("delete", "pods", "--all", "-n", namespace, "--grace-period=2", "--timeout=90s")
        delete_models(product, MODEL)


def example(namespace: str) -> dict[str, Any]:
    """The file, in that namespace."""
    service: dict[str, Any] = yaml.safe_load((ROOT / "examples/knative/service.yaml").read_text())
    service["metadata"]["namespace"] = namespace
    return service


def adapted(namespace: str) -> dict[str, Any]:
    """With our small server in place of the engine, and without its GPU."""
    service = example(namespace)
    (container,) = service["spec"]["template"]["spec"]["containers"]
    for name in ("args", "resources"):
        del container[name]
    container |= {"image": PRODUCT_IMAGE, "command": ["/usr/bin/python3", "-u", "-c", SERVER]}
    return service


def ask(scene: Scene, revision: str = REVISION) -> Answered:
    """As an ingress asks for a revision that may be at zero."""
    headers = {"Knative-Serving-Namespace": scene.namespace, "Knative-Serving-Revision": revision}
    with contextlib.closing(http.client.HTTPConnection(scene.knative.activator, 8012, timeout=300)) as connection:
        begin = time.monotonic()
        connection.request("GET", "/", headers=headers)
        answer = connection.getresponse()
        first = answer.read(1)
        seconds = time.monotonic() - begin
        body = first + answer.read()
    assert answer.status == 200, body
    (pod,) = scene.knative.pods(revision, scene.namespace)
    return Answered(seconds, msgspec.json.decode(body, type=Seen), pod)


def test_the_example_needs_no_feature_flag(scene: Scene) -> None:
    """As it is, the real webhook accepts it; the same volume, written by hand, is refused (the positive control)."""
    service = example(scene.namespace)
    scene.knative.review(service)
    by_hand = copy.deepcopy(service)
    by_hand["spec"]["template"]["spec"]["volumes"] = [
        {"name": "weights", "csi": {"driver": names.DRIVER, "readOnly": True, "volumeAttributes": {"model": MODEL}}}
    ]
    with pytest.raises(CommandFailed, match="CSI volume support is disabled"):
        scene.knative.review(by_hand)


def test_the_fixture_is_what_knative_makes(scene: Scene) -> None:
    """Of the example, as it is, but for the model's name and the queue proxy's image."""
    with scene.cluster.namespace("fixture") as namespace:
        service = example(namespace)
        service["spec"]["template"]["metadata"]["annotations"][names.MODEL] = "llama"
        apply_at_last(scene.cluster, service)
        made = scene.knative.template_of(REVISION, namespace)
        scene.cluster.kubectl("delete", "ksvc", "--all", "-n", namespace, "--timeout=60s")
    assert made == yaml.safe_load(FIXTURE.read_text())


def test_from_zero_onto_a_warm_node_and_onto_a_cold_one(scene: Scene) -> None:
    """The request waits in the activator meanwhile, and is answered with what the origin has."""
    cluster, knative = scene.cluster, scene.knative
    apply_at_last(cluster, adapted(scene.namespace))
    knative.wait_until_served("llama", scene.namespace)
    warm = []
    for _ in range(WARM_ROUNDS):
        knative.wait_until_zero(REVISION, scene.namespace)
        warm.append(answer := ask(scene))
        assert answer.seen.files == scene.weights.files
        assert answer.seen.write == "Read-only file system"
        assert answer.pod["spec"]["nodeName"] in {"n1", "n2"}
        must_be_served_its_weights(answer.pod)
    knative.wait_until_zero(REVISION, scene.namespace)
    assert not node_model(cluster, "n3", MODEL)
    cluster.kubectl("cordon", "n1", "n2")
    try:
        with slow_link(cluster, "n3", LINK_MBIT):
            cold = ask(scene)
    finally:
        cluster.kubectl("uncordon", "n1", "n2")
    assert cold.pod["spec"]["nodeName"] == "n3"
    assert cold.seen.files == scene.weights.files
    cluster.kubectl("delete", "ksvc", "llama", "-n", scene.namespace, "--timeout=60s")
    wait_until(lambda: not knative.pods(REVISION, scene.namespace), "its last pod is gone", 120)
    report(
        "knative, from a request to its first byte, from zero",
        warm_node_s=[each.seconds for each in warm],
        warm_node_median_s=median([each.seconds for each in warm]),
        cold_node_s=cold.seconds,
        cold_nodes_link_mbit_s=LINK_MBIT,
        model_bytes=scene.weights.size_bytes,
    )


def test_mode_pv_needs_no_flag_and_a_claim_by_hand_needs_one(scene: Scene, driverless: Cluster) -> None:
    """Both are served from a local volume, and our driver isn't there; the claim in the Service itself is refused
    before the flag is set."""
    assert not driver_nodes(driverless)
    cluster, knative = scene.cluster, scene.knative
    allow_volumes(cluster, MODEL, scene.namespace)
    claim = names.claim_name(MODEL, model_status(cluster, MODEL)["digest"])
    wait_until(lambda: cluster.get("pvc", claim, "-n", scene.namespace), "there is the claim", 60)
    annotated, by_hand = adapted(scene.namespace), adapted(scene.namespace)
    annotated["metadata"]["name"], by_hand["metadata"]["name"] = "annotated", "by-hand"
    annotated["spec"]["template"]["metadata"]["annotations"][f"{names.GROUP}/mode"] = "pv"
    del by_hand["spec"]["template"]["metadata"]["annotations"][names.MODEL]
    revision = by_hand["spec"]["template"]["spec"]
    source = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    revision["volumes"] = [{"name": "weights", **source}]
    revision["containers"][0]["volumeMounts"] = [{"name": "weights", "mountPath": "/mnt/models", "readOnly": True}]
    with pytest.raises(CommandFailed, match="Persistent volume claim support is disabled"):
        knative.review(by_hand)
    apply_at_last(cluster, annotated)
    with knative.feature("kubernetes.podspec-persistent-volume-claim"):
        apply_at_last(cluster, by_hand)
        for name in ("annotated", "by-hand"):
            knative.wait_until_served(name, scene.namespace)
            answered = ask(scene, f"{name}-00001")
            assert (answered.seen.files, answered.seen.write) == (scene.weights.files, "Read-only file system")
            assert claim in {
                each.get("persistentVolumeClaim", {}).get("claimName") for each in answered.pod["spec"]["volumes"]
            }
        cluster.kubectl("delete", "ksvc", "annotated", "by-hand", "-n", scene.namespace, "--timeout=60s")
    allow_volumes(cluster, MODEL)


def must_be_served_its_weights(pod: dict[str, Any]) -> None:
    """The volume is in the user's container alone: the queue proxy is Knative's."""
    volume = f"cacheagent-{MODEL}"
    mounted = {
        each["name"]: volume in {mount["name"] for mount in each.get("volumeMounts", [])}
        for each in pod["spec"]["containers"]
    }
    assert mounted == {"vllm": True, "queue-proxy": False}
