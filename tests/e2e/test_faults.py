"""Whatever breaks, pods that read their weights go on reading them, and what was under way comes to its end.

Readers in both modes run on two nodes all the while; each test breaks something and mends it.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.faults import (
    agent_metrics_url,
    apply_at_last,
    container_status,
    kill_container,
    kill_container_id,
    leader,
    metrics_at,
    slow_link,
    total,
    wait_until_started_again,
)
from tests.e2e.cluster.models import (
    READ,
    Weights,
    clean_up,
    condition,
    delete_models,
    model_cache,
    model_status,
    read_report,
    reading_pod,
    upload_checkpoint,
    wait_until_cached,
    wait_until_running,
)
from tests.e2e.cluster.process import CommandFailed
from tests.e2e.cluster.product import (
    NAMESPACE,
    ON_EVERY_NODE,
    agent_pod,
    install,
    wait_until_ready,
)
from tests.e2e.cluster.readers import MODES, Readers
from tests.e2e.cluster.waiting import wait_until

pytestmark = [pytest.mark.kube, pytest.mark.slow]

BUSY = ("n1", "n2")
"""Nodes with readers."""
PIECE = 16 * 1024 * 1024
MODEL = "steady"
TRAVELLED = "cacheagent_transfer_bytes_total"


TURN_A_BYTE = """
import sys
with open(sys.argv[1], "r+b", buffering=0) as file:
    file.seek(5_000_000)
    byte = file.read(1)[0]
    file.seek(5_000_000)
    file.write(bytes([byte ^ 1]))
"""


@pytest.fixture(scope="module")
def weights(product: Cluster) -> Weights:
    return upload_checkpoint(product.object_store, MODEL, size_bytes=24_000_000, shards=3, seed=31)


@pytest.fixture(scope="module")
def readers(product: Cluster, weights: Weights) -> Iterator[Readers]:
    """On each of two nodes one in each mode, all reading the same model."""
    with product.namespace("readers") as namespace:
        volumes = {"namespaces": [namespace]}
        product.apply(model_cache(MODEL, weights, localPersistentVolumes=volumes))
        try:
            wait_until_cached(product, MODEL, nodes=3)
            found = Readers(product, namespace)
            for node, mode in itertools.product(BUSY, MODES):
                found.start(f"{mode}-{node}", MODEL, weights, mode=mode, node=node)
            found.wait_until_reading()
            yield found
        finally:
            clean_up(product, namespace, MODEL)


def test_readers_would_notice_one_wrong_byte(product: Cluster, readers: Readers) -> None:
    """The control of all that follows: a byte is turned on a node's disk, and turned back."""
    node = product.node("n2")
    digest = model_status(product, MODEL)["digest"]
    folder = f"/var/lib/cacheagent/models/{digest.replace(':', '-')}/files"
    path = f"{folder}/model-00001-of-00003.safetensors"
    began = time.time()
    node.nsenter_command("python3", "-c", TURN_A_BYTE, path)
    try:
        wait_until(lambda: _complaint(readers, began), "the readers see it")
    finally:
        node.nsenter_command("python3", "-c", TURN_A_BYTE, path)
    wait_until(lambda: not _complaint(readers, time.time()), "the readers see the right bytes again")


def test_an_agent_that_is_killed_goes_on_with_its_download(product: Cluster, readers: Readers) -> None:
    """`kill -9` in the middle: what it fetches again is at most what was in flight, and the pods that wait start.

    In mode `csi` one waits for its mount, in mode `pv` one for a node that has the version.
    """
    began = time.time()
    url = agent_metrics_url(product, "n1")
    travelled_before = total(metrics_at(url), TRAVELLED)
    big = upload_checkpoint(product.object_store, "big", size_bytes=300_000_000, shards=4, seed=32)
    try:
        with slow_link(product, "n1", 120):
            volumes = {"namespaces": [readers.namespace]}
            product.apply(model_cache("big", big, prefetch=False, localPersistentVolumes=volumes))
            waits = {
                mode: reading_pod(f"waits-{mode}", readers.namespace, "big", READ, node="n1", options={"mode": mode})
                for mode in MODES
            }
            product.apply(waits["csi"])
            apply_at_last(product, waits["pv"])  # it is refused before the model is resolved

            pod = agent_pod(product, "n1")
            killed = str(container_status(product, NAMESPACE, pod, "agent")["containerID"])

            def well_under_way() -> dict[str, float]:
                metrics = metrics_at(url)
                return metrics if total(metrics, TRAVELLED) - travelled_before > big.size_bytes * 0.3 else {}

            before = wait_until(well_under_way, "a third is here", 90, pause=0.05)
            kill_container_id(product.node("n1"), killed)
        wait_until_started_again(product, NAMESPACE, pod, "agent", killed)
        for mode in MODES:
            assert read_report(product, readers.namespace, f"waits-{mode}", limit=90).files == big.files
        after = metrics_at(url)
        again = total(before, TRAVELLED) - travelled_before + total(after, TRAVELLED) - big.size_bytes
        assert total(after, TRAVELLED) > 0, "it was killed too late"
        connections = total(before, "cacheagent_transfer_connections")
        assert again <= connections * PIECE, f"{again / PIECE:.1f} pieces with {connections:.0f} connections"
        assert total(after, "cacheagent_model_bytes_total", result="kept") > 0
        readers.must_go_on(began)
    finally:
        names = [f"waits-{mode}" for mode in MODES]
        product.kubectl("delete", "pod", "-n", readers.namespace, *names, "--ignore-not-found", "--timeout=60s")
        delete_models(product, "big")


