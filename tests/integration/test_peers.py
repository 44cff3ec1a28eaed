"""Agents that exchange a model: about one copy from the origin, every byte right, whatever happens to some of them.

Who is late on a busy machine looks slow to the others, and they ask the origin or each other instead: bounds on what
the origin sent are between one copy and what all would ask for without each other; the benchmark has exact figures.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers import protocol
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.vouchers import Vouchers
from cacheagent.store.layout import Layout
from tests.fakes.lying_peer import LyingPeer, lengths_of
from tests.fakes.origin import Origin
from tests.fakes.peer_agents import MODEL, PeerAgents, add_index, shards
from tests.fakes.peer_caller import Caller
from tests.fakes.running_agent import RunningAgent


@pytest.mark.parametrize("sums", [True, False], ids=["sha256", "no checksums"])
def test_one_copy_from_the_origin_serves_all(tmp_path: Path, *, sums: bool) -> None:
    """Four cold agents that start together get what the origin has, which sends one copy of the large files and little
    more (pieces that are checked a second time, where it has no checksums), instead of four."""
    files = shards(3, 2)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 4) as fleet:
        if sums:
            origin.add_sums(MODEL)
        else:
            add_index(origin)
        fleet.start_together()
        fleet.wait_until_ready()
        fleet.require(files)
        checks = 0 if sums else 6 * PIECE_SIZE_BYTES  # one of each node; chance rarely adds any
        assert large_bytes(files) <= large_bytes_sent(origin) <= 2 * large_bytes(files) + checks
        received = sum(fleet.metric(name, "cacheagent_peer_received_bytes_total") for name in fleet.agents)
        assert received >= 2 * large_bytes(files)


def test_each_piece_crosses_into_a_zone_once(tmp_path: Path) -> None:
    """Four cold agents in two zones: one copy comes from the origin, and what the homes of each zone have crosses to
    the other one once, which is one copy in all. Without zones it would be two."""
    files = shards(5, 4)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 4, zones=("a", "b", "a", "b")) as fleet:
        origin.add_sums(MODEL)
        fleet.start_together()
        fleet.wait_until_ready()
        fleet.require(files)
        assert large_bytes(files) <= large_bytes_sent(origin) <= 2 * large_bytes(files)
        crossed = sum(fleet.metric(name, "cacheagent_peer_crossed_bytes_total") for name in fleet.agents)
        received = sum(fleet.metric(name, "cacheagent_peer_received_bytes_total") for name in fleet.agents)
        assert 0 < crossed <= 1.5 * large_bytes(files)
        assert received >= 2 * large_bytes(files)


def test_a_zone_home_that_is_killed_in_the_middle_is_survived(tmp_path: Path) -> None:
    """The other member of its zone asks beyond it for all; when it is back, it goes on from what it had."""
    files = shards(5, 4)
    with (
        Origin(files, bytes_per_s=40e6) as origin,
        PeerAgents(tmp_path, origin, 4, zones=("a", "b", "a", "b")) as fleet,
    ):
        origin.add_sums(MODEL)
        fleet.start_together()
        origin.wait_until(lambda: large_bytes_sent(origin) > large_bytes(files) / 3)
        fleet.kill("n1")
        fleet.wait_until_ready("n0", "n2", "n3")
        fleet.start("n1")
        fleet.wait_until_ready("n1")
        fleet.require(files)
        assert large_bytes_sent(origin) <= 2.5 * large_bytes(files), "four without each other"


def test_a_home_that_is_dead_from_the_start_costs_nobody_the_model(tmp_path: Path) -> None:
    """Its pieces get other homes; the origin still gives one copy and little more."""
    files = shards(4, 3)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 3) as fleet:
        origin.add_sums(MODEL)
        fleet.start_together("n0", "n1")
        fleet.wait_until_ready("n0", "n1")
        fleet.require(files, "n0", "n1")
        assert large_bytes_sent(origin) <= 1.7 * large_bytes(files), "two without each other"
        assert fleet.metric("n0", "cacheagent_peer_rehomed_pieces_total") > 0


def test_a_late_joiner_takes_all_from_those_who_have_it(tmp_path: Path) -> None:
    """Also after they were restarted: what is published is served without a download; the origin gives next to
    nothing."""
    files = shards(6)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 3) as fleet:
        origin.add_sums(MODEL)
        fleet.start("n0", "n1")
        fleet.wait_until_ready("n0", "n1")
        for name in ("n0", "n1"):
            fleet.agents[name].send(signal.SIGTERM)
            fleet.agents[name].wait()
        fleet.start("n0", "n1")
        before = large_bytes_sent(origin)
        fleet.start("n2")
        fleet.wait_until_ready("n2")
        fleet.require(files, "n2")
        assert large_bytes_sent(origin) < before + large_bytes(files) / 2


def test_who_joins_in_the_middle_takes_part(tmp_path: Path) -> None:
    """Two of three are at it when the third comes, which has most of it from them, and the origin sends far less than
    the three copies that it would without peers."""
    files = shards(6, 5)
    with Origin(files, bytes_per_s=40e6) as origin, PeerAgents(tmp_path, origin, 3) as fleet:
        origin.add_sums(MODEL)
        fleet.start_together("n0", "n1")
        origin.wait_until(lambda: large_bytes_sent(origin) > large_bytes(files) / 3)
        origin.pace.bytes_per_s = 2e6
        fleet.start("n2")
        fleet.agents["n2"].wait_until(lambda: fleet.metric("n2", "cacheagent_peer_received_bytes_total") > 0)
        assert not any(is_ready(fleet, name) for name in ("n0", "n1")), "they are in the middle"
        origin.pace.bytes_per_s = 40e6
        fleet.wait_until_ready()
        fleet.require(files)
        assert fleet.metric("n2", "cacheagent_peer_received_bytes_total") > large_bytes(files) / 2
        assert large_bytes_sent(origin) <= 1.7 * large_bytes(files)


def test_a_part_of_a_model_is_served(tmp_path: Path) -> None:
    """Who was killed in the middle gives what is on its disk to others before it has the rest, for which the origin
    lets it wait."""
    files = shards(6, 5)
    with Origin(files, bytes_per_s=40e6) as origin, PeerAgents(tmp_path, origin, 2) as fleet:
        origin.add_sums(MODEL)
        fleet.start("n0")
        origin.wait_until(lambda: large_bytes_sent(origin) > large_bytes(files) / 2)
        fleet.kill("n0")
        origin.pace.bytes_per_s = 1e6
        before = large_bytes_sent(origin)
        fleet.start()
        fleet.agents["n1"].wait_until(
            lambda: fleet.metric("n1", "cacheagent_peer_received_bytes_total") > large_bytes(files) / 4
        )
        assert large_bytes_sent(origin) < before + large_bytes(files) / 4, "it is no download of n0's since"
        assert not is_ready(fleet, "n0")
        origin.pace.bytes_per_s = None
        fleet.wait_until_ready()
        fleet.require(files)


def is_ready(fleet: PeerAgents, name: str) -> bool:
    """Whether an agent has published the model."""
    return {wanted.name: wanted.state for wanted in fleet.agents[name].status().wanted}.get(MODEL) == "ready"


def test_a_home_that_is_killed_in_the_middle_is_survived(tmp_path: Path) -> None:
    """What it owed gets other homes; when it comes back it goes on from what it had, with the others' help."""
    files = shards(4, 3)
    with Origin(files, bytes_per_s=40e6) as origin, PeerAgents(tmp_path, origin, 3) as fleet:
        origin.add_sums(MODEL)
        fleet.start_together()
        origin.wait_until(lambda: large_bytes_sent(origin) > large_bytes(files) / 4)
        fleet.kill("n1")
        fleet.wait_until_ready("n0", "n2")
        fleet.start("n1")
        fleet.wait_until_ready("n1")
        fleet.require(files)
        assert large_bytes_sent(origin) <= 2 * large_bytes(files), "three without each other"


