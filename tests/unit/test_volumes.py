"""Volumes over a real store and origins in memory: who waits for what, what they are told, and what is on disk then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from cacheagent.api.schema import GRANT_S, MountedPath, MountsReport, Volume, VolumeRequest
from cacheagent.assignment import Assigned, Assignment, Reason, Refused
from cacheagent.errors import (
    CorruptModel,
    NoRoom,
    NotCached,
    OriginForbidden,
    OriginUnavailable,
    PolicyRefused,
    UsageError,
)
from cacheagent.flights import Flights
from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec, SourceSpec
from cacheagent.store import Promise, Record, Store, StorePolicy
from cacheagent.volumes import ASKED, Asked, Volumes
from cacheagent.volumes.waitlist import ALIVE_S
from cacheagent.warming import Warming
from tests.fakes.memory import MemoryOrigin, MemoryTransport

pytestmark = pytest.mark.asyncio
PATIENCE_S = 60.0
OBJECTS = {"config.json": b"{}", "weights.bin": b"w" * (PIECE_SIZE_BYTES + 5)}


def spec(name: str = "llama", **more: Any) -> ModelSpec:
    """A tree from the origin of that name."""
    return ModelSpec(name=name, kind="tree", source=SourceSpec(uri=f"memory://{name}"), **{"keep_warm": False} | more)


class Node:
    """Everything that volumes stand on."""

    def __init__(self, root: Path, *specs: ModelSpec, policy: StorePolicy | None = None) -> None:
        self.root = root / "cache"
        self.origins = {
            f"memory://{name}": MemoryOrigin(dict(OBJECTS), endpoint=f"memory://{name}") for name in ("llama", "qwen")
        }
        self.transport = MemoryTransport(*self.origins.values())
        self.policy = policy or StorePolicy(floor_bytes=0)
        self.specs = specs or (spec(),)
        self.read_ahead: list[Record] = []
        self.counted: list[tuple[str, bool]] = []
        self.started = False
        self.start()

    def start(self) -> None:
        self.store = Store.open(self.root, self.policy)
        self.flights = Flights(self.store, self.transport, lambda source: self.origins[source.uri], on_event=self.tell)
        self.warming = Warming(self.flights, self.specs)
        self.volumes = Volumes(
            self.store, self.flights, demand=self.warming.demand, counts=self, read_ahead=self.read_ahead.append
        )
        self.volumes.assign(Assignment(models=tuple(Assigned(spec=each) for each in self.specs)))
        self.tasks = [asyncio.create_task(self.warming.run()), asyncio.create_task(self.volumes.run())]
        self.started = True

    async def stop(self) -> None:
        """As a process that ends; what is on disk stays."""
        if self.started:
            self.started = False
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            await self.flights.close()
            self.store.close()

    def tell(self, status: JobStatus) -> None:
        self.warming.heard(status)
        self.volumes.heard(status)

    def count_mount(self, model: str, *, hit: bool, waited_s: float, size_bytes: int) -> None:
        self.counted.append((model, hit))

    async def ask(self, volume_id: str = "v1", *, wait_s: float = 0.0, **more: Any) -> Volume:
        """What the CSI driver asks."""
        request: dict[str, Any] = {"namespace": "team-a", "model": "llama", "pod": "llm-0", "wait_s": wait_s} | more
        return await self.volumes.put(volume_id, VolumeRequest(**request))

    def progress(self, volume_id: str = "v1") -> str:
        """The line in a volume that is filled later."""
        path = self.root / "volumes" / volume_id / ".cacheagent/progress"
        return path.read_text() if path.exists() else ""

    def leased(self) -> set[str]:
        return {lease.volume_id for lease in self.store.leases()}

    def promised(self) -> set[str]:
        return {path.name for path in (self.root / "promises").iterdir()}


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """With one model that is fetched when it is asked for."""
    made = Node(tmp_path)
    yield made
    await made.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that tells nobody when it happens."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on
            await asyncio.sleep(0.005)


async def test_twenty_pods_are_one_download(node: Node) -> None:
    """All are held, all are ready with the model, each with a lease of its own."""
    answers = await asyncio.gather(*(node.ask(f"v{number}", wait_s=PATIENCE_S) for number in range(20)))
    assert {answer.state for answer in answers} == {"ready"}
    assert len({answer.path for answer in answers}) == 1
    assert node.transport.fetches["weights.bin"] == 1
    assert node.leased() == {f"v{number}" for number in range(20)}
    assert node.promised() == set()
    assert {hit for _, hit in node.counted} == {False}
    await node.ask("v20")
    assert node.counted[-1] == ("llama", True)


async def test_what_waits_is_told_and_goes_before_others(node: Node) -> None:
    """A first question is answered at once; the download is more urgent than any priority; nobody is evicted for it."""
    node.transport.hold("weights.bin")
    assert (await node.ask()).state == "waiting"
    await node.transport.wait_until_started("weights.bin")
    waiting = await node.ask()
    assert (waiting.state, waiting.path) == ("waiting", "")
    assert waiting.message.startswith("0 %, ")
    node.transport.release("weights.bin")
    assert (await node.ask(wait_s=PATIENCE_S)).state == "ready"
    assert node.transport.priorities["weights.bin"] == 1_000_000


async def test_a_removed_volume_gets_no_lease_from_an_answer_that_is_still_held(node: Node) -> None:
    """The kubelet gave up on the call and the pod was deleted: what comes later must not hold the model."""
    node.transport.hold("weights.bin")
    held = asyncio.create_task(node.ask(wait_s=PATIENCE_S))
    other = asyncio.create_task(node.ask("v2", wait_s=PATIENCE_S))
    await node.transport.wait_until_started("weights.bin")
    await node.volumes.remove("v1")
    assert (await held).state == "waiting"
    node.transport.release("weights.bin")
    assert (await other).state == "ready"
    assert (node.leased(), node.promised()) == ({"v2"}, set())


async def test_a_hold_ends_with_how_far_it_is_then(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with how far it was when the kubelet asked, two minutes ago."""
    sentences = iter(["at the beginning", "at the end"])
    monkeypatch.setattr("cacheagent.volumes.versions.describe_wait", lambda *_: next(sentences))
    node.transport.hold("weights.bin")
    assert (await node.ask(wait_s=0.2)).message == "at the end"


