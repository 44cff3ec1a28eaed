"""`cacheagent warm` on a cluster in memory: what is ordered, what is told, and how it ends."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from cacheagent.cli.cluster.watchers import _table, describe
from cacheagent.errors import UsageError
from cacheagent.kube.api import (
    MODEL_CACHES,
    MODEL_WARMUPS,
    NODES,
    KubeRefused,
    KubeUnavailable,
    Object,
    Patch,
    Resource,
)
from cacheagent.kube.names import LOOK, model_name_of_uri
from cacheagent.kube.objects import Source
from cacheagent.kube.ops.look import Seen
from cacheagent.kube.ops.nodes import NodeState
from cacheagent.kube.ops.progress import Progress
from cacheagent.kube.ops.warmup import Wish, parse_selector, renewal, source_of_uri
from cacheagent.kube.plan.views import parse_warmup
from tests.fakes.kube_cli import LivingScene
from tests.fakes.node_agents import digest_of

A1, A2 = digest_of("a1"), digest_of("a2")
URI = "s3://models/llama"


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> LivingScene:
    """Three nodes, one in another pool, and a model that nobody has yet."""
    scene = LivingScene(monkeypatch, capsys)
    for name in ("n1", "n2"):
        scene.node(name, pool="h100")
    scene.node("n3", pool="other")
    scene.model("llama", digest=A1, prefetch=False)
    return scene


def test_waits_until_every_matching_node_is_ready(scene: LivingScene) -> None:
    """Exit 0, the digest on standard output, and a warm-up with a time to live that names the selector."""
    scene.agents["n2"].slowness = 60
    ended = scene.run("warm", "llama", "--nodes", "pool=h100", "--ttl", "2h")
    assert ended.code == 0, ended
    assert ended.out == f"llama: {A1} is verified and published on 2 of 2 nodes\n"
    (warmup,) = scene.kube.all(MODEL_WARMUPS)
    assert warmup["spec"] == {"model": "llama", "nodeSelector": {"pool": "h100"}, "ttlSeconds": 7200}
    assert scene.assigned("llama") == ["n1", "n2"]
    assert "llama: 1/2 nodes ready" in ended.err


def test_tells_the_digest_and_since_when_it_is_pinned(scene: LivingScene) -> None:
    scene.model("llama", digest=A1, nodeSelector={"pool": "h100"})
    scene.settled()
    ended = scene.run("warm", "llama", "--nodes", "pool=other")
    assert ended.code == 0, ended
    since = next(each.last_transition_time for each in scene.status("llama").conditions if each.type == "Resolved")
    assert f"warming {A1[:19]} (1 KB, pinned since {since}) on nodes with pool=other" in ended.err


def test_events_for_machines(scene: LivingScene) -> None:
    """One JSON object a line, the last one with the exit code."""
    scene.agents["n2"].slowness = 60
    ended = scene.run("warm", "llama", "--nodes", "pool=h100", "-o", "json")
    events = ended.events
    assert [events[0]["event"], events[-1]["event"]] == ["warming", "ready"]
    assert {event["event"] for event in events[1:-1]} == {"progress"}
    assert any(node["why"] for event in events[1:-1] for node in event["missing"])
    assert (events[-1]["ready"], events[-1]["nodes"], events[-1]["missing"], events[-1]["exit_code"]) == (2, 2, [], 0)
    assert events[-1]["digest"] == A1


def test_the_same_command_joins_what_it_began(scene: LivingScene) -> None:
    """One object; another selector is another warm-up."""
    assert scene.run("warm", "llama", "--nodes", "pool=h100").code == 0
    again = scene.run("warm", "llama", "--nodes", "pool=h100")
    assert again.code == 0
    assert "(joined, it is there already)" in again.err
    assert len(scene.names(MODEL_WARMUPS)) == 1
    assert scene.run("warm", "llama", "--nodes", "pool=other").code == 0
    assert len(scene.names(MODEL_WARMUPS)) == 2


def test_without_a_selector_the_models_own_nodes_are_warmed(scene: LivingScene) -> None:
    scene.model("llama", digest=A1, nodeSelector={"pool": "other"}, prefetch=False)
    assert "1 of 1 nodes" in scene.run("warm", "llama").out
    assert scene.assigned("llama") == ["n3"]


def test_a_share_of_the_nodes_may_do(scene: LivingScene) -> None:
    """Those that are not ready are named all the same."""
    scene.kill("n3")
    ended = scene.run("warm", "llama", "--percent", "60")
    assert ended.code == 0, ended
    assert "2 of 3 nodes" in ended.out
    assert "llama: without n3: no agent: its agent is not ready" in ended.err


def test_time_out_names_each_missing_node_and_why(scene: LivingScene) -> None:
    """A dead agent, a full disk, a cordoned node; the warm-up goes on."""
    scene.kill("n1")
    scene.origins.errors["n2", URI] = "no-room"
    scene.agents["n3"].slowness = 10**6
    scene.change(NODES, "n3", lambda item: item["spec"].update(unschedulable=True))
    ended = scene.run("warm", "llama", "--timeout", "2s")
    assert ended.code == 3, ended
    assert "llama: not warm after 2 s: 0 of 3 nodes are ready, 3 are wanted" in ended.err
    assert "  n1: no agent: its agent is not ready" in ended.err
    assert "  n2: failed: it says no-room" in ended.err
    assert "(the node is cordoned)" in ended.err
    assert "next: the warm-up goes on; the same command joins it" in ended.err
    assert len(scene.names(MODEL_WARMUPS)) == 1


def test_time_out_for_machines(scene: LivingScene) -> None:
    scene.kill("n3")
    last = scene.run("warm", "llama", "--timeout", "1s", "-o", "json").events[-1]
    assert (last["event"], last["exit_code"], last["code"]) == ("timed-out", 3, "timed-out")
    assert [(each["node"], each["why"]) for each in last["missing"]] == [("n3", "its agent is not ready")]


def test_no_node_matches_is_no_success(scene: LivingScene) -> None:
    """A pipeline that waits for nothing would not notice."""
    ended = scene.run("warm", "llama", "--nodes", "pool=h100s", "--timeout", "1s")
    assert ended.code == 3
    assert "no cache node matches" in ended.err


@pytest.mark.parametrize(("error", "code"), [("forbidden", 1), ("not-found", 1), ("refused", 4), ("pickle-refused", 4)])
def test_a_source_that_cannot_be_used_ends_it(scene: LivingScene, error: str, code: int) -> None:
    """At once, with what the agent says."""
    scene.origins.errors[URI] = error
    ended = scene.run("warm", "llama")
    assert ended.code == code, ended
    assert f"says: it says {error}" in ended.err


def test_an_origin_that_is_away_is_waited_for(scene: LivingScene) -> None:
    """It may come back, and the agents go on trying."""
    scene.origins.errors[URI] = "origin-unavailable"
    ended = scene.run("warm", "llama", "--timeout", "1s")
    assert ended.code == 3
    assert "it says origin-unavailable" in ended.err
    scene.origins.errors.clear()
    assert scene.run("warm", "llama").code == 0


def test_permission_that_is_missing(scene: LivingScene) -> None:
    """RBAC refuses: exit 4, nothing was ordered."""
    error = KubeRefused('create modelwarmups: modelwarmups is forbidden: User "dev" cannot create', status=403)
    scene.kube.fail_next("create", error, resource=MODEL_WARMUPS)
    ended = scene.run("warm", "llama", "-o", "json")
    assert ended.code == 4
    assert ended.events[-1]["event"] == "refused"
    assert 'User "dev" cannot create' in ended.err
    assert scene.names(MODEL_WARMUPS) == []


def test_a_list_that_is_refused_ends_it(scene: LivingScene) -> None:
    scene.kube.fail_next("list", KubeRefused("list nodes: forbidden", status=403), resource=NODES)
    assert scene.run("warm", "llama").code == 4


def test_an_api_server_that_is_away(scene: LivingScene) -> None:
    scene.kube.fail_next("list", KubeUnavailable("no answer"), times=9)
    assert scene.run("warm", "llama").code == 1


def test_namespace_that_may_not_use_it(scene: LivingScene) -> None:
    """A rollout whose pods would be refused is not warmed for; another namespace is."""
    scene.model("llama", digest=A1, allowedNamespaces={"names": ["shop"]})
    scene.settled()
    ended = scene.run("warm", "llama", "-n", "lab")
    assert ended.code == 4
    assert "namespace 'lab' may not use the model 'llama'" in ended.err
    assert scene.run("warm", "llama", "-n", "shop").code == 0


def test_a_model_that_is_not_there(scene: LivingScene) -> None:
    ended = scene.run("warm", "lama")
    assert ended.code == 1
    assert "there is no ModelCache 'lama'; did you mean 'llama'?" in ended.err


def test_like_a_deployment(scene: LivingScene) -> None:
    """Only nodes that its pods could run on: selector, affinity, taints; a changed template changes the nodes."""
    from cacheagent.kube.ops.placement import DEPLOYMENTS

    scene.node("n4", pool="h100", taints=[{"key": "gpu", "effect": "NoSchedule"}])
    template = {"spec": {"nodeSelector": {"pool": "h100"}}}
    body = {"metadata": {"name": "server", "namespace": "shop"}, "spec": {"template": template}}
    scene.kube.put(DEPLOYMENTS, body)
    ended = scene.run("warm", "llama", "--like", "deployment/server")
    assert ended.code == 0, ended
    assert "2 nodes where deployment/server could run" in ended.err
    assert scene.assigned("llama") == ["n1", "n2"]
    template["spec"]["tolerations"] = [{"operator": "Exists"}]  # type: ignore[assignment]
    scene.kube.put(DEPLOYMENTS, body)
    assert "3 of 3 nodes" in scene.run("warm", "llama", "--like", "deploy/server").out
    assert len(scene.names(MODEL_WARMUPS)) == 1
    template["spec"]["nodeSelector"] = {"pool": "none"}
    scene.kube.put(DEPLOYMENTS, body)
    refused = scene.run("warm", "llama", "--like", "deployment/server")
    assert refused.code == 1
    assert "no cache node could take the pods of shop/deployment/server" in refused.err
    assert scene.run("warm", "llama", "--like", "deployment/other").code == 1


def test_a_uri_gets_a_model_that_pods_will_find(scene: LivingScene) -> None:
    """Its name is the one that the webhook gives; nobody may use it before a rule lets them."""
    scene.origins.digests["hf://org/name@v2"] = A2
    ended = scene.run("warm", "hf://org/name", "--revision", "v2", "--nodes", "pool=other")
    assert ended.code == 0, ended
    name = model_name_of_uri("hf://org/name@v2")
    model = scene.kube.peek(MODEL_CACHES, name)
    assert model is not None
    assert model["spec"]["source"] == {"uri": "hf://org/name@v2"}
    assert (model["spec"]["prefetch"], model["spec"]["allowedNamespaces"]) == (False, {})
    assert scene.run("warm", "hf://org/name@v2", "--nodes", "pool=other").code == 0


def test_a_uri_that_is_kept_warm_is_in_use(scene: LivingScene) -> None:
    """Its ModelCache is not tidied away for want of pods before the warm-up's time is over."""
    scene.origins.digests["hf://org/name"] = A2
    assert scene.run("warm", "hf://org/name", "--ttl", "48h").code == 0
    name = model_name_of_uri("hf://org/name")
    scene.later(scene.settings.uri_idle_s + 3600)
    scene.settle()
    assert name in scene.names(MODEL_CACHES)
    scene.later(2 * scene.settings.uri_idle_s)
    scene.settle()
    assert name not in scene.names(MODEL_CACHES)


