"""Nodes that fetch the same model exchange its pieces: the origin is asked for one copy, whatever happens meanwhile.

What the origin sends is counted by what passes it on. Each test has a model of its own, so nothing is here already.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.faults import (
    agent_metrics_url,
    container_status,
    kill_container,
    metrics_at,
    node_model,
    node_status,
    total,
    wait_until_started_again,
)
from tests.e2e.cluster.models import Weights, delete_models, model_cache, upload_checkpoint, wait_until_cached
from tests.e2e.cluster.paced import PacedOrigin, paced_origin
from tests.e2e.cluster.product import NAMESPACE, ON_EVERY_NODE, agent_pod, install
from tests.e2e.cluster.waiting import wait_until
from tests.e2e.cluster.workload import python_pod
from tests.fakes.models import checkpoint
from tests.fakes.origin import Origin

pytestmark = [pytest.mark.kube, pytest.mark.slow]

NODES = ("n1", "n2", "n3")
SIZE = 200_000_000
PIECE = 16 * 2**20
SLOW = 28_000_000.0
"""Bytes a second: seven seconds for one copy, so that there is a middle."""
PROVED_SIZE = 400_000_000
ONE_PROVED_COPY = 1.1
"""Listings, headers and small files, and two pieces more, where each byte is proved by a SHA-256: nothing is checked a
second time."""
ONE_COPY = 1.03 + 5 * PIECE / SIZE
"""Listings, headers and small files, which every node fetches itself; and, since S3 has CRCs only, spot checks: one
piece by each node, and one in a hundred of the others. Without peers it would be three."""
WITH_ONE_THIRD_LOST = ONE_COPY + 2 / 3 + PIECE / SIZE
"""What one of three nodes is to bring may be asked for again by the others while it is away, and what it had not
finished by itself when it is back; and it checks once more."""
PEERS: dict[str, Any] = {"peers": {"enabled": True}}
AT_ONCE: dict[str, Any] = {"updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%"}}}


@pytest.fixture(scope="module")
def exchanging(product: Cluster) -> Iterator[Cluster]:
    """With peers, and every agent has said how it is reached."""
    install(product, {**ON_EVERY_NODE, **PEERS, "agent": {**ON_EVERY_NODE["agent"], **AT_ONCE}})
    try:
        wait_until(lambda: all(node_status(product, node).get("peerAddress") for node in NODES), "agents report")
        yield product
    finally:
        install(product)


class Download:
    """Of one model by three nodes."""

    def __init__(self, cluster: Cluster, name: str, weights: Weights, origin: PacedOrigin) -> None:
        self.cluster = cluster
        self.name = name
        self.weights = weights
        self.origin = origin

    @property
    def copies(self) -> float:
        """What the origin has sent so far."""
        return self.origin.bytes_sent / self.weights.size_bytes

    def reach(self, part: float) -> None:
        """Return when the origin has sent so much of a copy, which is before anybody has all of it."""
        wait_until(lambda: self.copies >= part, f"{part:.0%} is on its way", 60, pause=0.05)
        assert not any(node_model(self.cluster, node, self.name).get("phase") == "ready" for node in NODES)

    def end(self) -> dict[str, Any]:
        """The model's status once all nodes have it, each with the right bytes."""
        status = wait_until_cached(self.cluster, self.name, nodes=3)
        folder = f"/var/lib/cacheagent/models/{status['digest'].replace(':', '-')}/files"
        for node in NODES:
            at = self.cluster.node(node)
            sums = at.nsenter_command("sh", "-c", f"cd {folder} && sha256sum $(find -type f)").stdout.splitlines()
            found = {line.split()[1].removeprefix("./"): line.split()[0] for line in sums}
            assert found == self.weights.files, node
        return status


@contextmanager
def download(
    cluster: Cluster, name: str, *, seed: int, bytes_per_s: float | None = SLOW, **spec: Any
) -> Iterator[Download]:
    """Begun, and gone afterwards. `spec`: more of the ModelCache's."""
    weights = upload_checkpoint(cluster.object_store, name, size_bytes=SIZE, shards=4, seed=seed)
    with paced_origin(cluster.object_store.endpoint, bytes_per_s) as origin:
        cluster.apply(model_cache(name, weights, source={"endpoint": origin.endpoint}, **spec))
        try:
            yield Download(cluster, name, weights, origin)
        finally:
            delete_models(cluster, name)


def test_three_nodes_cost_the_origin_one_copy(exchanging: Cluster) -> None:
    """Also the node that was asked what the source holds; all three are listed for it, with their keys."""
    with download(exchanging, "shared", seed=61, bytes_per_s=None) as shared:
        status = shared.end()
        assert 1 <= shared.copies <= ONE_COPY, f"{shared.copies:.2f} copies"
        (peers,) = [
            each for each in exchanging.get("modelcachepeers")["items"] if status["digest"] in each["spec"]["digests"]
        ]
        listed = {each["name"]: (each["key"], each["address"]) for each in peers["spec"]["members"]}
        reported = {node: node_status(exchanging, node) for node in NODES}
        assert listed == {node: (each["publicKey"], each["peerAddress"]) for node, each in reported.items()}


