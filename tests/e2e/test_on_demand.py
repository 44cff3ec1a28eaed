"""What nobody planned: a pod on a node outside the selector, and a pod that names a URI instead of a ModelCache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cacheagent.demo.bucket import Bucket
from cacheagent.demo.checkpoint import write_checkpoint
from cacheagent.kube import names
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.models import (
    READ_AND_STAY,
    clean_up,
    delete_models,
    events_of,
    read_report,
    reading_pod,
    wait_until_cached,
    wait_until_running,
)
from tests.e2e.cluster.process import CommandFailed
from tests.e2e.cluster.product import ON_EVERY_NODE, STORE, TREES, install
from tests.e2e.cluster.waiting import wait_until
from tests.e2e.cluster.workload import python_pod
from tests.fakes.faults import Redirect, SlowFirstByte
from tests.fakes.origin import Origin

pytestmark = pytest.mark.kube

METRICS = "http://127.0.0.1:9471/metrics"
"""Where every agent answers itself: what must not be reached answers, so that only the rule is in the way."""


class Scene(NamedTuple):
    """A cluster whose administrator permits some URIs to one namespace, `team`; `other` is a namespace without any."""

    cluster: Cluster
    team: str
    other: str
    origin: Origin
    files: Mapping[str, str]
    """Path → SHA-256 of the weights that lie below each URI that a test uses."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in a directory."""
    directory = tmp_path_factory.mktemp("weights")
    write_checkpoint(directory, size_bytes=4_000_000, shards=2, seed=7)
    return directory


@pytest.fixture(scope="module")
def scene(product: Cluster, weights: Path) -> Iterator[Scene]:
    """The chart's values permit each kind of URI; afterwards they are what they were."""
    for bucket in ("team-a", "team-a-private"):
        Bucket(product.object_store, bucket).upload(weights, "llama")
    for tree in ("public", "private"):
        product.node("n1").nsenter_command("mkdir", "-p", f"{TREES}/{tree}")
        product.node("n1").nsenter_command("cp", "-rT", weights, f"{TREES}/{tree}/llama")
    product.node("n1").nsenter_command("chmod", "-R", "a+rX", TREES)
    product.node("n1").nsenter_command("ln", "-s", "../private/llama", f"{TREES}/public/link")
    with (
        Origin({path.name: path for path in weights.iterdir()}, host=product.address) as origin,
        product.namespace("team") as team,
        product.namespace("other") as other,
    ):
        hashes = {path: content.sha256() for path, content in origin.files.items()}
        origin.add_sums()
        store = {"credentials": STORE, "endpoint": product.object_store.endpoint, "region": product.object_store.region}
        rules = [
            {"prefix": "s3://team-a", "namespaces": [team], **store},
            {"prefix": f"{origin.url}/", "namespaces": [team]},
            {"prefix": "http://ip6-loopback:9471", "namespaces": [team]},
            {"prefix": f"file://{TREES}", "namespaces": [team]},
        ]
        install(product, {**ON_EVERY_NODE, "onDemand": {**ON_EVERY_NODE["onDemand"], "rules": rules}})
        yield Scene(product, team, other, origin, hashes)
        for namespace in (team, other):
            product.kubectl("delete", "pods", "--all", "-n", namespace, "--timeout=60s")
        made = product.get("modelcaches", "-l", f"{names.MANAGED_BY}={names.MANAGED_BY_US}")["items"]
        delete_models(product, *(model["metadata"]["name"] for model in made))
    install(product)


def test_pods_outside_the_selector_get_their_models(product: Cluster, weights: Path, namespace: str) -> None:
    """The controller sees the annotated pod arrive on the node and assigns its model there; for a volume written by
    hand the node has to ask first. The origin says nothing until both pods' events say why they wait."""
    with Origin({path.name: path for path in weights.iterdir()}, host=product.address) as origin:
        files = {path: content.sha256() for path, content in origin.files.items()}
        origin.add_sums()
        product.apply(*(model_of(origin, name, nodeSelector={"pool": "warm"}) for name in ("annotated", "by-hand")))
        for name in ("annotated", "by-hand"):
            wait_until_cached(product, name, nodes=2)
        assert not {"annotated", "by-hand"} & set(models_on(product, "n3"))
        origin.inject(SlowFirstByte(), times=None)
        product.apply(
            reading_pod("annotated", namespace, "annotated", node="n3"),
            pod_by_hand("by-hand", namespace, node="n3", model="by-hand"),
        )
        wait_until_told(product, namespace, "annotated", "code = FailedPrecondition")
        asked = "the controller was asked to assign it to this node"
        wait_until_told(product, namespace, "by-hand", "code = FailedPrecondition", asked)
        origin.heal()
        for name in ("annotated", "by-hand"):
            wait_until_running(product, namespace, name)
            assert read_report(product, namespace, name).files == files
            wait_until(lambda name=name: models_on(product, "n3")[name] == "ready", f"{name} is reported")  # type: ignore[misc]
            wait_until_cached(product, name, nodes=3)
        clean_up(product, namespace, "annotated", "by-hand")


