"""The trace of a pod's start, from a real driver and a real agent, as a real OTLP receiver gets it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from cacheagent.api.schema import MountTimes, Volume, VolumeRequest
from cacheagent.demo.child import free_ports
from cacheagent.kube.api import PODS
from cacheagent.kube.client import open_client
from cacheagent.kube.names import ADMITTED, DRIVER, INJECTED_LABEL, MODEL
from cacheagent.kube.plan.times import written_time
from cacheagent.kube.start_traces import Review, written_review
from cacheagent.tracing import start_of
from tests.fakes.csi_node import POD_UID, CsiNode, Kubelet
from tests.fakes.kube_cluster import install_definitions, make_namespaces, make_node
from tests.fakes.kube_server import ApiServer, running_api_server
from tests.fakes.origin import Origin
from tests.fakes.otlp import OtlpReceiver, Received, otlp_receiver
from tests.fakes.running_agent import PATIENCE_S, RunningAgent
from tests.fakes.running_controller import RunningController

SHARD = os.urandom(1024) * 8 * 1024


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A server that takes a second for its one file."""
    with Origin({"secret-path/weights.bin": SHARD}, bytes_per_s=8e6) as made:
        made.add_sums("secret-path")
        yield made


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as running:
        yield running


def model(origin: Origin) -> dict[str, Any]:
    """The model `m`, fetched when it is asked for."""
    return {"name": "m", "kind": "tree", "source": f"{origin.url}/secret-path/", "keep_warm": False}


def of_start(spans: list[Received], uid: str) -> list[Received]:
    """Those of one pod's trace."""
    return [span for span in spans if span.trace_id == f"{start_of(uid).trace_id:032x}"]


def names(spans: list[Received]) -> list[str]:
    return sorted(span.name for span in spans)


def ask(agent: RunningAgent, uid: str, *, wait_s: float = PATIENCE_S) -> Volume:
    """What the CSI driver asks."""
    request = VolumeRequest(namespace="team-a", model="m", pod=f"pod-{uid}", pod_uid=uid, wait_s=wait_s)
    return agent.ask(lambda client: client.volume(f"csi-{uid}", request))


def test_a_start_is_one_trace(origin: Origin, receiver: OtlpReceiver) -> None:
    """The kubelet publishes until it is mounted: wait and mount hang below the start, what was waited for below the
    wait, in their order and within each other's times. The driver, which has no network, is heard through the agent."""
    with CsiNode(published=False) as node:
        node.agent_socket = node.root / "agent.sock"
        with RunningAgent(node.folder, model(origin), tracing={"endpoint": receiver.endpoint}) as agent:
            node.start()
            began_at = time.time()
            asyncio.run(_publish_until_mounted(node))
            ended_at = time.time()
            receiver.wait_for(lambda spans: {"mount", "wait"} <= set(names(of_start(spans, POD_UID))))
            agent.send(signal.SIGTERM)
            assert agent.wait() == 0
    found = {span.name: span for span in of_start(receiver.spans, POD_UID)}
    start, wait, mount = start_of(POD_UID), found["wait"], found["mount"]
    assert set(found) >= {"wait", "fetch", "verify", "publish", "mount"}
    assert {wait.parent, mount.parent} == {f"{start.span_id:016x}"}
    steps = [found[name] for name in ("resolve", "reserve", "fetch", "verify", "publish") if name in found]
    assert {step.parent for step in steps} == {wait.span_id}
    times = [wait.began_at, *(at for step in steps for at in (step.began_at, step.ended_at)), wait.ended_at]
    times = [began_at, *times, mount.began_at, mount.ended_at, ended_at]
    assert times == sorted(times)
    assert found["fetch"].ended_at - found["fetch"].began_at > 0.5  # 8 MB at 8 MB/s, less a burst
    assert wait.attributes["cacheagent.hit"] is False
    assert {span.attributes["k8s.pod.uid"] for span in (wait, mount)} == {POD_UID}
    assert {span.attributes["cacheagent.digest"] for span in (wait, mount, *steps)} == {
        wait.attributes["cacheagent.digest"]
    }


async def _publish_until_mounted(node: CsiNode) -> None:
    async with Kubelet(node) as kubelet, asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await kubelet.publish(node.target(), model="m")
            except grpc.aio.AioRpcError as refused:
                if refused.code() != grpc.StatusCode.FAILED_PRECONDITION:
                    raise