def test_a_driver_that_is_killed_while_pods_mount_comes_back_and_they_start(product: Cluster, readers: Readers) -> None:
    """Pods that were created a moment before start all the same, in either mode; nobody's mount is lost."""
    began = time.time()
    pod = agent_pod(product, "n2")
    names = [f"{mode}-new-{number}" for mode in MODES for number in range(3)]
    try:
        news = [
            reading_pod(name, readers.namespace, MODEL, READ, node="n2", options={"mode": name.split("-")[0]})
            for name in names
        ]
        product.apply(*news)
        killed = kill_container(product, NAMESPACE, pod, "csi")
        for name in names:
            assert read_report(product, readers.namespace, name, limit=90).write == "Read-only file system"
        wait_until_started_again(product, NAMESPACE, pod, "csi", killed)
        readers.must_go_on(began)
    finally:
        product.kubectl("delete", "pod", "-n", readers.namespace, *names, "--ignore-not-found", "--timeout=60s")
    wait_until(lambda: _volumes_of(product, "n2") == 2, "the volumes of the pods that ended are gone", 60)


def test_a_kubelet_that_is_killed_and_a_node_whose_containers_all_die(product: Cluster, readers: Readers) -> None:
    """The kubelet's death disturbs nobody; after the containers' death everything on the node comes back by itself."""
    began = time.time()
    for how in (signal.SIGKILL, signal.SIGTERM):
        product.node("n1").restart_kubelet(how)
        product.wait_until_ready("n1")
    readers.must_go_on(began)

    pod = agent_pod(product, "n2")
    before = {name: container_status(product, NAMESPACE, pod, name)["containerID"] for name in ("agent", "csi")}
    hit = {name: readers.container_of(name) for name in ("csi-n2", "pv-n2")}
    began = time.time()
    product.node("n2").kill_containers()
    for name, was in hit.items():
        wait_until_started_again(product, readers.namespace, name, "main", was)
    for name, was in before.items():
        wait_until_started_again(product, NAMESPACE, pod, name, was)
    readers.must_go_on(began, hit=list(hit))
    wait_until_ready(product)


def test_a_leader_that_is_killed_is_followed_by_another(product: Cluster, readers: Readers) -> None:
    """What is to be done for a new model is done by whoever leads then; the pod that asks for it starts."""
    began = time.time()
    model = upload_checkpoint(product.object_store, "led", size_bytes=2_000_000, shards=1, seed=33)
    pod = leader(product)
    try:
        product.apply(model_cache("led", model))
        killed = kill_container(product, NAMESPACE, pod, "controller")
        asks = reading_pod("asks", readers.namespace, "led", READ, node="n3")
        apply_at_last(product, asks, limit=30)  # by the webhook's other replica
        assert read_report(product, readers.namespace, "asks", limit=90).files == model.files
        wait_until_cached(product, "led", nodes=3)
        wait_until_started_again(product, NAMESPACE, pod, "controller", killed)
        readers.must_go_on(began)
    finally:
        product.kubectl("delete", "pod", "-n", readers.namespace, "asks", "--ignore-not-found", "--timeout=60s")
        delete_models(product, "led")


