"""What each node of a limited warm-up may take from the origin."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from cacheagent.kube.api import MODEL_WARMUPS
from cacheagent.kube.plan import rates
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.rates import EXACT_UP_TO, LEAST_RATE, counted, share_out
from cacheagent.kube.plan.views import parse_cache_node, parse_model, parse_warmup
from tests.fakes.kube_scene import Scene
from tests.fakes.node_agents import digest_of

A1, A2 = digest_of("a1"), digest_of("a2")


@given(st.integers(LEAST_RATE, 10**12), st.integers(0, 5000), st.integers(0, 5000))
def test_shares_never_come_to_more_than_the_rate_and_nobody_gets_nothing(rate: int, busy: int, idle: int) -> None:
    """However many nodes fetch, or might."""
    names = [f"b{number}" for number in range(busy)], [f"i{number}" for number in range(idle)]
    shares = share_out(rate, *names)
    assert sorted(shares) == sorted(names[0] + names[1])
    assert sum(shares.values()) <= rate
    assert all(share > 0 for share in shares.values())
    if busy:
        assert sum(shares[name] for name in names[0]) >= rate * 0.87 - busy


@given(st.integers(0, 10**6))
def test_counts_are_rounded_up_by_a_ninth_at_most(nodes: int) -> None:
    """So that a thousand nodes are written to some dozen times, not a thousand."""
    assert nodes <= counted(nodes) <= nodes * 9 / 8
    assert nodes > EXACT_UP_TO or counted(nodes) == nodes


def test_a_thousand_nodes_are_told_seldom() -> None:
    assert len({counted(nodes) for nodes in range(1, 1001)}) == 64


def fleet(count: int) -> Scene:
    scene = Scene()
    for number in range(count):
        scene.node(f"n{number}", pool="gpu").slowness = 10**6
    scene.model("llama", digest=A1, prefetch=False)
    return scene


def told(scene: Scene) -> dict[str, int]:
    """By node, what it may take; those without a limit are left out."""
    return {
        name: scene.entry(name, "llama").max_origin_bytes_per_s
        for name in scene.assigned("llama")
        if scene.entry(name, "llama").max_origin_bytes_per_s
    }


def go_on(scene: Scene) -> None:
    for _ in range(4):
        scene.step()


def test_a_rate_is_given_out_again_when_nodes_are_ready() -> None:
    """The last one has all of it, one that is ready has no limit and is not asked to keep one."""
    scene = fleet(3)
    scene.warmup("w", "llama", nodeSelector={"pool": "gpu"}, maxOriginRate="9MB/s")
    go_on(scene)
    assert told(scene) == {"n0": 3_000_000, "n1": 3_000_000, "n2": 3_000_000}
    scene.agents["n0"].slowness = 0
    go_on(scene)
    assert told(scene) == {"n1": 4_500_000, "n2": 4_500_000}
    scene.agents["n1"].slowness = 0
    go_on(scene)
    assert told(scene) == {"n2": 9_000_000}
    scene.node("n3", pool="gpu").slowness = 10**6
    go_on(scene)
    assert told(scene) == {"n2": 4_500_000, "n3": 4_500_000}
    scene.change(MODEL_WARMUPS, "w", lambda item: item["spec"].pop("maxOriginRate"))
    go_on(scene)
    assert told(scene) == {}


def test_nodes_that_fetch_nothing_hold_next_to_nothing() -> None:
    """One without an agent and one that failed may begin at any time: they have a hundredth together until then."""
    scene = fleet(4)
    scene.warmup("w", "llama", nodeSelector={"pool": "gpu"}, maxOriginRate="20MB/s")
    scene.origins.errors["n1", "s3://models/llama"] = "no-room"
    go_on(scene)
    scene.agent("n2", ready=False)
    go_on(scene)
    assert told(scene) == {"n0": 9_900_000, "n1": 100_000, "n2": 100_000, "n3": 9_900_000}
    scene.agent("n2")
    scene.origins.errors.clear()
    go_on(scene)
    assert told(scene) == dict.fromkeys(("n0", "n1", "n2", "n3"), 5_000_000)
    for name in ("n0", "n1", "n2", "n3"):
        scene.agent(name, ready=False)
    go_on(scene)
    assert told(scene) == dict.fromkeys(("n0", "n1", "n2", "n3"), 5_000_000)


def test_a_node_of_several_warmups_keeps_to_the_smallest_share() -> None:
    """Those without a limit change nothing; nodes outside have none; time ends all of it."""
    scene = fleet(3)
    scene.relabel("n2", pool="cpu")
    scene.warmup("a", "llama", nodeSelector={"pool": "gpu"}, maxOriginRate="10MB/s", ttlSeconds=600)
    scene.warmup("b", "llama", nodes=["n1"], maxOriginRate="2MB/s", ttlSeconds=300)
    scene.warmup("c", "llama", nodeSelector={})
    go_on(scene)
    assert told(scene) == {"n0": 5_000_000, "n1": 2_000_000}
    scene.later(301)
    go_on(scene)
    assert told(scene) == {"n0": 5_000_000, "n1": 5_000_000}
    scene.later(300)
    go_on(scene)
    assert told(scene) == {}
    assert scene.assigned("llama") == ["n0", "n1", "n2"]


def test_a_new_version_is_limited_where_the_old_one_is() -> None:
    """A node that is ready with what was there before fetches anew."""
    scene = fleet(2)
    scene.agents["n0"].slowness = scene.agents["n1"].slowness = 0
    scene.warmup("w", "llama", nodeSelector={}, maxOriginRate="1kB/s")
    scene.settle()
    assert told(scene) == {}
    for agent in scene.agents.values():
        agent.slowness = 10**6
    scene.model("llama", digest=A2, prefetch=False, kind="tree")
    go_on(scene)
    assert told(scene) == dict.fromkeys(("n0", "n1"), LEAST_RATE // 2)


def test_a_rate_that_nobody_can_read_is_left_out_with_its_warmup() -> None:
    """The schema refuses it; a controller that meets one all the same goes on."""
    body = {"metadata": {"name": "w"}, "spec": {"model": "llama", "maxOriginRate": "fast"}}
    with pytest.raises(ValueError, match=r"spec.maxOriginRate: expected a rate such as 200MB/s"):
        parse_warmup(body)
    body["spec"]["maxOriginRate"] = "10Gbit/s"
    assert parse_warmup(body).origin_rate == 1_250_000_000


def test_a_look_that_failed_is_no_failed_download() -> None:
    """A node that brings the version in force and can't list the source for somebody's question still fetches; one that
    has nothing but that failure does not."""
    facts = Facts(
        model=parse_model({"metadata": {"name": "llama", "uid": "u"}, "spec": {"source": {"uri": "s3://b/m"}}}),
        token="t",
        digest=A1,
        resolved=True,
        namespaces=None,
        previous=(),
    )
    looked = {"name": "llama", "phase": "failed", "digest": ""}
    for entries, failed in (
        ([looked], True),
        ([looked, {"name": "llama", "phase": "fetching", "digest": A1}], False),
        ([{"name": "llama", "phase": "failed", "digest": A1}], True),
    ):
        node = parse_cache_node({"metadata": {"name": "n", "uid": "u"}, "spec": {}, "status": {"models": entries}})
        assert rates._failed(node, facts) is failed
