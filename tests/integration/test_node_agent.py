"""An agent in a cluster: a real one with real workers and origins, and an API server in memory."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cacheagent.agent import STOP_WITHIN_S, Cluster, serve
from cacheagent.api.client import AgentClient
from cacheagent.api.schema import MountedPath, MountsReport, Volume, VolumeRequest
from cacheagent.config_file import load_config
from cacheagent.errors import NotCached, PolicyRefused
from cacheagent.kube.api import MODEL_CACHE_NODES, MODEL_CACHE_PEERS
from cacheagent.kube.convert import status_of, to_json
from cacheagent.kube.names import API_VERSION, member_label
from cacheagent.kube.node_models import SHARED
from cacheagent.kube.objects import (
    ModelCacheNodeSpec,
    ModelCacheNodeStatus,
    ModelCachePeersSpec,
    NodeModel,
    NodeModelStatus,
    PeerMember,
    Refusal,
    Source,
)
from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers.keys import NodeKey
from cacheagent.running import Orders
from cacheagent.store import Store
from tests.fakes.kube import FakeKube
from tests.fakes.lying_peer import LyingPeer, lengths_of
from tests.fakes.origin import Origin

pytestmark = pytest.mark.asyncio
NODE = "gpu-1"
PATIENCE_S = 60.0


@pytest.fixture
def origin() -> Iterator[Origin]:
    """Two small models."""
    with Origin({f"{name}/weights.bin": name.encode() * 50_000 for name in ("llama", "qwen")}) as made:
        made.add_sums("llama")
        made.add_sums("qwen")
        yield made


class Scene:
    """A cache directory, an API server, and the controller's hand."""

    def __init__(self, directory: Path, origin: Origin) -> None:
        self.kube = FakeKube()
        self.directory = directory
        self.root = directory / "cache"
        self.origin = origin
        self.config = directory / "agent.yaml"
        self.spec = ModelCacheNodeSpec()
        self.configure()

    def configure(self, **settings: Any) -> None:
        """Write the agent's file."""
        content = {"root": "cache", "listen": "", "store": {"floor": "64MiB"}, "transfer": {"workers": 1}, **settings}
        self.config.write_text(yaml.safe_dump(content))

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[AgentClient]:
        """Running inside."""
        orders = Orders(STOP_WITHIN_S * 10)
        running = asyncio.create_task(
            serve(self.config, load_config(self.config), orders, Cluster(self.kube, NODE)), name="agent"
        )
        try:
            async with AgentClient(self.root / "agent.sock") as client:
                await until(lambda: running.done() or (self.root / "agent.sock").exists())
                yield client
        finally:
            orders.stop.set()
            await running

    def model(self, name: str, **more: Any) -> NodeModel:
        """As the controller assigns it."""
        return NodeModel(name=name, source=Source(uri=f"{self.origin.url}/{name}/"), kind="tree", **more)

    def assign(self, *models: NodeModel, refusals: tuple[Refusal, ...] = (), held: tuple[str, ...] = ()) -> int:
        """Write the spec; returns its generation."""
        spec = to_json(ModelCacheNodeSpec(models=models, refusals=refusals, held=held))
        body = self.kube.peek(MODEL_CACHE_NODES, NODE) or {
            "apiVersion": API_VERSION,
            "kind": "ModelCacheNode",
            "metadata": {"name": NODE},
        }
        written = self.kube.put(MODEL_CACHE_NODES, body | {"spec": spec})
        return int(written["metadata"]["generation"])

    @property
    def status(self) -> ModelCacheNodeStatus:
        """What the agent reported last."""
        return status_of(self.kube.peek(MODEL_CACHE_NODES, NODE) or {"metadata": {}}, ModelCacheNodeStatus)

    def entry(self, name: str, phase: str = "") -> NodeModelStatus | None:
        """The entry of a model."""
        of_it = [entry for entry in self.status.models if entry.name == name]
        return next((entry for entry in of_it if not phase or entry.phase == phase), None)

    async def resolved(self, name: str) -> str:
        """Assign a model as the controller does, from the question to the pinned version; returns its digest."""
        self.assign(self.model(name, resolve="question-1"))
        await until(lambda: (entry := self.entry(name)) is not None and entry.resolved_for == "question-1")
        entry = self.entry(name)
        assert entry is not None
        self.assign(self.model(name, digest=entry.digest))
        await until(lambda: self.entry(name, "ready") is not None)
        return entry.digest


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that tells nobody when it happens."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on
            await asyncio.sleep(0.02)


