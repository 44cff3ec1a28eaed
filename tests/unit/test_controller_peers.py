"""Who exchanges what with whom: lists of the controller, by situations and by properties."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterable

import msgspec
import pytest

from cacheagent.cohorts import COHORT
from cacheagent.kube.api import MODEL_CACHE_NODES, MODEL_CACHE_PEERS, MODEL_CACHES, NODES
from cacheagent.kube.names import REFRESH, member_label
from cacheagent.kube.objects import ModelCachePeersSpec, PeerBelow, PeerMember
from cacheagent.kube.plan.peers import GATHER_S, ZONE
from tests.fakes.kube_scene import Scene
from tests.fakes.node_agents import digest_of

A1, A2, B1 = digest_of("a1"), digest_of("a2"), digest_of("b1")


def key_of(text: str) -> str:
    """What an agent reports: its public key and the next one, as far as anybody can tell."""
    return ",".join(base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in (text, f"{text}+"))


def join(scene: Scene, number: int, pool: str = "gpu") -> None:
    """A node whose agent says how it is reached."""
    agent = scene.node(f"n{number}", pool=pool)
    agent.public_key, agent.peer_address = key_of(f"n{number}"), f"10.0.{number // 250}.{number % 250}:7411"


def fleet(count: int, **settings: object) -> Scene:
    """Nodes n0, n1, … that can all be reached."""
    scene = Scene(**settings)
    for number in range(count):
        join(scene, number)
    return scene


def lists(scene: Scene) -> dict[str, ModelCachePeersSpec]:
    """By name."""
    return {
        item["metadata"]["name"]: msgspec.convert(item["spec"], ModelCachePeersSpec)
        for item in scene.kube.all(MODEL_CACHE_PEERS)
    }


def members(scene: Scene, digest: str) -> list[str]:
    """Names of all nodes that are listed for it."""
    return sorted(each.name for spec in lists(scene).values() if digest in spec.digests for each in spec.members)


def writes(scene: Scene) -> list[tuple[str, str, str]]:
    """What was written since the last call, but for states."""
    found = [(str(each.verb), each.resource.plural, each.name) for each in scene.history if not each.subresource]
    scene.history.clear()
    return found


def test_nodes_of_a_model_are_told_of_each_other() -> None:
    """With address, key and zone; each finds its list by a label; they are told that the version is shared."""
    scene = fleet(3)
    scene.relabel("n1", **{ZONE: "eu-1b"})
    scene.model("llama", digest=A1)
    scene.settle()
    ((name, spec),) = lists(scene).items()
    assert spec.digests == (A1,)
    assert [(each.name, each.address, each.key, each.zone) for each in spec.members] == [
        ("n0", "10.0.0.0:7411", key_of("n0"), ""),
        ("n1", "10.0.0.1:7411", key_of("n1"), "eu-1b"),
        ("n2", "10.0.0.2:7411", key_of("n2"), ""),
    ]
    item = scene.kube.peek(MODEL_CACHE_PEERS, name)
    assert item is not None
    assert {member_label(f"n{number}") for number in range(3)} < item["metadata"]["labels"].keys()
    assert all(scene.entry(f"n{number}", "llama").shared for number in range(3))
    assert scene.plan().changes == ()
    scene.restart()
    assert scene.plan().changes == (), "also for another controller"


def test_the_list_is_planned_before_anybody_is_told_of_the_model() -> None:
    """An agent that hears of a model finds out with whom it shares it."""
    scene = fleet(3)
    scene.model("llama", digest=A1)
    scene.settle()
    scene.model("other", digest=B1, nodeSelector={"pool": "gpu"})
    for _ in range(6):
        order = [change.resource for change in scene.plan().changes if not change.subresource]
        if MODEL_CACHE_PEERS in order:
            assert order.index(MODEL_CACHE_PEERS) < order.index(MODEL_CACHE_NODES)
            return
        scene.step()
    raise AssertionError("no list was planned")


@pytest.mark.parametrize("alone", ["one node", "never", "switched off"])
def test_what_is_not_exchanged_has_no_list(alone: str) -> None:
    """One node has nobody to share with; a model may forbid it, and so may the administrator."""
    scene = fleet(1 if alone == "one node" else 3, peers=alone != "switched off")
    scene.model("llama", digest=A1, **({"peers": "never"} if alone == "never" else {}))
    scene.settle()
    assert lists(scene) == {}
    assert not scene.entry("n0", "llama").shared
    assert scene.entry("n0", "llama").peers == ("never" if alone == "never" else "auto")


def test_what_one_model_forbids_no_other_permits() -> None:
    """Two models that hold the same version: it is one thing that travels."""
    scene = fleet(3)
    scene.model("llama", digest=A1)
    scene.model("secret", digest=A1)
    scene.settle()
    assert members(scene, A1) == ["n0", "n1", "n2"]
    scene.change(MODEL_CACHES, "secret", lambda item: item["spec"].update(peers="never"))
    scene.settle()
    assert lists(scene) == {}


def test_who_cannot_be_reached_is_not_listed() -> None:
    """An agent that has not spoken, one that writes nonsense, a Node that is not ready; each is, once it is well."""
    scene = fleet(5)
    for number in (1, 2):
        scene.agents[f"n{number}"].peer_address = ["", "", "nowhere"][number]
    scene.agents["n1"].public_key = ""
    scene.agents["n3"].public_key = "bm8ga2V5"
    scene.model("llama", digest=A1)
    scene.change(NODES, "n4", lambda item: item["status"].update(conditions=[{"type": "Ready", "status": "Unknown"}]))
    scene.settle()
    assert members(scene, A1) == ["n0"]
    assert scene.entry("n0", "llama").shared, "it waits for its list, which says that nobody can be reached"
    for number in (1, 2, 3):
        join(scene, number)
    scene.change(NODES, "n4", lambda item: item["status"].update(conditions=[{"type": "Ready", "status": "True"}]))
    scene.settle()
    assert members(scene, A1) == ["n0", "n1", "n2", "n3", "n4"]


def test_a_new_key_and_a_new_address_are_one_write() -> None:
    """However many models the node has; and flocks of them are gathered."""
    scene = fleet(4)
    for number in range(5):
        scene.model(f"m{number}", digest=digest_of(f"c{number}"))
    scene.settle()
    assert len(lists(scene)) == 1, "versions of the same nodes share a list"
    writes(scene)
    agent = scene.agents["n2"]
    agent.public_key, agent.peer_address = key_of("another"), "10.9.9.9:7411"
    scene.report("n2")
    (change,) = [each for each in scene.plan().changes if each.resource == MODEL_CACHE_PEERS]
    assert change.lazy_s == GATHER_S
    scene.settle()
    assert [each[:2] for each in writes(scene)] == [("patch", "modelcachepeers")]
    (spec,) = lists(scene).values()
    assert {each.name: each.key for each in spec.members}["n2"] == key_of("another")


def test_a_node_that_comes_or_goes_rewrites_no_other_node() -> None:
    """It is one write for the list, whatever the number of models and nodes."""
    scene = fleet(40)
    for number in range(8):
        scene.model(f"m{number}", digest=digest_of(f"c{number}"))
    scene.settle()
    writes(scene)
    join(scene, 40)
    scene.settle()
    came = writes(scene)
    assert {each[2] for each in came if each[1] == "modelcachenodes"} == {"n40"}
    assert [each[0] for each in came if each[1] == "modelcachepeers"] == ["patch"]
    assert "n40" in members(scene, digest_of("c0"))
    scene.kube.remove(NODES, "n3")
    scene.settle()
    gone = writes(scene)
    assert [each[:2] for each in gone if each[1] != "nodes"] == [("patch", "modelcachepeers")]
    assert "n3" not in members(scene, digest_of("c0"))


def test_a_new_version_gets_its_own_list_and_the_old_one_loses_it() -> None:
    """Nobody fetches the older version any more."""
    scene = fleet(3)
    scene.model("llama", digest=A1)
    scene.model("other", digest=B1)
    scene.settle()
    assert members(scene, A1) == members(scene, B1) == ["n0", "n1", "n2"]
    scene.origins.digests["s3://models/llama"] = A2
    scene.change(MODEL_CACHES, "llama", lambda item: item["metadata"].update(annotations={REFRESH: "1"}))
    scene.settle()
    assert members(scene, A1) == []
    assert members(scene, A2) == members(scene, B1) == ["n0", "n1", "n2"]


def test_lists_say_how_many_nodes_take_from_one_origin() -> None:
    """Where there are several for a version, rounded up, so that a node more rewrites its own list and those that hang
    together with it alone; where there is one, its members are all."""
    scene = fleet(COHORT)
    scene.model("llama", digest=A1)
    scene.settle()
    assert [spec.nodes for spec in lists(scene).values()] == [0]
    join(scene, COHORT)
    scene.settle()
    assert len(lists(scene)) > 1
    assert {spec.nodes for spec in lists(scene).values()} == {2 * COHORT}
    writes(scene)
    join(scene, COHORT + 1)
    scene.settle()
    assert [each[0] for each in writes(scene) if each[1] == "modelcachepeers"] == ["patch", "patch"]
    scene.kube.remove(NODES, "n0")
    scene.kube.remove(NODES, "n1")
    scene.settle()
    assert [spec.nodes for spec in lists(scene).values()] == [0]


def names_of(members: Iterable[PeerMember | PeerBelow]) -> list[str]:
    """Of a list's part."""
    return [each.name for each in members]


