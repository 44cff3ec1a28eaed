"""`status`, `nodes`, `explain`, `refresh`, `pin`, `unpin` and `evict` on a cluster in memory."""

from __future__ import annotations

import pytest

from cacheagent.cli.root import cli
from cacheagent.kube.api import LEASES, MODEL_CACHES, MODEL_WARMUPS, PODS, KubeRefused
from cacheagent.kube.ops.placement import DEPLOYMENTS, REPLICA_SETS
from cacheagent.kube.plan.times import written_time
from tests.fakes.kube_cli import LivingScene
from tests.fakes.kube_scene import SYSTEM
from tests.fakes.node_agents import digest_of

A1, A2 = digest_of("a1"), digest_of("a2")
URI = "s3://models/llama"


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> LivingScene:
    """Three nodes; llama is on two of them and fails on the third."""
    scene = LivingScene(monkeypatch, capsys)
    for name in ("n1", "n2", "n3"):
        scene.node(name)
    scene.model("llama", digest=A1)
    scene.origins.errors["n3", URI] = "no-room"
    scene.settled()
    return scene


def test_status_of_all_models(scene: LivingScene) -> None:
    scene.model("qwen", digest=A2, nodeSelector={"pool": "none"})
    scene.settled()
    ended = scene.run("status")
    assert ended.code == 0
    lines = [line.split("\t") for line in ended.out.splitlines()]
    assert lines[0] == ["NAME", "VERSION", "SIZE", "READY", "STATE", "SOURCE"]
    assert lines[1] == ["llama", "a10000000000", "1 KB", "2/3", "NoRoom: n3: it says no-room", URI]
    assert lines[2][:4] == ["qwen", "-", "-", "0/0"]
    assert "nobody can look at its source" in lines[2][4]


def test_status_of_one_model(scene: LivingScene) -> None:
    """Where it is, where not, and why; who keeps it warm."""
    scene.warmup("rollout", "llama", nodeSelector={})
    ended = scene.run("status", "llama")
    assert ended.code == 0
    assert f"digest    {A1} (pinned since " in ended.out
    assert "ready     2 of 3 nodes" in ended.out
    assert "warm-ups  rollout" in ended.out
    rows = [line.split("\t") for line in ended.out.splitlines() if line.startswith("n")]
    assert [row for row in rows if row[0] == "n3"] == [["n3", "failed", "-", "-", "-", "0", "it says no-room"]]
    assert ["n1", "ready", "100%", "-", "-", "0", "-"] in rows


def test_status_for_machines(scene: LivingScene) -> None:
    (found,) = scene.run("status", "llama", "-o", "json").events
    assert (found["name"], found["digest"], found["ready"]) == ("llama", A1, 2)
    assert {node["node"]: node["state"] for node in found["nodes"]} == {"n1": "ready", "n2": "ready", "n3": "failed"}


def test_a_version_on_nodes_that_need_not_have_it(scene: LivingScene) -> None:
    scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(nodeSelector={"kubernetes.io/hostname": "n1"}))
    scene.settled()
    assert "on other nodes, until their room is needed: n2" in scene.run("status", "llama").out


def test_nodes(scene: LivingScene) -> None:
    """Room and what is wrong: a failure, an agent that is gone."""
    scene.kill("n2")
    ended = scene.run("nodes")
    rows = {line.split("\t")[0]: line.split("\t") for line in ended.out.splitlines()}
    assert rows["n1"] == ["n1", "1 TB", "0 B", "0 B", "0 B", "100 GB", "-", "1/1", "-"]
    assert rows["n2"][-1].startswith("its agent is not ready; these figures are of ")
    assert rows["n3"][-2:] == ["0/1", "llama: it says no-room"]
    (found,) = scene.run("nodes", "-o", "json").events
    assert found[0]["usage"]["capacity_bytes"] == 10**12  # type: ignore[index]


def test_refresh_tells_whether_the_origin_moved(scene: LivingScene) -> None:
    """It returns when the new version is pinned, not when it was ordered."""
    assert scene.run("refresh", "llama").out == f"llama: the origin holds {A1}, as before\n"
    scene.origins.digests[URI] = A2
    ended = scene.run("refresh", "llama")
    assert ended.code == 0
    assert ended.out == f"llama: the origin has moved: {A1[:19]} was pinned, {A2} is now\n"
    assert scene.status("llama").digest == A2


def test_refresh_of_a_source_that_is_broken(scene: LivingScene) -> None:
    scene.origins.errors[URI] = "forbidden"
    del scene.origins.digests[URI]
    ended = scene.run("refresh", "llama")
    assert ended.code == 1
    assert "says: it says forbidden" in ended.err
    assert scene.status("llama").digest == A1


def test_refresh_where_nobody_can_ask(scene: LivingScene) -> None:
    """No node is to hold it, so no agent can look."""
    scene.model("qwen", digest=A2, prefetch=False)
    scene.settled()
    ended = scene.run("refresh", "qwen")
    assert ended.code == 1
    assert "nobody can look at its source" in ended.err


def test_refresh_without_an_answer(scene: LivingScene) -> None:
    scene.is_controlled = False
    ended = scene.run("refresh", "llama", "--timeout", "1s")
    assert ended.code == 3
    assert f"no answer after 1 s; {A1[:19]} stays pinned" in ended.err


