"""Client, mirror, leader, events and CRDs on a real API server (etcd and kube-apiserver, no nodes)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cacheagent.kube import convert
from cacheagent.kube.api import (
    EVENTS,
    MODEL_CACHE_NODES,
    MODEL_CACHE_PEERS,
    MODEL_CACHES,
    MODEL_WARMUPS,
    NODES,
    KubeApi,
    KubeError,
    KubeNotFound,
    KubeRefused,
    Object,
    Resource,
)
from cacheagent.kube.client import KubeClient, open_client
from cacheagent.kube.events import Events
from cacheagent.kube.leader import Leader, Times
from cacheagent.kube.mirror import Mirror
from cacheagent.kube.names import member_label
from cacheagent.kube.objects import KubeValue, ModelCachePeersSpec
from tests.conformance.kube import SOURCE, KubeBehaviour, model, new_name, take
from tests.fakes.kube_cluster import install_definitions
from tests.fakes.kube_server import ApiServer, running_api_server
from tests.fakes.kube_values import MODEL, MODEL_STATUS, NODE, NODE_STATUS, PEERS, WARMUP, WARMUP_STATUS
from tests.fakes.running import running, until

pytestmark = [pytest.mark.kube_api, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One for the module, with the CRDs of the chart."""
    with running_api_server(tmp_path_factory.mktemp("kube")) as started:
        asyncio.run(_install(started))
        yield started


async def _install(server: ApiServer) -> None:
    async with open_client(server.kubeconfig) as client:
        await install_definitions(client)


async def _is_served(client: KubeClient, resource: Resource) -> bool:
    try:
        await client.list(resource)
    except KubeNotFound:
        return False
    return True


@pytest_asyncio.fixture
async def client(server: ApiServer) -> AsyncIterator[KubeClient]:
    async with open_client(server.kubeconfig) as opened:
        yield opened


class TestRealServer(KubeBehaviour):
    """The suite that the fake passes too."""

    @pytest.fixture
    def api(self, client: KubeClient) -> KubeApi:
        return client


# --- the client


@pytest.mark.asyncio
async def test_a_list_of_several_pages(client: KubeClient) -> None:
    """Everything comes, once, in pages that are counted as requests."""
    mark = new_name("mark")
    for index in range(1100):
        await client.create(NODES, {"metadata": {"name": f"{mark}-{index}", "labels": {"mark": mark}}})
    asked: list[tuple[str, str, int]] = []
    client._on_request = lambda *request: asked.append(request)
    found = await client.list(NODES, labels=f"mark={mark}")
    assert len({item["metadata"]["name"] for item in found.items}) == len(found.items) == 1100
    assert asked == [("list", "nodes", 200)] * 3
    for item in found.items:
        await client.delete(NODES, item["metadata"]["name"])


@pytest.mark.asyncio
async def test_errors_say_what_to_do(server: ApiServer, client: KubeClient) -> None:
    """A stranger, a kind that is not there, an object that the schema refuses."""
    async with open_client(server.kubeconfig_of("somebody")) as stranger:
        with pytest.raises(KubeRefused, match=r'list modelcaches.*User "somebody" cannot list.*RBAC') as refused:
            await stranger.list(MODEL_CACHES)
        assert refused.value.status == 403
    assert (await client.list(MODEL_CACHES)).resource_version
    with pytest.raises(KubeNotFound, match="CRDs installed"):
        await client.list(MODEL_CACHES._replace(plural="modelcachez"))
    with pytest.raises(KubeRefused, match=r"create modelcaches: .*source.uri begins with"):
        await client.create(MODEL_CACHES, model(new_name()) | {"spec": {"source": {"uri": "ftp://somewhere"}}})


