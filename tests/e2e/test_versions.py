"""A model's version changes, and who may use it changes, while pods read it: they keep what they have.

The tests share readers and go on where the one before stopped: an unused volume is kept for two minutes.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import pytest

from cacheagent.kube.names import CONTENT_DIGEST, CONTENT_MODEL, REFRESH, short_digest
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.faults import kill_container, published_versions, wait_until_started_again
from tests.e2e.cluster.models import (
    READ,
    NotYet,
    Weights,
    clean_up,
    delete_models,
    events_of,
    model_cache,
    model_status,
    read_report,
    reading_pod,
    upload_checkpoint,
    wait_until_cached,
)
from tests.e2e.cluster.process import CommandFailed
from tests.e2e.cluster.product import NAMESPACE, STORE, agent_pod, prepare_namespace
from tests.e2e.cluster.readers import MODES, Readers, digest_label
from tests.e2e.cluster.waiting import wait_until

pytestmark = [pytest.mark.kube, pytest.mark.slow]

MODEL = "moves"
NODE = "n1"


def upload_version(cluster: Cluster, seed: int) -> Weights:
    return upload_checkpoint(cluster.object_store, MODEL, size_bytes=24_000_000, shards=2, seed=seed)


@pytest.fixture(scope="module")
def readers(product: Cluster) -> Iterator[Readers]:
    """One in each mode, of the model's first version."""
    first = upload_version(product, 41)
    with product.namespace("versions") as namespace:
        try:
            product.apply(model_cache(MODEL, first, **_for(namespace, allowed=namespace)))
            wait_until_cached(product, MODEL, nodes=3)
            found = Readers(product, namespace)
            for mode in MODES:
                found.start(f"{mode}-old", MODEL, first, mode=mode, node=NODE)
            found.wait_until_reading()
            yield found
        finally:
            clean_up(product, namespace, MODEL)


def _for(namespace: str, *, allowed: str) -> dict[str, dict[str, list[str]]]:
    return {"allowedNamespaces": {"names": [allowed]}, "localPersistentVolumes": {"namespaces": [namespace]}}


def test_running_pods_keep_their_version_and_their_right_to_it(product: Cluster, readers: Readers) -> None:
    """Superseded, then forbidden: over a restart of the kubelet and of their own containers they read the old bytes.

    New pods get the new version while they may, in either mode, and a sentence when they may not.
    """
    began = time.time()
    namespace = readers.namespace
    old = model_status(product, MODEL)["digest"]
    second = upload_version(product, 42)
    product.kubectl("annotate", "modelcache", MODEL, f"{REFRESH}=1")
    new = _wait_until_superseded(product, old)
    assert model_status(product, MODEL)["previousDigests"] == [old]
    assert {old, new} <= published_versions(product.node(NODE))
    wait_until(lambda: digest_label(product, NODE, new), "the new version has its label")
    assert digest_label(product, NODE, old) == "ready"
    for mode in MODES:
        readers.start(f"{mode}-new", MODEL, second, mode=mode, node=NODE)
    readers.must_go_on(began, hit=[f"{mode}-new" for mode in MODES], limit=90)
    assert readers.volume_name("pv-new") != readers.volume_name("pv-old")

    product.apply(model_cache(MODEL, second, **_for(namespace, allowed="somebody-else")))
    wait_until(lambda: _is_refused(product, namespace), "new pods are refused")
    product.node(NODE).restart_kubelet(signal.SIGKILL)
    product.wait_until_ready(NODE)
    readers.must_go_on(began)
    names = [f"{mode}-{age}" for mode in MODES for age in ("old", "new")]
    killed = {name: kill_container(product, namespace, name) for name in names}
    for name, was in killed.items():
        wait_until_started_again(product, namespace, name, "main", was)
    readers.must_go_on(began, hit=names)

    product.apply(model_cache(MODEL, second, **_for(namespace, allowed=namespace)))
    volume = readers.volume_name("pv-old")
    readers.remove("pv-old", "csi-old")
    assert product.get("pv", volume)["status"]["phase"] == "Bound"


