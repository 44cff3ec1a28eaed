"""Reading a model into memory when a pod mounts it, as the kernel of a node sees it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.models import (
    START_AND_STAY,
    clean_up,
    model_cache,
    reading_pod,
    upload_checkpoint,
    wait_until_cached,
    wait_until_running,
)
from tests.e2e.cluster.node import CACHE_DIRECTORY, Node
from tests.e2e.cluster.product import NAMESPACE, agent_pod
from tests.e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.kube

RESIDENT = """
import ctypes, os, sys
resident = total = 0
for top, _, names in os.walk(sys.argv[1]):
    for name in names:
        with open(os.path.join(top, name), "rb") as file:
            if sys.argv[2:] == ["drop"]:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            everything, found = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
            if ctypes.CDLL(None).syscall(451, file.fileno(), everything, found, 0):
                sys.exit("this kernel has no cachestat")
            size = os.fstat(file.fileno()).st_size
            resident, total = resident + min(size, found[0] * os.sysconf("SC_PAGE_SIZE")), total + size
print(resident / total)
"""
"""Prints the part of all files below a directory that is in the page cache (cachestat, since Linux 6.5)."""


def resident(node: Node, digest: str, *more: str) -> float:
    """With "drop", after the pages that nobody has mapped were dropped."""
    tree = f"{CACHE_DIRECTORY}/models/{digest.replace(':', '-')}/files"
    return float(node.nsenter_command("python3", "-c", RESIDENT, tree, *more).stdout)


def test_a_model_is_in_memory_soon_after_its_mount_where_that_is_asked_for(product: Cluster, namespace: str) -> None:
    """By the ModelCache or by the pod; the pods read nothing themselves, and what nobody asked for stays on disk."""
    node = product.node("n2")
    uploads = {
        name: upload_checkpoint(product.object_store, name, size_bytes=40_000_000, seed=number)
        for number, name in enumerate(("by-model", "by-pod", "by-nobody"), start=100)
    }
    for name, weights in uploads.items():
        where: dict[str, Any] = {"nodeSelector": {"pool": "warm"}, "pageCache": name == "by-model"}
        product.apply(model_cache(name, weights, **where))
    digests = {name: str(wait_until_cached(product, name, nodes=2)["digest"]) for name in uploads}
    assert max(resident(node, digest, "drop") for digest in digests.values()) < 0.05
    for name in uploads:
        options = {"page-cache": "true"} if name == "by-pod" else {}
        product.apply(reading_pod(name, namespace, name, START_AND_STAY, node="n2", options=options))
    for name in uploads:
        wait_until_running(product, namespace, name)
    for name in ("by-model", "by-pod"):
        wait_until(lambda name=name: resident(node, digests[name]) > 0.99, f"{name} is in memory")  # type: ignore[misc]
    assert resident(node, digests["by-nobody"]) < 0.05
    address = product.get("pod", agent_pod(product, "n2"), "-n", NAMESPACE)["status"]["podIP"]
    metrics = node.nsenter_command("curl", "--silent", f"http://{address}:9471/metrics").stdout.splitlines()
    ratios = [line for line in metrics if line.startswith("cacheagent_page_cache_resident_ratio{")]
    assert {line.split('"')[1]: float(line.split()[-1]) > 0.99 for line in ratios} == {"by-model": True, "by-pod": True}
    clean_up(product, namespace, *uploads)
