"""The controller's plan where pods come in: volumes and claims, holds and labels, the cold taint, gates, waking,
URIs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cacheagent.kube.api import CLAIMS, MODEL_CACHE_NODES, MODEL_CACHES, NAMESPACES, NODES, PODS, VOLUMES
from cacheagent.kube.names import (
    COLD_SINCE,
    COLD_TAINT,
    GATE_DEADLINE,
    GATE_NODES,
    LAST_USED,
    REFRESH,
    WAIT,
    WOKEN,
    claim_name,
    model_name_of_uri,
    version_label,
)
from cacheagent.kube.objects import Wanted
from cacheagent.kube.plan.times import written_time
from cacheagent.kube.plan.volumes import SUPERSEDED_FOR_S
from cacheagent.kube.plan.world import IN_USE_FOR_S
from cacheagent.kube.uris import AllowList, UriRule
from tests.fakes.kube_scene import Scene
from tests.fakes.node_agents import digest_of

A1, A2 = digest_of("a1"), digest_of("a2")
COLD = {"key": COLD_TAINT, "effect": "NoSchedule"}


# --- volumes


def with_volumes(nodes: int = 1, **spec: Any) -> Scene:
    """llama, version a1, ready on the nodes, with a volume for the namespace shop."""
    scene = Scene()
    for number in range(nodes):
        scene.node(f"n{number}")
    scene.namespace("shop")
    scene.namespace("other")
    scene.model("llama", digest=A1, localPersistentVolumes={"namespaces": ["shop", "ghost"]}, **spec)
    scene.settle()
    return scene


def refresh(scene: Scene, digest: str) -> None:
    """The source moves on, and somebody has it looked at."""
    scene.origins.digests["s3://models/llama"] = digest
    scene.change(MODEL_CACHES, "llama", lambda item: item["metadata"].update(annotations={REFRESH: digest}))
    scene.settle()


def test_a_version_gets_a_volume_for_each_namespace_that_exists() -> None:
    """Read-only by its own mount options, bound in advance, on nodes with the version's label."""
    scene = with_volumes()
    (volume,) = scene.kube.all(VOLUMES)
    (claim,) = scene.kube.all(CLAIMS)
    spec = volume["spec"]
    assert spec["mountOptions"] == ["ro", "nosuid", "nodev", "noexec"]
    assert spec["local"]["path"] == f"/var/lib/cacheagent/models/{A1.replace(':', '-')}/files"
    assert (spec["claimRef"]["namespace"], spec["claimRef"]["name"]) == ("shop", claim_name("llama", A1))
    term = spec["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"]
    assert term == [{"key": version_label(A1), "operator": "Exists"}]
    assert (spec["persistentVolumeReclaimPolicy"], spec["storageClassName"]) == ("Retain", "")
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert claim["spec"]["accessModes"] == spec["accessModes"] == ["ReadOnlyMany"]
    assert claim["spec"]["resources"]["requests"]["storage"] == spec["capacity"]["storage"]


def test_only_permitted_namespaces_get_volumes() -> None:
    """Both lists must name it."""
    scene = with_volumes(allowedNamespaces={"names": ["other"]})
    assert scene.names(VOLUMES) == []
    scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(allowedNamespaces={"names": ["shop"]}))
    scene.settle()
    assert len(scene.names(VOLUMES)) == 1


def test_a_new_version_gets_a_volume_of_its_own_and_the_old_one_goes_when_unused() -> None:
    """A pod that runs keeps the old pair; when it is gone, claim and volume go, after the webhook had time to
    notice."""
    scene = with_volumes()
    scene.pod("web", "llama", claim=claim_name("llama", A1), node="n0", phase="Running")
    refresh(scene, A2)
    assert len(scene.names(CLAIMS)) == 2
    scene.later(SUPERSEDED_FOR_S + 1)
    scene.settle()
    assert len(scene.names(CLAIMS)) == 2
    scene.kube.remove(PODS, "web", namespace="shop")
    scene.settle()
    assert len(scene.names(CLAIMS)) == 2, "a pod may have been given it a moment ago"
    assert scene.plan().deadline <= scene.now + SUPERSEDED_FOR_S
    scene.later(SUPERSEDED_FOR_S + 1)
    scene.settle()
    assert scene.names(CLAIMS) == [claim_name("llama", A2)]
    assert len(scene.names(VOLUMES)) == 1