def test_wrong_credentials_are_told_and_right_ones_are_taken_up(product: Cluster, readers: Readers) -> None:
    """A Secret that is changed, and changed back: nobody touches the model, the pod or the agents."""
    began = time.time()
    model = upload_checkpoint(product.object_store, "locked", size_bytes=2_000_000, shards=1, seed=34)
    try:
        _use_secret_key(product, "not-the-right-one")
        product.apply(model_cache("locked", model))
        asks = reading_pod("asks", readers.namespace, "locked", READ, node="n3")
        product.apply(asks)
        told = wait_until(lambda: _degraded(product, "locked"), "the model says why", 60)
        assert told.startswith("Forbidden: ")
        why = wait_until(lambda: _mount_failures(product, readers.namespace, "asks"), "the pod's events say why", 60)
        assert "not-the-right-one" not in f"{told} {why}"

        _use_secret_key(product, product.object_store.secret_key)
        assert read_report(product, readers.namespace, "asks", limit=120).files == model.files
        wait_until_cached(product, "locked", nodes=3)
        assert _degraded(product, "locked") == ""
        readers.must_go_on(began)
    finally:
        prepare_namespace(product)
        product.kubectl("delete", "pod", "-n", readers.namespace, "asks", "--ignore-not-found", "--timeout=60s")
        delete_models(product, "locked")


def test_the_old_versions_volume_goes_when_no_pod_uses_it_any_more(product: Cluster, readers: Readers) -> None:
    """Claim and volume go; the files stay until their room is needed, and the new version's pods read on."""
    began = time.time()
    (old,) = model_status(product, MODEL)["previousDigests"]
    marked = f"{CONTENT_MODEL}={MODEL},{CONTENT_DIGEST}={short_digest(old)}"
    found = ("pv,pvc", "-l", marked, "-n", readers.namespace)
    wait_until(lambda: not product.get(*found)["items"], "volume and claim of the old version are gone", 200, pause=1)
    assert product.get("pv", readers.volume_name("pv-new"))["status"]["phase"] == "Bound"
    assert old in published_versions(product.node(NODE))
    assert digest_label(product, NODE, old) == "ready"
    readers.must_go_on(began)


def _wait_until_superseded(cluster: Cluster, old: str) -> str:
    """The digest that follows, once every node has it."""

    def superseded() -> str:
        status = model_status(cluster, MODEL)
        if status["digest"] == old or status["nodes"]["ready"] != status["nodes"]["assigned"]:
            raise NotYet(str(status))
        return str(status["digest"])

    return wait_until(superseded, f"{MODEL} has another version on every node", 90)


def _is_refused(cluster: Cluster, namespace: str) -> bool:
    try:
        cluster.apply(reading_pod("refused", namespace, MODEL, READ, node=NODE))
    except CommandFailed as error:
        if f"namespace '{namespace}' may not use model '{MODEL}'" not in str(error):
            raise
        return True
    cluster.kubectl("delete", "pod", "refused", "-n", namespace, "--timeout=60s")
    return False


def _use_secret_key(cluster: Cluster, key: str) -> None:
    """Returns when each agent has it. The kubelet looks about once a minute; a changed pod makes it look at once."""
    patch = json.dumps({"stringData": {"AWS_SECRET_ACCESS_KEY": key}})
    cluster.kubectl("patch", "secret", STORE, "-n", NAMESPACE, "--type=merge", "-p", patch)
    for node in cluster.nodes:
        pod = agent_pod(cluster, node.name)
        uid = cluster.get("pod", pod, "-n", NAMESPACE)["metadata"]["uid"]
        volume = f"/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected/credentials"
        path = f"{volume}/aws/{STORE}/AWS_SECRET_ACCESS_KEY"
        cluster.kubectl("annotate", "pod", pod, "-n", NAMESPACE, f"looked-at={time.time()}", "--overwrite")
        wait_until(lambda node=node, path=path: node.nsenter_command("cat", path).stdout == key, "it is mounted", 120)  # type: ignore[misc]


def _degraded(cluster: Cluster, model: str) -> str:
    """Reason and message, or nothing."""
    for each in model_status(cluster, model).get("conditions", []):
        if (each["type"], each["status"]) == ("Degraded", "True"):
            return f"{each['reason']}: {each['message']}"
    return ""


def _mount_failures(cluster: Cluster, namespace: str, pod: str) -> list[str]:
    return [each for each in events_of(cluster, namespace, pod) if each.startswith("FailedMount")]