def require_tree(specs: Iterable[ModelCachePeersSpec]) -> None:
    """One root; everybody else has the members of one list above, which lists them below, with their keys."""
    by_members = {tuple(names_of(spec.members)): spec for spec in specs}
    keys = {member.name: member.key for spec in by_members.values() for member in spec.members}
    below: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    roots = [spec for spec in by_members.values() if not spec.above]
    assert [spec.level for spec in roots] == [1]
    for members, spec in by_members.items():
        assert len(members) <= COHORT
        assert len(spec.below) <= 2 * COHORT
        assert all(keys[each.name] == each.key for each in spec.below)
        if spec.above:
            above = by_members[tuple(names_of(spec.above))]
            assert (spec.level, spec.above) == (above.level + 1, above.members)
            below[tuple(names_of(spec.above))] += members
    for members, spec in by_members.items():
        assert names_of(spec.below) == sorted(below[members])


def test_lists_hang_together_in_a_tree() -> None:
    """Each says who feeds it and whom it feeds; another address is known to the node's own list and to those below it,
    another node to the one above it too, and so few lists are written."""
    scene = fleet(250)
    scene.model("llama", digest=A1)
    scene.settle()
    assert len(lists(scene)) >= 5
    require_tree(lists(scene).values())
    writes(scene)
    for number in range(3):
        scene.agents[f"n{number}"].peer_address = f"10.9.9.{number}:7411"
        scene.report(f"n{number}")
        scene.settle()
        assert 1 <= len([each for each in writes(scene) if each[1] == "modelcachepeers"]) <= 3
        join(scene, 250 + number)
        scene.settle()
        assert 2 <= len([each for each in writes(scene) if each[1] == "modelcachepeers"]) <= 4
        require_tree(lists(scene).values())


