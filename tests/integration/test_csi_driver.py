"""The CSI driver as the kubelet meets it: a process, its sockets, real mounts in namespaces of its own, a fake agent."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from cacheagent.errors import NoRoom, NotCached, PolicyRefused
from csi.names import OPTIONS
from csi.proto import csi_pb2 as pb
from csi.proto import pluginregistration_pb2 as registry
from csi.registration import driver_socket, registry_socket
from tests.fakes.agent_api import DIGEST, TREE, WAITING, FakeAgent
from tests.fakes.csi_node import CsiNode, Kubelet, inline_request, volume_id_of

FILES = f"models/{TREE}/files"
Status = grpc.StatusCode


@pytest.fixture
def node() -> Iterator[CsiNode]:
    with CsiNode() as made:
        yield made


@pytest_asyncio.fixture
async def agent(node: CsiNode) -> AsyncIterator[FakeAgent]:
    async with FakeAgent(node.agent_socket) as made:
        yield made


@pytest_asyncio.fixture
async def kubelet(node: CsiNode, agent: FakeAgent) -> AsyncIterator[Kubelet]:
    await asyncio.to_thread(node.start)
    async with Kubelet(node) as made:
        yield made


@pytest.mark.asyncio
async def test_a_model_that_is_here_is_mounted(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """A published model is mounted for the host and its pods, and nothing can be written through it."""
    await agent.publish("tiny")
    target = node.target()
    with node.seen_options(target) as seen:
        await kubelet.publish(target, model="tiny")
    found = node.mounted(target)
    assert found is not None
    assert found.options >= OPTIONS
    assert found.root.endswith(FILES)
    assert seen
    assert all(options >= OPTIONS for options in seen), seen
    assert [(volume_id, asked.model, asked.namespace) for volume_id, asked in agent.asked] == [
        (volume_id_of(target), "tiny", "team-a")
    ]
    await agent.wait_until(lambda: agent.mounted() == {volume_id_of(target): FILES})
    await kubelet.unpublish(target)
    assert node.mounted(target) is None
    assert not target.exists()
    assert target.parent.exists()
    assert agent.removed == [volume_id_of(target)]
    assert (node.tree / "files/model.safetensors").read_bytes() == b"weights"