def test_refresh_warms_what_the_origin_holds_now(scene: LivingScene) -> None:
    """And says that it has moved."""
    scene.model("llama", digest=A1)
    scene.settled()
    scene.origins.digests[URI] = A2
    ended = scene.run("warm", "llama", "--refresh")
    assert ended.code == 0, ended
    assert f"the origin has moved: {A1[:19]} was pinned, {A2[:19]} is now" in ended.err
    assert A2 in ended.out
    again = scene.run("warm", "llama", "--refresh", "-o", "json")
    assert next(each for each in again.events if each["event"] == "refreshed")["moved"] is False


def test_refresh_that_nobody_answers_in_time(scene: LivingScene) -> None:
    scene.model("llama", digest=A1)
    scene.settled()
    scene.is_controlled = False
    ended = scene.run("warm", "llama", "--refresh", "--timeout", "1s")
    assert ended.code == 3
    assert "not warm after 1 s: nobody has said yet what the origin holds" in ended.err


# --- whether the origin has moved


def test_an_origin_that_moved_ends_it_before_anything_is_ordered(scene: LivingScene) -> None:
    """With both digests and both ways out; what is pinned stays pinned. --pinned asks nobody, warms what is there."""
    scene.model("llama", digest=A1, nodeSelector={"pool": "h100"})
    scene.settled()
    before = scene.status("llama")
    scene.origins.digests[URI] = A2
    ended = scene.run("warm", "llama", "--nodes", "pool=h100")
    assert ended.code == 1, ended
    assert f"the origin has moved since {A1} was pinned at " in ended.err
    assert f"it holds {A2} now" in ended.err
    assert "--refresh warms what the origin holds now; --pinned goes on" in ended.err
    assert scene.names(MODEL_WARMUPS) == []
    after = scene.status("llama")
    assert (after.digest, after.resolved_for, after.conditions) == (A1, before.resolved_for, before.conditions)
    assert {entry.digest for entry in scene.spec("n1").models} == {A1}
    asked = [len(agent.resolved) for agent in scene.agents.values()]
    assert scene.run("warm", "llama", "--nodes", "pool=h100", "--pinned").code == 0
    assert [len(agent.resolved) for agent in scene.agents.values()] == asked
    assert "origin    has moved: it holds" in scene.run("status", "llama").out
    assert scene.run("warm", "llama", "--nodes", "pool=h100", "--refresh").code == 0
    assert "as pinned" in scene.run("warm", "llama", "--nodes", "pool=h100").err