def test_nodes_of_a_large_zone_are_on_lists_of_their_own() -> None:
    """A piece then comes into it once. Those of small ones are together."""
    scene = fleet(150)
    zones = {f"n{number}": "a" if number < 100 else "bc"[number % 2] for number in range(150)}
    for name, zone in zones.items():
        scene.relabel(name, **{ZONE: zone})
    scene.model("llama", digest=A1)
    scene.settle()
    require_tree(lists(scene).values())
    found = sorted("".join(sorted({each.zone for each in spec.members})) for spec in lists(scene).values())
    assert found == ["a", "a", "bc"]


def test_a_list_whose_feeder_can_not_be_reached_says_so() -> None:
    """Its nodes then ask the origin; they are told that they are not the root all the same."""
    scene = fleet(COHORT + 1)
    scene.model("llama", digest=A1)
    scene.settle()
    (root,) = [spec for spec in lists(scene).values() if spec.level == 1]
    for name in names_of(root.members):
        scene.agents[name].public_key = ""
        scene.report(name)
    scene.settle()
    ((spec),) = lists(scene).values()
    assert (spec.level, spec.above, spec.below) == (2, (), ())


def test_models_of_different_nodes_have_different_lists() -> None:
    """Nobody is told of a node that does not want the model."""
    scene = fleet(6)
    for number in (3, 4, 5):
        scene.relabel(f"n{number}", pool="cpu")
    scene.model("llama", digest=A1, nodeSelector={"pool": "gpu"})
    scene.model("other", digest=B1)
    scene.settle()
    assert members(scene, A1) == ["n0", "n1", "n2"]
    assert members(scene, B1) == [f"n{number}" for number in range(6)]
    assert len(lists(scene)) == 2


def test_lists_that_nobody_needs_go() -> None:
    """With the last model, and when it is switched off."""
    scene = fleet(3)
    scene.model("llama", digest=A1)
    scene.settle()
    assert lists(scene)
    scene.settings = type(scene.settings)(peers=False)
    scene.settle()
    assert lists(scene) == {}
    assert not scene.entry("n0", "llama").shared