@contextmanager
def proved_download(cluster: Cluster, name: str) -> Iterator[Download]:
    """As `download`, from a web server with a list of SHA-256."""
    files = checkpoint(size_bytes=PROVED_SIZE, shards=4, seed=66)
    with Origin({f"m/{path}": data for path, data in files.items()}, host=cluster.address) as server:
        server.add_sums("m")
        sums = {path: server.files[f"m/{path}"].sha256() for path in files}
        with paced_origin(server.url, None) as origin:
            size_bytes = sum(map(len, files.values()))
            weights = Weights(uri=f"{origin.endpoint}/m/", endpoint="", region="", files=sums, size_bytes=size_bytes)
            cluster.apply(model_cache(name, weights, source={"credentials": ""}))
            try:
                yield Download(cluster, name, weights, origin)
            finally:
                delete_models(cluster, name)


def test_it_is_one_copy_and_little_more_where_the_origin_has_sha256(exchanging: Cluster) -> None:
    """Nothing is fetched to be checked: all three nodes together ask for what one would."""
    with proved_download(exchanging, "proved") as proved:
        proved.end()
        assert 1 <= proved.copies <= ONE_PROVED_COPY, f"{proved.copies:.3f} copies"


def test_without_exchange_it_is_a_copy_for_each_node(exchanging: Cluster) -> None:
    """`peers: never`: the counter that reads one copy above reads three."""
    with download(exchanging, "never", seed=67, bytes_per_s=None, peers="never") as never:
        never.end()
        assert 2.9 <= never.copies <= 3.1, f"{never.copies:.2f} copies"


CALL = """
import base64, json, os, socket, time
from cacheagent.peers import protocol
from cacheagent.peers.keys import NodeKey

told = json.loads(os.environ["CALL"])

def messages(file):
    while len(head := file.read(protocol.HEAD.size)) == protocol.HEAD.size:
        kind, _, _, length = protocol.HEAD.unpack(head)
        yield kind, file.read(length)

def ask(hello, client, key):
    every = protocol.pack_set(range(told["pieces"]))
    said = protocol.Ask(
        version=1, digest=told["digest"], client=client, server="n1", time_s=int(time.time()), server_nonce=hello.nonce,
        client_nonce=os.urandom(32), pieces=told["pieces"], wants=every, adopt=b"", signature=b"")
    return protocol.request(protocol.signed(said, key.sign(protocol.ask_to_sign(said)) if key else b""))

def call(words):
    heard = []
    with socket.create_connection((told["host"], 7411), 60) as sock, sock.makefile("rb") as file:
        for kind, body in messages(file):
            if kind != protocol.NOTE:
                return [*heard, "bytes of the model" if kind == protocol.CHUNK else "a seal"]
            note = protocol.read_note(body)
            heard.append(note.code if isinstance(note, protocol.Refusal) else type(note).__name__)
            if isinstance(note, protocol.Hello):
                sock.sendall(words(note))
    return heard

own, stolen = NodeKey(os.urandom(32)), NodeKey(base64.b64decode(told["key"]))
print(json.dumps({
    "silent": call(lambda hello: b""),
    "nonsense": call(lambda hello: b"GET / HTTP/1.1\\r\\n\\r\\n"),
    "a name of its own": call(lambda hello: ask(hello, "tenant", own)),
    "a node's name": call(lambda hello: ask(hello, "n2", own)),
    "no signature": call(lambda hello: ask(hello, "n2", None)),
    "a node's name and key": call(lambda hello: ask(hello, "n2", stolen)),
}))
"""
"""What each of these hears of an agent: kinds of messages and codes, until it hangs up or sends what is no note."""