def test_pin_and_unpin(scene: LivingScene) -> None:
    assert scene.run("pin", "llama").code == 0
    scene.settled()
    assert scene.entry("n1", "llama").pin
    assert scene.run("unpin", "llama", "-o", "json").events == [{"model": "llama", "pin": False}]
    assert scene.run("pin", "lama").code == 1


def test_evict_lets_every_node_give_it_up(scene: LivingScene) -> None:
    """Its warm-ups end, others go on; nothing keeps it assigned."""
    scene.model("qwen", digest=A2)
    scene.warmup("mine", "llama", nodeSelector={})
    scene.warmup("other", "qwen", nodeSelector={})
    ended = scene.run("evict", "llama")
    assert ended.out == "llama: no node keeps it any more; its bytes go when their room is needed; 1 warm-up ended\n"
    scene.settled()
    assert scene.names(MODEL_WARMUPS) == ["other"]
    assert scene.assigned("llama") == []
    assert scene.assigned("qwen") == ["n1", "n2", "n3"]


def test_explain_a_pod(scene: LivingScene) -> None:
    """Marks, the sentence, and the next step; nothing is missing where the pod runs."""
    scene.pod("web", "llama", node="n3")
    ended = scene.run("explain", "pod/web", "-n", "shop")
    assert ended.code == 0
    assert "✓ annotation     asks for llama\n" in ended.out
    assert "✗ download       llama on n3: it says no-room\n" in ended.out
    assert "· mount\n" in ended.out
    assert ended.out.endswith("next: unpin or evict something, use a larger disk, or a narrower spec.nodeSelector: "
                              "cacheagent nodes\n")  # fmt: skip
    (found,) = scene.run("explain", "web", "-o", "json").events
    assert found["first_missing"]["name"] == "download"
    assert scene.run("explain", "pod/nobody").code == 1


def controller_pod(scene: LivingScene, renewed_ago_s: float) -> None:
    owner = {"kind": "ReplicaSet", "name": "cacheagent-controller-5d4f", "uid": "rs", "apiVersion": "apps/v1"}
    labels = {"app.kubernetes.io/name": "cacheagent", "app.kubernetes.io/component": "controller"}
    meta = {"name": "cacheagent-controller-5d4f-x", "namespace": SYSTEM, "labels": labels, "ownerReferences": [owner]}
    scene.kube.put(PODS, {"metadata": meta, "spec": {"nodeName": "n9"}})
    renewed = written_time(scene.now - renewed_ago_s)
    spec = {"holderIdentity": "x", "leaseDurationSeconds": 15, "renewTime": renewed}
    scene.kube.put(LEASES, {"metadata": {"name": "cacheagent-controller", "namespace": SYSTEM}, "spec": spec})


def test_explain_looks_who_leads(scene: LivingScene) -> None:
    """By the Lease that has the name of the controllers' Deployment; one that may not be read is nobody's fault."""
    scene.model("qwen", digest=A2, prefetch=False)
    scene.settled()
    scene.pod("web", "qwen", node="n1")
    controller_pod(scene, 600)
    scene.is_controlled = False
    ended = scene.run("explain", "pod/web", "-n", "shop")
    assert "no controller leads: the lease was last renewed 10 min ago" in ended.out
    scene.kube.fail_next("get", KubeRefused("leases: forbidden", status=403), resource=LEASES)
    assert "has not assigned qwen to n1 yet" in scene.run("explain", "pod/web", "-n", "shop").out


def test_explain_a_deployment_takes_the_pod_that_is_furthest_behind(scene: LivingScene) -> None:
    """Pods of its ReplicaSets; where there is none, the events of whoever makes them."""
    made = scene.kube.put(
        DEPLOYMENTS,
        {
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"template": {"metadata": {"annotations": {"cacheagent.io/model": "llama"}}}},
        },
    )
    owner = [{"uid": made["metadata"]["uid"]}]
    owned = {"metadata": {"name": "web-1", "namespace": "shop", "ownerReferences": owner}}
    replica_set = scene.kube.put(REPLICA_SETS, owned)
    assert "there is no pod yet" in scene.run("explain", "deployment/web").out
    owners = [{"uid": replica_set["metadata"]["uid"]}]
    for name, node in (("web-1-a", "n1"), ("web-1-b", "n3")):
        scene.pod(name, "llama", node=node)
        scene.change(PODS, name, lambda item: item["metadata"].update(ownerReferences=owners), namespace="shop")
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    scene.change(PODS, "web-1-a", lambda item: item.update(status=ready), namespace="shop")
    ended = scene.run("explain", "deployment/web")
    assert "deployment/web: pod/web-1-b in shop" in ended.out
    assert "✗ download       llama on n3: it says no-room" in ended.out


def test_every_command_has_help_and_its_place() -> None:
    """What is there on a cluster only is reached without `cluster`; the rest means this machine."""
    group = cli.commands["cluster"]
    here, there = set(cli.commands), set(group.commands)  # type: ignore[attr-defined]
    assert there == {"warm", "nodes", "explain", "refresh", "status", "pin", "unpin", "evict"}
    assert here & there == there
    for name in ("warm", "nodes", "explain", "refresh"):
        assert cli.commands[name] is group.commands[name]  # type: ignore[attr-defined]
    for name in ("status", "pin", "unpin", "evict"):
        assert cli.commands[name] is not group.commands[name]  # type: ignore[attr-defined]
    assert all(command.help for command in group.commands.values())  # type: ignore[attr-defined]