def test_an_origin_that_moved_for_machines(scene: LivingScene) -> None:
    scene.model("llama", digest=A1)
    scene.settled()
    unmoved = scene.run("warm", "llama", "-o", "json").events
    assert unmoved[0] == {"event": "looked", "model": "llama", "pinned": A1, "origin": A1, "moved": False, "why": ""}
    scene.origins.digests[URI] = A2
    looked, last = scene.run("warm", "llama", "-o", "json").events
    assert (looked["event"], looked["moved"], looked["pinned"], looked["origin"]) == ("looked", True, A1, A2)
    assert (last["event"], last["code"], last["exit_code"]) == ("failed", "origin-moved", 1)


def test_an_origin_that_has_not_moved_is_asked_about_once(scene: LivingScene) -> None:
    """By one node, which has nothing to fetch."""
    scene.model("llama", digest=A1)
    scene.settled()
    asked = sum(len(agent.resolved) for agent in scene.agents.values())
    ended = scene.run("warm", "llama", "--no-wait")
    assert ended.code == 0, ended
    assert f"llama: the origin holds {A1[:19]}, as pinned" in ended.err
    assert sum(len(agent.resolved) for agent in scene.agents.values()) == asked + 1
    scene.settled()
    assert [scene.entry(node, "llama").resolve for node in ("n1", "n2", "n3")] == ["", "", ""]


