"""The controller's plan by situations: who gets which model, how a version is pinned, what people are told."""

from __future__ import annotations

import pytest

from cacheagent.kube.api import MODEL_CACHE_NODES, MODEL_CACHES, MODEL_WARMUPS, NODES, PODS
from cacheagent.kube.names import REFRESH
from cacheagent.kube.objects import Wanted
from cacheagent.kube.plan.on_demand import LINGER_S
from cacheagent.kube.plan.resolve import FAILED_FOR_S
from tests.fakes.kube_scene import Scene
from tests.fakes.node_agents import digest_of

A1, A2, B1 = digest_of("a1"), digest_of("a2"), digest_of("b1")


def fleet(count: int = 3, **settings: object) -> Scene:
    """Nodes n0, n1, … with agents, all labelled pool=gpu."""
    scene = Scene(**settings)
    for number in range(count):
        scene.node(f"n{number}", pool="gpu")
    return scene


def test_a_model_goes_from_nothing_to_ready_on_all_nodes() -> None:
    """One node resolves, the version is pinned, all fetch it, and the status says so."""
    scene = fleet()
    scene.model("llama", digest=A1)
    scene.settle()
    assert scene.status("llama").digest == A1
    assert [scene.entry(f"n{number}", "llama").digest for number in range(3)] == [A1] * 3
    assert scene.condition("llama", "Ready") == ("True", "AllNodesReady", "3/3 nodes")
    assert scene.condition("llama", "Resolved")[:2] == ("True", "Resolved")
    assert scene.condition("llama", "Degraded")[:2] == ("False", "AsExpected")
    assert scene.status("llama").progress == "3/3"
    assert {"Resolved", "Ready"} <= set(scene.reasons())
    assert sum(bool(agent.resolved) for agent in scene.agents.values()) == 1


def test_the_version_is_pinned_before_any_node_hears_of_it() -> None:
    """A digest that is in a node's spec is in the model's status, whatever happens between two writes."""
    scene = fleet(2)
    scene.model("llama", digest=A1)
    for _ in range(12):
        scene.step()
        told = {scene.entry(node, "llama").digest for node in scene.assigned("llama")} - {""}
        assert told <= {scene.status("llama").digest}
    assert scene.status("llama").digest == A1


def test_nothing_is_asked_when_nothing_is_left_to_do() -> None:
    """The plan for a settled world is empty, also for a controller that has just started."""
    scene = fleet()
    scene.model("llama", digest=A1, localPersistentVolumes={"namespaces": ["shop"]})
    scene.namespace("shop")
    scene.settle()
    assert scene.plan().changes == ()
    scene.restart()
    assert scene.plan().changes == ()


def test_only_selected_nodes_get_a_model() -> None:
    """`nodeSelector` chooses; a node that begins to match gets it, one that ceases to is freed."""
    scene = fleet()
    scene.relabel("n2", pool="cpu")
    scene.model("llama", digest=A1, nodeSelector={"pool": "gpu"})
    scene.settle()
    assert scene.assigned("llama") == ["n0", "n1"]
    scene.relabel("n2", pool="gpu")
    scene.relabel("n0", pool="cpu")
    scene.settle()
    assert scene.assigned("llama") == ["n1", "n2"]
    assert scene.status("llama").nodes.ready == 2


def test_a_changed_selector_moves_the_model() -> None:
    """The object's own selector is changed."""
    scene = fleet()
    scene.relabel("n2", pool="cpu")
    scene.model("llama", digest=A1, nodeSelector={"pool": "gpu"})
    scene.settle()
    scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(nodeSelector={"pool": "cpu"}))
    scene.settle()
    assert scene.assigned("llama") == ["n2"]


def test_a_node_whose_pods_use_the_model_is_not_freed() -> None:
    """It leaves the selector, but stays assigned until its volume is gone and an hour has passed."""
    scene = fleet(2)
    scene.model("llama", digest=A1, nodeSelector={"pool": "gpu"})
    scene.settle()
    scene.agents["n0"].mounted["llama"] = 1
    scene.report()
    scene.relabel("n0", pool="other")
    scene.settle()
    assert scene.assigned("llama") == ["n0", "n1"]
    assert scene.entry("n0", "llama").on_demand
    scene.agents["n0"].mounted.clear()
    scene.settle()
    assert scene.assigned("llama") == ["n0", "n1"]
    assert scene.plan().deadline <= scene.now + LINGER_S
    scene.later(LINGER_S + 1)
    scene.settle()
    assert scene.assigned("llama") == ["n1"]