@pytest.fixture
def scene(tmp_path: Path, origin: Origin) -> Scene:
    """Nothing runs yet."""
    return Scene(tmp_path, origin)


async def ask(client: AgentClient, *, wait_s: float = 0.0, volume_id: str = "csi-1", **more: Any) -> Volume:
    """What the CSI driver asks."""
    request: dict[str, Any] = {"namespace": "team-a", "model": "llama", "wait_s": wait_s} | more
    return await client.volume(volume_id, VolumeRequest(**request))


async def test_a_model_is_resolved_pinned_fetched_and_mounted(scene: Scene) -> None:
    """The answer carries the question's token; the pinned version is fetched; the status tells it all, and no more."""
    async with scene.agent() as client:
        generation = scene.assign(scene.model("llama"))
        await until(lambda: scene.status.observed_generation == generation)
        assert [(entry.name, entry.phase) for entry in scene.status.models] == [("llama", "pending")]
        waiting = await ask(client)
        assert (waiting.state, "which version" in waiting.message) == ("waiting", True)
        digest = await scene.resolved("llama")
        ready = await ask(client, wait_s=PATIENCE_S)
        assert (ready.state, ready.digest) == ("ready", digest)
        assert (scene.root / ready.path / "weights.bin").read_bytes() == b"llama" * 50_000
        await until(lambda: (entry := scene.entry("llama")) is not None and entry.mounted == 1)
        status = scene.status
        assert status.usage.capacity_bytes > 0
        assert status.incarnation == (scene.root / "incarnation").read_text().strip()
        applied = scene.kube.calls["apply"]
        await asyncio.sleep(3)  # nothing is what must happen, and that has no end to wait for
        assert scene.kube.calls["apply"] == applied, "nothing is written at rest"


async def test_a_model_that_is_not_assigned_is_asked_for(scene: Scene) -> None:
    """A held answer comes with the assignment; a refusal comes with its own error; neither is guessed here."""
    async with scene.agent() as client:
        digest = await scene.resolved("llama")
        assert (await ask(client, model="qwen", volume_id="csi-2")).state == "waiting"
        await until(lambda: [(each.model, each.namespace) for each in scene.status.wanted] == [("qwen", "team-a")])
        asking = asyncio.create_task(ask(client, model="qwen", volume_id="csi-2", wait_s=PATIENCE_S))
        scene.assign(scene.model("llama", digest=digest), scene.model("qwen", resolve="question-2", on_demand=True))
        assert (await asking).state == "ready"
        await until(lambda: scene.status.wanted == ())
        refusal = Refusal(
            model="other", namespace="team-a", code="not-cached", message="there is no ModelCache 'other'"
        )
        asking = asyncio.create_task(ask(client, model="other", volume_id="csi-3", wait_s=PATIENCE_S))
        await until(lambda: [each.model for each in scene.status.wanted] == ["other"])
        scene.assign(scene.model("llama", digest=digest), refusals=(refusal,))
        with pytest.raises(NotCached, match="there is no ModelCache 'other'"):
            await asking


async def test_namespaces_are_judged_until_the_lease_and_never_after(scene: Scene) -> None:
    """Withdrawn permission stops new volumes only; the same digest by another way is refused as well."""
    async with scene.agent() as client:
        digest = await scene.resolved("llama")
        scene.assign(scene.model("llama", digest=digest, namespaces=("team-a",)))
        await until(lambda: scene.status.observed_generation == 3)
        granted = await ask(client)
        assert granted.state == "ready"
        with pytest.raises(PolicyRefused, match="namespace 'team-b' may not mount model 'llama'"):
            await ask(client, namespace="team-b", volume_id="csi-2")
        with pytest.raises(PolicyRefused):
            await ask(client, namespace="team-b", volume_id="csi-2", model="", digest=digest)
        generation = scene.assign(scene.model("llama", digest=digest, namespaces=()))
        await until(lambda: scene.status.observed_generation == generation)
        assert await ask(client) == granted
        with pytest.raises(PolicyRefused):
            await ask(client, volume_id="csi-3")
    async with scene.agent() as client:
        assert await ask(client) == granted, "also after a restart"


