"""What upgrading, removing and installing the chart again does to pods that run: nothing. One story, in order.

It has a cluster of its own, of one node, because what it removes the other tests need.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from cryptography import x509

from cacheagent.demo.checkpoint import write_checkpoint
from cacheagent.kube.names import API_VERSION
from cacheagent.kube.webhook.certificates import (
    CertificateSettings,
    Stored,
    read_secret,
    secret_data,
    take_step,
    utc_now,
)
from cacheagent.tracing import start_of
from tests.conftest import missing
from tests.e2e.cluster.binaries import find_obstacle
from tests.e2e.cluster.cluster import Cluster, running_cluster
from tests.e2e.cluster.models import Weights, read_report, reading_pod, wait_until_cached, wait_until_running
from tests.e2e.cluster.node import CACHE_DIRECTORY, NodeOptions
from tests.e2e.cluster.process import CommandFailed
from tests.e2e.cluster.product import NAMESPACE, ON_EVERY_NODE, RELEASE, install, prepare_namespace, uninstall
from tests.e2e.cluster.readers import MODES, Readers
from tests.e2e.cluster.waiting import wait_until
from tests.fakes.origin import Origin
from tests.fakes.otlp import OtlpReceiver, Received, otlp_receiver

pytestmark = [pytest.mark.kube, pytest.mark.timeout(300, func_only=True), pytest.mark.usefixtures("lonely")]

SECRET = WEBHOOK_SERVICE = f"{RELEASE}-webhook"
CONFIGURATION = f"z-{RELEASE}"
RULES = CertificateSettings()
AGE = timedelta(seconds=0.7 * RULES.ca_life_s)
"""Of the webhook's authority when the story begins: due to be replaced, which takes a minute of being trusted."""


class Story(NamedTuple):
    """A cluster with the chart, two pods (`csi`, `pv`) that read a model all the while, its origin, pods that are
    asked for from the beginning, and a receiver of spans that an upgrade brings into play."""

    cluster: Cluster
    readers: Readers
    origin: Origin
    weights: Weights
    admissions: Admissions
    began: float
    spans: OtlpReceiver


@pytest.fixture(scope="module")
def lonely() -> Iterator[Cluster]:
    """A cluster of one node, c1."""
    obstacle = find_obstacle()
    if obstacle:
        missing(*obstacle)
    with running_cluster([NodeOptions(name="c1")]) as running:
        yield running


