"""What a controller counts: starts of pods by what Kubernetes wrote on them, and the cluster only while it leads."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from cacheagent.kube import slim
from cacheagent.kube.api import Object
from cacheagent.kube.metrics import ControllerMetrics
from cacheagent.kube.names import COLD_SINCE, COLD_TAINT, DRIVER, GATE, MODEL, WAIT_CONTAINER
from cacheagent.kube.objects import Condition, ModelCacheSpec, ModelCacheStatus, NodeCounts, Source
from cacheagent.kube.plan import World
from cacheagent.kube.plan.times import written_time
from cacheagent.kube.plan.views import Meta, Model, Node, Pod, parse_pod
from cacheagent.kube.pod_waits import PodWaits, Start

BEGIN = 1_800_000_000.0


def body(name: str, *, made: float = 0, wait: str = "mount", gpus: str = "", **status: Any) -> Object:
    """A pod as the API server has it, made so many seconds after BEGIN."""
    limits = {"cpu": "8", **({"nvidia.com/gpu": gpus} if gpus else {})}
    attributes = {"model": "llama", "wait": wait}
    return {
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": f"uid-{name}",
            "creationTimestamp": written_time(BEGIN + made),
            "annotations": {MODEL: "llama"},
        },
        "spec": {
            "containers": [{"name": "engine", "resources": {"limits": limits}}, {"name": "sidecar"}],
            "volumes": [{"name": "weights", "csi": {"driver": DRIVER, "volumeAttributes": attributes}}],
        },
        "status": {"phase": "Pending", **status},
    }


def bound(pod: Object, at: float) -> Object:
    """On a node since then."""
    pod["spec"]["nodeName"] = "n1"
    pod["status"].setdefault("conditions", []).append(_condition("PodScheduled", at))
    return pod


def mounted(pod: Object, at: float, status: str = "True") -> Object:
    """Its volumes are there since then."""
    pod["status"].setdefault("conditions", []).append(_condition("PodReadyToStartContainers", at, status))
    return pod


def filled(pod: Object, at: float, code: int = 0) -> Object:
    """The container that waits ended then."""
    ended = {"terminated": {"exitCode": code, "finishedAt": written_time(BEGIN + at), "reason": "Completed"}}
    pod["status"]["initContainerStatuses"] = [{"name": "own", "state": ended}, {"name": WAIT_CONTAINER, "state": ended}]
    return pod


def _condition(kind: str, at: float, status: str = "True") -> Object:
    return {"type": kind, "status": status, "lastTransitionTime": written_time(BEGIN + at), "lastProbeTime": None}


def kept(*pods: Object) -> list[Pod]:
    """As the controller keeps them."""
    return [parse_pod(slim.pod(pod)) for pod in pods]


def test_a_start_is_counted_once() -> None:
    """By Kubernetes' own times, with the GPUs that waited, however often the pod is looked at."""
    waits = PodWaits()
    waits.look([])
    asked = waits.look(kept(bound(body("a", made=10, gpus="8"), 15)))
    assert asked.pods == {"gate": 0, "scheduling": 0, "node": 1}
    assert asked.gpus_held == 8
    there = kept(mounted(bound(body("a", made=10, gpus="8"), 15), 75))
    done = waits.look(there)
    assert done.started == (Start(waited_s=65, held_s=60, gpus=8),)
    assert (done.gpus_held, sum(done.pods.values())) == (0, 0)
    assert waits.look(there).started == ()


def test_a_pod_that_came_and_started_between_two_looks_counts() -> None:
    """Nothing has to be seen waiting."""
    waits = PodWaits()
    waits.look([])
    (start,) = waits.look(kept(mounted(bound(body("a"), 0), 2))).started
    assert start == Start(waited_s=2, held_s=2, gpus=0)


def test_history_is_not_counted() -> None:
    """A new leader begins with the starts that come; a sandbox that is made anew is no second start."""
    waits = PodWaits()
    old = kept(mounted(bound(body("old"), 0), 5))
    assert waits.look(old).started == ()
    again = waits.look(kept(mounted(bound(body("old"), 0), 90, "False")))
    assert again.started == ()
    assert sum(again.pods.values()) == 0
    assert waits.look(kept(mounted(bound(body("old"), 0), 95))).started == ()
    (start,) = waits.look([*old, *kept(mounted(bound(body("new"), 0), 5))]).started
    assert start.waited_s == 5


def test_stages() -> None:
    """At the gate, without a node, on the node; those that are over or go wait for nothing."""
    gated = body("gated")
    gated["spec"]["schedulingGates"] = [{"name": GATE}]
    going = bound(body("going", gpus="1"), 1)
    going["metadata"]["deletionTimestamp"] = written_time(BEGIN)
    over = bound(body("over", gpus="1", phase="Failed"), 1)
    seen = PodWaits().look(kept(gated, body("pending", gpus="4"), bound(body("bound", gpus="2"), 1), going, over))
    assert seen.pods == {"gate": 1, "scheduling": 1, "node": 1}
    assert seen.gpus_held == 2


