"""Fleets of which one member is not as the others: another version, another key than before, no room."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from cacheagent.peers.keys import NodeKey
from tests.fakes.origin import Origin
from tests.fakes.peer_agents import MODEL, PeerAgents, shards

ANOTHER_VERSION = """
import os

from cacheagent.peers import protocol

protocol.VERSIONS = tuple(map(int, os.environ["PEER_VERSIONS"].split(",")))
"""
"""Python runs it before the agent and each of its processes."""


@pytest.mark.parametrize("versions", ["1,2", "2"], ids=["a newer agent", "an agent without our version"])
def test_two_versions_of_the_agent_side_by_side(tmp_path: Path, versions: str) -> None:
    """Who speaks a newer version of the protocol too is met at ours; who has none of ours gets the model alone, and
    both sides say why. The others exchange all the same."""
    files = shards(3, 2)
    (tmp_path / "sitecustomize.py").write_text(ANOTHER_VERSION)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 3) as fleet:
        origin.add_sums(MODEL)
        paths = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        fleet.agents["n2"].environment = {"PEER_VERSIONS": versions, "PYTHONPATH": paths}
        fleet.start_together()
        fleet.wait_until_ready()
        fleet.require(files)
        received = {name: fleet.metric(name, "cacheagent_peer_received_bytes_total") for name in fleet.agents}
        assert min(received["n0"], received["n1"]) > 0
        newer = fleet.agents["n2"]
        if "1" in versions:
            assert received["n2"] > 0
            newer.wait_until(lambda: fleet.metric("n2", "cacheagent_peer_sent_bytes_total") > 0)
            assert not any(fleet.agents[name].events("a peer is no help") for name in fleet.agents)
        else:
            assert received["n2"] == fleet.metric("n2", "cacheagent_peer_sent_bytes_total") == 0
            for name in fleet.agents:
                said = fleet.agents[name].events("a peer is no help")
                assert all("versions" in event["why"] for event in said)
                assert {event["peer"] for event in said} == ({"n0", "n1"} if name == "n2" else {"n2"})


@pytest.mark.parametrize("listed", [True, False], ids=["both keys are listed", "the old one is"])
def test_a_key_is_changed_in_the_middle(tmp_path: Path, *, listed: bool) -> None:
    """While the list names both, nobody is refused, and a node with a new key goes on where it was, with the others'
    help. Where it names the old one alone, which is the control, it is refused, and gets the rest from the origin."""
    files = shards(4, 3)
    new = NodeKey(os.urandom(32))
    with Origin(files, bytes_per_s=40e6) as origin, PeerAgents(tmp_path, origin, 3) as fleet:
        origin.add_sums(MODEL)
        if listed:
            fleet.members[1]["key"] = f"{fleet.keys['n1'].public_text},{new.public_text}"
            for agent in fleet.agents.values():
                agent.configure(fleet.model())
        fleet.start_together()
        origin.wait_until(lambda: large_bytes_sent(origin) > large_bytes(files) / 4)
        fleet.kill("n1")
        (fleet.agents["n1"].root / "node.key").write_bytes(base64.b64encode(new.seed) + b"\n")
        fleet.start("n1")
        fleet.wait_until_ready()
        fleet.require(files)
        refused = [fleet.metric(name, 'cacheagent_peer_refusals_total{result="signature"}') for name in ("n0", "n2")]
        assert (max(refused) == 0) is listed
        assert (fleet.metric("n1", "cacheagent_peer_received_bytes_total") > 0) is listed


@pytest.mark.parametrize(
    ("removed", "tls"),
    [(["node.key"], False), (["node.key"], True), (["node.key", "node.key.next"], False)],
    ids=["the current one", "the current one, with TLS", "both"],
)
def test_a_node_whose_key_is_removed_in_the_middle(tmp_path: Path, removed: list[str], *, tls: bool) -> None:
    """Its next one was on the lists before: nobody refuses it, and others give it the rest. The control has removed
    that too, so that nobody knows it."""
    files, known = shards(4, 3), removed == ["node.key"]
    with Origin(files, bytes_per_s=40e6) as origin, PeerAgents(tmp_path, origin, 3, tls=tls) as fleet:
        origin.add_sums(MODEL)
        fleet.start_together()
        origin.wait_until(lambda: large_bytes_sent(origin) > large_bytes(files) / 4)
        fleet.kill("n1")
        for name in removed:
            (fleet.agents["n1"].root / name).unlink()
        fleet.start("n1")
        fleet.wait_until_ready()
        fleet.require(files)
        refused = [fleet.metric(name, 'cacheagent_peer_refusals_total{result="signature"}') for name in fleet.agents]
        assert (max(refused) == 0) is known
        assert (fleet.metric("n1", "cacheagent_peer_received_bytes_total") > 0) is known
        before, after = fleet.members[1]["key"].split(","), reported_keys(fleet, "n1")
        assert (after[0] == before[1]) is known
        assert not set(after) & set(before[:1] if known else before)


def test_a_member_without_room_costs_the_others_nothing(tmp_path: Path) -> None:
    """Its disk is full: its part gets other homes. When it has room it takes all from those who have it."""
    files = shards(4, 3)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 3) as fleet:
        origin.add_sums(MODEL)
        full = fleet.agents["n1"]
        text = full.config.read_text()
        full.config.write_text(text.replace("64MiB", "1000TiB"))
        assert full.config.read_text() != text
        fleet.start_together()
        fleet.wait_until_ready("n0", "n2")
        fleet.require(files, "n0", "n2")
        sent = large_bytes_sent(origin)
        assert sent <= 1.7 * large_bytes(files), "two without each other"
        full.wait_until(lambda: [wanted.error for wanted in full.status().wanted] == ["no-room"])
        assert not [
            path for folder in ("staging", "blobs") for path in (full.root / folder).rglob("*") if path.is_file()
        ]
        fleet.kill("n1")
        full.config.write_text(text)
        fleet.start("n1")
        fleet.wait_until_ready("n1")
        fleet.require(files, "n1")
        assert large_bytes_sent(origin) < sent + large_bytes(files) / 2


def reported_keys(fleet: PeerAgents, name: str) -> list[str]:
    """The public ones of a node: that which it signs with, and the next one."""
    (told,) = fleet.agents[name].events("listening for peers")
    return str(told["key"]).split(",")


def large_bytes(files: dict[str, bytes]) -> int:
    """Of one copy."""
    return sum(len(data) for path, data in files.items() if "shard" in path)


def large_bytes_sent(origin: Origin) -> int:
    """By the origin, of the large files."""
    return sum(origin.body_bytes_sent(path) for path in origin.files if "shard" in path)
