"""What the models that a controller assigns may not do on a node, which those of its own configuration may."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cacheagent.addresses import LOCAL_NETWORKS
from cacheagent.assignment import Asking, Reason, permit
from cacheagent.errors import OriginForbidden, PolicyRefused
from cacheagent.kube.names import model_name_of_uri
from cacheagent.kube.node_models import NodePolicy, assignment_of, source_spec
from cacheagent.kube.objects import ModelCacheNodeSpec, NodeModel, Source

POLICY = NodePolicy(
    file_roots=("/gpfs", "/lustre"), on_demand_roots=("/gpfs/public", "/etc"), refused_networks=("10.96.0.0/12",)
)


def model(uri: str, *, on_demand: bool) -> NodeModel:
    return NodeModel(name=model_name_of_uri(uri) if on_demand else "llama", source=Source(uri=uri))


def test_trees_of_on_demand_uris_lie_where_both_settings_permit_them() -> None:
    """A directory that isn't mounted for models is none, though a rule names it: there the agent's own files are."""
    uri = "file:///gpfs/public/llama"
    assert source_spec(model(uri, on_demand=True), POLICY).source.roots == ("/gpfs/public",)
    assert source_spec(model(uri, on_demand=False), POLICY).source.roots == ("/gpfs", "/lustre")
    unlimited = NodePolicy(file_roots=("/gpfs",))
    assert source_spec(model(uri, on_demand=True), unlimited).source.roots == ("/gpfs",)


@pytest.mark.parametrize("policy", [NodePolicy(), NodePolicy(file_roots=("/gpfs",), on_demand_roots=("/etc",))])
def test_without_any_directory_nothing_is_read(policy: NodePolicy) -> None:
    """An empty list means none here, where it means anywhere to a source."""
    with pytest.raises(PolicyRefused, match="no directory of this node is permitted"):
        source_spec(model("file:///etc/llama", on_demand=True), policy)


@pytest.mark.parametrize("uri", ["nfs://filer/export/team-a/llama", "file:///gpfs/public/llama"])
def test_on_demand_trees_lie_behind_no_link(uri: str) -> None:
    """Their rule permits a prefix, below which its tenants may write."""
    assert source_spec(model(uri, on_demand=True), POLICY).source.plain_path
    assert not source_spec(model(uri, on_demand=False), POLICY).source.plain_path


def test_what_only_demand_keeps_here_makes_room() -> None:
    """For an hour nobody may use it any more, and a pod that waits for another model must not wait for that."""
    planned = NodeModel(name="llama", source=Source(uri="s3://b/llama"))
    assert source_spec(planned, POLICY).keep_warm
    assert not source_spec(replace(planned, on_demand=True), POLICY).keep_warm


def test_only_on_demand_uris_are_kept_from_addresses() -> None:
    """A ModelCache is an administrator's own, and may name a server of the cluster."""
    asked = source_spec(model("http://models.example/llama", on_demand=True), POLICY)
    assert asked.source.refused_networks == (*LOCAL_NETWORKS, "10.96.0.0/12")
    assert source_spec(model("http://models.example/llama", on_demand=False), POLICY).source.refused_networks == ()


def test_whoever_waits_is_told_why_a_source_is_not_listed() -> None:
    """By the code, too, so that a hold ends for it; a model that nobody looked up in vain only waits."""
    spec = ModelCacheNodeSpec(
        models=(
            NodeModel(name="a", source=Source(uri="s3://b/a"), resolve="1"),
            NodeModel(name="b", source=Source(uri="s3://b/b"), resolve="2"),
        )
    )
    failure = OriginForbidden("bucket: 403", hint="name a credential")
    assignment, _ = assignment_of(spec, {}, NodePolicy(), {"1": failure})
    in_trouble, waiting = assignment.models
    assert in_trouble.pending == "its source can't be listed: bucket: 403 (name a credential); it is tried again"
    assert (in_trouble.trouble, waiting.trouble) == (OriginForbidden.code, "")
    assert waiting.pending


def test_whoever_may_use_what_the_node_can_not_have_is_refused() -> None:
    """Under both of its names; nobody else hears of it."""
    denied = NodeModel(name="uri-1", source=Source(uri="file:///etc/x"), namespaces=("team",))
    assignment, wrong = assignment_of(ModelCacheNodeSpec(models=(denied,)), {}, NodePolicy())
    assert set(wrong) == {"uri-1"}
    assert {(each.model, each.namespace) for each in assignment.refusals} == {
        ("uri-1", "team"),
        ("file:///etc/x", "team"),
    }
    reason = permit(assignment, Asking(namespace="team", uri="file:///etc/x"))
    assert isinstance(reason, Reason)
    assert reason.code == PolicyRefused.code
    assert permit(assignment, Asking(namespace="other", uri="file:///etc/x")) is None