def test_a_claim_that_a_stranger_uses_is_not_deleted() -> None:
    """A pod that nobody watches names the claim: asked right before the deletion, and again a minute later."""
    scene = with_volumes()
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim_name("llama", A1)}}]
    scene.kube.put(PODS, {"metadata": {"name": "by-hand", "namespace": "shop"}, "spec": {"volumes": volumes}})
    refresh(scene, A2)
    scene.later(SUPERSEDED_FOR_S + 1)
    scene.settle()
    assert len(scene.names(CLAIMS)) == 2
    scene.kube.remove(PODS, "by-hand", namespace="shop")
    assert scene.plan().deadline <= scene.now + IN_USE_FOR_S
    scene.later(IN_USE_FOR_S + 1)
    scene.settle()
    scene.later(SUPERSEDED_FOR_S + 1)
    scene.settle()
    assert len(scene.names(CLAIMS)) == 1


@pytest.mark.parametrize("end", ["model", "namespace", "permission", "wish"])
def test_a_pair_whose_reason_is_gone_goes(end: str) -> None:
    """The model is deleted, the namespace is, its permission is withdrawn, or nobody wants volumes any more."""
    scene = with_volumes()
    match end:
        case "model":
            scene.kube.remove(MODEL_CACHES, "llama")
        case "namespace":
            scene.kube.remove(CLAIMS, claim_name("llama", A1), namespace="shop")
            scene.kube.remove(NAMESPACES, "shop")
        case "permission":
            scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(allowedNamespaces={}))
        case _:
            scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].pop("localPersistentVolumes"))
    scene.settle()
    scene.later(SUPERSEDED_FOR_S + 1)
    scene.settle()
    assert scene.names(VOLUMES) == []
    assert scene.names(CLAIMS) == []
    assert scene.spec("n0").held == ()


def test_a_volume_whose_claim_was_deleted_is_made_anew() -> None:
    """A released volume never binds again: both are made anew."""
    scene = with_volumes()
    (old,) = scene.kube.all(VOLUMES)
    scene.kube.remove(CLAIMS, claim_name("llama", A1), namespace="shop")
    scene.settle()
    (new,) = scene.kube.all(VOLUMES)
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert len(scene.names(CLAIMS)) == 1


def test_a_claim_whose_volume_was_deleted_is_made_anew() -> None:
    """A lost claim never binds again either."""
    scene = with_volumes()
    (old,) = scene.kube.all(CLAIMS)
    scene.kube.remove(VOLUMES, scene.names(VOLUMES)[0])
    scene.change(CLAIMS, claim_name("llama", A1), lambda item: item.update(status={"phase": "Lost"}), namespace="shop")
    scene.round()
    scene.round()
    scene.settle()
    (new,) = scene.kube.all(CLAIMS)
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert len(scene.names(VOLUMES)) == 1


# --- holds and labels


def test_a_version_is_held_before_its_label_invites_pods() -> None:
    """At no moment is there a label for a version with volumes that the agent has not heard is held."""
    scene = Scene()
    scene.node("n0")
    scene.namespace("shop")
    scene.model("llama", digest=A1, localPersistentVolumes={"namespaces": ["shop"]})
    for _ in range(12):
        scene.step()
        if version_label(A1) in scene.labels("n0"):
            assert A1 in scene.spec("n0").held
    assert version_label(A1) in scene.labels("n0")


def test_a_version_is_held_before_its_first_volume_sends_pods_to_it() -> None:
    """Volumes are wanted only after the version is labelled everywhere."""
    scene = Scene()
    scene.node("n0")
    scene.namespace("shop")
    scene.model("llama", digest=A1)
    scene.settle()
    volumes = {"namespaces": ["shop"]}
    scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(localPersistentVolumes=volumes))
    scene.round()
    assert (scene.names(VOLUMES), scene.spec("n0").held) == ([], (A1,))
    scene.settle()
    assert len(scene.names(VOLUMES)) == 1


def test_a_version_that_comes_back_with_its_disk_is_held_before_it_is_labelled() -> None:
    """A node that returns has the version already when it is first heard of."""
    scene = with_volumes()
    agent = scene.node("n1")
    agent.disk[A1] = "llama"
    seen = []
    for _ in range(8):
        scene.round()
        if version_label(A1) in scene.labels("n1"):
            seen.append(scene.kube.peek(MODEL_CACHE_NODES, "n1"))
        scene.report()
    assert seen
    for item in seen:
        assert item is not None
        assert A1 in item["spec"]["held"]
        assert item["status"]["observedGeneration"] == item["metadata"]["generation"]