def test_a_node_goes_away_and_comes_back() -> None:
    """Its object goes with the Node; the new Node of that name gets a new one and the model again."""
    scene = fleet(2)
    scene.model("llama", digest=A1)
    scene.settle()
    old = scene.kube.peek(MODEL_CACHE_NODES, "n1")
    scene.kube.remove(PODS, "agent-n1", namespace="cacheagent")
    scene.kube.remove(NODES, "n1")
    scene.settle()
    assert scene.names(MODEL_CACHE_NODES) == ["n0"]
    assert scene.condition("llama", "Ready")[2] == "1/1 node"
    scene.agents["n1"].wipe("second")
    scene.node("n1", pool="gpu")
    scene.settle()
    new = scene.kube.peek(MODEL_CACHE_NODES, "n1")
    assert old is not None
    assert new is not None
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert scene.condition("llama", "Ready")[2] == "2/2 nodes"


def test_an_object_of_a_node_of_the_past_makes_room() -> None:
    """A Node was made anew faster than its object was collected: the old one is removed, then made anew."""
    scene = fleet(1)
    scene.model("llama", digest=A1)
    scene.settle()
    scene.change(MODEL_CACHE_NODES, "n0", lambda item: item["metadata"]["ownerReferences"][0].update(uid="another"))
    scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(priority=7))
    of_node = [change.verb for change in scene.plan().changes if change.resource == MODEL_CACHE_NODES]
    assert of_node == ["delete"], "nothing is told to an object of the past"
    scene.settle()
    item = scene.kube.peek(MODEL_CACHE_NODES, "n0")
    node = scene.kube.peek(NODES, "n0")
    assert item is not None
    assert node is not None
    assert item["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"]


def test_nodes_without_an_agent_are_no_cache_nodes() -> None:
    """Nothing is made for them; a node whose agent went keeps its object."""
    scene = fleet(1)
    scene.node("plain", agent=False, pool="gpu")
    scene.model("llama", digest=A1)
    scene.settle()
    assert scene.names(MODEL_CACHE_NODES) == ["n0"]
    scene.kube.remove(PODS, "agent-n0", namespace="cacheagent")
    scene.settle()
    assert scene.names(MODEL_CACHE_NODES) == ["n0"]


# --- versions


def test_a_new_revision_comes_beside_the_old_one() -> None:
    """After a refresh one node looks, the others keep the old version meanwhile; then all get the new one."""
    scene = fleet(2)
    scene.model("llama", digest=A1)
    scene.settle()
    scene.origins.digests["s3://models/llama"] = A2
    scene.settle()
    assert scene.status("llama").digest == A1, "nobody asked"
    scene.change(MODEL_CACHES, "llama", lambda item: item["metadata"].update(annotations={REFRESH: "1"}))
    scene.round()
    asked = [name for name in ("n0", "n1") if scene.entry(name, "llama").resolve]
    assert len(asked) == 1
    assert {scene.entry(name, "llama").digest for name in ("n0", "n1")} == {A1}
    scene.settle()
    status = scene.status("llama")
    assert (status.digest, status.previous_digests) == (A2, (A1,))
    assert scene.entry("n0", "llama").versions == (A1,)
    assert scene.labels("n0")["model.cacheagent.io/llama"] == A2[7:19]


def test_a_pinned_version_is_not_ready_before_it_is_there() -> None:
    """In the very write that pins a new version, Ready is not the old version's any more."""
    scene = fleet(2)
    scene.model("llama", digest=A1)
    scene.settle()
    scene.agents["n0"].slowness = scene.agents["n1"].slowness = 3
    scene.origins.digests["s3://models/llama"] = A2
    scene.change(MODEL_CACHES, "llama", lambda item: item["metadata"].update(annotations={REFRESH: "1"}))
    seen_fetching = False
    for _ in range(12):
        scene.step()
        if scene.status("llama").digest == A2 and len(scene.status("llama").previous_digests) == 1:
            fetched = all(A2 in agent.disk for agent in scene.agents.values())
            ready = scene.condition("llama", "Ready")[0] == "True"
            assert not ready or fetched
            seen_fetching |= not ready
    assert seen_fetching
    assert scene.condition("llama", "Ready")[0] == "True"