def test_who_vouches_survives_a_kill_with_every_piece(tmp_path: Path) -> None:
    """Whatever a killed agent had counted of what another member gave it is on disk with that member's seal: when it
    is back, it does not pass that on as its own word. Without checksums nothing but the seal would tell."""
    files = shards(10)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 2, egress_cap="40MB/s") as fleet:
        add_index(origin)
        fleet.start("n0")
        fleet.wait_until_ready("n0")
        before = len(origin.requests)
        fleet.start("n1")

        def theirs() -> dict[int, str]:
            mine = {ask.range[0] // PIECE_SIZE_BYTES for ask in origin.requests[before:] if ask.range is not None}
            return {piece: blake3 for piece, blake3 in journalled(fleet, "n1").items() if piece not in mine}

        fleet.agents["n1"].wait_until(lambda: len(theirs()) >= 2)
        fleet.kill("n1")
        (digest,) = {path.name for path in (fleet.agents["n1"].root / "seals").iterdir()}
        kept = Vouchers(Layout(fleet.agents["n1"].root)).read(digest.replace("-", ":"))
        assert {piece: kept[piece].blake3.hex() for piece in theirs()} == theirs()
        assert {seal.signer for seal in kept.values()} == {"n0"}
        fleet.start("n1")
        fleet.wait_until_ready("n1")
        fleet.require(files, "n1")


@pytest.mark.parametrize("module", ["cacheagent.peers.server", "cacheagent.peers.receiver"])
def test_a_peer_process_that_dies_is_replaced(tmp_path: Path, module: str) -> None:
    """In the middle of a download; the agent and the others go on, and the model is right on all."""
    files = shards(4, 3)
    with Origin(files, bytes_per_s=40e6) as origin, PeerAgents(tmp_path, origin, 3) as fleet:
        origin.add_sums(MODEL)
        fleet.start_together()
        origin.wait_until(lambda: large_bytes_sent(origin) > large_bytes(files) / 4)
        fleet.kill_process("n1", module)
        fleet.wait_until_ready()
        fleet.require(files)
        assert large_bytes_sent(origin) <= 2 * large_bytes(files), "three without each other"
        assert fleet.agents["n1"].process.poll() is None


def test_a_slow_home_is_relieved(tmp_path: Path) -> None:
    """One that may send 200 kB a second: the others don't wait for it; they ask each other."""
    files = shards(9)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 3) as fleet:
        origin.add_sums(MODEL)
        fleet.agents["n2"] = RunningAgent(
            tmp_path / "n2", fleet.model(), peers={**fleet.settings("n2"), "egress_cap": "200kB/s"}
        )
        fleet.start()
        fleet.wait_until_ready()
        fleet.require(files)
        relieved = [event for name in ("n0", "n1") for event in fleet.agents[name].events("a slow peer is relieved")]
        assert "n2" in {event["peer"] for event in relieved}


