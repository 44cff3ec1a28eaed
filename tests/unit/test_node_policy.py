"""What the models that a controller assigns may not do on a node, which those of its own configuration may."""

from __future__ import annotations

import pytest

from cacheagent.addresses import LOCAL_NETWORKS
from cacheagent.errors import PolicyRefused
from cacheagent.kube.names import model_name_of_uri
from cacheagent.kube.node_models import NodePolicy, source_spec
from cacheagent.kube.objects import NodeModel, Source

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


def test_only_on_demand_uris_are_kept_from_addresses() -> None:
    """A ModelCache is an administrator's own, and may name a server of the cluster."""
    asked = source_spec(model("http://models.example/llama", on_demand=True), POLICY)
    assert asked.source.refused_networks == (*LOCAL_NETWORKS, "10.96.0.0/12")
    assert source_spec(model("http://models.example/llama", on_demand=False), POLICY).source.refused_networks == ()
