"""What a node makes of the models that it is assigned."""

from __future__ import annotations

from cacheagent.kube.node_models import Found, priorities_of
from cacheagent.kube.objects import ModelCacheNodeSpec, NodeModel, Source

OLD, NEW = (f"sha256:{digit * 64}" for digit in "12")


def assigned(name: str, digest: str = "", priority: int = 0, resolve: str = "") -> NodeModel:
    return NodeModel(name=name, source=Source(uri="s3://b/m"), digest=digest, priority=priority, resolve=resolve)


def test_a_version_is_as_important_as_the_most_important_model_that_wants_it() -> None:
    """Also one that was found and is not pinned yet; a model whose version nobody knows says nothing."""
    models = (
        assigned("a", OLD, 3),
        assigned("b", OLD, 7),
        assigned("c", OLD, -5),
        assigned("d", priority=2, resolve="question"),
        assigned("e", priority=9, resolve="unanswered"),
    )
    found = {"question": Found(digest=NEW)}
    assert priorities_of(ModelCacheNodeSpec(models=models), found) == {OLD: 7, NEW: 2}
