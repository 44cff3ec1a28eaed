"""The CSI driver as the kubelet meets it: a process, its sockets, real mounts in its own namespaces, a fake agent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from cacheagent.errors import CacheAgentError, NoRoom, NotCached, OriginForbidden, PolicyRefused, StoreError
from csi.names import DRIVER, OPTIONS
from csi.proto import csi_pb2 as pb
from csi.proto import pluginregistration_pb2 as registry
from csi.registration import driver_socket, registry_socket
from tests.fakes.agent_api import DIGEST, TREE, WAITING, FakeAgent
from tests.fakes.csi_node import POD_UID, CsiNode, Kubelet, inline_request, volume_id_of

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


@pytest.mark.asyncio
async def test_the_watch_would_see_a_writable_moment(node: CsiNode) -> None:
    """The positive control: a mount that is bound and then remounted is writable on the host, and stays so."""
    target, writable = node.target(), node.folder / "writable"
    target.mkdir()
    writable.mkdir()
    with node.seen_options(target) as seen:
        bind, options = ["mount", "--bind", str(writable), str(target)], "remount,bind,ro,nosuid,nodev,noexec"
        node.in_container("sh", "-c", f'"$@" && mount -o {options} "{target}"', "mount", *bind)
    assert any("rw" in options for options in seen), seen
    found = node.mounted(target)
    assert found is not None
    assert "rw" in found.options


@pytest.mark.asyncio
async def test_an_old_kernel_mounts_read_only_too(node: CsiNode, agent: FakeAgent) -> None:
    """Without the newer system calls the mount is read-only at its first moment as well, and nothing is left over."""
    await agent.publish("tiny")
    await asyncio.to_thread(node.start, program=("-m", "tests.fakes.csi_old_kernel"))
    before = [mount for mount in node.mounts() if not mount.target.startswith(str(node.kubelet))]
    target = node.target()
    async with Kubelet(node) as kubelet:
        with node.seen_options(target) as seen:
            await kubelet.publish(target, model="tiny")
        assert seen
        assert all(options >= OPTIONS for options in seen), seen
        assert node.events("this kernel is older than 5.12")
        assert [mount for mount in node.mounts() if not mount.target.startswith(str(node.kubelet))] == before
        await kubelet.unpublish(target)
    assert node.mounted(target) is None


@pytest.mark.asyncio
async def test_the_host_reads_and_nobody_writes(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """What is mounted can be read on the host, and neither changed, owned nor added to, not even by root."""
    await agent.publish("tiny")
    target = node.target()
    await kubelet.publish(target, model="tiny")
    node.on_host("grep", "-q", "weights", str(target / "model.safetensors"))
    for command in (["touch", "new"], ["chown", "1:1", "model.safetensors"], ["chmod", "777", "model.safetensors"]):
        with pytest.raises(subprocess.CalledProcessError):
            node.on_host(command[0], *command[1:-1], str(target / command[-1]))
    node.on_host("touch", str(node.tree / "files/new"))  # the control: through another mount, root may


@pytest.mark.asyncio
async def test_the_first_call_answers_at_once_and_later_ones_are_held(
    node: CsiNode, agent: FakeAgent, kubelet: Kubelet
) -> None:
    """The pod's events tell the story from the first second; the next call ends when the model is published."""
    target = node.target()
    with pytest.raises(grpc.aio.AioRpcError, match=WAITING) as refusal:
        await kubelet.publish(target, model="tiny")
    assert refusal.value.code() is Status.FAILED_PRECONDITION
    assert not target.exists()
    held = asyncio.create_task(kubelet.publish(target, model="tiny", limit_s=120))
    await agent.wait_until(lambda: len(agent.asked) == 2)
    assert not held.done()
    await agent.publish("tiny")
    await held
    assert node.mounted(target) is not None
    first, second = (asked.wait_s for _, asked in agent.asked)
    assert first == 0
    assert 100 < second <= 110


@pytest.mark.asyncio
async def test_a_hold_ends_before_its_caller_gives_up(agent: FakeAgent, kubelet: Kubelet, node: CsiNode) -> None:
    """A call with little time left is answered in time, by the agent's sentence."""
    target = node.target()
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError, match=WAITING) as refusal:
            await kubelet.publish(target, model="tiny", limit_s=6)
        assert refusal.value.code() is Status.FAILED_PRECONDITION
    assert 0 < agent.asked[1][1].wait_s < 1.5