async def test_a_start_without_the_api_serves_what_was_assigned(scene: Scene) -> None:
    """The last assignment is on disk: pods of permitted namespaces get their model, others don't."""
    async with scene.agent():
        digest = await scene.resolved("llama")
        generation = scene.assign(scene.model("llama", digest=digest, namespaces=("team-a",)))
        await until(lambda: scene.status.observed_generation == generation)
    scene.kube.set_down(True)
    async with scene.agent() as client:
        assert (await ask(client, wait_s=PATIENCE_S)).state == "ready"
        with pytest.raises(PolicyRefused):
            await ask(client, namespace="team-b", volume_id="csi-2")
        await until_sentence(client, "the Kubernetes API can't be reached")
        scene.kube.set_down(False)
        await until(lambda: [each.model for each in scene.status.wanted] == ["qwen"])


async def until_sentence(client: AgentClient, part: str) -> None:
    """Until a pod that waits for something unknown is told this."""
    async with asyncio.timeout(PATIENCE_S):
        while part not in (await ask(client, model="qwen", volume_id="csi-9")).message:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)


async def test_a_moved_source_is_not_mixed_into_a_pinned_version(scene: Scene) -> None:
    """Another version than the pinned one fails with both digests; one that is on disk is served without a question."""
    async with scene.agent() as client:
        digest = await scene.resolved("llama")
        wrong = "sha256:" + "0" * 64
        scene.assign(scene.model("llama", digest=wrong, versions=(digest,)))
        await until(lambda: scene.entry("llama", "failed") is not None)
        entry = scene.entry("llama", "failed")
        assert entry is not None
        assert entry.code == "version-moved"
        assert wrong in entry.message
        assert digest in entry.message
        assert scene.entry("llama", "ready") is not None, "the version on disk is told of"
        assert (await ask(client, digest=digest, volume_id="csi-2")).state == "ready", "an older version that is here"
        waiting = await ask(client)
        assert waiting.state == "waiting"
        assert "the last try failed" in waiting.message


async def test_files_of_the_node_need_a_permitted_directory(scene: Scene, tmp_path: Path) -> None:
    """Without file_roots a file:// model of the cluster is refused with a sentence; below one it comes, and not through
    a link that leads out."""
    inside, outside = tmp_path / "roots/in", tmp_path / "out"
    for place in (inside, outside):
        place.mkdir(parents=True)
        (place / "weights.bin").write_bytes(b"x" * 1000)
    (tmp_path / "roots/link").symlink_to(outside)

    def local(name: str, path: Path) -> NodeModel:
        return NodeModel(name=name, source=Source(uri=f"file://{path}"), kind="tree", resolve=f"question-{name}")

    async with scene.agent() as client:
        scene.assign(local("inside", inside))
        await until(lambda: (entry := scene.entry("inside")) is not None and entry.code == "refused")
    scene.configure(file_roots=[str(tmp_path / "roots")])
    async with scene.agent() as client:
        scene.assign(local("inside", inside), local("outside", outside), local("link", tmp_path / "roots/link"))
        assert (await ask(client, model="inside", wait_s=PATIENCE_S)).state == "ready"
        for name in ("outside", "link"):
            await until(lambda name=name: (entry := scene.entry(name)) is not None and entry.code == "refused")  # type: ignore[misc]


async def test_nothing_goes_before_it_is_known_what_is_mounted(scene: Scene) -> None:
    """An order to evict is obeyed for what nobody holds, and announced for what a PersistentVolume points at."""
    async with scene.agent() as client:
        digest = await scene.resolved("llama")
        assert (await client.status()).usage.evictable_bytes == 0
        pod = MountedPath(volume_id="pv-0a-weights", path=f"models/{digest.replace(':', '-')}/files")
        await client.mounted(MountsReport(mounts=(pod,)))
        await until(lambda: (entry := scene.entry("llama")) is not None and entry.mounted == 1)
        await client.mounted(MountsReport(mounts=()))
        generation = scene.assign(held=(digest,))
        await until(lambda: scene.status.observed_generation == generation)
        with pytest.raises(Exception, match="in a PersistentVolume"):
            await client.evict(digest)
        await until(lambda: scene.status.evicting == (digest,))
        generation = scene.assign()
        await until(lambda: scene.status.observed_generation == generation)
        assert (await client.evict(digest)).digest == digest
        await until(lambda: scene.status.models == () and scene.status.evicting == ())


