"""Agents whose peers speak TLS: they exchange as without it, nobody reads along, and nobody is let in by halves."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers import protocol
from cacheagent.peers.contexts import Papers, client_context
from cacheagent.peers.keys import NodeKey, is_signed
from tests.fakes.lying_peer import LyingPeer, lengths_of
from tests.fakes.origin import Origin
from tests.fakes.peer_agents import MODEL, PeerAgents, shards
from tests.fakes.peer_caller import Caller, NotGreeted
from tests.fakes.running_agent import RunningAgent
from tests.fakes.wiretap import Wiretap

STEP = 256 * 1024
STRANGER = NodeKey(b"s" * 32)
Call = Callable[..., Caller]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PeerAgents, bytes, str]]:
    """An agent that has published a model of two pieces; the pieces' bytes and the digest."""
    files = shards(1)
    with Origin(files) as origin, PeerAgents(tmp_path_factory.mktemp("tls"), origin, 2, tls=True) as fleet:
        origin.add_sums(MODEL)
        fleet.start("n0")
        fleet.wait_until_ready("n0")
        digest = fleet.agents["n0"].ask(lambda client: client.model(MODEL)).digest
        yield fleet, files[f"{MODEL}/shard-0.bin"], digest


@pytest.fixture
def call(served: tuple[PeerAgents, bytes, str]) -> Iterator[Call]:
    """Makes callers that speak TLS and know n0's key."""
    with ExitStack() as stack:
        yield lambda context=None: stack.enter_context(Caller(served[0], context or n0_s(served[0])))


def n0_s(fleet: PeerAgents) -> ssl.SSLContext:
    """Trusts what n0's key has issued."""
    return client_context("n0", (fleet.keys["n0"].public,))


def test_a_fleet_exchanges_over_tls(tmp_path: Path) -> None:
    """Three cold agents that start together: every byte right, about one copy from the origin."""
    files = shards(3, 2)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 3, tls=True) as fleet:
        origin.add_sums(MODEL)
        fleet.start_together()
        fleet.wait_until_ready()
        fleet.require(files)
        assert large_bytes(files) <= large_bytes_sent(origin) <= 2 * large_bytes(files)
        received = sum(fleet.metric(name, "cacheagent_peer_received_bytes_total") for name in fleet.agents)
        assert received >= large_bytes(files)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_who_reads_along_learns_nothing(tmp_path: Path, *, tls: bool) -> None:
    """A model goes from n0 to n1 past somebody who keeps all that goes by: neither weights nor their digest are in it.
    Without TLS, which is the control, both are."""
    files = shards(1)
    data = files[f"{MODEL}/shard-0.bin"]
    with (
        Origin(files) as origin,
        Wiretap() as tap,
        PeerAgents(tmp_path, origin, 2, via={"n0": tap.port}, tls=tls) as fleet,
    ):
        tap.to = fleet.ports["n0"]
        origin.add_sums(MODEL)
        fleet.start("n0")
        fleet.wait_until_ready("n0")
        fleet.start("n1")
        fleet.wait_until_ready("n1")
        fleet.require(files, "n1")
        assert fleet.metric("n1", "cacheagent_peer_received_bytes_total") > 0
        digest = fleet.agents["n0"].ask(lambda client: client.model(MODEL)).digest
        heard = tap.heard
        assert any(data[at : at + 64] in heard for at in range(0, len(data) - 64, STEP)) is not tls
        assert (digest.encode() in heard) is not tls


def test_a_member_gets_every_byte(served: tuple[PeerAgents, bytes, str], call: Call) -> None:
    """The positive control of what follows: TLS 1.3, a certificate of n0's key, an answer bound to it, the bytes."""
    fleet, data, digest = served
    caller = call()
    assert isinstance(caller.socket, ssl.SSLSocket)
    assert caller.socket.version() == "TLSv1.3"
    ask = caller.ask(digest, wants={1})
    caller.say(ask)
    welcome = caller.note()
    assert isinstance(welcome, protocol.Welcome)
    key = (fleet.keys["n0"].public,)
    bound = protocol.welcome_to_sign(protocol.session_of(ask, caller.channel), welcome)
    assert is_signed(bound, welcome.signature, key)
    assert not is_signed(protocol.welcome_to_sign(protocol.session_of(ask), welcome), welcome.signature, key)
    found = b""
    while (message := caller.message())[0] == protocol.CHUNK:
        found += message[3]
    assert found == data[PIECE_SIZE_BYTES:]
    assert protocol.read_seal(message[3])[0] == blake3(found).digest()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key": STRANGER}, "signature"),
        ({"client": "n7", "key": STRANGER}, "member"),
        ({"channel": b""}, "signature"),
        ({"channel": b"c" * 32}, "signature"),
        ({"server_nonce": b"r" * 32}, "nonce"),
    ],
    ids=["a key that is no member's", "no member", "signed without TLS", "signed for another certificate", "replayed"],
)
def test_who_cannot_prove_himself_gets_no_byte(
    served: tuple[PeerAgents, bytes, str], call: Call, changes: dict[str, Any], code: str
) -> None:
    """TLS alone lets nobody in; and what a member signed elsewhere, with TLS or without, is worth nothing here."""
    caller = call()
    caller.say(caller.ask(served[2], **changes))
    refusal = caller.note()
    assert isinstance(refusal, protocol.Refusal)
    assert refusal.code == code
    assert caller.is_closed()