@pytest.mark.parametrize(("error", "limit_s"), [("origin-unavailable", 0.5), ("forbidden", 60.0)])
def test_an_origin_that_cannot_be_asked_stops_nobody(
    scene: LivingScene, monkeypatch: pytest.MonkeyPatch, error: str, limit_s: float
) -> None:
    """It is said, and what is pinned is warmed; the question is taken back. What a wait can't mend isn't waited for."""
    monkeypatch.setattr("cacheagent.cli.cluster.warming.LOOK_FOR_S", limit_s)
    scene.model("llama", digest=A1)
    scene.settled()
    scene.origins.errors[URI] = error
    ended = scene.run("warm", "llama")
    assert ended.code == 0, ended
    assert re.search(rf"whether the origin has moved \(n\d says: it says {error}\); going on with {A1[:19]}", ended.err)
    model = scene.kube.peek(MODEL_CACHES, "llama")
    assert model is not None
    assert LOOK not in model["metadata"].get("annotations", {})
    assert scene.run("warm", "llama", "-o", "json").events[0]["moved"] is None


def test_an_answer_that_does_not_come_stops_nobody(scene: LivingScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a role that may not ask."""
    monkeypatch.setattr("cacheagent.cli.cluster.warming.LOOK_FOR_S", 0.3)
    scene.model("llama", digest=A1)
    scene.settled()
    scene.is_controlled = False
    assert "(no node has answered within 0.3 s)" in scene.run("warm", "llama", "--no-wait").err
    scene.kube.fail_next("patch", KubeRefused("modelcaches is forbidden", status=403), resource=MODEL_CACHES)
    ended = scene.run("warm", "llama", "--no-wait")
    assert ended.code == 0
    assert "(asking was refused: modelcaches is forbidden)" in ended.err


def test_two_who_ask_at_once_both_hear_it_and_no_mark_stays(scene: LivingScene) -> None:
    """Whatever their clocks say: the later question answers the earlier one, too."""
    scene.model("llama", digest=A1)
    scene.settled()
    scene.is_controlled = False
    asked: list[str] = []

    def ask_again() -> None:
        mark = annotation(scene)
        if mark and not asked:
            asked.append(mark)
            scene.change(MODEL_CACHES, "llama", lambda item: item["metadata"]["annotations"].update({LOOK: "0"}))
            scene.is_controlled = True

    scene.on_tick = ask_again
    ended = scene.run("warm", "llama", "--no-wait")
    assert ended.code == 0, ended
    assert f"llama: the origin holds {A1[:19]}, as pinned" in ended.err
    assert asked
    assert annotation(scene) == "0", "somebody else's question stays for them"
    scene.on_tick = lambda: None
    ended = scene.run("warm", "llama", "--no-wait")
    assert f"llama: the origin holds {A1[:19]}, as pinned" in ended.err
    assert annotation(scene) is None
    scene.settled()
    assert [scene.entry(node, "llama").resolve for node in ("n1", "n2", "n3")] == ["", "", ""]


def test_an_answer_of_before_is_none(scene: LivingScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked up for somebody else earlier is not taken for an answer, however late their clock was."""
    monkeypatch.setattr("cacheagent.cli.cluster.warming.LOOK_FOR_S", 0.3)
    scene.model("llama", digest=A1)
    scene.settled()
    scene.change(MODEL_CACHES, "llama", lambda item: item["metadata"].update(annotations={LOOK: "9999-12-31"}))
    scene.settled()
    assert scene.status("llama").looked_for
    scene.is_controlled = False
    assert "(no node has answered within 0.3 s)" in scene.run("warm", "llama", "--no-wait").err
    assert annotation(scene) is None


def test_a_mark_that_can_not_be_removed_spoils_no_answer(scene: LivingScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API server is away for a moment, just then."""
    scene.model("llama", digest=A1)
    scene.settled()
    patch = scene.kube.patch

    async def away(resource: Resource, name: str, body: Patch, **more: str) -> Object:
        if isinstance(body, list):
            raise KubeUnavailable("away")
        return await patch(resource, name, body, **more)

    monkeypatch.setattr(scene.kube, "patch", away)
    ended = scene.run("warm", "llama", "--no-wait")
    assert ended.code == 0, ended
    assert f"llama: the origin holds {A1[:19]}, as pinned" in ended.err
    assert annotation(scene)


def annotation(scene: LivingScene) -> str | None:
    """The look's mark."""
    model = scene.kube.peek(MODEL_CACHES, "llama")
    assert model is not None
    mark: str | None = model["metadata"].get("annotations", {}).get(LOOK)
    return mark


def test_where_no_node_had_it_the_warmed_ones_are_asked(scene: LivingScene) -> None:
    """A warm-up that was made for a version which the origin holds no more ends with the command."""
    assert scene.run("warm", "llama").code == 0
    for name in scene.names(MODEL_WARMUPS):
        scene.kube.remove(MODEL_WARMUPS, name)
    scene.settled()
    assert scene.assigned("llama") == []
    scene.origins.digests[URI] = A2
    ended = scene.run("warm", "llama")
    assert ended.code == 1, ended
    assert f"it holds {A2} now" in ended.err
    assert scene.names(MODEL_WARMUPS) == []


def test_a_version_that_the_spec_holds_is_not_asked_about(scene: LivingScene) -> None:
    """Nothing else would be accepted."""
    scene.model("llama", digest=A1)
    scene.settled()
    scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(digest=A1))
    scene.origins.digests[URI] = A2
    ended = scene.run("warm", "llama")
    assert ended.code == 0
    assert "origin" not in ended.err


def test_an_origin_that_moves_meanwhile_is_told_when_nodes_meet_it(
    scene: LivingScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New nodes can't get the pinned version: without --pinned it ends with both ways out."""

    async def not_moved(*_: object) -> Seen:
        return Seen(digest=A1)

    monkeypatch.setattr("cacheagent.cli.cluster.warming.look_at_origin", not_moved)
    scene.model("llama", digest=A1, nodeSelector={"pool": "h100"})
    scene.settled()
    scene.origins.digests[URI] = A2
    ended = scene.run("warm", "llama", "--nodes", "pool=other")
    assert ended.code == 1
    assert "the origin has moved since a10000000000 was pinned" in ended.err
    assert "--refresh warms what the origin holds now" in ended.err
    assert scene.run("warm", "llama", "--nodes", "pool=other", "--pinned", "--timeout", "1s").code == 3


# --- a limit for the origin


def test_a_rate_is_shared_out_and_shown(scene: LivingScene) -> None:
    """Written as people do, told to every node that fetches, and to be seen in every form of the progress."""
    for agent in scene.agents.values():
        agent.slowness = 10**6
    ended = scene.run("warm", "llama", "--nodes", "pool=h100", "--max-origin-rate", "500MB/s", "--timeout", "1s")
    assert ended.code == 3, ended
    assert "on nodes with pool=h100, at most 500 MB/s from the origin" in ended.err
    assert "0/2 nodes ready, " in ended.err
    assert "(at most 500 MB/s from the origin)" in ended.err
    (warmup,) = scene.kube.all(MODEL_WARMUPS)
    assert warmup["spec"]["maxOriginRate"] == "500MB/s"
    assert [scene.entry(node, "llama").max_origin_bytes_per_s for node in ("n1", "n2")] == [250_000_000] * 2
    assert f"{warmup['metadata']['name']} (at most 500 MB/s from the origin)" in scene.run("status", "llama").out
    arguments = ("warm", "llama", "--nodes", "pool=h100", "--timeout", "1s", "-o", "json")
    events = scene.run(*arguments, "--max-origin-rate", "8Mbit/s").events
    assert next(each for each in events if each["event"] == "warming")["max_origin_bytes_per_s"] == 1_000_000
    assert (events[-1]["max_origin_bytes_per_s"], events[-1]["missing"][0]["max_origin_bytes_per_s"]) == (
        10**6,
        500_000,
    )
    (warmup,) = scene.kube.all(MODEL_WARMUPS)
    assert warmup["spec"]["maxOriginRate"] == "1MB/s"
    assert scene.run(*arguments).events[-1]["max_origin_bytes_per_s"] == 0
    (warmup,) = scene.kube.all(MODEL_WARMUPS)
    assert "maxOriginRate" not in warmup["spec"]
    assert scene.entry("n1", "llama").max_origin_bytes_per_s == 0


def test_a_version_that_is_held_by_the_spec_is_not_refreshed(scene: LivingScene) -> None:
    scene.model("llama", digest=A1)
    scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(digest=A1))
    ended = scene.run("warm", "llama", "--refresh")
    assert ended.code == 2
    assert "by spec.digest" in ended.err


def test_without_waiting(scene: LivingScene) -> None:
    """The name of the warm-up is the result."""
    ended = scene.run("warm", "llama", "--no-wait")
    assert (ended.code, ended.out.strip()) == (0, scene.names(MODEL_WARMUPS)[0])


def test_interrupted(scene: LivingScene) -> None:
    """Ctrl-C ends the watching and nothing else, and says how to watch or to end it."""
    scene.agents["n1"].slowness = 10**6
    scene.interrupt_when = lambda: len(scene.assigned("llama")) == 3
    ended = scene.run("warm", "llama")
    assert ended.code == 130, ended
    (name,) = scene.names(MODEL_WARMUPS)
    assert f"interrupted; the warm-up {name} goes on" in ended.err
    assert f"kubectl delete modelwarmup {name} ends it" in ended.err


def test_a_warmup_that_somebody_deletes(scene: LivingScene) -> None:
    scene.agents["n1"].slowness = 10**6

    def tick() -> None:
        if len(scene.assigned("llama")) == 3:
            for name in scene.names(MODEL_WARMUPS):
                scene.kube.remove(MODEL_WARMUPS, name)

    scene.on_tick = tick
    ended = scene.run("warm", "llama")
    assert ended.code == 1
    assert "was deleted, or its time is over" in ended.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max-origin-rate", "900kB/s"], "must be at least 1MB/s, for all nodes together"),
        (["--max-origin-rate", "1GB"], "expected a rate such as 200MB/s"),
        (["--refresh", "--pinned"], "exclude each other"),
        (["--like", "deployment/x", "--nodes", "a=b"], "exclude each other"),
        (["--ttl", "5s"], "between one minute and a year"),
        (["--revision", "v1"], "its source is in its spec"),
        (["--nodes", "pool"], "no label that a node has to have"),
        (["--like", "server"], "names no workload"),
    ],
)
def test_what_makes_no_sense_is_refused(scene: LivingScene, arguments: list[str], sentence: str) -> None:
    """Before anything was ordered."""
    ended = scene.run("warm", "llama", *arguments)
    assert ended.code == 2
    assert sentence in ended.err
    assert scene.names(MODEL_WARMUPS) == []


