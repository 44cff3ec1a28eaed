"""The tier of real engines: `make test-stacks` (`pytest -m stacks`) runs it, and every other run leaves it out:
an engine takes gigabytes and minutes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.product import NAMESPACE, driver_nodes, install
from tests.e2e.cluster.waiting import wait_until
from tests.e2e.conftest import cluster, namespace, product, pytest_runtest_makereport

__all__ = ["cluster", "namespace", "product", "pytest_runtest_makereport"]  # of the cluster, where a stack needs one

MARKER = "stacks"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tier where the run didn't ask for it by its marker."""
    if MARKER in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker(MARKER)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker(MARKER)]


@pytest.fixture
def driverless(product: Cluster) -> Iterator[Cluster]:
    """The chart's DaemonSet without the container that mounts; no kubelet knows the driver any more."""
    (workload,) = product.get("daemonsets", "-n", NAMESPACE)["items"]
    name = workload["metadata"]["name"]
    names = [each["name"] for each in workload["spec"]["template"]["spec"]["containers"]]
    without = {"op": "remove", "path": f"/spec/template/spec/containers/{names.index('csi')}"}
    product.kubectl("patch", "daemonset", name, "-n", NAMESPACE, "--type=json", "-p", json.dumps([without]))
    try:
        product.kubectl("rollout", "status", "daemonset", name, "-n", NAMESPACE, "--timeout=180s")
        wait_until(lambda: not driver_nodes(product), "no kubelet knows the driver", 60)
        yield product
    finally:
        install(product)