def test_a_version_that_nobody_has_is_forgotten() -> None:
    """`previousDigests` names what may still be in use and no more."""
    scene = fleet(1)
    scene.model("llama", digest=A1)
    scene.settle()
    scene.origins.digests["s3://models/llama"] = A2
    scene.change(MODEL_CACHES, "llama", lambda item: item["metadata"].update(annotations={REFRESH: "1"}))
    scene.settle()
    assert scene.status("llama").previous_digests == (A1,)
    del scene.agents["n0"].disk[A1]
    scene.settle()
    assert scene.status("llama").previous_digests == ()
    assert f"version.cacheagent.io/{A1[7:19]}" not in scene.labels("n0")


def test_two_models_share_a_version() -> None:
    """They are ready together, and when one is deleted the version's label stays."""
    scene = fleet(1)
    scene.model("llama", uri="s3://models/one", digest=A1)
    scene.model("copy", uri="s3://models/two", digest=A1)
    scene.settle()
    assert scene.condition("copy", "Ready")[0] == scene.condition("llama", "Ready")[0] == "True"
    scene.kube.remove(MODEL_CACHES, "copy")
    scene.settle()
    assert scene.labels("n0") == {
        f"version.cacheagent.io/{A1[7:19]}": "ready",
        "model.cacheagent.io/llama": A1[7:19],
    }


def test_a_deleted_model_frees_the_nodes() -> None:
    """It is assigned nowhere; its version's label goes when the agent has evicted it, not before."""
    scene = fleet(1)
    scene.model("llama", digest=A1)
    scene.settle()
    scene.kube.remove(MODEL_CACHES, "llama")
    scene.settle()
    assert scene.assigned("llama") == []
    assert scene.labels("n0") == {f"version.cacheagent.io/{A1[7:19]}": "ready"}
    scene.agents["n0"].disk.clear()
    scene.settle()
    assert scene.labels("n0") == {}


# --- resolving


def test_a_node_that_can_not_reach_the_origin_is_replaced_by_another() -> None:
    """The next one is asked; the one that failed is not asked again soon."""
    scene = fleet(2)
    scene.origins.errors["n0", "s3://models/llama"] = "origin-unavailable"
    scene.model("llama", digest=A1)
    scene.settle()
    assert scene.status("llama").digest == A1
    assert scene.agents["n1"].resolved
    scene.agents["n0"].resolved.clear()
    scene.later(FAILED_FOR_S / 2)
    scene.settle()
    assert not scene.agents["n0"].resolved


def test_what_is_wrong_everywhere_is_told_and_left_to_the_agent() -> None:
    """A source that does not exist: one node is asked and goes on trying; the condition says why."""
    scene = fleet(3)
    scene.origins.errors["s3://models/llama"] = "not-found"
    scene.model("llama", digest=A1)
    scene.settle()
    status, reason, message = scene.condition("llama", "Resolved")
    assert (status, reason) == ("False", "NotFound")
    assert "it says not-found" in message
    assert scene.condition("llama", "Degraded")[:2] == ("True", "NotFound")
    assert sum(bool(agent.resolved) for agent in scene.agents.values()) == 1
    scene.origins.errors.clear()
    scene.settle()
    assert scene.condition("llama", "Ready")[0] == "True"


def test_when_all_fail_one_goes_on_trying() -> None:
    """No round of asking ping-pongs between nodes for ever."""
    scene = fleet(2)
    scene.origins.errors["s3://models/llama"] = "origin-unavailable"
    scene.model("llama", digest=A1)
    scene.settle()
    assert scene.condition("llama", "Resolved")[:2] == ("False", "OriginUnavailable")
    scene.origins.errors.clear()
    scene.settle()
    assert scene.condition("llama", "Ready")[0] == "True"


def test_the_asked_node_goes_away() -> None:
    """Another one is asked."""
    scene = fleet(2)
    scene.model("llama", digest=A1)
    scene.round()
    scene.round()
    asked = next(name for name in ("n0", "n1") if scene.entry(name, "llama").resolve)
    scene.kube.remove(PODS, f"agent-{asked}", namespace="cacheagent")
    scene.kube.remove(NODES, asked)
    scene.settle()
    assert scene.status("llama").digest == A1


