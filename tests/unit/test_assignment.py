"""Who may mount what, and which version: the rules, case by case."""

from __future__ import annotations

import pytest

from cacheagent.assignment import Asking, Assigned, Assignment, Reason, Refused, choose_version, permit
from cacheagent.errors import NotCached, PolicyRefused
from cacheagent.spec import ModelSpec, SourceSpec

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


def assigned(
    name: str = "llama",
    *,
    digest: str = A,
    namespaces: tuple[str, ...] | None = None,
    versions: tuple[str, ...] = (),
    uri: str = "",
) -> Assigned:
    """A model of this node."""
    source = SourceSpec(uri=uri or f"s3://bucket/{name}")
    spec = ModelSpec(name=name, source=source, digest=digest)
    return Assigned(spec=spec, namespaces=namespaces, versions=versions, uri=source.uri)


CLUSTER = Assignment(
    models=(
        assigned("open"),
        assigned("closed", digest=B, namespaces=("team-a",), versions=(C,)),
        assigned("uri-1", uri="https://host/m", namespaces=("team-a",)),
        assigned("uri-2", uri="https://host/m", namespaces=("team-b",)),
    ),
    refusals=(Refused(model="gone", namespace="team-a", error=Reason(code="not-cached", message="there is none")),),
    open_ended=True,
)


@pytest.mark.parametrize(
    ("asking", "name"),
    [
        (Asking(namespace="anybody", model="open"), "open"),
        (Asking(namespace="team-a", model="closed"), "closed"),
        (Asking(namespace="team-a", uri="https://host/m"), "uri-1"),
        (Asking(namespace="team-b", uri="https://host/m"), "uri-2"),
        (Asking(namespace="team-a", digest=B), "closed"),
        (Asking(namespace="team-a", digest=C), "closed"),
        (Asking(namespace="anybody", digest=A), "open"),
    ],
)
def test_what_is_permitted(asking: Asking, name: str) -> None:
    """By name, by URI, by digest."""
    found = permit(CLUSTER, asking)
    assert isinstance(found, Assigned)
    assert found.spec.name == name


@pytest.mark.parametrize(
    "asking",
    [
        Asking(namespace="team-b", model="closed"),
        Asking(namespace="", model="closed"),
        Asking(namespace="team-b", digest=B),
        Asking(namespace="team-b", digest=C),
        Asking(namespace="team-b", model="uri-1"),
    ],
)
def test_what_is_forbidden(asking: Asking) -> None:
    """By none of the three ways does a namespace get what is not for it."""
    with pytest.raises(PolicyRefused, match="may not mount model"):
        permit(CLUSTER, asking)


def test_what_is_not_assigned_is_asked_for_where_somebody_answers() -> None:
    """In a cluster the controller assigns or refuses, and its refusal is for that namespace only; elsewhere it is an
    error at once."""
    assert permit(CLUSTER, Asking(namespace="team-a", model="new")) is None
    assert permit(CLUSTER, Asking(namespace="team-c", uri="https://host/m")) is None, "another rule may permit it"
    assert permit(CLUSTER, Asking(namespace="team-a", model="gone")) == Reason(
        code="not-cached", message="there is none"
    )
    assert permit(CLUSTER, Asking(namespace="team-b", model="gone")) is None
    alone = Assignment(models=(assigned("open"),))
    assert permit(alone, Asking(namespace="anybody", model="open")) == assigned("open")
    with pytest.raises(NotCached, match="no model 'new' is configured"):
        permit(alone, Asking(namespace="team-a", model="new"))
    with pytest.raises(PolicyRefused, match="by its URI"):
        permit(alone, Asking(namespace="team-a", uri="https://host/m"))
    with pytest.raises(NotCached, match="the version of no model"):
        permit(alone, Asking(namespace="team-a", digest=B))


def test_a_uri_never_opens_a_model_that_somebody_named() -> None:
    """A ModelCache for everybody is mounted by its name; its URI goes through the allow-list."""
    named = Assignment(models=(assigned("open", uri="s3://secret/llama"),), open_ended=True)
    assert permit(named, Asking(namespace="team-a", uri="s3://secret/llama")) is None


def test_versions() -> None:
    """The current one by default, an older one where it is known, never another model's."""
    model = assigned(digest=A, versions=(B,))
    assert choose_version(model, A, "") == A
    assert choose_version(model, A, A) == A
    assert choose_version(model, A, B) == B
    assert choose_version(assigned(digest=""), "", "") == ""
    with pytest.raises(NotCached, match="it is now sha256:aaaa"):
        choose_version(model, A, C)
    with pytest.raises(NotCached, match="its version is not known yet"):
        choose_version(assigned(digest=""), "", C)