# --- rules


def test_a_warmup_is_prolonged_when_it_would_end_too_soon() -> None:
    """Joining one near its end must not fail in the middle of a rollout."""
    wish = Wish(model="llama", ttl_s=3600, least_s=1800)
    made = {"metadata": {"name": wish.name, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": wish.body["spec"]}
    there = parse_warmup(made)
    begin = there.meta.created_at
    assert renewal(wish, there, begin + 1800) == {}
    assert renewal(wish, there, begin + 3000) == {"spec": {"ttlSeconds": 6600}}


def test_names_follow_what_is_asked_for() -> None:
    """Not the nodes that were found, nor how long."""
    wish = Wish(model="llama", like="shop/deployment/a", nodes=("n1",), ttl_s=60)
    assert wish.name == Wish(model="llama", like="shop/deployment/a", nodes=("n2",), ttl_s=90).name
    others = [Wish(model="llama"), Wish(model="llama", selector={"a": "b"}), Wish(model="qwen", selector={"a": "b"})]
    assert len({wish.name, *(other.name for other in others)}) == 4
    assert len(Wish(model="m" * 63).name) <= 63


def test_selectors() -> None:
    assert parse_selector("pool=h100, zone=a") == {"pool": "h100", "zone": "a"}
    with pytest.raises(UsageError, match="names no label"):
        parse_selector(",")


def test_revision_of_a_uri() -> None:
    with pytest.raises(UsageError, match="--revision is for hf"):
        source_of_uri(Source(uri="s3://models/x"), "v1")


def progress(*nodes: NodeState, share: float = 1.0) -> Progress:
    return Progress(
        model="llama", warmup="w", digest=A1, resolved=True, since="", size_bytes=1000, nodes=nodes, share=share
    )


def node(name: str, state: str = "fetching", done: int = 0, rate: int = 0, why: str = "") -> NodeState:
    done = 1000 if state == "ready" else done
    return NodeState(node=name, state=state, bytes_done=done, size_bytes=1000, rate_bytes_per_s=rate, why=why)  # type: ignore[arg-type]


def test_the_share_is_rounded_up() -> None:
    """90 % of three nodes are three; of none, one: nothing is never enough."""
    three = [node(f"n{number}") for number in range(3)]
    assert [progress(*three, share=share).wanted for share in (0.01, 0.34, 2 / 3, 0.9, 1)] == [1, 2, 2, 3, 3]
    assert (progress().wanted, progress().is_done) == (1, False)


def test_time_left_is_that_of_the_last_node_that_is_needed() -> None:
    """A slow node does not count where it is not wanted."""
    nodes = [node("a", "ready"), node("b", done=500, rate=100), node("c", done=100, rate=9)]
    assert progress(*nodes).left_s == 100
    assert progress(*nodes, share=0.5).left_s == 5
    assert progress(*nodes, node("d", "failed")).left_s == -1
    assert node("e", done=10, rate=1).left_s == -1  # too early to tell


def test_a_line_and_a_table_say_the_same() -> None:
    """The line names the node that is furthest behind, the table all."""
    shown = progress(node("n1", "failed", why="needs 141 GB"), node("n2", done=370, rate=100), node("n3", "ready"))
    assert describe(shown) == "llama: 1/3 nodes ready, 1.37 KB of 3 KB, 100 B/s; n1: needs 141 GB"
    out = io.StringIO()
    Console(file=out, width=100).print(_table(shown))
    text = out.getvalue()
    assert "llama: 1/3 nodes ready, 1.37 KB of 3 KB, 100 B/s" in text
    assert "needs 141 GB" in text
    assert "37%" in text
    many = progress(*(node(f"n{number}") for number in range(40)))
    out = io.StringIO()
    Console(file=out, width=100).print(_table(many))
    assert "and 28 more" in out.getvalue()