@pytest.mark.parametrize("sums", [True, False], ids=["sha256", "no checksums"])
def test_a_liar_is_named_and_nothing_of_it_is_published(tmp_path: Path, *, sums: bool) -> None:
    """It seals wrong bytes with its own right key: found by the file's hash, or by the check of the first piece that
    came from others. The positive control is the honest member, which is not accused; without checksums there is none,
    for its piece may come first."""
    files = shards(5, odd=0)
    *honest, name = ("n0", "n1", "n2") if sums else ("n0", "n1")
    with Origin(files) as origin, PeerAgents(tmp_path, origin, len(honest) + 1) as fleet:
        origin.add_sums(MODEL) if sums else add_index(origin)
        lengths = lengths_of(*(len(data) for path, data in files.items() if "shard" in path))
        with LyingPeer(fleet.ports[name], name, fleet.keys[name], lengths, lambda piece, length: bytes(length)) as liar:
            fleet.start(*honest)
            fleet.wait_until_ready(*honest)
        assert liar.asks, "it was asked"
        fleet.require(files, *honest)
        accused = [event["peer"] for each in honest for event in fleet.agents[each].events("a peer lied")]
        assert set(accused) == {name}
        assert fleet.metric("n0", "cacheagent_peer_lies_total") == 1


def test_a_seal_of_somebody_else_is_no_seal(tmp_path: Path) -> None:
    """Signed by a key that is no member's: the piece is not taken, the peer is left, the model comes."""
    files = shards(4, odd=0)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 2) as fleet:
        origin.add_sums(MODEL)
        stranger = NodeKey(os.urandom(32))
        right = files[f"{MODEL}/shard-0.bin"]

        def honest(piece: int, length: int) -> bytes:
            return right[piece * PIECE_SIZE_BYTES :][:length]

        lengths = lengths_of(len(right))
        with LyingPeer(fleet.ports["n1"], "n1", fleet.keys["n1"], lengths, honest, seal_with=stranger):
            fleet.start("n0")
            fleet.wait_until_ready("n0")
        fleet.require(files, "n0")
        assert large_bytes_sent(origin) >= large_bytes(files)
        assert any("whose signature that is not" in event["why"] for event in fleet.agents["n0"].events("a peer is"))


def test_a_model_that_may_not_be_shared_comes_from_its_source_alone(tmp_path: Path) -> None:
    """`peers: never`: each node fetches its own copy, and gives it to nobody, not even to those on its list, which get
    what becomes free again."""
    files = shards(1)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 2) as fleet:
        origin.add_sums(MODEL)
        for agent in fleet.agents.values():
            agent.configure(fleet.model(peers="never"))
        fleet.start()
        fleet.wait_until_ready()
        assert large_bytes_sent(origin) >= 2 * large_bytes(files)
        assert fleet.metric("n0", "cacheagent_peer_received_bytes_total") == 0
        digest = fleet.agents["n0"].ask(lambda client: client.model(MODEL)).digest
        assert answer_of(fleet, digest) == "digest"
        fleet.agents["n0"].configure(fleet.model())
        fleet.agents["n0"].send(signal.SIGHUP)
        fleet.agents["n0"].wait_until(lambda: answer_of(fleet, digest) == "")


def answer_of(fleet: PeerAgents, digest: str) -> str:
    """With what code n0 refuses n1; empty if it does not."""
    with Caller(fleet) as caller:
        caller.say(caller.ask(digest))
        answer = caller.note()
        return answer.code if isinstance(answer, protocol.Refusal) else ""


def journalled(fleet: PeerAgents, name: str) -> dict[int, str]:
    """Pieces of the only large file that an agent has counted, and their BLAKE3."""
    lines: dict[int, str] = {}
    for journal in (fleet.agents[name].root / "staging").glob("[0-9a-f]*/journal"):
        for line in journal.read_text().splitlines()[1:]:
            index, _, blake3 = line.partition(" ")
            if len(blake3) == 64:  # not one that is being written
                lines[int(index)] = blake3
    return lines


def large_bytes(files: dict[str, bytes]) -> int:
    """Of one copy."""
    return sum(len(data) for path, data in files.items() if "shard" in path)


def large_bytes_sent(origin: Origin) -> int:
    """By the origin, of the large files."""
    return sum(origin.body_bytes_sent(path) for path in origin.files if "shard" in path)
