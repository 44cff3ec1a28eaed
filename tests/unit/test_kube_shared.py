"""What the controller keeps of thousands of nodes: equal parts once, and nothing lost."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cacheagent.kube import slim
from cacheagent.kube.convert import to_json
from cacheagent.kube.names import model_label
from cacheagent.kube.objects import (
    ModelCacheNodeSpec,
    ModelCacheNodeStatus,
    NodeModel,
    NodeModelStatus,
    Source,
)
from cacheagent.kube.plan import views
from cacheagent.kube.shared import CacheNodes, Pool

DIGEST = "sha256:" + "1" * 64


def cache_node(name: str, *, free: int = 0, phase: Any = "ready", message: str = "") -> dict[str, Any]:
    """As the API server sends it."""
    orders = (NodeModel(name="m", source=Source(uri="s3://b/m"), digest=DIGEST),)
    entries = (NodeModelStatus(name="m", phase=phase, digest=DIGEST, content_digest="x", message=message),)
    status = to_json(
        ModelCacheNodeStatus(observed_generation=1, reported_at=f"2026-01-01T00:00:{free:02}Z", models=entries)
    )
    return {
        "apiVersion": "cacheagent.io/v1alpha1",
        "kind": "ModelCacheNode",
        "metadata": {
            "name": name,
            "uid": name,
            "resourceVersion": "7",
            "ownerReferences": [{"uid": f"node-{name}"}],
            "managedFields": [{"manager": "somebody"}],
        },
        "spec": to_json(ModelCacheNodeSpec(models=orders)),
        "status": status,
    }


def test_nothing_is_lost() -> None:
    """The value is that of the object as it came, but for who wrote which field."""
    item = cache_node("n1")
    kept = CacheNodes().keep(copy.deepcopy(item))
    assert "managedFields" not in kept["metadata"]
    assert views.parse_cache_node(kept) == views.parse_cache_node(item)


def test_nodes_that_are_alike_share() -> None:
    """Orders, reports, and what is made of them; a node that differs has its own, and the same value for the rest."""
    nodes = CacheNodes()
    one, two, other = (
        views.parse_cache_node(nodes.keep(item))
        for item in (cache_node("n1", free=1), cache_node("n2", free=2), cache_node("n3", phase="fetching"))
    )
    assert one.status.models is two.status.models
    assert one.entries == {"m": one.status.models}
    assert one.on_disk == one.ready == {DIGEST}
    assert one.entries is two.entries
    assert one.on_disk is two.on_disk
    assert one.assigned is two.assigned is other.assigned
    assert one.status.reported_at != two.status.reported_at
    assert other.on_disk == frozenset()


def test_a_version_that_is_withdrawn_is_on_disk_and_not_ready() -> None:
    """An agent says why."""
    node = views.parse_cache_node(CacheNodes().keep(cache_node("n1", message="it rotted")))
    assert node.on_disk == {DIGEST}
    assert node.ready == frozenset()


def test_what_cannot_be_understood_is_left_to_who_parses_it() -> None:
    """The mirror goes on, and the log names the object later."""
    item = cache_node("n1")
    item["status"]["models"] = "none"
    kept = CacheNodes().keep(item)
    assert kept["status"]["models"] == "none"
    with pytest.raises(ValueError, match="models"):
        views.parse_cache_node(kept)


def test_labels_are_shared_between_nodes() -> None:
    """Their text, and those that are ours as a whole."""

    def node(name: str) -> dict[str, Any]:
        text = b"something".decode()  # made anew each time, as JSON is
        labels = {f"label-{text}": f"value-{text}", "kubernetes.io/hostname": name, model_label("m"): f"short-{text}"}
        return {"metadata": {"name": name, "uid": name, "labels": labels}}

    one, two = (slim.node(node(name)) for name in ("n1", "n2"))
    texts = [next(iter(each["metadata"]["labels"].items())) for each in (one, two)]
    assert texts[0] == ("label-something", "value-something")
    assert texts[0][0] is texts[1][0]
    assert texts[0][1] is texts[1][1]
    assert views.parse_node(one).ours == {model_label("m"): "short-something"}
    assert views.parse_node(one).ours is views.parse_node(two).ours


def test_a_pool_forgets_before_it_grows() -> None:
    """Values that come once must not stay for ever."""
    pool = Pool(2)
    first = (1, 2)
    assert pool.one(first) is first
    assert pool.one(tuple([1, 2])) is first  # noqa: C409 - another tuple
    for number in range(10):
        pool.one((number,))
    assert len(pool._known) <= 2