@pytest.mark.asyncio
async def test_a_watch_ends_in_order(client: KubeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that it asked for, without an error, having told what it was to tell."""
    monkeypatch.setattr("cacheagent.kube.client.WATCH_S", (2, 2))
    name = new_name()
    version = (await client.list(MODEL_CACHES)).resource_version
    await client.create(MODEL_CACHES, model(name))
    events = [event async for event in client.watch(MODEL_CACHES, version, fields=f"metadata.name={name}")]
    assert [event.type for event in events if event.type != "BOOKMARK"] == ["ADDED"]


@pytest.mark.asyncio
async def test_an_object_larger_than_a_line_buffer(client: KubeClient) -> None:
    """400 KB in one line of a watch."""
    name = new_name()
    version = (await client.list(MODEL_CACHES)).resource_version
    include = [f"{index:04}-" + "x" * 1500 for index in range(256)]
    await client.create(MODEL_CACHES, model(name) | {"spec": {"source": SOURCE | {"include": include}}})
    (event,) = await take(client.watch(MODEL_CACHES, version, fields=f"metadata.name={name}"), 1)
    assert event.object["spec"]["source"]["include"] == include


# --- the mirror


@pytest.mark.asyncio
async def test_a_mirror_through_a_restart_of_the_server(server: ApiServer, client: KubeClient) -> None:
    """What happened while it could not see is told once, and what did not change is not told."""
    mark = new_name("mark")

    async def create(suffix: str) -> None:
        body = model(f"{mark}-{suffix}")
        body["metadata"]["labels"] = {"mark": mark}
        await client.create(MODEL_CACHES, body)

    told: list[tuple[str, str]] = []

    def note(before: Object | None, after: Object | None) -> None:
        item = after or before or {}
        kind = "added" if before is None else "gone" if after is None else "changed"
        told.append((kind, item["metadata"]["name"].removeprefix(f"{mark}-")))

    for suffix in ("stays", "changes", "goes"):
        await create(suffix)
    mirror = Mirror(client, MODEL_CACHES, labels=f"mark={mark}", on_change=note)
    async with running(mirror.run()):
        await mirror.synced()
        assert sorted(told) == [("added", "changes"), ("added", "goes"), ("added", "stays")]
        await create("before")
        await until(lambda: ("added", "before") in told, "a change is told")
        told.clear()
        server.stop()
        await until(lambda: mirror.error is not None, "the mirror notices")
        assert len(mirror.items) == 4
        server.start()  # here: the server dies with the thread that starts it
        await until(lambda: _is_served(client, MODEL_CACHES), "the server serves again")
        await client.patch(MODEL_CACHES, f"{mark}-changes", {"spec": {"pin": True}})
        await client.delete(MODEL_CACHES, f"{mark}-goes")
        await create("new")
        await until(lambda: len(told) >= 3, "the changes are told")
        assert sorted(told) == [("added", "new"), ("changed", "changes"), ("gone", "goes")]
        assert sorted(name for _, name in mirror.items) == [
            f"{mark}-{name}" for name in ("before", "changes", "new", "stays")
        ]
        assert mirror.error is None


# --- leadership


@pytest.mark.asyncio
async def test_one_leader_at_a_time(client: KubeClient) -> None:
    """The second takes over at once when the first leaves in order, and never before."""
    name, times = new_name("lease"), Times(lease_s=4, renew_s=3, retry_s=0.3)
    one, two = (
        Leader(client, namespace="default", name=name, identity=identity, times=times) for identity in ("one", "two")
    )
    first = asyncio.create_task(one.run())
    await until(one.is_leader, "the first leads")
    async with running(two.run()):
        await until(lambda: two.holder == "one", "the second knows the first")
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            assert one.is_leader()
            assert not two.is_leader()
            await asyncio.sleep(0.05)
        first.cancel()
        begin = time.monotonic()
        await asyncio.gather(first, return_exceptions=True)
        assert not one.is_leader()
        await until(two.is_leader, "the second leads")
        assert time.monotonic() - begin < times.lease_s - 1


@pytest.mark.asyncio
async def test_a_leader_without_a_server_stops_believing(server: ApiServer, client: KubeClient) -> None:
    """By its own clock, and it leads again when the server is back."""
    told: list[bool] = []
    leader = Leader(
        client,
        namespace="default",
        name=new_name("lease"),
        identity="one",
        on_change=told.append,
        times=Times(lease_s=4, renew_s=2, retry_s=0.2),
    )
    async with running(leader.run()):
        await until(leader.is_leader, "it leads")
        server.stop()
        await until(lambda: not leader.is_leader(), "it stops believing")
        server.start()  # here: the server dies with the thread that starts it
        await until(leader.is_leader, "it leads again")
        await until(lambda: told == [True, False, True], "it told so")


# --- events


@pytest.mark.asyncio
async def test_events_are_counted(client: KubeClient) -> None:
    """The same again is one event with a count; another message is another."""
    made = await client.create(MODEL_CACHES, model(new_name()))
    events = Events(client, component="cacheagent-test", instance="pod-0")
    async with running(events.run()):
        for message in ("not yet", "not yet", "ready"):
            events.post(made, "Normal", "Progress", message)
        await events.written()
    found = await client.list(EVENTS, fields=f"involvedObject.uid={made['metadata']['uid']}")
    assert {(each["message"], each["count"]) for each in found.items} == {("not yet", 2), ("ready", 1)}
    assert {each["metadata"]["namespace"] for each in found.items} == {"default"}


# --- the CRDs


@pytest.mark.parametrize(
    ("resource", "spec", "status"),
    [
        (MODEL_CACHES, MODEL, MODEL_STATUS),
        (MODEL_CACHE_NODES, NODE, NODE_STATUS),
        (MODEL_WARMUPS, WARMUP, WARMUP_STATUS),
    ],
)
@pytest.mark.asyncio
async def test_every_field_survives(client: KubeClient, resource: Resource, spec: KubeValue, status: KubeValue) -> None:
    """What the code writes is what it reads back: nothing pruned, nothing filled in."""
    name = new_name()
    made = await client.apply(resource, {"metadata": {"name": name}, "spec": convert.to_json(spec)}, manager="us")
    body = {"metadata": {"name": name}, "status": convert.to_json(status)}
    told = await client.apply(resource, body, manager="us", subresource="status")
    assert made["spec"] == told["spec"] == convert.to_json(spec)
    assert told["status"] == convert.to_json(status)
    assert convert.spec_of(told, type(spec)) == spec
    assert convert.status_of(told, type(status)) == status
    again = await client.apply(resource, body, manager="us", subresource="status")
    assert again["metadata"]["resourceVersion"] == told["metadata"]["resourceVersion"]


@pytest.mark.asyncio
async def test_a_node_that_is_taken_off_a_list_hears_that_it_is_gone(client: KubeClient) -> None:
    """An agent watches by its own label: the object that loses it is one that was deleted. Nothing of it is pruned."""
    name = new_name()
    label = member_label(name)
    body: Object = {"metadata": {"name": name, "labels": {label: ""}}, "spec": convert.to_json(PEERS)}
    made = await client.create(MODEL_CACHE_PEERS, body)
    assert convert.spec_of(made, ModelCachePeersSpec) == PEERS
    mirror = Mirror(client, MODEL_CACHE_PEERS, labels=label)
    async with running(mirror.run()):
        await mirror.synced()
        assert [key[1] for key in mirror.items] == [name]
        await client.patch(MODEL_CACHE_PEERS, name, {"metadata": {"labels": {label: None}}})
        await until(lambda: not mirror.items, "it is told")
    assert await client.get(MODEL_CACHE_PEERS, name)
    await client.delete(MODEL_CACHE_PEERS, name)


def _spec(**changes: Any) -> Object:
    return {"source": SOURCE} | changes


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({}, "source: Required"),
        (_spec(source={"uri": "s3:/x/y"}), "begins with s3://"),
        (_spec(source={"uri": "file://host/x"}), "begins with s3://"),
        (_spec(source={"uri": "https://user:secret@host/x/"}), "user or a password"),
        (_spec(source={"uri": "https://host/x/?sig=1"}), "query or a fragment"),
        (_spec(source=SOURCE | {"endpoint": "https://user@host"}), "endpoint"),
        (_spec(kind="zip"), "kind"),
        (_spec(digest="sha256:12"), "digest"),
        (_spec(priority="high"), "priority"),
        (_spec(allowedNamespaces={"selector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}), "operator"),
    ],
)
@pytest.mark.asyncio
async def test_models_that_the_schema_refuses(client: KubeClient, spec: Object, sentence: str) -> None:
    """Each with the field and the reason in the answer."""
    with pytest.raises(KubeRefused, match=sentence):
        await client.create(MODEL_CACHES, {"metadata": {"name": new_name()}, "spec": spec}, dry_run=True)


@pytest.mark.parametrize(
    "uri", ["s3://b/x?y", "hf://org/name@main", "https://host:8443/x/", "file:///models/x", "nfs://server/export/x"]
)
@pytest.mark.asyncio
async def test_sources_that_the_schema_takes(client: KubeClient, uri: str) -> None:
    """Every kind of source; in an S3 key a question mark is a letter like any other."""
    await client.create(MODEL_CACHES, model(new_name()) | {"spec": {"source": {"uri": uri}}}, dry_run=True)


@pytest.mark.parametrize(("name", "is_taken"), [("a" * 63, True), ("a" * 64, False), ("a.b", False), ("a-1", True)])
@pytest.mark.asyncio
async def test_names_of_models(client: KubeClient, name: str, *, is_taken: bool) -> None:
    """A name becomes a label's key and a volume's name."""
    if is_taken:
        await client.create(MODEL_CACHES, model(name), dry_run=True)
    else:
        with pytest.raises(KubeRefused, match="DNS label"):
            await client.create(MODEL_CACHES, model(name), dry_run=True)


@pytest.mark.asyncio
async def test_rules_of_a_warmup(client: KubeClient) -> None:
    """It has nodes, a time that makes sense, and one model for ever."""
    name = new_name()

    async def refused(spec: Object, sentence: str) -> None:
        with pytest.raises(KubeRefused, match=sentence):
            await client.create(MODEL_WARMUPS, {"metadata": {"name": new_name()}, "spec": spec})

    await refused({"model": "llama"}, "nodeSelector or nodes is needed")
    await refused({"model": "llama", "nodes": []}, "nodeSelector or nodes is needed")
    await refused({"model": "llama", "nodeSelector": {}, "ttlSeconds": 59}, "ttlSeconds")
    await refused({"nodeSelector": {}}, "model: Required")
    spec = {"model": "llama", "nodeSelector": {}, "ttlSeconds": 60}
    await client.create(MODEL_WARMUPS, {"metadata": {"name": name}, "spec": spec})
    await client.patch(MODEL_WARMUPS, name, {"spec": {"ttlSeconds": 90}})
    for patch in ({"spec": {"model": "other"}}, {"spec": {"model": None}}):
        with pytest.raises(KubeError):
            await client.patch(MODEL_WARMUPS, name, patch)
    assert (await client.get(MODEL_WARMUPS, name))["spec"] == spec | {"ttlSeconds": 90}


def _kubectl(server: ApiServer, *arguments: str) -> str:
    program = Path(sys.executable).with_name("kubectl")
    answer = subprocess.run(
        [program, f"--kubeconfig={server.kubeconfig}", *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return answer.stdout


@pytest.mark.asyncio
async def test_what_people_see(server: ApiServer, client: KubeClient) -> None:
    """`kubectl get` by short names and by category, and `kubectl explain`."""
    name = new_name()
    for resource, spec, status in (
        (MODEL_CACHES, MODEL, MODEL_STATUS),
        (MODEL_CACHE_NODES, NODE, NODE_STATUS),
        (MODEL_WARMUPS, WARMUP, WARMUP_STATUS),
    ):
        await client.create(resource, {"metadata": {"name": name}, "spec": convert.to_json(spec)})
        await client.patch(resource, name, {"status": convert.to_json(status)}, subresource="status")
    seen = {short: await asyncio.to_thread(_kubectl, server, "get", short, name) for short in ("mc", "mcn", "mwu")}
    head, row = seen["mc"].splitlines()
    assert head.split() == ["NAME", "READY", "PROGRESS", "SIZE", "DIGEST", "REASON", "AGE", "MESSAGE"]
    for text in (name, "2/4", "37 %", "141 GB", "0123456789ab", "AllNodes", "2 of 2"):
        assert text in row
    assert "0/1" in seen["mcn"]
    assert "1.2 TB" in seen["mcn"]
    assert "2/4" in seen["mwu"]
    everything = await asyncio.to_thread(_kubectl, server, "get", "cacheagent", "-o", "name")
    assert {f"{plural}.cacheagent.io/{name}" for plural in ("modelcache", "modelcachenode", "modelwarmup")} <= set(
        everything.split()
    )
    explained = await asyncio.to_thread(_kubectl, server, "explain", "modelcache.spec.source.uri")
    assert "s3://bucket/prefix" in explained
