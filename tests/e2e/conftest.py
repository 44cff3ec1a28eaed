"""One real cluster for the whole run, and what is kept of it when a test fails."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.e2e.cluster.binaries import ROOT, find_obstacle
from tests.e2e.cluster.cluster import Cluster, running_cluster
from tests.e2e.cluster.models import Weights, model_cache, upload_checkpoint, upload_minilm, wait_until_cached
from tests.e2e.cluster.product import install

REPORTS = ROOT / "reports/e2e"

_the_cluster = pytest.StashKey[Cluster]()


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three nodes, n1 to n3, with nothing of ours installed. A test leaves it as it found it."""
    obstacle = find_obstacle()
    if obstacle:
        missing(*obstacle)
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with contextlib.ExitStack() as stack:
        with capture.global_and_fixture_disabled():  # it may take minutes: whoever waits shall read why
            running = stack.enter_context(running_cluster())
        request.config.stash[_the_cluster] = running
        yield running
        del request.config.stash[_the_cluster]


@pytest.fixture(scope="session")
def product(cluster: Cluster) -> Cluster:
    """The cluster with the chart installed: a cache on each node, of which n1 and n2 have the label `pool=warm`."""
    cluster.kubectl("label", "node", "n1", "n2", "pool=warm", "--overwrite")
    install(cluster)
    return cluster


@pytest.fixture(scope="session")
def llama(product: Cluster) -> Weights:
    """A ModelCache of that name (200 MB in four shards) that is ready on n1 and n2. Tests leave it as it is."""
    weights = upload_checkpoint(product.object_store, "llama", size_bytes=200_000_000, shards=4)
    product.apply(model_cache("llama", weights, nodeSelector={"pool": "warm"}))
    wait_until_cached(product, "llama", nodes=2)
    return weights


@pytest.fixture(scope="session")
def minilm(product: Cluster) -> Weights:
    """The real all-MiniLM-L6-v2, likewise; it knows its repository on the Hub."""
    weights = upload_minilm(product.object_store)
    repository = {"repoId": "sentence-transformers/all-MiniLM-L6-v2"}
    product.apply(model_cache("minilm", weights, source=repository, nodeSelector={"pool": "warm"}))
    wait_until_cached(product, "minilm", nodes=2)
    return weights


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """One of the test's own; it is gone when the test ends."""
    with cluster.namespace(request.node.name) as name:
        yield name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test with a cluster names the folder where the evidence is."""
    report = yield
    own = (each for each in getattr(item, "funcargs", {}).values() if isinstance(each, Cluster))
    running = next(own, item.config.stash.get(_the_cluster, None))
    if report.failed and running is not None and report.when != "teardown" and item.get_closest_marker("kube"):
        folder = REPORTS / re.sub(r"[^\w.-]+", "_", item.nodeid.removeprefix("tests/e2e/"))
        running.keep_evidence(folder)
        report.sections.append(("cluster", f"events, descriptions and logs are kept in {_shown(folder)}"))
    return report


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
