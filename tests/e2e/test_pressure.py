"""A node with a small disk: what is in use stays, what isn't goes, and what can't fit says so in numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from cacheagent.kube.names import REFRESH
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.faults import events_on, node_model, node_status, published_versions
from tests.e2e.cluster.models import (
    READ,
    NotYet,
    Weights,
    clean_up,
    condition,
    events_of,
    model_cache,
    model_status,
    read_report,
    reading_pod,
    upload_checkpoint,
    wait_until_cached,
)
from tests.e2e.cluster.node import NodeOptions
from tests.e2e.cluster.product import wait_until_ready
from tests.e2e.cluster.readers import MODES, Readers, digest_label
from tests.e2e.cluster.waiting import wait_until

pytestmark = [pytest.mark.kube, pytest.mark.slow]

MB = 1_000_000
SMALL = NodeOptions(name="n4", labels={"disk": "small"}, cache_disk_bytes=250 * MB)
ON_SMALL = {"disk": "small"}


@pytest.fixture(scope="module")
def small_node(product: Cluster) -> Iterator[str]:
    """A fourth node, whose cache takes two models of 80 MB but not three."""
    product.add_node(SMALL)
    try:
        wait_until_ready(product)
        wait_until(lambda: node_status(product, SMALL.name), "the agent reports", 60)
        yield SMALL.name
    finally:
        product.remove_node(SMALL.name)
        gone = "--for=delete"
        product.kubectl("wait", gone, "node", SMALL.name, "--timeout=60s")
        product.kubectl("wait", gone, "modelcachenode", SMALL.name, "--timeout=60s")


@pytest.fixture(scope="module")
def weights(product: Cluster) -> dict[str, Weights]:
    """Three models of one size."""
    store = product.object_store
    return {
        name: upload_checkpoint(store, f"pressure/{name}", size_bytes=80 * MB, shards=2, seed=51 + index)
        for index, name in enumerate(("used", "idle", "wanted"))
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_is_used_stays_and_one_that_is_not_makes_room(
    product: Cluster, small_node: str, weights: dict[str, Weights], namespace: str, mode: str
) -> None:
    """A more important one takes the place of the one that no pod reads; the loser's status has the numbers."""
    node = product.node(small_node)
    used, idle, wanted = weights
    volumes = {"localPersistentVolumes": {"namespaces": [namespace]}} if mode == "pv" else {}
    readers = Readers(product, namespace)
    try:
        product.apply(*(model_cache(name, weights[name], nodeSelector=ON_SMALL, **volumes) for name in (used, idle)))
        digest = {name: wait_until_cached(product, name, nodes=1)["digest"] for name in (used, idle)}
        readers.start("reads", used, weights[used], mode=mode, node=small_node)
        # both were mounted; the idle one was so later, so that its last use is the younger one
        product.apply(reading_pod("read", namespace, idle, READ, node=small_node, options={"mode": mode}))
        assert read_report(product, namespace, "read").files == weights[idle].files
        product.kubectl("delete", "pod", "read", "-n", namespace, "--timeout=60s")
        readers.wait_until_reading()
        began = time.time()

        product.apply(model_cache(wanted, weights[wanted], nodeSelector=ON_SMALL, priority=10, **volumes))
        digest[wanted] = wait_until_cached(product, wanted, nodes=1)["digest"]
        assert published_versions(node) == {digest[used], digest[wanted]}
        wait_until(lambda: not digest_label(product, small_node, digest[idle]), "its label is gone")
        assert digest_label(product, small_node, digest[used]) == "ready"
        told = wait_until(lambda: _no_room(product, idle), "the one that has to go says why", 60)
        assert "needs 81" in told
        assert "1 mounted model holds 80" in told
        readers.must_go_on(began)

        readers.remove("reads")  # then it may go as well, in its turn: nothing holds it but that it is kept warm
        product.kubectl("delete", "modelcache", wanted, "--timeout=60s")
        assert wait_until_cached(product, idle, nodes=1)["digest"] == digest[idle]
    finally:
        clean_up(product, namespace, *weights)