async def test_trouble_ends_a_hold_once_of_each_kind(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod's events say at once what is wrong; then its calls are held again, and end when the weights are there."""
    monkeypatch.setattr("cacheagent.warming.FIRST_RETRY_S", 0.01)
    origin = node.origins["memory://llama"]
    origin.fail_listing = OriginForbidden("bucket: 403", hint="name a credential that may read it")
    told = await node.ask(wait_s=PATIENCE_S)
    assert told.state == "waiting"
    assert "the last try failed: bucket: 403" in told.message
    held = asyncio.create_task(node.ask(wait_s=PATIENCE_S))
    lists = origin.listings
    await until(lambda: origin.listings > lists + 2)
    assert not held.done()
    origin.fail_listing = OriginUnavailable("bucket: no answer")
    assert "bucket: no answer" in (await held).message
    origin.fail_listing = OriginForbidden("bucket: 403")
    held = asyncio.create_task(node.ask(wait_s=PATIENCE_S))
    lists = origin.listings
    await until(lambda: origin.listings > lists + 2)
    assert not held.done()
    origin.fail_listing = None
    assert (await held).state == "ready"


async def test_a_pending_assignment_that_is_in_trouble(node: Node) -> None:
    """What is asked on behalf of the controller fails: whoever waits hears of it at once, and once."""
    pending = Assigned(spec=spec(), pending="its source is being listed")
    node.volumes.assign(Assignment(models=(pending,)))
    held = asyncio.create_task(node.ask(wait_s=PATIENCE_S))
    await asyncio.sleep(0)
    failed = replace(pending, pending="its source can't be listed: 403", trouble=OriginForbidden.code)
    node.volumes.assign(Assignment(models=(failed,)))
    assert (await held).message == "its source can't be listed: 403"
    held = asyncio.create_task(node.ask(wait_s=PATIENCE_S))
    await asyncio.sleep(0.05)
    assert not held.done()
    node.volumes.assign(Assignment(models=(Assigned(spec=spec()),)))
    assert (await held).state == "ready"


async def test_a_failing_source_is_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says why and what to do; the held answer comes when it is mended."""
    monkeypatch.setattr("cacheagent.warming.FIRST_RETRY_S", 0.05)
    origin = node.origins["memory://llama"]
    origin.fail_listing = OriginForbidden("bucket: 403", hint="name a credential that may read it")
    await node.ask()
    told = await node.ask(wait_s=PATIENCE_S)
    assert told.state == "waiting"
    assert "the last try failed: bucket: 403 (name a credential that may read it)" in told.message
    held = asyncio.create_task(node.ask(wait_s=PATIENCE_S))
    origin.fail_listing = None
    assert (await held).state == "ready"


async def test_no_room_is_an_error_when_the_time_is_over(tmp_path: Path) -> None:
    """With the numbers; a held answer waits for room as long as it may."""
    node = Node(tmp_path, policy=StorePolicy(floor_bytes=2**60))
    try:
        await node.ask()
        with pytest.raises(NoRoom, match="free above the floor"):
            await node.ask(wait_s=0.5)
        assert node.leased() == set()
        assert node.promised() == {"v1"}
    finally:
        await node.stop()


async def test_a_promised_version_stays_until_its_lease(node: Node) -> None:
    """Between the publish and the lease nobody takes it away, and the lease of a volume is for one version."""
    first = await node.ask(wait_s=PATIENCE_S)
    await node.volumes.remove("v1")
    await node.ask("v2", wait_s=PATIENCE_S)
    await node.volumes.remove("v2")
    node.store.hold_promised({first.digest})
    with pytest.raises(Exception, match="about to be mounted"):
        node.store.evict(first.digest)
    node.store.hold_promised(set())
    assert node.store.evict(first.digest) > 0


async def test_a_volume_keeps_its_version(node: Node) -> None:
    """Over a change of the source and a restart: the lease says which."""
    first = await node.ask(wait_s=PATIENCE_S)
    node.origins["memory://llama"].objects["config.json"] = b"{ }"
    await node.flights.ensure(spec(), refresh=True)
    assert (await node.ask()).digest == first.digest
    assert (await node.ask("v2")).digest != first.digest
    await node.stop()
    node.start()
    assert await node.ask() == first
    with pytest.raises(NotCached, match="no version of model 'llama'"):
        await node.ask("v3", digest="sha256:" + "0" * 64, wait_s=0.01)
    assert (await node.ask("v3", digest=first.digest)).digest == first.digest


async def test_a_version_under_repair_is_waited_for(node: Node) -> None:
    """No new volumes meanwhile; one that has its lease is answered as ever."""
    first = await node.ask(wait_s=PATIENCE_S)
    node.store.withdraw(first.digest, "weights.bin: piece 0 is wrong")
    waiting = await node.ask("v2")
    assert (waiting.state, "piece 0 is wrong" in waiting.message) == ("waiting", True)
    assert await node.ask() == first
    node.store.reinstate(first.digest)
    assert (await node.ask("v2")).state == "ready"


async def test_the_hf_view_needs_a_repository(tmp_path: Path) -> None:
    """Without one it is an error that says what to set; with one the path is that view's."""
    node = Node(tmp_path, spec(), spec("qwen", repo_id="org/qwen"))
    try:
        await node.ask(wait_s=PATIENCE_S)
        with pytest.raises(UsageError, match="no hf view"):
            await node.ask("v2", view="hf", wait_s=PATIENCE_S)
        found = await node.ask("v3", model="qwen", view="hf", wait_s=PATIENCE_S)
        assert found.path.endswith("/hf")
        assert (node.root / found.path / "models--org--qwen/refs/main").exists()
    finally:
        await node.stop()


@pytest.mark.parametrize(
    ("volume_id", "more"),
    [("../x", {}), ("v1", {"model": ""}), ("v1", {"uri": "s3://b/m"}), ("v1", {"model": "", "uri": "nonsense"})],
)
async def test_a_wrong_request_is_refused(node: Node, volume_id: str, more: dict[str, Any]) -> None:
    """Nothing is remembered of it."""
    with pytest.raises((UsageError, PolicyRefused)):
        await node.ask(volume_id, **more)
    assert node.promised() == set()


async def test_what_nobody_asks_for_any_more_is_forgotten(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that was deleted before its volume was ever mounted: the kubelet says nothing of it. One that is mounted
    stays, whatever is remembered."""
    monkeypatch.setattr("cacheagent.volumes.volumes.SWEEP_EVERY_S", 0.05)
    node.transport.hold("weights.bin")
    await node.ask()
    await node.ask("later", wait="init")
    await node.ask("mounted", wait="init")
    await node.volumes.mounted(MountsReport(mounts=(MountedPath(volume_id="mounted", path="volumes/mounted"),)))
    for volume_id in ("v1", "later", "mounted"):
        node.volumes._waitlist.heard_of[volume_id] -= GRANT_S + 1
    await until(lambda: node.promised() == {"mounted"})
    assert [path.name for path in (node.root / "volumes").iterdir()] == ["mounted"]
    node.transport.release("weights.bin")
    await until(lambda: node.leased() == {"mounted"})


async def test_a_lease_on_disk_beside_its_promise_is_no_reason_to_lose_it(node: Node) -> None:
    """A crash between the two: the volume is mounted by now, and its lease stays when the promise goes."""
    first = await node.ask(wait_s=PATIENCE_S)
    promise = Promise(volume_id="v1", model="llama", namespace="team-a", since=1.0, digest=first.digest)
    await node.stop()
    path = node.root / "promises/v1"
    path.write_bytes(b'{"volume_id":"v1","model":"llama","namespace":"team-a","since":1.0}')
    node.start()
    (found,) = node.store.promises()
    assert found == replace(promise, digest="")
    await node.volumes._drop(found)
    assert (node.leased(), node.promised()) == ({"v1"}, set())
    assert await node.ask() == first


async def test_a_volume_that_is_filled_later_tells_what_goes_wrong(node: Node) -> None:
    """Each change is a line; the refusal of a version under repair, too; the lease comes with the files."""
    origin = node.origins["memory://llama"]
    origin.fail_listing = OriginForbidden("bucket: 403", hint="name a credential")
    assert (await node.ask(wait="init")).path == "volumes/v1"
    await until(lambda: "llama: the last try failed: bucket: 403 (name a credential)" in node.progress())
    assert (node.leased(), node.promised()) == (set(), {"v1"})
    origin.fail_listing = None
    node.transport.hold("weights.bin")
    node.warming.want(node.specs)
    await until(lambda: "of 16.8 MB" in node.progress())
    node.transport.release("weights.bin")
    await until(lambda: node.leased() == {"v1"})
    await until(lambda: node.promised() == set())
    assert (node.root / "volumes/v1/weights.bin").read_bytes() == OBJECTS["weights.bin"]
    assert "llama: all 16.8 MB are here" in node.progress()
    again = await node.ask(wait="init")
    assert (again.state, again.path) == ("ready", "volumes/v1")
    digest = again.digest
    with pytest.raises(Exception, match="mounted"):
        node.store.evict(digest)
    await node.volumes.remove("v1")
    assert not (node.root / "volumes/v1").exists()
    assert node.store.evict(digest) > 0


async def test_a_fill_is_done_again_after_a_crash(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lease and half of the files are there, the mark is not: the next process finishes."""
    real = Store.forget_promise

    def die(self: Store, volume_id: str) -> None:
        raise RuntimeError("the process is gone")

    monkeypatch.setattr(Store, "forget_promise", die)
    await node.ask(wait="init")
    await until(node.tasks[1].done)
    monkeypatch.setattr(Store, "forget_promise", real)
    node.tasks[1].exception()
    await node.stop()
    mark = node.root / "volumes/v1/.cacheagent/ready"
    mark.parent.chmod(0o755)
    mark.unlink()
    (node.root / "volumes/v1").chmod(0o755)
    (node.root / "volumes/v1/weights.bin").unlink()
    assert (node.root / "leases/v1").exists()
    node.start()
    await until(lambda: node.promised() == set())
    assert mark.exists()
    assert (node.root / "volumes/v1/weights.bin").read_bytes() == OBJECTS["weights.bin"]


async def test_what_is_asked_of_the_controller(node: Node) -> None:
    """As long as somebody asks; a refusal is raised with its own class, and asked about all the same."""
    node.volumes.assign(Assignment(open_ended=True))
    assert (await node.ask()).message == ASKED
    assert node.volumes.asked() == [Asked("llama", "team-a", "")]
    await node.ask("v2", model="", uri="https://host/m")
    assert node.volumes.asked()[0] == Asked("", "team-a", "https://host/m")
    refused = Refused(model="llama", namespace="team-a", error=Reason(code="refused", message="not for you"))
    node.volumes.assign(Assignment(open_ended=True, refusals=(refused,)))
    with pytest.raises(PolicyRefused, match="not for you"):
        await node.ask(wait_s=PATIENCE_S)
    assert len(node.volumes.asked()) == 2
    await node.volumes.remove("v1")
    await node.volumes.remove("v2")
    assert node.volumes.asked() == []


async def test_who_still_waits_is_counted(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since it was first asked for, its model assigned or not; without those that nobody asks for any more."""
    node.volumes.assign(Assignment(models=(Assigned(spec=spec()),), open_ended=True))
    clock = SimpleNamespace(monotonic=time.monotonic)
    monkeypatch.setattr("cacheagent.volumes.waitlist.time", clock)
    node.transport.hold("weights.bin")
    began = time.time()
    await node.ask("here")
    await node.ask("gone-here")
    await node.ask("elsewhere", model="nobodys")
    await node.ask("gone-elsewhere", model="nobodys")
    assert {model: len(since) for model, since in node.volumes.waiting().items()} == {"llama": 2, "nobodys": 2}
    monkeypatch.setattr(clock, "monotonic", lambda: time.monotonic() + ALIVE_S - 60)
    monkeypatch.setattr(node.volumes._waitlist, "_now", lambda: time.time() + ALIVE_S - 60)
    await node.ask("here")
    await node.ask("elsewhere", model="nobodys")
    assert {model: len(since) for model, since in node.volumes.waiting().items()} == {"llama": 2, "nobodys": 2}
    monkeypatch.setattr(clock, "monotonic", lambda: time.monotonic() + ALIVE_S + 60)
    monkeypatch.setattr(node.volumes._waitlist, "_now", lambda: time.time() + ALIVE_S + 60)
    waiting = node.volumes.waiting()
    assert {model: len(since) for model, since in waiting.items()} == {"llama": 1, "nobodys": 1}
    assert all(began - 1 <= since <= time.time() for each in waiting.values() for since in each)
    assert node.promised() == {"here", "gone-here"}  # the promise itself stays for longer


async def test_pages_are_read_ahead_once(node: Node) -> None:
    """At the first lease, for who asks for it; not when the kubelet asks again."""
    await node.ask(wait_s=PATIENCE_S, page_cache=True)
    await node.ask(page_cache=True)
    await node.ask("v2")
    assert [record.name for record in node.read_ahead] == ["llama"]


async def test_mounts_are_the_truth_about_leases(node: Node) -> None:
    """A mount of another version than the lease says: what is mounted is held."""
    first = await node.ask(wait_s=PATIENCE_S)
    node.origins["memory://llama"].objects["config.json"] = b"{ }"
    second = await node.flights.ensure(spec(), refresh=True)
    tree = f"models/{second.digest.replace(':', '-')}/files"
    await node.volumes.mounted(MountsReport(mounts=(MountedPath(volume_id="v1", path=tree),)))
    assert {lease.digest for lease in node.store.leases()} == {second.digest}
    await node.volumes.mounted(MountsReport(mounts=(MountedPath(volume_id="v1", path=first.path),)))
    assert {lease.digest for lease in node.store.leases()} == {first.digest}


async def test_a_suspect_version_that_is_mounted_is_leased(node: Node) -> None:
    """A report makes the lease even where a new volume would have to wait."""
    first = await node.ask(wait_s=PATIENCE_S)
    node.store.withdraw(first.digest, "a piece is wrong")
    with pytest.raises(CorruptModel):
        node.store.lease("v9", first.digest)
    await node.volumes.mounted(
        MountsReport(
            mounts=(
                MountedPath(volume_id="v1", path=first.path),
                MountedPath(volume_id="pv-1-w", path=first.path),
            )
        )
    )
    assert node.leased() == {"v1", "pv-1-w"}


async def test_a_whole_volume_is_not_written_to_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash after the mark and before the promise is forgotten: its directories are read-only by then, and the agent
    is not root, so the next process only forgets the promise."""

    def die(self: Store, volume_id: str) -> None:
        raise RuntimeError("the process is gone")

    with monkeypatch.context() as dying:
        dying.setattr(Store, "forget_promise", die)
        await node.ask(wait="init")
        await until(node.tasks[1].done)
    node.tasks[1].exception()
    await node.stop()
    marks = node.root / "volumes/v1/.cacheagent"
    before = [path.stat().st_mtime_ns for path in (marks, marks.parent)]
    assert (marks / "ready").exists()
    assert (node.root / "promises/v1").exists()
    node.start()
    await until(lambda: node.promised() == set())
    assert [path.stat().st_mtime_ns for path in (marks, marks.parent)] == before
    assert node.leased() == {"v1"}


@pytest.mark.parametrize("name", ["ready", "progress"])
async def test_what_a_crash_left_of_a_mark_is_replaced(node: Node, name: str) -> None:
    """A temporary may be read-only already, which only root could open: it is never written into."""
    node.transport.hold("weights.bin")
    await node.ask(wait="init")
    await until(lambda: node.progress() != "")
    bystander = node.root.parent / "bystander"
    bystander.write_bytes(b"as it was")
    (node.root / f"volumes/v1/.cacheagent/.{name}.tmp").hardlink_to(bystander)
    node.transport.release("weights.bin")
    await until(lambda: node.promised() == set())
    assert (node.root / "volumes/v1/.cacheagent/ready").exists()
    assert bystander.read_bytes() == b"as it was"


async def test_a_volume_that_can_not_be_written_to_ends_nothing(node: Node) -> None:
    """Its directory is broken; others are filled all the same, by a task that goes on."""
    node.transport.hold("weights.bin")
    await node.ask(wait="init")
    await until(lambda: node.progress() != "")
    marks = node.root / "volumes/v1/.cacheagent"
    marks.rename(node.root / "elsewhere")
    await node.ask("v2", wait="init")
    node.transport.release("weights.bin")
    await until((node.root / "volumes/v2/.cacheagent/ready").exists)
    (node.root / "elsewhere").rename(marks)
    node.volumes.news.tell()
    await until((marks / "ready").exists)
    assert not node.tasks[1].done()


async def test_a_fill_that_began_ends_with_its_version(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The volume has its lease and some files when the disk fails, and the model moves on: it is not mixed and does not
    wait for ever."""
    with monkeypatch.context() as failing:
        failing.setattr("cacheagent.store.store.fill", _full_disk)
        await node.ask(wait="init")
        await until(lambda: node.leased() == {"v1"})
        first = node.store.find_lease("v1")
    assert first is not None
    node.origins["memory://llama"].objects["config.json"] = b"{ }"
    second = await node.flights.ensure(spec(), refresh=True)
    assert second.digest != first.digest
    node.volumes.news.tell()
    await until(lambda: node.promised() == set())
    assert (node.root / "volumes/v1/config.json").read_bytes() == b"{}"
    assert node.store.find_lease("v1") == first


def _full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


async def test_a_volume_that_waits_is_not_filled_with_what_its_namespace_may_not_read(node: Node) -> None:
    """A model of the same name with other rights came in its place before the first one was here."""
    node.volumes.assign(Assignment(models=(Assigned(spec=spec(), namespaces=("team-a",), pending="undecided"),)))
    await node.ask(wait="init")
    closed = Assigned(spec=spec(), namespaces=("team-b",))
    node.volumes.assign(Assignment(models=(closed,)))
    assert (await node.ask("theirs", namespace="team-b", wait_s=PATIENCE_S)).state == "ready"
    await until(lambda: "may not mount" in node.progress())
    assert "v1" not in node.leased()
    node.volumes.assign(Assignment(models=(replace(closed, namespaces=("team-a", "team-b")),)))
    await until(lambda: "v1" in node.leased())


async def test_a_grant_that_is_used_late_is_not_ended_on_its_way(node: Node) -> None:
    """The mount failed for long and is tried again: a report that is older than the mount does not take the lease."""
    await node.ask(wait_s=PATIENCE_S)
    await node.ask("v2")
    long_ago = node.store._state.now() - GRANT_S - 1
    for volume_id in ("v1", "v2"):
        node.store._state.leases._leases[volume_id] = replace(
            node.store._state.leases._leases[volume_id], since=long_ago
        )
    assert (await node.ask()).state == "ready"
    await node.volumes.mounted(MountsReport(mounts=()))
    assert node.leased() == {"v1"}
    await node.stop()
    node.start()
    await node.volumes.mounted(MountsReport(mounts=()))
    assert node.leased() == {"v1"}


async def test_what_was_heard_of_in_vain_is_forgotten(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that never was, asked for by a pod that is gone, leaves nothing behind."""
    monkeypatch.setattr("cacheagent.volumes.volumes.SWEEP_EVERY_S", 0.05)
    with pytest.raises(NotCached):
        await node.ask(digest="sha256:" + "0" * 64)
    node.volumes.news.tell()
    await until(lambda: not node.volumes._waitlist.heard_of)