def test_a_volume_that_is_filled_later() -> None:
    """With `wait: init` the sandbox is there at once: the weights are, when the container that waits has ended well."""
    waits = PodWaits()
    waits.look([])
    early = mounted(bound(body("a", wait="init", gpus="1"), 1), 2)
    assert waits.look(kept(early)).gpus_held == 1
    assert waits.look(kept(filled(early, 30, code=1))).started == ()
    (start,) = waits.look(kept(filled(early, 61))).started
    assert start == Start(waited_s=61, held_s=60, gpus=1)


def test_what_a_pod_does_later_is_no_change() -> None:
    """Readiness, restarts and others' containers come and go without making the controller plan anew."""
    pod = filled(mounted(bound(body("a", wait="init"), 1), 2), 30)
    before = slim.pod(pod)
    pod["status"]["conditions"].append(_condition("Ready", 40))
    pod["status"]["containerStatuses"] = [{"name": "engine", "restartCount": 7}]
    pod["status"]["initContainerStatuses"][0]["restartCount"] = 1
    assert slim.pod(pod) == before


def world(*pods: Object) -> World:
    """A cluster of one model that is degraded, one that is well, and two cold nodes."""
    taints = ({"key": COLD_TAINT, "effect": "NoSchedule"},)
    nodes = {
        name: Node(
            meta=Meta(name=name, created_at=BEGIN + 50, annotations=annotations),
            ours={},
            taints=taints,
            unschedulable=False,
            ready=True,
        )
        for name, annotations in (("n1", {COLD_SINCE: written_time(BEGIN + 60)}), ("n2", {}))
    }
    nodes["n3"] = Node(meta=Meta(name="n3"), ours={}, taints=(), unschedulable=False, ready=True)
    models = {}
    for name, status in (("llama", "True"), ("minilm", "False")):
        condition = Condition(type="Degraded", status=status, reason="x")  # type: ignore[arg-type]
        models[name] = Model(
            meta=Meta(name=name),
            spec=ModelCacheSpec(source=Source(uri="s3://b/p")),
            status=ModelCacheStatus(conditions=(condition,), nodes=NodeCounts(assigned=2, ready=1)),
        )
    return World(models=models, nodes=nodes, pods={pod.meta.uid: pod for pod in kept(*pods)})


def scraped(metrics: ControllerMetrics, *, leads: bool = True) -> dict[tuple[str, ...], float]:
    """(name, label value, …) -> value."""
    text = metrics.render(leads=leads, backlog=0, certificate_ends_at=BEGIN).decode()
    families = text_string_to_metric_families(text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_the_leader_tells_of_the_cluster() -> None:
    """And a replica that leads no more says nothing of it: a sum over replicas would count it twice."""
    metrics = ControllerMetrics()
    assert ("cacheagent_controller_cold_nodes",) not in scraped(metrics)
    metrics.follow(world(bound(body("a", gpus="8"), 1)))
    found = scraped(metrics)
    assert found["cacheagent_controller_models", "degraded"] == 1
    assert found["cacheagent_controller_model_degraded", "llama"] == 1
    assert ("cacheagent_controller_model_degraded", "minilm") not in found
    assert found["cacheagent_controller_placements", "assigned"] == 4
    assert found["cacheagent_controller_cold_nodes",] == 2
    assert found["cacheagent_controller_cold_since_timestamp_seconds",] == BEGIN + 50
    assert found["cacheagent_controller_waiting_pods", "node"] == 1
    assert found["cacheagent_controller_waiting_gpus",] == 8
    assert found["cacheagent_webhook_certificate_expiry_timestamp_seconds",] == BEGIN
    follower = scraped(metrics, leads=False)
    assert follower["cacheagent_controller_leader",] == 0
    assert not {
        key for key in follower if key[0] in {"cacheagent_controller_models", "cacheagent_controller_cold_nodes"}
    }


def test_starts_become_figures() -> None:
    """A histogram for the objective, and the GPU-seconds that it cost; leading anew counts nothing twice."""
    metrics = ControllerMetrics()
    metrics.follow(world(bound(body("a", gpus="8"), 1)))
    started = mounted(bound(body("a", gpus="8"), 1), 41)
    metrics.follow(world(started))
    metrics.lead()
    metrics.follow(world(started))
    found = scraped(metrics)
    assert found["cacheagent_pod_weights_ready_seconds_count",] == 1
    assert found["cacheagent_pod_weights_ready_seconds_sum",] == 41
    assert found["cacheagent_pod_gpus_total",] == 8
    assert found["cacheagent_pod_gpu_wait_seconds_total",] == 320