@pytest.fixture(scope="module")
def story(lonely: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    cluster = lonely
    directory = tmp_path_factory.mktemp("weights")
    write_checkpoint(directory, size_bytes=4_000_000, shards=2, seed=11)
    with (
        Origin({path.name: path for path in directory.iterdir()}, host=cluster.address) as origin,
        cluster.namespace("readers") as namespace,
        otlp_receiver(cluster.address) as spans,
        contextlib.ExitStack() as stack,
    ):
        files = {path: content.sha256() for path, content in origin.files.items()}
        size_bytes = sum(path.stat().st_size for path in directory.iterdir())
        origin.add_sums()
        weights = Weights(uri=f"{origin.url}/", endpoint="", region="", files=files, size_bytes=size_bytes)
        prepare_namespace(cluster)
        cluster.apply(aged_certificates())
        install(cluster)
        cluster.apply(model_cache(weights, namespace))
        admissions = Admissions(cluster, namespace)
        wait_until(admissions.try_one, "pods are admitted")
        admissions.start()
        stack.callback(admissions.end)
        wait_until_cached(cluster, "stays", nodes=1)
        readers = Readers(cluster, namespace)
        for mode in MODES:
            readers.start(mode, "stays", weights, mode=mode)
        readers.wait_until_reading()
        yield Story(cluster, readers, origin, weights, admissions, time.time(), spans)


def model_cache(weights: Weights, namespace: str) -> dict[str, Any]:
    spec = {"source": {"uri": weights.uri}, "localPersistentVolumes": {"namespaces": [namespace]}}
    return {"apiVersion": API_VERSION, "kind": "ModelCache", "metadata": {"name": "stays"}, "spec": spec}


def aged_certificates() -> dict[str, Any]:
    """The webhook's Secret as a release that is some years old has it."""
    service = f"{WEBHOOK_SERVICE}.{NAMESPACE}.svc"
    then = utc_now() - AGE
    made = take_step("create", None, (service, f"{service}.cluster.local"), then, RULES)
    made = take_step("renew", made, (service, f"{service}.cluster.local"), utc_now(), RULES)
    meta = {"name": SECRET, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": secret_data(made)}


def stored(cluster: Cluster) -> Stored:
    found = read_secret(cluster.get("secret", SECRET, "-n", NAMESPACE))
    assert found is not None
    return found


def trusted(cluster: Cluster) -> bytes:
    """What the API server checks the webhook's certificate by."""
    webhooks = cluster.get("mutatingwebhookconfiguration", CONFIGURATION)["webhooks"]
    (bundle,) = {webhook["clientConfig"].get("caBundle", "") for webhook in webhooks}
    return base64.b64decode(bundle)


class Admissions:
    """Asks for a pod with the annotation again and again, in a thread, without making it."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._pod = json.dumps(reading_pod("tried", namespace, "stays"))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.admitted = 0
        self.refused: list[str] = []

    def try_one(self) -> bool:
        """Raises `CommandFailed` where it isn't."""
        made = json.loads(self._cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", text=self._pod))
        assert made["spec"]["volumes"], "the webhook wasn't asked"
        return True

    def start(self) -> None:
        """Until `end`; `must_all_be_admitted` tells of those up to then."""
        self._thread.start()

    def end(self) -> None:
        """May be called twice."""
        self._over.set()
        self._thread.join(60)

    def must_all_be_admitted(self) -> None:
        """Of those that were asked for so far, and there were some."""
        assert not self.refused, self.refused
        assert self.admitted > 3

    def _run(self) -> None:
        while not self._over.wait(0.5):
            try:
                self.try_one()
                self.admitted += 1
            except (CommandFailed, AssertionError) as error:
                self.refused.append(str(error))


CHANGED: Mapping[str, Any] = {
    **ON_EVERY_NODE,
    "agent": {"config": {"logs": {"level": "debug"}, "page_cache": {"min_memory": "2GiB"}}},
    "controller": {"config": {"writes_per_second": 40}},
    "csi": {"resources": {"requests": {"cpu": "25m"}}},
}
"""Other containers for agent, driver and controllers."""


def test_an_upgrade_disturbs_nobody(story: Story) -> None:
    """All our containers are replaced; pods go on reading, others are admitted meanwhile, the authority stays."""
    cluster, readers = story.cluster, story.readers
    before, bundle = our_pods(cluster), trusted(cluster)
    assert bundle
    begin = time.time()
    install(cluster, {**CHANGED, "tracing": {"endpoint": story.spans.endpoint}})
    story.admissions.must_all_be_admitted()
    wait_until(lambda: not before & our_pods(cluster), "our pods are others", 60)
    readers.must_go_on(begin)
    assert trusted(cluster).startswith(bundle.split(b"-----END")[0]), "the authority of before is still trusted"
    written = cluster.get("configmap", f"{RELEASE}-agent", "-n", NAMESPACE)["data"]["agent.yaml"]
    assert "min_memory: 2GiB" in written, "the values were changed"


def test_a_start_is_one_trace(story: Story) -> None:
    """From its admission to its mount, told by controller and agent (which speaks for the driver) without a word
    between them: the model, whose files are here under another digest, is brought while the pod waits."""
    cluster, namespace = story.cluster, story.readers.namespace
    spec = {"source": {"uri": story.weights.uri}, "kind": "tree", "prefetch": False}
    cluster.apply({"apiVersion": API_VERSION, "kind": "ModelCache", "metadata": {"name": "traced"}, "spec": spec})
    began = time.time()
    cluster.apply(reading_pod("traced", namespace, "traced"))
    uid = cluster.get("pod", "traced", "-n", namespace)["metadata"]["uid"]
    start, whole = start_of(uid), {"start", "admission", "schedule", "wait", "fetch", "verify", "publish", "mount"}

    def told() -> dict[str, Received]:
        return {span.name: span for span in story.spans.spans if span.trace_id == f"{start.trace_id:032x}"}

    found = wait_until(lambda: told() if told().keys() >= whole else {}, "the whole start was told", 90)
    below = {f"{start.span_id:016x}": {"admission", "schedule", "wait", "mount"}, "": {"start"}}
    for parent, names in below.items():
        assert {name for name in whole if found[name].parent == parent} == names
    assert {found[name].parent for name in ("fetch", "verify", "publish")} == {found["wait"].span_id}
    assert {span.service for span in found.values()} == {"cacheagent-agent", "cacheagent-controller"}
    assert {found[name].node for name in ("wait", "fetch", "mount")} == {"c1"}
    assert began - 1 < found["start"].began_at == found["admission"].began_at < found["mount"].began_at
    assert found["wait"].ended_at <= found["mount"].began_at <= found["mount"].ended_at
    cluster.kubectl("delete", "pod", "traced", "-n", namespace, "--timeout=60s")
    cluster.kubectl("delete", "modelcache", "traced")


def our_pods(cluster: Cluster) -> set[str]:
    """By their uid."""
    return {pod["metadata"]["uid"] for pod in cluster.get("pods", "-n", NAMESPACE)["items"]}


def test_an_old_authority_is_replaced_without_a_lost_pod(story: Story) -> None:
    """It was due when the story began: the next one is trusted for a minute first, and only then shown. Pods were
    admitted all the time."""
    cluster = story.cluster
    young = utc_now() - AGE / 2
    wait_until(lambda: not_before(stored(cluster)) > young.timestamp(), "a new authority serves", 150, pause=1.0)
    wait_until(lambda: trusted(cluster) == stored(cluster).bundle_pem, "both are trusted")
    admitted = story.admissions.admitted
    wait_until(lambda: story.admissions.admitted > admitted + 5, "pods are admitted after it as well", 60)
    story.admissions.end()
    story.admissions.must_all_be_admitted()
    assert len(stored(cluster).bundle) == 2, "the old one is trusted while a replica may still show it"


def not_before(found: Stored) -> float:
    """When the serving authority was made, in seconds since the epoch."""
    return x509.load_pem_x509_certificate(found.ca.certificate).not_valid_before_utc.timestamp()


def test_an_emptied_authority_is_put_back(story: Story) -> None:
    """Tools that apply the configuration as they rendered it leave `caBundle` empty, and pods can't be made."""
    cluster = story.cluster
    bundle = trusted(cluster)
    empty = json.dumps([{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": ""}])
    begin = time.monotonic()
    cluster.kubectl("patch", "mutatingwebhookconfiguration", CONFIGURATION, "--type=json", "--patch", empty)
    wait_until(lambda: trusted(cluster) == bundle, "the controller puts it back", pause=0.05)
    wait_until(Admissions(cluster, story.readers.namespace).try_one, "pods are admitted")
    assert time.monotonic() - begin < 60


def test_uninstalling_leaves_pods_and_data(story: Story) -> None:
    """What runs reads on, in both modes; weights, definitions and objects stay; the notes say how to remove them."""
    cluster, readers = story.cluster, story.readers
    notes = cluster.helm("get", "notes", RELEASE, "--namespace", NAMESPACE)
    for advice in (
        f"rm -rf {CACHE_DIRECTORY}",
        "kubectl delete crd modelcaches.cacheagent.io",
        "cacheagent.io/injected",
    ):
        assert advice in notes
    trees = data_of(story)
    begin = time.time()
    uninstall(cluster)
    wait_until(lambda: not our_pods(cluster), "our pods are gone", 60)
    readers.must_go_on(begin)
    assert data_of(story) == trees
    assert cluster.get("modelcache", "stays")["status"]["digest"]
    gone = "daemonsets,deployments,configmaps,serviceaccounts"
    left = cluster.get(gone, "-n", NAMESPACE, "-l", f"app.kubernetes.io/instance={RELEASE}")["items"]
    everywhere = "clusterroles,clusterrolebindings,csidrivers,mutatingwebhookconfigurations,validatingadmissionpolicies"
    left += cluster.get(everywhere, "-l", f"app.kubernetes.io/instance={RELEASE}")["items"]
    assert not [f"{each['kind']} {each['metadata']['name']}" for each in left]


def data_of(story: Story) -> str:
    """What lies in the cache directory of the node, with owner, mode, size and number of names."""
    shown = r"%P %y %m %U:%G %n %s %i\n"
    trees = [f"{CACHE_DIRECTORY}/{name}" for name in ("blobs", "models")]
    found = story.cluster.node("c1").nsenter_command("find", *trees, "-printf", shown).stdout
    assert found.count("safetensors") >= 2
    return "\n".join(sorted(found.splitlines()))


def test_installing_again_takes_over_what_is_there(story: Story) -> None:
    """Not a byte comes from the origin; old pods go on and can be ended, new ones start."""
    cluster, readers, trees = story.cluster, story.readers, data_of(story)
    sent, begin = story.origin.body_bytes_sent(), time.time()
    install(cluster)
    wait_until_cached(cluster, "stays", nodes=1)
    wait_until(Admissions(cluster, readers.namespace).try_one, "pods are admitted")
    cluster.apply(reading_pod("new", readers.namespace, "stays"))
    wait_until_running(cluster, readers.namespace, "new")
    assert read_report(cluster, readers.namespace, "new").files == story.weights.files
    readers.must_go_on(begin)
    readers.must_go_on(story.began)
    assert story.origin.body_bytes_sent() == sent
    assert data_of(story) == trees
    begin = time.monotonic()
    readers.remove(*MODES)
    assert time.monotonic() - begin < 60