def test_only_ready_agents_are_asked() -> None:
    """With none, the condition says so."""
    scene = Scene()
    scene.node("n0")
    scene.agent("n0", ready=False)
    scene.model("llama", digest=A1)
    scene.round()
    scene.round()
    scene.round()
    assert scene.condition("llama", "Resolved")[:2] == ("Unknown", "NoNode")
    assert scene.entry("n0", "llama").resolve == ""
    scene.agent("n0")
    scene.settle()
    assert scene.status("llama").digest == A1


def test_what_a_node_says_unasked_is_not_believed() -> None:
    """A node that was not asked answers with the right token: nothing is pinned."""
    scene = fleet(2)
    scene.model("llama", digest=A1)
    scene.round()
    scene.round()
    asked = next(name for name in ("n0", "n1") if scene.entry(name, "llama").resolve)
    other = "n1" if asked == "n0" else "n0"
    token = scene.entry(asked, "llama").resolve
    forged = {"reportedAt": "x", "models": [{"name": "llama", "phase": "ready", "digest": B1, "resolvedFor": token}]}
    scene.change(MODEL_CACHE_NODES, other, lambda item: item.update(status=forged))
    scene.round()
    assert scene.status("llama").digest == ""
    scene.settle()
    assert scene.status("llama").digest == A1


def test_another_version_than_the_accepted_one_is_refused() -> None:
    """`spec.digest`: what the source holds now is not pinned, and both versions are named."""
    scene = fleet(1)
    scene.model("llama", uri="s3://models/llama", digest=A2)
    scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(digest=A1))
    scene.settle()
    assert scene.status("llama").digest == ""
    status, reason, message = scene.condition("llama", "Degraded")
    assert (status, reason) == ("True", "DigestMismatch")
    assert A1 in message
    assert A2 in message
    scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(digest=A2))
    scene.settle()
    assert scene.status("llama").digest == A2
    assert scene.condition("llama", "Degraded")[0] == "False"


def test_going_back_to_a_version_that_is_on_disk_asks_nobody() -> None:
    """`spec.digest` names the version before: it is in force again although the source has moved on."""
    scene = fleet(1)
    scene.model("llama", digest=A1)
    scene.settle()
    scene.origins.digests["s3://models/llama"] = A2
    scene.change(MODEL_CACHES, "llama", lambda item: item["metadata"].update(annotations={REFRESH: "1"}))
    scene.settle()
    scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(digest=A1))
    scene.settle()
    assert scene.status("llama").digest == A1
    assert scene.condition("llama", "Ready")[0] == "True"


def test_a_node_that_arrives_at_another_version_degrades_the_model() -> None:
    """The condition names the node."""
    scene = fleet(2)
    scene.model("llama", digest=A1)
    scene.settle()
    scene.origins.digests["s3://models/llama"] = A2
    scene.node("late", pool="gpu")
    scene.settle()
    status, reason, message = scene.condition("llama", "Degraded")
    assert (status, reason) == ("True", "SourceChanged")
    assert message.startswith("late: ")
    assert scene.status("llama").nodes.failed == 1


# --- namespaces and demand


def test_namespaces_are_resolved_to_names() -> None:
    """By name and by selector, as they come and go; without any rule it is everybody."""
    scene = fleet(1)
    scene.model("open", digest=B1)
    scene.model("llama", digest=A1, allowedNamespaces={"names": ["ops"], "selector": {"matchLabels": {"team": "a"}}})
    scene.namespace("one", team="a")
    scene.settle()
    assert scene.entry("n0", "open").namespaces is None
    assert scene.entry("n0", "llama").namespaces == ("one", "ops")
    scene.namespace("two", team="a")
    scene.namespace("one", team="b")
    scene.settle()
    assert scene.entry("n0", "llama").namespaces == ("ops", "two")


def test_a_pod_outside_the_selector_gets_its_model() -> None:
    """What an agent wants is assigned there, as on demand, and stays for an hour after the last wish."""
    scene = fleet(2)
    scene.relabel("n1", pool="cpu")
    scene.model("llama", digest=A1, nodeSelector={"pool": "gpu"})
    scene.settle()
    scene.agents["n1"].wanted = [Wanted(model="llama", namespace="shop")]
    scene.report()
    scene.settle()
    assert scene.entry("n1", "llama").on_demand
    assert A1 in scene.agents["n1"].disk
    scene.agents["n1"].wanted = []
    scene.report()
    scene.restart()
    scene.later(LINGER_S - 1)
    scene.settle()
    assert scene.assigned("llama") == ["n0", "n1"], "another controller's clock begins anew"
    scene.later(LINGER_S + 1)
    scene.settle()
    assert scene.assigned("llama") == ["n0"]