def test_an_api_server_that_is_away_for_a_minute_and_an_etcd_that_restarts(product: Cluster, readers: Readers) -> None:
    """Nodes go on by themselves: readers read, a killed agent and a killed reader come back without the API."""
    pod = agent_pod(product, "n1")
    agent = container_status(product, NAMESPACE, pod, "agent")["containerID"]
    reader = readers.container_of("csi-n1")
    began = time.time()
    product.stop_api_server()
    try:
        node = product.node("n1")
        kill_container_id(node, agent)
        kill_container_id(node, reader)
        wait_until(lambda: len(_running(product, "n1", "agent")) == 1, "the agent runs again", 60)
        wait_until(lambda: len(_running(product, "n1", "main")) == 2, "the reader runs again", 60)
        wait_until(lambda: time.time() > began + 60, "a minute has gone by", 70)
    finally:
        product.start_api_server()
    product.wait_until_ready()
    wait_until_started_again(product, NAMESPACE, pod, "agent", agent)
    product.restart_etcd()
    assert condition(model_status(product, MODEL), "Ready") == "True"
    readers.must_go_on(began, hit=["csi-n1"])
    began = time.time()
    wait_until_ready(product)
    try:
        after = [reading_pod(f"{mode}-after", readers.namespace, MODEL, READ, options={"mode": mode}) for mode in MODES]
        apply_at_last(product, *after)
        for mode in MODES:
            read_report(product, readers.namespace, f"{mode}-after", limit=180)  # a kubelet may look after 60 s
        readers.must_go_on(began)
    finally:
        names = [f"{mode}-after" for mode in MODES]
        product.kubectl("delete", "pod", "-n", readers.namespace, *names, "--ignore-not-found", "--timeout=60s")


def test_everything_is_rolled_to_a_new_image_while_pods_run_and_are_created(product: Cluster, readers: Readers) -> None:
    """Agents, drivers, controllers and webhooks: no creation of a pod fails meanwhile, and one of them starts."""
    began = time.time()
    repository, _, tag = product.image.rpartition(":")
    for node in product.nodes:
        node.ctr("images", "tag", "--force", product.image, f"{repository}:rolled")
    creator = Creator(product, readers.namespace)
    try:
        with creator:
            install(product, {**ON_EVERY_NODE, "image": {"tag": "rolled"}})
            images = {each["image"] for each in _product_containers(product)}
            assert images == {f"{repository}:rolled"}
            readers.must_go_on(began)
        assert creator.failures == []
        assert creator.created > 10
    finally:
        at_once = {"updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%"}}}
        install(product, {**ON_EVERY_NODE, "image": {"tag": tag}, "agent": {**ON_EVERY_NODE["agent"], **at_once}})
        install(product)
        creator.remove()
    wait_until_running(product, readers.namespace, "csi-n1")
    readers.must_go_on(began)


class Creator:
    """Creates pods with the annotation, one after the other, while the block lasts. They are never scheduled."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.created = 0
        self.failures: list[str] = []
        self._cluster = cluster
        self._namespace = namespace
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def remove(self) -> None:
        """All of them, in one request: of hundreds kubectl asks one by one, as slowly as its own limit has it."""
        pods = f"/api/v1/namespaces/{self._namespace}/pods?labelSelector=app%3Dcreated"
        self._cluster.kubectl("delete", "--raw", pods)

    def _run(self) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            pod = reading_pod(f"created-{number}", self._namespace, MODEL, READ, options={"mode": MODES[number % 2]})
            pod["metadata"]["labels"] = {"app": "created"}
            pod["spec"]["nodeSelector"] = {"nowhere": "yes"}
            try:
                self._cluster.apply(pod)
            except CommandFailed as error:
                self.failures.append(str(error)[-500:])
            self.created += 1


def _complaint(readers: Readers, since: float) -> str:
    """What is wrong with the rounds since then, if anything is."""
    try:
        readers.must_go_on(since)
    except AssertionError as error:
        return str(error)
    return ""


def _product_containers(cluster: Cluster) -> list[dict[str, str]]:
    pods = cluster.get("pods", "-n", NAMESPACE)["items"]
    alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return [each for pod in alive for each in pod["spec"]["containers"]]


def _running(cluster: Cluster, node: str, container: str) -> list[str]:
    """Ids of the node's running containers of that name, as containerd knows them, without the API server."""
    at = cluster.node(node)
    tasks = {line.split()[0] for line in at.ctr("tasks", "ls").splitlines() if line.endswith("RUNNING")}
    label = f'labels."io.kubernetes.container.name"=={container}'
    return [found for found in at.ctr("containers", "ls", "-q", label).split() if found in tasks]


def _volumes_of(cluster: Cluster, node: str) -> int:
    """How many of a node's mounts show the cache to pods."""
    return sum(
        "/pods/" in mount.mount_point and "/models/sha256-" in mount.root for mount in cluster.node(node).host_mounts()
    )