def model_of(origin: Origin, name: str, **spec: Any) -> dict[str, Any]:
    """A ModelCache of what that server has; further fields of `spec` as they are in YAML."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ModelCache",
        "metadata": {"name": name},
        "spec": {"source": {"uri": origin.url}, **spec},
    }


def models_on(cluster: Cluster, node: str) -> dict[str, str]:
    """Phases of the models on a node."""
    status = cluster.get("modelcachenode", node).get("status", {})
    return {model["name"]: model["phase"] for model in status.get("models", [])}


def test_permitted_uris_are_read(scene: Scene) -> None:
    """With the rule's endpoint and credential; of each a ModelCache is made that only this namespace may use."""
    cluster = scene.cluster
    uris = {
        "by-s3": "s3://team-a/llama",
        "by-http": scene.origin.url,
        "by-file": f"file://{TREES}/public/llama",
    }
    cluster.apply(*(reading_pod(name, scene.team, uri, node="n1") for name, uri in uris.items()))
    for name in uris:
        wait_until_running(cluster, scene.team, name)
        assert read_report(cluster, scene.team, name).files == scene.files
    made = cluster.get("modelcache", names.model_name_of_uri("s3://team-a/llama", STORE))
    assert made["spec"]["allowedNamespaces"] == {"names": [scene.team]}
    assert made["spec"]["source"]["credentials"] == STORE
    assert made["status"]["nodes"]["assigned"] == 1


REFUSED = {
    "a-bucket-that-begins-alike": "s3://team-a-private/llama",
    "a-directory-outside": f"file://{TREES}/private/llama",
    "the-cache-itself": "file:///var/lib/cacheagent/models",
    "dots": f"file://{TREES}/public/../private/llama",
    "escaped-dots": "s3://team-a/%2e%2e/team-a-private/llama",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "metadata-as-a-number": "http://2852039166/latest/meta-data/",
    "the-node": "http://127.0.0.1:9471/metrics",
    "another-origin": "s3://models/outside",
}


def test_other_uris_are_refused_at_admission(scene: Scene) -> None:
    """In one sentence each; another namespace may not use what one may. The control is the test before."""
    for uri in REFUSED.values():
        with pytest.raises(CommandFailed, match=r"denied the request: .*(may not use|'\.\.'|can't be used|escape)"):
            scene.cluster.apply(reading_pod("refused", scene.team, uri))
    with pytest.raises(CommandFailed, match=f"namespace '{scene.other}' may not use s3://team-a/llama"):
        scene.cluster.apply(reading_pod("refused", scene.other, "s3://team-a/llama"))


def test_other_uris_are_refused_to_volumes_written_by_hand(scene: Scene) -> None:
    """The webhook never sees those: the controller judges what the agent asks for, and the pod's events say no."""
    cluster = scene.cluster
    cluster.apply(pod_by_hand("permitted", scene.team, uri="s3://team-a/llama"))
    cluster.apply(pod_by_hand("elsewhere", scene.other, uri="s3://team-a/llama"))
    cluster.apply(*(pod_by_hand(name, scene.team, uri=uri) for name, uri in REFUSED.items()))
    wait_until_running(cluster, scene.team, "permitted")
    assert read_report(cluster, scene.team, "permitted").files == scene.files
    wait_until_told(cluster, scene.other, "elsewhere", "PermissionDenied", "may not use s3://team-a/llama")
    for name in REFUSED:
        wait_until_told(cluster, scene.team, name, "PermissionDenied", "InvalidArgument", every=False)
    made = cluster.get("modelcaches", "-l", f"{names.MANAGED_BY}={names.MANAGED_BY_US}")["items"]
    sources = {model["spec"]["source"]["uri"] for model in made}
    assert not sources & set(REFUSED.values())


def test_permitted_prefixes_that_lead_to_the_node_are_not_followed(scene: Scene) -> None:
    """By a redirect, by a name that means loopback, by a link out of the permitted directory: nothing is read there.

    A redirect to a permitted address is followed (the control)."""
    cluster, origin = scene.cluster, scene.origin
    for path in ("SHA256SUMS", *scene.files):
        for method in ("GET", "HEAD"):
            origin.inject(Redirect(f"{origin.url}/{path}"), path=f"moved/{path}", method=method, times=None)
            origin.inject(Redirect(METRICS), path=f"bad/{path}", method=method, times=None)
    wrong = {
        "redirected": (f"{origin.url}/bad", "127.0.0.1"),
        "named": ("http://ip6-loopback:9471/x", "::1"),
        "linked": (f"file://{TREES}/public/link", "lies below none of the directories"),
    }
    cluster.apply(reading_pod("moved", scene.team, f"{origin.url}/moved", node="n1"))
    cluster.apply(*(reading_pod(name, scene.team, uri, node="n1") for name, (uri, _) in wrong.items()))
    for name, (_, word) in wrong.items():
        wait_until_told(cluster, scene.team, name, word)
        assert cluster.get("pod", name, "-n", scene.team)["status"]["phase"] == "Pending"
    wait_until_running(cluster, scene.team, "moved")
    assert read_report(cluster, scene.team, "moved").files == scene.files


def pod_by_hand(name: str, namespace: str, *, node: str = "n1", **attributes: str) -> dict[str, Any]:
    """A pod with an inline volume of a model or a URI, without the annotation."""
    volume = {"name": "weights", "csi": {"driver": names.DRIVER, "volumeAttributes": attributes}}
    mounts = [{"name": "weights", "mountPath": "/mnt/models"}]
    return python_pod(name, READ_AND_STAY, node=node, namespace=namespace, volumes=[volume], mounts=mounts)


def waits_of(cluster: Cluster, namespace: str, pod: str) -> list[str]:
    """What the events of a pod say about mounts that failed."""
    return [event for event in events_of(cluster, namespace, pod) if event.startswith("FailedMount")]


def wait_until_told(cluster: Cluster, namespace: str, pod: str, *words: str, every: bool = True) -> None:
    """An event of the pod that can't be mounted for has all of these words (or any)."""
    holds = all if every else any

    def told() -> bool:
        said = waits_of(cluster, namespace, pod)
        assert any(holds(word in event for word in words) for event in said), said
        return True

    wait_until(told, f"pod {pod} is told {words}", 60)