def test_a_held_version_leaves_in_two_steps() -> None:
    """Announced, the label goes first; only then is it let go, and only then evicted."""
    scene = with_volumes()
    refresh(scene, A2)
    assert scene.spec("n0").held == tuple(sorted((A1, A2)))
    scene.agents["n0"].evicting = [A1]
    scene.report()
    first = scene.round()
    assert version_label(A1) not in scene.labels("n0")
    assert A1 in scene.spec("n0").held
    assert all(change.unless_used is None for change in first.changes)
    scene.settle()
    assert scene.spec("n0").held == (A2,)
    assert A1 not in scene.agents["n0"].disk
    assert version_label(A2) in scene.labels("n0")


def test_a_held_version_that_a_pod_is_on_its_way_to_stays() -> None:
    """Found right before letting go: the label comes back, and the version stays held."""
    scene = with_volumes()
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim_name("llama", A1)}}]
    spec = {"volumes": volumes, "nodeName": "n0"}
    scene.kube.put(PODS, {"metadata": {"name": "by-hand", "namespace": "shop"}, "spec": spec})
    refresh(scene, A2)
    scene.agents["n0"].evicting = [A1]
    scene.report()
    scene.settle()
    assert A1 in scene.spec("n0").held
    assert version_label(A1) in scene.labels("n0")
    assert A1 in scene.agents["n0"].disk


def test_a_version_that_is_wanted_no_more_by_its_agent_is_held_again() -> None:
    """The agent takes its announcement back after it was let go: held first, then labelled."""
    scene = with_volumes()
    refresh(scene, A2)
    agent = scene.agents["n0"]
    agent.evicting = [A1]
    agent.evict = lambda held: None  # type: ignore[method-assign]
    scene.settle()
    assert A1 not in scene.spec("n0").held
    assert version_label(A1) not in scene.labels("n0")
    agent.evicting = []
    scene.settle()
    assert A1 in scene.spec("n0").held
    assert version_label(A1) in scene.labels("n0")


def test_labels_of_a_node_that_has_not_spoken_stay() -> None:
    """A ModelCacheNode that was made anew knows nothing yet: running pods would be stranded without their label."""
    scene = with_volumes()
    before = scene.labels("n0")
    assert version_label(A1) in before
    scene.kube.remove(MODEL_CACHE_NODES, "n0")
    scene.round()
    scene.round()
    assert scene.labels("n0") == before
    scene.settle()
    assert scene.labels("n0") == before


# --- the cold taint


def cold_scene(**settings: Any) -> Scene:
    """A cold node and a required model."""
    scene = Scene(cold=True, cold_deadline_s=600.0, **settings)
    scene.node("n0", taints=[COLD, {"key": "gpu", "effect": "NoSchedule"}])
    scene.model("llama", digest=A1, required=True)
    return scene


def test_a_node_is_warm_when_all_required_models_are_there() -> None:
    """Only our taint goes, with an event; not before the last model is there."""
    scene = cold_scene()
    scene.model("other", digest=A2, required=True)
    scene.model("optional", digest=digest_of("b1"))
    scene.origins.errors["s3://models/optional"] = "not-found"
    scene.origins.errors["s3://models/other"] = "not-found"
    scene.settle()
    assert COLD_TAINT in scene.taints("n0")
    del scene.origins.errors["s3://models/other"]
    scene.settle()
    assert scene.taints("n0") == ["gpu"]
    assert "Warm" in scene.reasons()


def test_the_deadline_takes_the_taint_away_and_says_what_was_missing() -> None:
    """Measured from when the taint was first seen, also across controllers."""
    scene = cold_scene()
    scene.origins.errors["s3://models/llama"] = "not-found"
    scene.settle()
    assert scene.plan().deadline <= scene.now + 600
    scene.later(300)
    scene.restart()
    scene.settle()
    scene.later(301)
    scene.settle()
    assert scene.taints("n0") == ["gpu"]
    (note,) = [note for note in scene.notes if note.reason == "ColdDeadline"]
    assert (note.type, "llama" in note.message) == ("Warning", True)
    annotations = scene.kube.peek(NODES, "n0")
    assert annotations is not None
    assert COLD_SINCE not in annotations["metadata"]["annotations"]
    scene.later(10_000)
    scene.settle()
    assert scene.taints("n0") == ["gpu"], "the deadline is over once and for all"