def test_pods_that_wait_for_one_download_have_it_in_their_traces(
    tmp_path: Path, origin: Origin, receiver: OtlpReceiver
) -> None:
    """Each its own copy with a link to the same span, which stands in the job's own trace; a third pod that finds the
    model here has none. No span knows where the model comes from."""
    uids = ("one", "two")
    with RunningAgent(tmp_path, model(origin), tracing={"endpoint": receiver.endpoint}) as agent:
        with ThreadPoolExecutor(len(uids)) as pool:
            answers = list(pool.map(lambda uid: ask(agent, uid), uids))
        assert [(volume.state, volume.traced) for volume in answers] == [("ready", True)] * 2
        assert ask(agent, "late").state == "ready"
        times = MountTimes(pod_uid="late", began_at=5.0, ended_at=6.0)
        agent.ask(lambda client: client.mount_took("csi-late", times))
        spans = receiver.wait_for(lambda spans: names(of_start(spans, "late")) == ["mount", "wait"])
        for uid in uids:
            assert set(names(of_start(spans, uid))) >= {"wait", "fetch", "verify", "publish"}
        copies = [span for span in spans if span.name == "fetch" and span.links]
        (real,) = [span for span in spans if span.name == "fetch" and not span.links]
        assert [span.links for span in copies] == [((real.trace_id, real.span_id),)] * 2
        (job,) = [span for span in spans if span.name == "bring model"]
        assert (job.trace_id, job.span_id, job.parent) == (real.trace_id, real.parent, "")
        assert (job.attributes["cacheagent.source"], job.attributes["cacheagent.bytes_fetched"]) == (
            "https",
            len(SHARD),
        )
        assert 'cacheagent_tracing_spans_total{result="sent"}' in agent.get("/metrics")[1]
    assert not [body for body in receiver.bodies if b"secret-path" in body or origin.url.encode() in body]


def test_a_receiver_that_is_away_costs_nothing_but_spans(tmp_path: Path, origin: Origin) -> None:
    """Pods get their models, the loss is counted, one line is logged, and the agent ends in time and well."""
    (port,) = free_ports(1)
    with RunningAgent(tmp_path, model(origin), tracing={"endpoint": f"http://127.0.0.1:{port}"}) as agent:
        assert ask(agent, "one").state == "ready"
        agent.wait_until(lambda: 'cacheagent_tracing_spans_total{result="failed"}' in agent.get("/metrics")[1])
        assert ask(agent, "two").state == "ready"
        agent.send(signal.SIGTERM)
        assert agent.wait() == 0
        assert len(agent.events("spans can't be sent")) == 1
        assert agent.events("spans were not sent before the end")[0]["spans"] > 0


def test_without_a_receiver_nobody_is_asked_for_times(tmp_path: Path, origin: Origin) -> None:
    """And what is told all the same goes nowhere."""
    with RunningAgent(tmp_path, model(origin)) as agent:
        assert ask(agent, "one").traced is False
        agent.ask(lambda client: client.mount_took("csi-one", MountTimes(pod_uid="one", began_at=5.0, ended_at=6.0)))
        assert "cacheagent_tracing_spans_total{" not in agent.get("/metrics")[1]


@pytest.mark.kube_api
def test_the_leader_tells_of_the_whole_start(tmp_path: Path, receiver: OtlpReceiver) -> None:
    """A real controller at a real API server: the pod gets its weights, and its start, admission and way to a node come
    with the id that its UID makes, and are counted."""
    with running_api_server(tmp_path) as server:
        asyncio.run(_prepare(server))
        settings = f"tracing: {{endpoint: '{receiver.endpoint}'}}\n"
        with RunningController(tmp_path, server, namespace="system", settings=settings) as controller:
            made_at = time.time()
            uid = asyncio.run(_make_pod(server, Review(made_at - 0.25, made_at)))
            _wait_until(lambda: 'cacheagent_controller_waiting_pods{stage="node"} 1.0' in controller.metrics())
            asyncio.run(_get_weights(server))
            spans = receiver.wait_for_names("start", "admission", "schedule")
            _wait_until(lambda: 'cacheagent_controller_tracing_spans_total{result="sent"} 3.0' in controller.metrics())
    found = {span.name: span for span in of_start(spans, uid)}
    start = start_of(uid)
    assert (found["start"].service, found["start"].span_id) == ("cacheagent-controller", f"{start.span_id:016x}")
    assert {found["admission"].parent, found["schedule"].parent} == {found["start"].span_id}
    assert found["start"].began_at == found["admission"].began_at == pytest.approx(made_at - 0.25, abs=1e-5)
    assert found["start"].attributes["k8s.node.name"] == "n1"


async def _prepare(server: ApiServer) -> None:
    async with open_client(server.kubeconfig) as api:
        await install_definitions(api)
        await make_namespaces(api, "system", "shop")
        await make_node(api, "n1", "system")


async def _make_pod(server: ApiServer, review: Review) -> str:
    csi = {"driver": DRIVER, "readOnly": True, "volumeAttributes": {"model": "llama"}}
    annotations = {MODEL: "llama", ADMITTED: written_review(review)}
    spec = {
        "nodeName": "n1",
        "containers": [{"name": "engine", "image": "i"}],
        "volumes": [{"name": "weights", "csi": csi}],
    }
    metadata = {"name": "web", "labels": {INJECTED_LABEL: "true"}, "annotations": annotations}
    async with open_client(server.kubeconfig) as api:
        made = await api.create(PODS, {"metadata": metadata, "spec": spec}, namespace="shop")
    return str(made["metadata"]["uid"])


async def _get_weights(server: ApiServer) -> None:
    """As scheduler and kubelet say it."""
    reached = {"status": "True", "lastTransitionTime": written_time(time.time() + 1)}
    conditions = [{"type": kind, **reached} for kind in ("PodScheduled", "PodReadyToStartContainers")]
    async with open_client(server.kubeconfig) as api:
        await api.patch(PODS, "web", {"status": {"conditions": conditions}}, namespace="shop", subresource="status")


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
