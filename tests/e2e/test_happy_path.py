"""What the product is for: a pod with only an annotation finds its weights in the node's cache, on a real cluster."""

from __future__ import annotations

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.models import (
    deployment,
    model_cache,
    read_report,
    reading_pod,
    upload_checkpoint,
    upload_minilm,
    wait_until_cached,
    wait_until_running,
)

pytestmark = pytest.mark.kube

WARM = {"pool": "warm"}


def test_a_deployment_with_only_the_annotation_reads_what_the_origin_has(product: Cluster, namespace: str) -> None:
    """Two of three nodes are warm; the pods start there and their own hash of every file equals the origin's."""
    weights = upload_checkpoint(product.object_store, "llama", size_bytes=200_000_000, shards=4)
    minilm = upload_minilm(product.object_store)
    product.apply(model_cache("llama", weights, nodeSelector=WARM), model_cache("minilm", minilm, nodeSelector=WARM))
    status = wait_until_cached(product, "llama", nodes=2)
    assert (status["files"], status["sizeBytes"]) == (len(weights.files), weights.size_bytes)
    wait_until_cached(product, "minilm", nodes=2)
    for name, origin in (("llama", weights), ("minilm", minilm)):
        product.apply(deployment(name, namespace, reading_pod(name, namespace, name), replicas=2))
        for pod in wait_until_running(product, namespace, name, pods=2):
            assert pod["spec"]["nodeName"] in ("n1", "n2")
            seen = read_report(product, namespace, pod["metadata"]["name"])
            assert seen.files == origin.files
            assert seen.write == "Read-only file system"