def test_a_node_whose_agent_never_speaks_is_not_cold_for_ever() -> None:
    """Its deadline passes as well."""
    scene = Scene(cold=True, cold_deadline_s=600.0)
    scene.node("n0", agent=False, taints=[COLD])
    scene.settle()
    scene.later(601)
    scene.settle()
    assert scene.taints("n0") == []


def test_a_node_that_comes_back_empty_is_cold_again() -> None:
    """Another incarnation of its directory: the taint comes back until the model does."""
    scene = cold_scene()
    scene.settle()
    assert scene.taints("n0") == ["gpu"]
    scene.agents["n0"].wipe("second")
    scene.agents["n0"].slowness = 2
    scene.report()
    scene.round()
    assert scene.taints("n0") == ["gpu", COLD_TAINT]
    assert "Cold" in scene.reasons()
    scene.settle()
    assert scene.taints("n0") == ["gpu"]


def test_a_node_that_was_never_cold_does_not_become_it() -> None:
    """The taint came into use in a cluster that runs: only another disk is a reason."""
    scene = Scene(cold=True)
    scene.node("n0").slowness = 3
    scene.model("llama", digest=A1, required=True)
    for _ in range(12):
        scene.step()
        assert scene.taints("n0") == []


def test_nobody_touches_taints_unless_told() -> None:
    """Without `cold.enabled` the taint is somebody else's."""
    scene = Scene()
    scene.node("n0", taints=[COLD])
    scene.model("llama", digest=A1, required=True)
    scene.settle()
    assert scene.taints("n0") == [COLD_TAINT]


def test_a_taint_that_somebody_added_meanwhile_is_not_lost() -> None:
    """The list is written only over the one that was read."""
    scene = cold_scene()
    scene.settle()
    scene.agents["n0"].wipe("second")
    scene.agents["n0"].slowness = 2
    scene.report()
    planned = scene.plan()
    taints = [{"key": "gpu", "effect": "NoSchedule"}, {"key": "new", "effect": "NoSchedule"}]
    scene.change(NODES, "n0", lambda item: item["spec"].update(taints=taints))
    (change,) = [change for change in planned.changes if change.resource == NODES]
    assert change.body["metadata"]["resourceVersion"]


# --- gates


def gated(nodes: int = 2, **pod: Any) -> Scene:
    """A gated pod; llama is on its way to the nodes and arrives on none by itself."""
    scene = Scene()
    for number in range(nodes):
        scene.node(f"n{number}", pool="gpu").slowness = 1000
    scene.model("llama", digest=A1)
    for _ in range(6):
        scene.step()
    scene.pod("web", "llama", gated=True, **pod)
    return scene


def arrive(scene: Scene, node: str) -> None:
    """llama arrives on that node."""
    scene.agents[node].disk[A1] = "llama"
    scene.report()


def test_a_gate_is_lifted_when_a_node_is_ready() -> None:
    """Until then the pod is told how far it is; other gates stay."""
    scene = gated()
    scene.round()
    assert scene.gates("web")
    assert "WaitingForWeights" in scene.reasons()
    arrive(scene, "n1")
    scene.round()
    assert scene.gates("web") == []
    assert "WeightsReady" in scene.reasons()


def test_a_gate_may_ask_for_several_nodes() -> None:
    """`gate-nodes: 2`: one is not enough."""
    scene = gated(3, annotations={GATE_NODES: "2"})
    arrive(scene, "n0")
    scene.round()
    assert scene.gates("web")
    arrive(scene, "n1")
    scene.round()
    assert not scene.gates("web")


@pytest.mark.parametrize("nodes", ["²", "9" * 5000, "-1", "many", "0"])
@pytest.mark.parametrize("deadline", ["9" * 12 + "d", "9" * 400 + "s", "soon"])
def test_annotations_edited_behind_the_webhook_stop_nobody(nodes: str, deadline: str) -> None:
    """What it would have refused counts as little as possible, and other pods are seen to."""
    scene = gated(annotations={GATE_NODES: nodes, GATE_DEADLINE: deadline})
    scene.pod("other", "llama", gated=True)
    scene.round()
    assert scene.gates("web")
    scene.later(8 * 86400.0)
    scene.round()
    assert not scene.gates("web")
    assert not scene.gates("other")


def test_a_gate_has_a_deadline() -> None:
    """The pod's own, with a warning."""
    scene = gated(annotations={GATE_DEADLINE: "10m"})
    assert scene.round().deadline <= scene.now + 600
    scene.later(601)
    scene.round()
    assert not scene.gates("web")
    assert "GateDeadline" in scene.reasons()