def test_a_tenants_pod_gets_no_byte_from_the_peer_port(exchanging: Cluster, namespace: str) -> None:
    """It reaches the port, for nothing enforces NetworkPolicies here, and is refused whatever it says. The control has
    the key of a node, which only root could give it, and gets what it asks for."""
    with download(exchanging, "wished-for", seed=68, bytes_per_s=None) as wished_for:
        digest = wished_for.end()["digest"]
        files = f"/var/lib/cacheagent/models/{digest.replace(':', '-')}/files"
        n2 = exchanging.node("n2")
        sizes = n2.nsenter_command("sh", "-c", f"stat --dereference --format=%s {files}/*.safetensors").stdout.split()
        told = {
            "host": node_status(exchanging, "n1")["peerAddress"].rpartition(":")[0],
            "digest": digest,
            "pieces": sum(-(-int(size) // PIECE) for size in sizes),
            "key": n2.nsenter_command("cat", "/var/lib/cacheagent/node.key").stdout,
        }
        pod = exchanging.get("pod", agent_pod(exchanging, "n1"), "-n", NAMESPACE)
        assert told["host"] == pod["status"]["podIP"]
        environment = [{"name": "CALL", "value": json.dumps(told)}]
        with_our_packages = {"env": environment, "command": ["/opt/cacheagent/bin/python3", "-u", "-c", CALL]}
        exchanging.apply(python_pod("calls", node="n1", namespace=namespace, container=with_our_packages))
        said = wait_until(lambda: exchanging.kubectl("logs", "-n", namespace, "calls"), "it called")
    assert json.loads(said) == {
        "silent": ["Hello"],
        "nonsense": ["Hello", "wants"],
        "a name of its own": ["Hello", "member"],
        "a node's name": ["Hello", "signature"],
        "no signature": ["Hello", "signature"],
        "a node's name and key": ["Hello", "Welcome", "bytes of the model"],
    }


def test_an_agent_that_is_killed_while_the_controller_is_away(exchanging: Cluster) -> None:
    """Agents go on with the peers that they know, also the one that begins anew; the others do without it meanwhile."""
    with download(exchanging, "killed", seed=62) as killed:
        killed.reach(0.2)
        exchanging.kubectl("scale", "-n", NAMESPACE, "deployment/cacheagent-controller", "--replicas=0")
        try:
            killed.reach(0.35)
            kill_container(exchanging, NAMESPACE, agent_pod(exchanging, "n1"), "agent")
            wait_until(
                lambda: all(node_model(exchanging, node, "killed").get("phase") == "ready" for node in NODES),
                "all nodes have it",
                90,
            )
        finally:
            exchanging.kubectl("scale", "-n", NAMESPACE, "deployment/cacheagent-controller", "--replicas=2")
        killed.end()
        assert killed.copies <= WITH_ONE_THIRD_LOST, f"{killed.copies:.2f} copies"


def test_an_agent_that_is_rolled_in_the_middle(exchanging: Cluster) -> None:
    """Its successor has another address: the others are told, and it goes on where its predecessor was."""
    with download(exchanging, "rolled", seed=63) as rolled:
        rolled.reach(0.35)
        before = node_status(exchanging, "n2")["peerAddress"]
        exchanging.kubectl("delete", "pod", "-n", NAMESPACE, agent_pod(exchanging, "n2"), "--wait=false")
        rolled.end()
        assert rolled.copies <= WITH_ONE_THIRD_LOST, f"{rolled.copies:.2f} copies"
        assert node_status(exchanging, "n2")["peerAddress"] != before


def test_a_node_that_is_gone_in_the_middle(exchanging: Cluster) -> None:
    """Its power is cut: the others bring what it was to bring. With its power and its disk it goes on where it was."""
    with download(exchanging, "gone", seed=65) as gone:
        gone.reach(0.35)
        exchanging.cut_power("n3")
        try:
            wait_until(
                lambda: all(node_model(exchanging, node, "gone").get("phase") == "ready" for node in ("n1", "n2")),
                "the nodes that are there have it",
                120,
            )
            assert node_model(exchanging, "n3", "gone").get("phase") != "ready"
            assert gone.copies <= WITH_ONE_THIRD_LOST, f"{gone.copies:.2f} copies"
        finally:
            exchanging.power_on("n3")
        wait_until(lambda: node_model(exchanging, "n3", "gone").get("phase") == "ready", "n3 goes on", 180)
        gone.end()


def test_a_key_that_is_renewed_in_the_middle(exchanging: Cluster) -> None:
    """The file is removed and the agent restarted: it goes on with the key that was listed as the next one, so nobody
    refuses it, and reports and is listed with another next one."""
    with download(exchanging, "renewed", seed=64) as renewed:
        renewed.reach(0.35)
        before = str(node_status(exchanging, "n3")["publicKey"])
        assert listed_keys(exchanging, "n3") == {before}
        present, following = before.split(",")
        refused = refused_signatures(exchanging)
        exchanging.node("n3").nsenter_command("rm", "/var/lib/cacheagent/node.key")
        pod = agent_pod(exchanging, "n3")
        was = str(container_status(exchanging, NAMESPACE, pod, "agent")["containerID"])
        kill_container(exchanging, NAMESPACE, pod, "agent")
        renewed.end()
        assert renewed.copies <= WITH_ONE_THIRD_LOST, f"{renewed.copies:.2f} copies"
        wait_until_started_again(exchanging, NAMESPACE, pod, "agent", was)
        after = str(node_status(exchanging, "n3")["publicKey"])
        used, new = after.split(",")
        assert used == following
        assert new not in {present, following}
        wait_until(lambda: listed_keys(exchanging, "n3") == {after}, "it is listed with them", 30)
        assert refused_signatures(exchanging) == {**refused, "n3": 0}
        received = metrics_at(agent_metrics_url(exchanging, "n3"))
        assert total(received, "cacheagent_peer_received_bytes_total") > 0, "since it was started again"


def listed_keys(cluster: Cluster, node: str) -> set[str]:
    """What the lists say of a node: one text if all say the same."""
    lists = cluster.get("modelcachepeers")["items"]
    return {str(member["key"]) for item in lists for member in item["spec"]["members"] if member["name"] == node}


def refused_signatures(cluster: Cluster) -> dict[str, float]:
    """By node: connections whose signature its agent did not believe, since it was started."""
    found = {node: metrics_at(agent_metrics_url(cluster, node)) for node in NODES}
    name = "cacheagent_peer_refusals_total"
    return {node: total(metrics, name, result="signature") for node, metrics in found.items()}