async def test_a_busy_store_holds_nobody_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """An assignment that comes during an eviction waits for it alone; it is reported when what is to stay is in
    force, not before."""
    real, begun, free = Store.hold, threading.Event(), threading.Event()

    def hold(store: Store, volumes: Collection[str], pinned: Collection[str] = ()) -> bool:
        begun.set()
        free.wait(PATIENCE_S)
        return real(store, volumes, pinned)

    async with scene.agent() as client:
        before = scene.assign()
        await until(lambda: scene.status.observed_generation == before)
        monkeypatch.setattr(Store, "hold", hold)
        after = scene.assign(scene.model("llama"))
        await until(begun.is_set)
        with pytest.raises(NotCached):
            await client.model("nobody's")  # it answers
        assert scene.status.observed_generation == before
        free.set()
        await until(lambda: scene.status.observed_generation == after)


async def test_a_version_that_others_want_too_waits_for_its_list(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what the controller assigns nor a pod that asks begins alone: first this node is on the list, with its
    key. One of which nobody else is told waits for nothing."""
    monkeypatch.setattr("cacheagent.kube.peer_lists.HOLD_S", 600.0)
    scene.configure(peers={"listen": "127.0.0.1:0"})
    async with scene.agent() as client:
        scene.assign(scene.model("llama", resolve="question-1"))
        await until(lambda: (entry := scene.entry("llama")) is not None and entry.resolved_for == "question-1")
        entry = scene.entry("llama")
        assert entry is not None
        scene.assign(scene.model("llama", digest=entry.digest, shared=True), scene.model("qwen", resolve="question-2"))
        await until(lambda: (found := scene.entry("qwen")) is not None and found.resolved_for == "question-2")
        qwen = scene.entry("qwen")
        assert qwen is not None
        scene.assign(scene.model("llama", digest=entry.digest, shared=True), scene.model("qwen", digest=qwen.digest))
        await until(lambda: scene.entry("qwen", "ready") is not None)
        told = await ask(client)
        assert (told.state, told.message) == ("waiting", SHARED)
        assert scene.entry("llama", "pending") is not None
        assert scene.origin.requests_for("llama/weights.bin") == []
        me = PeerMember(name=NODE, address=scene.status.peer_address, key=scene.status.public_key)
        spec = to_json(ModelCachePeersSpec(digests=(entry.digest,), members=(me,)))
        labels = {member_label(NODE): ""}
        scene.kube.put(MODEL_CACHE_PEERS, {"metadata": {"name": "list", "labels": labels}, "spec": spec})
        await until(lambda: scene.entry("llama", "ready") is not None)
        assert (await ask(client)).state == "ready"


@pytest.mark.parametrize("is_honest", [True, False])
async def test_a_peer_that_lies_is_named_in_the_status(scene: Scene, *, is_honest: bool) -> None:
    """Where the one who looks after the cluster sees it; one that does not is not."""
    data = os.urandom(2 * PIECE_SIZE_BYTES)
    scene.origin.put("large/weights.bin", data)
    scene.origin.add_sums("large")
    scene.configure(peers={"listen": "127.0.0.1:0"})
    key = NodeKey(b"2" * 32)

    def gives(piece: int, length: int) -> bytes:
        return data[piece * PIECE_SIZE_BYTES :][:length] if is_honest else bytes(length)

    async with scene.agent():
        scene.assign(scene.model("large", resolve="question-1"))
        await until(lambda: (entry := scene.entry("large")) is not None and entry.resolved_for == "question-1")
        entry = scene.entry("large")
        assert entry is not None
        with LyingPeer(0, "gpu-2", key, lengths_of(len(data)), gives) as peer:
            members = (
                PeerMember(name=NODE, address=scene.status.peer_address, key=scene.status.public_key),
                PeerMember(name="gpu-2", address=f"127.0.0.1:{peer.port}", key=key.public_text),
            )
            spec = to_json(ModelCachePeersSpec(digests=(entry.digest,), members=members))
            scene.kube.put(
                MODEL_CACHE_PEERS, {"metadata": {"name": "l", "labels": {member_label(NODE): ""}}, "spec": spec}
            )
            scene.assign(scene.model("large", digest=entry.digest, shared=True))
            await until(lambda: scene.entry("large", "ready") is not None)
            assert peer.asks
        assert scene.status.liars == (() if is_honest else ("gpu-2",))
    (tree,) = (scene.root / "models").iterdir()
    assert (tree / "files" / "weights.bin").read_bytes() == data