@pytest.mark.parametrize(
    "placement",
    [
        {"nodeSelector": {"pool": "h100"}},
        {
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "pool", "operator": "NotIn", "values": ["gpu"]}]}
                        ]
                    }
                }
            }
        },
    ],
    ids=["selector", "affinity"],
)
def test_a_pod_that_no_node_could_take_is_not_held_back(placement: dict[str, Any]) -> None:
    """Else autoscaling would never start."""
    scene = gated(**placement)
    scene.round()
    assert not scene.gates("web")
    assert "NoNodeFits" in scene.reasons()


def test_taints_and_cordons_count_as_no_node() -> None:
    """A pod that tolerates the taint waits; our own cold taint repels nobody here."""
    scene = gated(1)
    taint = {"key": "gpu", "value": "a", "effect": "NoSchedule"}
    scene.change(NODES, "n0", lambda item: item["spec"].update(taints=[taint, COLD]))
    scene.pod("brave", "llama", gated=True, tolerations=[{"key": "gpu", "operator": "Exists"}])
    scene.pod("wrong", "llama", gated=True, tolerations=[{"key": "gpu", "value": "b", "effect": "NoSchedule"}])
    scene.round()
    assert (bool(scene.gates("web")), bool(scene.gates("wrong")), bool(scene.gates("brave"))) == (False, False, True)
    scene.change(NODES, "n0", lambda item: item["spec"].update(unschedulable=True))
    scene.round()
    assert not scene.gates("brave")


def test_a_model_that_is_to_be_on_no_node_of_the_pod_is_not_waited_for() -> None:
    """It will be fetched where the pod lands, which it never would behind its gate."""
    scene = gated()
    scene.model("rare", digest=A2, prefetch=False)
    scene.step()
    scene.pod("other", "rare", gated=True)
    scene.round()
    assert not scene.gates("other")
    assert "FetchedOnDemand" in scene.reasons()
    assert scene.gates("web")


def test_a_gate_is_not_lifted_before_anybody_had_time_to_assign() -> None:
    """Pod, model and nodes come in one breath: what is only planned, or comes with the node's object, counts."""
    scene = Scene()
    scene.node("n0").slowness = 1000
    scene.model("llama", digest=A1)
    scene.pod("web", "llama", gated=True)
    for _ in range(6):
        scene.round()
        assert scene.gates("web")
        scene.report()
    scene.agents["n0"].slowness = 0
    scene.settle()
    assert not scene.gates("web")


def test_a_gate_is_lifted_only_in_the_list_that_was_read() -> None:
    """Somebody else's gate that came meanwhile would be lost: the write is conditional."""
    scene = gated()
    arrive(scene, "n0")
    (change,) = [change for change in scene.plan().changes if change.resource == PODS]
    assert change.body["metadata"]["resourceVersion"]


# --- waking


def test_a_pod_that_waits_on_its_node_is_woken_once() -> None:
    """When its model arrives there, an annotation is set, and never again."""
    scene = gated()
    scene.pod("waiting", "llama", node="n0")
    scene.round()
    arrive(scene, "n0")
    planned = scene.round()
    assert [change.name for change in planned.changes if change.resource == PODS and WOKEN in str(change.body)] == [
        "waiting"
    ]
    assert not [change for change in scene.round().changes if change.name == "waiting"]


def test_a_pod_that_waits_on_its_node_is_told_how_far_its_model_is() -> None:
    """While the kubelet's call is held, nobody else would tell."""
    scene = gated()
    scene.agents["n0"].slowness = 19
    scene.pod("waiting", "llama", node="n0")
    scene.report()
    (note,) = [note for note in scene.plan().notices if note.regarding.name == "waiting"]
    assert note.reason == "WaitingForWeights"
    assert re.fullmatch(r"waits for llama: [1-9]\d?% on n0", note.message)
    arrive(scene, "n0")
    assert not [note for note in scene.plan().notices if note.regarding.name == "waiting"]


def test_a_pod_that_found_its_model_is_left_alone() -> None:
    """No write for every pod of a warm cluster; and an init container that waits needs none either."""
    scene = gated()
    arrive(scene, "n0")
    scene.pod("warm", "llama", node="n0")
    scene.pod("filled", "llama", node="n1", annotations={WAIT: "init"})
    scene.round()
    arrive(scene, "n1")
    scene.round()
    for name in ("warm", "filled"):
        item = scene.kube.peek(PODS, name, namespace="shop")
        assert item is not None
        assert WOKEN not in item["metadata"]["annotations"]