def test_a_pod_that_is_bound_to_a_node_counts_as_a_wish() -> None:
    """The controller sees it before the agent reports it."""
    scene = fleet(1)
    scene.model("llama", digest=A1, prefetch=False)
    scene.settle()
    assert scene.assigned("llama") == []
    assert scene.condition("llama", "Ready")[:2] == ("Unknown", "OnDemand")
    scene.pod("web", "llama", node="n0")
    scene.round()
    assert scene.entry("n0", "llama").on_demand


@pytest.mark.parametrize(
    ("model", "code"), [("nowhere", "not-cached"), ("llama", "refused")], ids=["unknown", "forbidden"]
)
def test_what_may_not_be_had_is_refused(model: str, code: str) -> None:
    """The answer stands in the node's spec as long as it is wanted; a permitted namespace is served."""
    scene = fleet(1)
    scene.model("llama", digest=A1, prefetch=False, allowedNamespaces={"names": ["ops"]})
    scene.settle()
    scene.agents["n0"].wanted = [Wanted(model=model, namespace="shop")]
    scene.report()
    scene.settle()
    (refusal,) = scene.spec("n0").refusals
    assert (refusal.model, refusal.namespace, refusal.code) == (model, "shop", code)
    assert scene.assigned("llama") == []
    scene.agents["n0"].wanted = [Wanted(model="llama", namespace="ops")]
    scene.report()
    scene.settle()
    assert scene.spec("n0").refusals == ()
    assert scene.assigned("llama") == ["n0"]


def test_a_withdrawn_permission_reaches_the_nodes() -> None:
    """New pods are refused there, what is mounted stays assigned."""
    scene = fleet(1)
    scene.model("llama", digest=A1, prefetch=False, allowedNamespaces={"names": ["shop"]})
    scene.settle()
    scene.pod("web", "llama", node="n0", phase="Running")
    scene.settle()
    scene.agents["n0"].mounted["llama"] = 1
    scene.report()
    scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(allowedNamespaces={"names": ["ops"]}))
    scene.later(LINGER_S + 1)
    scene.settle()
    assert scene.entry("n0", "llama").namespaces == ("ops",)


# --- warm-ups


def test_a_warmup_adds_nodes_until_its_time_is_over() -> None:
    """It counts its own nodes, and is deleted at its end together with what it kept."""
    scene = fleet(3)
    scene.model("llama", digest=A1, prefetch=False)
    scene.settle()
    scene.warmup("tonight", "llama", nodeSelector={"pool": "gpu"}, nodes=["n0"], ttlSeconds=600)
    scene.settle()
    assert scene.assigned("llama") == ["n0", "n1", "n2"]
    status = scene.warmup_status("tonight")
    assert (status.digest, status.nodes.ready) == (A1, 3)
    assert status.conditions[0].status == "True"
    assert scene.plan().deadline <= scene.now + 600
    scene.later(601)
    scene.settle()
    assert scene.names(MODEL_WARMUPS) == []
    assert scene.assigned("llama") == []


def test_a_warmup_of_named_nodes_warms_these_only() -> None:
    """Without a selector the names are all there is; without names either, the model's own selector holds."""
    scene = fleet(3)
    scene.relabel("n2", pool="cpu")
    scene.model("llama", digest=A1, prefetch=False, nodeSelector={"pool": "gpu"})
    scene.warmup("one", "llama", nodes=["n1", "nobody"])
    scene.settle()
    assert scene.assigned("llama") == ["n1"]
    scene.warmup("all", "llama")
    scene.settle()
    assert scene.assigned("llama") == ["n0", "n1"]


def test_a_warmup_of_an_unknown_model_says_so() -> None:
    """And becomes ready when the model comes."""
    scene = fleet(1)
    scene.warmup("early", "llama")
    scene.settle()
    assert scene.warmup_status("early").conditions[0].reason == "UnknownModel"
    scene.model("llama", digest=A1, prefetch=False)
    scene.settle()
    assert scene.warmup_status("early").conditions[0].status == "True"


# --- what people read