@pytest.mark.asyncio
async def test_a_cancelled_call_changes_nothing(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """The kubelet gives a held call up: nothing is mounted when the model comes, and the next call mounts it."""
    target = node.target()
    with pytest.raises(grpc.aio.AioRpcError):
        await kubelet.publish(target, model="tiny")
    held = asyncio.create_task(kubelet.publish(target, model="tiny"))
    await agent.wait_until(lambda: len(agent.asked) == 2)
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
    await agent.wait_until(lambda: len(agent.held_s) == 2)  # the driver has heard of it
    await agent.publish("tiny")
    other = node.target("other")
    await kubelet.publish(other, model="tiny")
    assert node.mounted(target) is None
    assert not target.exists()
    await kubelet.publish(target, model="tiny")
    assert node.mounted(target) is not None


@pytest.mark.asyncio
async def test_an_unpublished_volume_is_not_mounted_by_an_older_call(
    node: CsiNode, agent: FakeAgent, kubelet: Kubelet
) -> None:
    """A call that is held when its volume is unpublished ends with a refusal and mounts nothing later."""
    target = node.target()
    with pytest.raises(grpc.aio.AioRpcError):
        await kubelet.publish(target, model="tiny")
    held = asyncio.create_task(kubelet.publish(target, model="tiny"))
    await agent.wait_until(lambda: len(agent.asked) == 2)
    await kubelet.unpublish(target)
    with pytest.raises(grpc.aio.AioRpcError, match="unpublished meanwhile") as refusal:
        await held
    assert refusal.value.code() is Status.FAILED_PRECONDITION
    await agent.publish("tiny")
    assert node.mounted(target) is None
    assert not target.exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotCached("no model 'tiny' is known here", hint="kubectl get modelcache"), Status.NOT_FOUND),
        (PolicyRefused("namespace team-a may not use tiny"), Status.PERMISSION_DENIED),
        (NoRoom("needs 141 GB, 96 GB can be freed"), Status.RESOURCE_EXHAUSTED),
        (OriginForbidden("the bucket refuses the credentials"), Status.FAILED_PRECONDITION),
        (StoreError("the cache can't do it"), Status.INTERNAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name,
)
@pytest.mark.asyncio
async def test_what_the_agent_refuses_is_told(
    node: CsiNode, agent: FakeAgent, kubelet: Kubelet, error: CacheAgentError, status: grpc.StatusCode
) -> None:
    """Each error has its status, the sentence is the agent's, and nothing is left of the target; others are served."""
    agent.refusals["tiny"] = error
    await agent.publish("small")
    target = node.target()
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await kubelet.publish(target, model="tiny")
    assert (refusal.value.code(), refusal.value.details()) == (status, str(error))
    (told,) = node.events("NodePublishVolume: ")
    assert (told["status"], told["namespace"], told["pod"]) == (status.name, "team-a", "vllm-0")
    assert not target.exists()
    await kubelet.publish(target, model="small")


@pytest.mark.asyncio
async def test_what_the_kubelet_takes_for_half_mounted_is_refused_at_once(
    node: CsiNode, agent: FakeAgent, kubelet: Kubelet
) -> None:
    """After RESOURCE_EXHAUSTED a pod can't be deleted while a call is held: the next one is not, the one after is."""
    target = node.target()
    agent.refusals["tiny"] = NoRoom("needs 141 GB, 96 GB can be freed")
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError):
            await kubelet.publish(target, model="tiny")
    del agent.refusals["tiny"]
    with pytest.raises(grpc.aio.AioRpcError, match=WAITING):
        await kubelet.publish(target, model="tiny")
    with pytest.raises(grpc.aio.AioRpcError, match=WAITING):
        await kubelet.publish(target, model="tiny", limit_s=6)
    assert [asked.wait_s > 0 for _, asked in agent.asked] == [False, False, False, True]