def test_another_controller_wakes_those_that_waited() -> None:
    """It does not know who found everything ready, so it wakes all that still wait."""
    scene = gated()
    scene.pod("waiting", "llama", node="n0")
    scene.round()
    arrive(scene, "n0")
    scene.restart()
    assert any(change.name == "waiting" for change in scene.round().changes)


# --- URIs

RULES = AllowList(
    rules=(
        UriRule(prefix="s3://team-a", namespaces=("shop", "lab"), credentials="team-a", endpoint="https://s3.example"),
    )
)
URI = "s3://team-a/llama"
NAME = model_name_of_uri(URI, "team-a")


def uri_scene() -> Scene:
    """A node with a pod of the namespace shop that names a URI."""
    scene = Scene(allow_list=RULES)
    scene.origins.digests[URI] = A1
    scene.node("n0")
    scene.node("n1")
    scene.step()
    scene.agents["n0"].wanted = [Wanted(model="", namespace="shop", uri=URI)]
    scene.report()
    return scene


def test_a_permitted_uri_becomes_a_model_on_that_node() -> None:
    """With the rule's credential and endpoint, for that namespace, on no other node."""
    scene = uri_scene()
    scene.settle()
    item = scene.kube.peek(MODEL_CACHES, NAME)
    assert item is not None
    assert item["spec"]["source"] == {"uri": URI, "credentials": "team-a", "endpoint": "https://s3.example"}
    assert item["spec"]["prefetch"] is False
    assert item["spec"]["allowedNamespaces"] == {"names": ["shop"]}
    assert scene.assigned(NAME) == ["n0"]
    assert A1 in scene.agents["n0"].disk
    assert scene.entry("n0", NAME).namespaces == ("shop",)


def test_a_second_namespace_is_added_only_when_it_asks_and_may() -> None:
    """A namespace without a rule is refused and stays out."""
    scene = uri_scene()
    scene.settle()
    scene.agents["n1"].wanted = [Wanted(model="", namespace="evil", uri=URI)]
    scene.report()
    scene.settle()
    (refusal,) = scene.spec("n1").refusals
    assert (refusal.model, refusal.namespace, refusal.code) == (URI, "evil", "refused")
    assert scene.assigned(NAME) == ["n0"]
    scene.agents["n1"].wanted = [Wanted(model="", namespace="lab", uri=URI)]
    scene.report()
    scene.settle()
    assert scene.entry("n1", NAME).namespaces == ("lab", "shop")


def test_a_rule_that_is_taken_back_closes_what_it_opened() -> None:
    """Namespaces that it let in are let in no more."""
    scene = uri_scene()
    scene.settle()
    scene.agents["n0"].wanted = []
    scene.report()
    scene.settings = Scene(allow_list=AllowList()).settings
    scene.settle()
    item = scene.kube.peek(MODEL_CACHES, NAME)
    assert item is not None
    assert item["spec"]["allowedNamespaces"] == {"names": []}


@pytest.mark.parametrize("uri", ["s3://team-a-private/llama", "s3://team-a/../x", "file:///etc"])
def test_no_other_uri_passes(uri: str) -> None:
    """Neighbours, tricks and files are refused, and nothing is made."""
    scene = Scene(allow_list=RULES)
    scene.node("n0")
    scene.step()
    scene.agents["n0"].wanted = [Wanted(model="", namespace="shop", uri=uri)]
    scene.report()
    scene.settle()
    assert scene.names(MODEL_CACHES) == []
    assert [refusal.model for refusal in scene.spec("n0").refusals] == [uri]


def test_a_model_of_a_uri_goes_when_it_was_unused_for_long() -> None:
    """In use its mark is renewed; unused for a day it is deleted. Other models are never."""
    scene = uri_scene()
    scene.model("llama", digest=A2, prefetch=False)
    scene.settle()
    for _ in range(3):
        scene.later(40_000)
        scene.settle()
    item = scene.kube.peek(MODEL_CACHES, NAME)
    assert item is not None
    assert item["metadata"]["annotations"][LAST_USED] == written_time(scene.now)
    scene.agents["n0"].wanted = []
    scene.report()
    scene.later(86_000)
    scene.settle()
    assert NAME in scene.names(MODEL_CACHES)
    scene.later(1_000)
    scene.settle()
    assert scene.names(MODEL_CACHES) == ["llama"]
    assert scene.assigned(NAME) == []