def test_the_slowest_node_is_named_with_its_reason() -> None:
    """Counts, progress, and what the one that is furthest behind says."""
    scene = fleet(3)
    scene.model("llama", digest=A1)
    scene.agents["n1"].slowness = 9
    scene.origins.errors["n2", "s3://models/llama"] = "no-room"
    for _ in range(8):
        scene.step()
    status, reason, message = scene.condition("llama", "Ready")
    assert (status, reason) == ("False", "Failed")
    assert message.startswith("1/3 nodes, ")
    assert message.endswith("; n2: it says no-room")
    assert scene.status("llama").progress.endswith(" %")
    assert scene.condition("llama", "Degraded")[:2] == ("True", "NoRoom")


def test_an_agent_that_is_away_is_the_reason() -> None:
    """Not "fetching" for ever."""
    scene = fleet(2)
    scene.model("llama", digest=A1)
    scene.agents["n1"].slowness = 100
    for _ in range(6):
        scene.step()
    scene.agent("n1", ready=False)
    scene.step()
    scene.step()
    assert scene.condition("llama", "Ready")[2].endswith("n1: its agent is not ready")


def test_progress_alone_is_no_hurry() -> None:
    """A status in which only numbers moved may wait; one in which a condition turned may not."""
    scene = fleet(1)
    scene.model("llama", digest=A1)
    scene.agents["n0"].slowness = 5
    for _ in range(6):
        scene.step()
    of_status = [change for change in scene.plan().changes if change.subresource]
    assert [change.lazy_s > 0 for change in of_status] == [True]
    for _ in range(6):
        scene.step()
    ready = [change for change in scene.history if change.subresource and not change.lazy_s]
    assert any(note.reason == "Ready" for change in ready for note in change.notes)


def test_a_selector_that_matches_nothing_says_so() -> None:
    """Ready is false and says why."""
    scene = fleet(1)
    scene.model("llama", digest=A1, nodeSelector={"pool": "h100"})
    scene.settle()
    assert scene.condition("llama", "Ready")[:2] == ("False", "NoNodes")


def test_different_bytes_under_one_version_are_told() -> None:
    """Two nodes agree on the list of files and not on their content: both are named."""
    scene = fleet(3)
    for name, content in (("n0", "sha256:x"), ("n1", "sha256:x"), ("n2", "sha256:y")):
        scene.agents[name].contents[A1] = content
    scene.model("llama", digest=A1)
    scene.settle()
    status, reason, message = scene.condition("llama", "Degraded")
    assert (status, reason) == ("True", "ContentMismatch")
    assert "n0 has sha256:x" in message
    assert "n2 sha256:y" in message
    scene.agents["n2"].contents[A1] = "sha256:x"
    scene.settle()
    assert scene.condition("llama", "Degraded")[0] == "False"
    assert scene.status("llama").content_digest == "sha256:x"


def test_a_version_that_rotted_is_not_ready_and_keeps_its_label() -> None:
    """Withdrawn: no new mounts, but those who run need its label until it is evicted."""
    scene = fleet(2)
    scene.model("llama", digest=A1)
    scene.settle()
    scene.agents["n1"].withdrawn[A1] = "a piece is wrong and can't be fetched again"
    scene.settle()
    assert scene.status("llama").nodes.ready == 1
    assert scene.condition("llama", "Degraded")[:2] == ("True", "Corrupt")
    assert scene.condition("llama", "Ready")[2].endswith("n1: withdrawn: a piece is wrong and can't be fetched again")
    assert f"version.cacheagent.io/{A1[7:19]}" in scene.labels("n1")


def test_an_agent_that_reports_nonsense_stops_nobody() -> None:
    """Digests that are none, as answers, on disk and to be evicted: left out, and everybody else is served."""
    scene = fleet(2)
    scene.model("llama", digest=A1)
    scene.round()
    scene.round()
    asked = next(name for name in ("n0", "n1") if scene.entry(name, "llama").resolve)
    token = scene.entry(asked, "llama").resolve
    nonsense = {"name": "llama", "phase": "ready", "digest": "latest", "resolvedFor": token}
    status = {"reportedAt": "x", "models": [nonsense], "evicting": ["latest"]}
    scene.change(MODEL_CACHE_NODES, asked, lambda item: item.update(status=status))
    scene.round()
    assert scene.status("llama").digest == ""
    scene.settle()
    assert scene.condition("llama", "Ready")[0] == "True"