@pytest.mark.asyncio
async def test_a_mounted_volume_needs_nobody(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """After its own restart the kubelet publishes running pods' volumes again: OK without asking, also when permission
    is withdrawn and when the agent is away; a new volume hears that it is away."""
    await agent.publish("tiny")
    target = node.target()
    await kubelet.publish(target, model="tiny")
    agent.refusals["tiny"] = PolicyRefused("not any more")
    await kubelet.publish(target, model="tiny")
    await agent.stop()
    await kubelet.publish(target, model="tiny")
    assert len(agent.asked) == 1
    with pytest.raises(grpc.aio.AioRpcError, match="agent container of this node does not answer") as refusal:
        await kubelet.publish(node.target("other"), model="tiny")
    assert refusal.value.code() is Status.UNAVAILABLE
    assert [mount.target for mount in node.mounts()].count(str(target)) == 1


@pytest.mark.asyncio
async def test_an_agent_that_restarts_in_a_hold_goes_unnoticed(
    node: CsiNode, agent: FakeAgent, kubelet: Kubelet
) -> None:
    """A held call asks the new agent, and is told everything that is mounted."""
    await agent.publish("small")
    mounted = node.target("mounted")
    await kubelet.publish(mounted, model="small")
    target = node.target()
    with pytest.raises(grpc.aio.AioRpcError):
        await kubelet.publish(target, model="tiny")
    held = asyncio.create_task(kubelet.publish(target, model="tiny"))
    await agent.wait_until(lambda: len(agent.asked) == 3)
    await agent.stop()
    agent.reports.clear()
    await agent.start()
    await agent.wait_until(lambda: len(agent.asked) >= 4 and bool(agent.reports))
    assert agent.mounted() == {volume_id_of(mounted): FILES}
    await agent.publish("tiny")
    await held
    assert node.mounted(target) is not None


@pytest.mark.asyncio
async def test_unpublish_does_not_need_the_agent(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """Without an agent the volume is unmounted, again and again if asked; the next agent is told by the report."""
    await agent.publish("tiny")
    target = node.target()
    await kubelet.publish(target, model="tiny")
    await agent.stop()
    for _ in range(2):
        await kubelet.unpublish(target)
    assert node.mounted(target) is None
    assert not target.exists()
    agent.reports.clear()
    await agent.start()
    await agent.wait_until(lambda: bool(agent.reports))
    assert agent.mounted() == {}


@pytest.mark.asyncio
async def test_a_mount_of_something_else_is_replaced(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """What is at the target and is not the right source, or not read-only, gives way once the agent has answered."""
    await agent.publish("tiny")
    target = node.target()
    target.mkdir()
    elsewhere = node.folder / "elsewhere"
    elsewhere.mkdir()
    for source in (elsewhere, node.tree / "files"):
        node.on_host("mount", "--bind", str(source), str(target))
    await kubelet.publish(target, model="tiny")
    found = [mount for mount in node.mounts() if mount.target == str(target)]
    assert [mount.options >= OPTIONS for mount in found] == [True]
    node.on_host("mount", "--bind", str(elsewhere), str(target))
    await kubelet.unpublish(target)
    assert node.mounted(target) is None
    assert elsewhere.exists()
    assert not target.exists()


@pytest.mark.asyncio
async def test_nothing_is_deleted_at_a_target(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """A target that holds somebody's file is not emptied: unpublishing fails, and says so."""
    target = node.target()
    target.mkdir()
    (target / "precious").write_text("mine")
    with pytest.raises(grpc.aio.AioRpcError, match="not empty") as refusal:
        await kubelet.unpublish(target)
    assert refusal.value.code() is Status.INTERNAL
    assert (target / "precious").read_text() == "mine"


@pytest.mark.asyncio
async def test_a_busy_mount_is_taken_away_too(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """Somebody's working directory in the mount does not keep a pod from ending; the log says that it was so."""
    await agent.publish("tiny")
    target = node.target()
    await kubelet.publish(target, model="tiny")
    with node.somebody_in(target):
        await kubelet.unpublish(target)
        assert node.mounted(target) is None
        assert not target.exists()
    assert node.events("a mount stays busy")


@pytest.mark.asyncio
async def test_a_killed_driver_comes_back_to_its_mounts(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """Killed in the middle of a hold, started over its stale sockets: mounts stayed, the agent is told, calls go on."""
    await agent.publish("small")
    mounted, target = node.target("mounted"), node.target()
    await kubelet.publish(mounted, model="small")
    with pytest.raises(grpc.aio.AioRpcError):
        await kubelet.publish(target, model="tiny")
    held = asyncio.create_task(kubelet.publish(target, model="tiny"))
    await agent.wait_until(lambda: len(agent.asked) == 3)
    await asyncio.to_thread(node.stop, signal.SIGKILL)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await held
    assert refusal.value.code() is Status.UNAVAILABLE
    assert registry_socket(node.kubelet).exists()
    assert node.mounted(mounted) is not None
    agent.reports.clear()
    await asyncio.to_thread(node.start)
    await agent.wait_until(lambda: bool(agent.reports))
    assert agent.mounted() == {volume_id_of(mounted): FILES}
    await agent.publish("tiny")
    async with Kubelet(node) as again:
        await again.call("Registration.GetInfo", registry.InfoRequest())
        await again.publish(target, model="tiny")
        await again.unpublish(mounted)
    assert node.mounted(target) is not None
    assert node.mounted(mounted) is None


@pytest.mark.asyncio
async def test_a_stopped_driver_lets_its_calls_go(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """SIGTERM: a held call is answered with a reason that lets the pod be deleted, the sockets vanish, mounts stay."""
    await agent.publish("small")
    mounted, target = node.target("mounted"), node.target()
    await kubelet.publish(mounted, model="small")
    with pytest.raises(grpc.aio.AioRpcError):
        await kubelet.publish(target, model="tiny")
    held = asyncio.create_task(kubelet.publish(target, model="tiny"))
    await agent.wait_until(lambda: len(agent.asked) == 3)
    assert await asyncio.to_thread(node.stop) == 0
    with pytest.raises(grpc.aio.AioRpcError, match="restarting; the download goes on") as refusal:
        await held
    assert refusal.value.code() is Status.FAILED_PRECONDITION
    assert not driver_socket(node.kubelet).exists()
    assert not registry_socket(node.kubelet).exists()
    assert list(driver_socket(node.kubelet).parent.iterdir()) == []
    assert node.mounted(mounted) is not None


@pytest.mark.asyncio
async def test_the_kubelet_is_told_who_serves_where(node: CsiNode, kubelet: Kubelet) -> None:
    """The registry's socket answers as the kubelet's plugin manager expects, and takes its verdict."""
    info = await kubelet.call("Registration.GetInfo", registry.InfoRequest())
    assert (info.type, info.name) == ("CSIPlugin", DRIVER)
    assert info.endpoint == str(driver_socket(node.kubelet))
    assert list(info.supported_versions) == ["1.0.0"]
    await kubelet.call("Registration.NotifyRegistrationStatus", registry.RegistrationStatus(error="no such thing"))
    await kubelet.call("Registration.NotifyRegistrationStatus", registry.RegistrationStatus(plugin_registered=True))
    assert [event["reason"] for event in node.events("the kubelet did not register")] == ["no such thing"]
    assert node.events("registered with the kubelet")
    answer = await kubelet.call("Node.NodeGetInfo", pb.NodeGetInfoRequest())
    assert (answer.node_id, answer.max_volumes_per_node) == ("n1", 0)


@pytest.mark.asyncio
async def test_a_driver_that_can_not_be_found_ends(node: CsiNode, kubelet: Kubelet) -> None:
    """Somebody removes the socket: the driver ends, to be started again, and says why."""
    registry_socket(node.kubelet).unlink()
    assert await asyncio.to_thread(node.driver.wait, 60) == 1
    assert node.events("the driver stopped because of the sockets")


@pytest.mark.asyncio
async def test_local_volumes_are_reported(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """A tree that the kubelet mounts for a local PersistentVolume is reported while it is mounted; others are not."""
    await agent.wait_until(lambda: bool(agent.reports))
    volumes = node.kubelet / "pods" / POD_UID / "volumes/kubernetes.io~local-volume"
    elsewhere = node.folder / "elsewhere"
    for name, source in (("pv-1", node.tree / "files"), ("foreign", elsewhere)):
        (volumes / name).mkdir(parents=True)
        source.mkdir(exist_ok=True)
        node.on_host("mount", "--bind", str(source), str(volumes / name))
    await agent.wait_until(lambda: agent.mounted() == {f"pv-{POD_UID}-pv-1": FILES})
    node.on_host("umount", str(volumes / "pv-1"))
    await agent.wait_until(lambda: agent.mounted() == {})


@pytest.mark.asyncio
async def test_the_driver_has_no_network(node: CsiNode, kubelet: Kubelet) -> None:
    """None of its threads is in the machine's network, and there is no interface that is up where they are."""
    ours = os.readlink("/proc/self/ns/net")
    tasks = list(Path(f"/proc/{node.driver_pid}/task").iterdir())
    theirs = {os.readlink(task / "ns/net") for task in tasks}
    assert len(tasks) > 1
    assert len(theirs) == 1
    assert ours not in theirs
    interfaces = Path(f"/proc/{node.driver_pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert len(Path(f"/proc/{node.driver_pid}/net/route").read_text().splitlines()) <= 1  # a heading, no route


@pytest.mark.parametrize("path", ["../../etc", "models/../../etc", f"models/{TREE}/link", "blobs/abc", "volumes/other"])
@pytest.mark.asyncio
async def test_a_wrong_answer_mounts_nothing(node: CsiNode, agent: FakeAgent, kubelet: Kubelet, path: str) -> None:
    """An agent that names neither a version nor the volume's own directory, or a symbolic link, is not obeyed."""
    secrets = node.folder / "secrets"
    secrets.mkdir()
    (node.tree / "link").symlink_to(secrets)
    for name in ("blobs/abc", "volumes/other"):
        (node.root / name).mkdir(parents=True)
    await agent.publish("tiny", path)
    target = node.target()
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await kubelet.publish(target, model="tiny")
    assert refusal.value.code() is Status.INTERNAL
    assert node.mounted(target) is None
    assert not target.exists()
    await agent.publish("tiny")
    await kubelet.publish(target, model="tiny")


@pytest.mark.asyncio
async def test_a_volume_that_is_filled_later(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """The volume's own directory is mounted at once, and what is linked into it afterwards is seen by the pod."""
    await agent.publish("tiny", "volumes/{id}")
    target = node.target()
    own = node.root / "volumes" / volume_id_of(target)
    own.mkdir(parents=True)
    await kubelet.publish(target, model="tiny", wait="init")
    assert agent.asked[0][1].wait == "init"
    os.link(node.tree / "files/model.safetensors", own / "model.safetensors")
    node.on_host("grep", "-q", "weights", str(target / "model.safetensors"))
    await kubelet.publish(target, model="tiny", wait="init")
    assert len(agent.asked) == 1


@pytest.mark.asyncio
async def test_pods_that_share_a_persistent_volume(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """One handle, two pods: two leases, and unpublishing one leaves the other's; writers are told that they can't."""
    await agent.publish(DIGEST)
    targets = [node.target("pv", uid) for uid in ("aaaa", "bbbb")]
    for target in targets:
        request = inline_request(target)
        request.volume_id = DIGEST
        request.volume_context["csi.storage.k8s.io/ephemeral"] = "false"
        request.volume_capability.access_mode.mode = pb.VolumeCapability.AccessMode.MULTI_NODE_MULTI_WRITER
        with pytest.raises(grpc.aio.AioRpcError, match="ReadOnlyMany") as refusal:
            await kubelet.call("Node.NodePublishVolume", request)
        assert refusal.value.code() is Status.INVALID_ARGUMENT
        request.volume_capability.access_mode.mode = pb.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY
        request.volume_capability.mount.mount_flags.extend(["ro", "nosuid"])
        await kubelet.call("Node.NodePublishVolume", request)
    assert [asked.digest for _, asked in agent.asked] == [DIGEST, DIGEST]
    assert len({volume_id for volume_id, _ in agent.asked}) == 2
    unpublish = pb.NodeUnpublishVolumeRequest(volume_id=DIGEST, target_path=str(targets[0]))
    await kubelet.call("Node.NodeUnpublishVolume", unpublish)
    assert agent.removed == [agent.asked[0][0]]
    assert node.mounted(targets[0]) is None
    assert node.mounted(targets[1]) is not None


@pytest.mark.asyncio
async def test_the_size_of_a_volume(node: CsiNode, agent: FakeAgent, kubelet: Kubelet) -> None:
    """The kubelet's metrics show what the model takes, and nothing for a place without a volume."""
    await agent.publish("tiny")
    target = node.target()
    await kubelet.publish(target, model="tiny")
    request = pb.NodeGetVolumeStatsRequest(volume_id="any", volume_path=str(target))
    usage = {item.unit: item for item in (await kubelet.call("Node.NodeGetVolumeStats", request)).usage}
    assert usage[pb.VolumeUsage.BYTES].used == len(b"weights")
    assert usage[pb.VolumeUsage.INODES].used == 1
    assert all(item.total == item.used + item.available > 0 for item in usage.values())
    await kubelet.unpublish(target)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await kubelet.call("Node.NodeGetVolumeStats", request)
    assert refusal.value.code() is Status.NOT_FOUND


def test_a_driver_without_a_cache_says_so(node: CsiNode) -> None:
    """A missing cache directory ends the driver with a sentence, before it registers."""
    with pytest.raises(AssertionError, match="the cache directory /nonexistent can't be opened"):
        node.start(arguments=["--root", "/nonexistent"])
    assert node.driver.returncode == 1
    assert not registry_socket(node.kubelet).exists()


def test_stopped_twice_or_by_hand_it_ends_well(node: CsiNode) -> None:
    """Also without an agent the driver starts, and Ctrl-C ends it as SIGTERM does."""
    node.start()
    assert node.stop(signal.SIGINT) == 0
    assert node.events("stopped")
