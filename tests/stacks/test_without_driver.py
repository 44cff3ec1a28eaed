"""A cluster without our CSI driver: mode `pv` alone carries a plain Deployment. KServe and Knative do without it in
files of their own."""

from __future__ import annotations

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.models import (
    READ_AND_STAY,
    clean_up,
    deployment,
    events_of,
    model_cache,
    read_report,
    reading_pod,
    upload_checkpoint,
    wait_until_cached,
    wait_until_running,
)
from tests.e2e.cluster.waiting import wait_until

pytestmark = [pytest.mark.stacks, pytest.mark.kube, pytest.mark.timeout(900, func_only=True)]

MODEL = "driverless"


def test_mode_pv_alone_carries_a_deployment(driverless: Cluster, namespace: str) -> None:
    """Two pods read their weights from local volumes; the control, a pod of mode `csi`, waits for the driver."""
    cluster = driverless
    weights = upload_checkpoint(cluster.object_store, MODEL, size_bytes=20_000_000, shards=2, seed=93)
    volumes = {"namespaces": [namespace]}
    try:
        cluster.apply(model_cache(MODEL, weights, nodeSelector={"pool": "warm"}, localPersistentVolumes=volumes))
        wait_until_cached(cluster, MODEL, nodes=2)
        pod = reading_pod("serves", namespace, MODEL, READ_AND_STAY, options={"mode": "pv"})
        cluster.apply(reading_pod("waits", namespace, MODEL))
        cluster.apply(deployment("serves", namespace, pod, replicas=2))
        for each in wait_until_running(cluster, namespace, "serves", pods=2):
            assert each["spec"]["nodeName"] in {"n1", "n2"}
            seen = read_report(cluster, namespace, each["metadata"]["name"])
            assert (seen.files, seen.write) == (weights.files, "Read-only file system")
        wait_until(
            lambda: any("csi.cacheagent.io not found" in each for each in events_of(cluster, namespace, "waits")),
            "the other one is told that there is no driver",
            60,
        )
    finally:
        cluster.kubectl("delete", "deployment", "--all", "-n", namespace, "--timeout=60s")
        clean_up(cluster, namespace, MODEL)