def test_tls_12_is_refused(served: tuple[PeerAgents, bytes, str], call: Call) -> None:
    """And counted. The same client with 1.3 is greeted."""
    fleet = served[0]
    context = n0_s(fleet)
    call(context)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        call(context)
    agent = fleet.agents["n0"]
    agent.wait_until(lambda: fleet.metric("n0", 'cacheagent_peer_refusals_total{result="tls"}') > 0)
    wait_until_said(agent, "a peer was sent away", "handshake failed")


def test_a_server_with_another_key_is_told_nothing(tmp_path: Path) -> None:
    """At n1's address is somebody who has n1's name and not its key: n0 asks him for nothing, says so, and gets the
    model. The control is n2, which is asked."""
    files = shards(3, odd=0)
    right = files[f"{MODEL}/shard-0.bin"]

    def honest(piece: int, length: int) -> bytes:
        return right[piece * PIECE_SIZE_BYTES :][:length]

    with Origin(files) as origin, PeerAgents(tmp_path, origin, 3, tls=True) as fleet, ExitStack() as stack:
        origin.add_sums(MODEL)
        impostor, member = (
            stack.enter_context(
                LyingPeer(
                    fleet.ports[name], name, fleet.keys[name], lengths_of(len(right)), honest, papers=Papers(key, name)
                )
            )
            for name, key in (("n1", STRANGER), ("n2", fleet.keys["n2"]))
        )
        fleet.start("n0")
        fleet.wait_until_ready("n0")
        fleet.require(files, "n0")
        agent = fleet.agents["n0"]
        agent.wait_until(lambda: bool(impostor.failures))
        agent.wait_until(lambda: bool(member.asks))
        assert not impostor.asks
        blamed = {event["peer"]: event["why"] for event in agent.events("a peer is no help")}
        assert set(blamed) == {"n1"}
        assert "does not show that it is n1" in blamed["n1"]


def test_members_that_do_not_agree_on_tls_say_so(tmp_path: Path) -> None:
    """One speaks it, one does not: both get the model from the origin, nothing from each other, and name the
    setting."""
    files = shards(2)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 2, tls=True) as fleet:
        origin.add_sums(MODEL)
        fleet.agents["n1"] = RunningAgent(tmp_path / "n1", fleet.model(), peers=fleet.settings("n1"))
        fleet.start_together()
        fleet.wait_until_ready()
        fleet.require(files)
        for name in fleet.agents:
            assert fleet.metric(name, "cacheagent_peer_received_bytes_total") == 0
        wait_until_said(fleet.agents["n0"], "a peer is no help", "peers.tls")
        wait_until_said(fleet.agents["n1"], "a peer was sent away", "peers.tls")


def test_a_client_that_waits_for_a_word_in_the_clear_is_told_why(served: tuple[PeerAgents, bytes, str]) -> None:
    """As a node without TLS does: the server says in the clear that it speaks TLS, and nothing more."""
    fleet = served[0]
    with pytest.raises(NotGreeted) as caught:
        Caller(fleet)
    assert caught.value.note.code == "tls"
    assert "peers.tls" in caught.value.note.message


def wait_until_said(agent: RunningAgent, message: str, why: str) -> None:
    """In its log."""
    agent.wait_until(lambda: any(why in event["why"] for event in agent.events(message)))


def large_bytes(files: dict[str, bytes]) -> int:
    """Of one copy."""
    return sum(len(data) for path, data in files.items() if "shard" in path)


def large_bytes_sent(origin: Origin) -> int:
    """By the origin, of the large files."""
    return sum(origin.body_bytes_sent(path) for path in origin.files if "shard" in path)