def test_a_disk_that_is_too_small_is_told_in_numbers_and_a_bigger_one_takes_the_model(
    product: Cluster, small_node: str, namespace: str
) -> None:
    """Status, events and the pod's own events have them; another selector sends it where there is room."""
    weights = upload_checkpoint(product.object_store, "pressure/huge", size_bytes=300 * MB, shards=4, seed=9)
    try:
        product.apply(model_cache("huge", weights, nodeSelector=ON_SMALL))
        product.apply(reading_pod("waits", namespace, "huge", READ, node=small_node))
        assert "needs 301 MB" in wait_until(lambda: _no_room(product, "huge"), "the model says that it can't fit", 60)
        shown = product.kubectl("get", "modelcache", "huge")
        assert "0/1" in shown
        assert "300 MB" in shown
        assert any(
            each.startswith("NoRoom: ") and "needs 301 MB" in each for each in events_on(product, "huge", "ModelCache")
        )
        refused = wait_until(lambda: _mount_events(product, namespace, "needs 301 MB"), "the pod's events say it", 60)
        assert "larger disk" in refused[0]
        product.kubectl("delete", "pod", "waits", "-n", namespace, "--timeout=30s")

        bigger = {"kubernetes.io/hostname": "n3"}
        product.apply(model_cache("huge", weights, nodeSelector=bigger))
        wait_until_cached(product, "huge", nodes=1)
        assert condition(model_status(product, "huge"), "Degraded") == "False"
        wait_until(lambda: not node_model(product, small_node, "huge"), "the small node is not asked any more")
        product.apply(reading_pod("reads", namespace, "huge", READ, node="n3"))
        assert read_report(product, namespace, "reads").files == weights.files
    finally:
        clean_up(product, namespace, "huge")


def test_a_new_version_that_does_not_fit_beside_the_old_one_comes_when_the_old_ones_pod_is_gone(
    product: Cluster, small_node: str, namespace: str
) -> None:
    """Until then the pod reads what it has, and the model says in numbers what is in the way."""
    node = product.node(small_node)
    first = upload_checkpoint(product.object_store, "pressure/grows", size_bytes=120 * MB, shards=2, seed=61)
    readers = Readers(product, namespace)
    volumes = {"localPersistentVolumes": {"namespaces": [namespace]}}
    try:
        product.apply(model_cache("grows", first, nodeSelector=ON_SMALL, **volumes))
        old = wait_until_cached(product, "grows", nodes=1)["digest"]
        for mode in MODES:
            readers.start(f"reads-{mode}", "grows", first, mode=mode, node=small_node)
        readers.wait_until_reading()
        began = time.time()
        second = upload_checkpoint(product.object_store, "pressure/grows", size_bytes=120 * MB, shards=2, seed=62)
        product.kubectl("annotate", "modelcache", "grows", f"{REFRESH}=1")
        assert "1 mounted model holds" in wait_until(lambda: _no_room(product, "grows"), "it says what it lacks", 60)
        assert published_versions(node) == {old}
        readers.must_go_on(began)

        readers.remove(*(f"reads-{mode}" for mode in MODES))
        product.apply(reading_pod("next", namespace, "grows", READ, node=small_node))
        assert read_report(product, namespace, "next", limit=120).files == second.files
        new = wait_until_cached(product, "grows", nodes=1)["digest"]
        assert published_versions(node) == {new} != {old}
    finally:
        clean_up(product, namespace, "grows")


def test_a_node_that_goes_away_and_comes_back_empty_gets_its_models_again(
    product: Cluster, small_node: str, namespace: str
) -> None:
    """It leaves the counts when its Node is deleted, and a pod finds its weights on the new one, in either mode."""
    weights = upload_checkpoint(product.object_store, "pressure/returns", size_bytes=50 * MB, shards=2, seed=10)
    volumes = {"namespaces": [namespace]}
    try:
        product.apply(model_cache("returns", weights, nodeSelector=ON_SMALL, localPersistentVolumes=volumes))
        digest = wait_until_cached(product, "returns", nodes=1)["digest"]
        before = product.get("modelcachenode", small_node)
        product.remove_node(small_node)
        product.kubectl("wait", "--for=delete", "modelcachenode", small_node, "--timeout=60s")
        wait_until(lambda: model_status(product, "returns")["nodes"]["assigned"] == 0, "nobody is to have it")
        product.add_node(SMALL)
        wait_until_ready(product)
        assert wait_until_cached(product, "returns", nodes=1)["digest"] == digest
        after = product.get("modelcachenode", small_node)
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        assert after["status"]["incarnation"] != before["status"]["incarnation"]
        for mode in MODES:
            pod = reading_pod(f"reads-{mode}", namespace, "returns", READ, node=small_node, options={"mode": mode})
            product.apply(pod)
            assert read_report(product, namespace, f"reads-{mode}").files == weights.files
    finally:
        clean_up(product, namespace, "returns")


def _no_room(cluster: Cluster, model: str) -> str:
    """What its condition says of the room that it lacks."""
    found = [each for each in model_status(cluster, model)["conditions"] if each["type"] == "Degraded"]
    if found[0]["reason"] != "NoRoom":
        raise NotYet(str(found))
    return str(found[0]["message"])


def _mount_events(cluster: Cluster, namespace: str, part: str) -> list[str]:
    """Those of the pod that waits which say that."""
    return [each for each in events_of(cluster, namespace, "waits") if each.startswith("FailedMount") and part in each]
