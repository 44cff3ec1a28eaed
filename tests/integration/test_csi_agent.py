"""The CSI driver and a real agent: from a pod that waits to a lease that is given back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import grpc
import pytest

from cacheagent.api.schema import Lease
from cacheagent.errors import ModelInUse
from csi.names import OPTIONS
from tests.fakes.csi_node import POD_UID, CsiNode, Kubelet, volume_id_of
from tests.fakes.origin import Origin
from tests.fakes.running_agent import RunningAgent

SHARD = os.urandom(1024) * 24 * 1024


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A server that takes some seconds for its one file."""
    with Origin({"tiny/weights.bin": SHARD}, bytes_per_s=8e6) as made:
        made.add_sums("tiny")
        yield made


@pytest.fixture
def node() -> Iterator[CsiNode]:
    with CsiNode(published=False) as made:
        made.agent_socket = made.root / "agent.sock"
        yield made


def _leases(agent: RunningAgent) -> dict[str, Lease]:
    return {lease.volume_id: lease for lease in agent.ask(lambda client: client.leases())}


def test_a_pod_waits_reads_and_goes(node: CsiNode, origin: Origin) -> None:
    """It hears how far its model is, gets it read-only, keeps it over kills of agent and driver, and gives it back."""
    configured = {"name": "tiny", "kind": "tree", "source": f"{origin.url}/tiny/", "keep_warm": False}
    with RunningAgent(node.folder, configured) as agent:
        node.start()
        target = node.target()
        asyncio.run(_wait_and_publish(node))
        volume_id = volume_id_of(target)
        node.on_host(
            "cmp", str(target / "weights.bin"), agent.ask(lambda c: c.model("tiny")).path + "/files/weights.bin"
        )
        found = node.mounted(target)
        assert found is not None
        assert found.options >= OPTIONS
        assert set(_leases(agent)) == {volume_id}
        with pytest.raises(ModelInUse):
            agent.ask(lambda client: client.evict("tiny"))

        for kill in (lambda: agent.send(signal.SIGKILL), lambda: node.stop(signal.SIGKILL)):
            kill()
        agent.wait()
        agent.start()
        node.start()
        asyncio.run(_publish(node))
        assert set(_leases(agent)) == {volume_id}
        tree = agent.ask(lambda client: client.model("tiny")).path
        local = node.kubelet / "pods" / POD_UID / "volumes/kubernetes.io~local-volume/pv-1"
        local.mkdir(parents=True)
        node.on_host("mount", "--bind", f"{tree}/files", str(local))
        agent.wait_until(lambda: set(_leases(agent)) == {volume_id, f"pv-{POD_UID}-pv-1"})
        asyncio.run(_unpublish(node))
        assert set(_leases(agent)) == {f"pv-{POD_UID}-pv-1"}
        assert node.mounted(target) is None
        node.on_host("umount", str(local))
        agent.ask(lambda client: client.release(f"pv-{POD_UID}-pv-1"))
        agent.ask(lambda client: client.evict("tiny"))


async def _wait_and_publish(node: CsiNode) -> None:
    async with Kubelet(node) as kubelet:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await kubelet.publish(node.target(), model="tiny")
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert refusal.value.details()
        await kubelet.publish(node.target(), model="tiny", limit_s=120)


async def _publish(node: CsiNode) -> None:
    async with Kubelet(node) as kubelet:
        await kubelet.publish(node.target(), model="tiny")


async def _unpublish(node: CsiNode) -> None:
    async with Kubelet(node) as kubelet:
        await kubelet.unpublish(node.target())
