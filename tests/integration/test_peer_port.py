"""The peer port of a real agent, from outside: members get what is published, nobody else gets a byte."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest
from blake3 import blake3
from msgspec import structs

from cacheagent.peers import protocol
from cacheagent.peers.keys import NodeKey, is_signed
from cacheagent.peers.server import MOST_CONNECTIONS, MOST_PENDING
from tests.conftest import missing
from tests.fakes.origin import Origin
from tests.fakes.peer_agents import MODEL, PeerAgents, shards
from tests.fakes.peer_caller import PATIENCE_S, Caller

CROWD = 10_000
FEW = 1024
STRANGER = NodeKey(b"s" * 32)


@pytest.fixture
def call(served: tuple[PeerAgents, bytes, str]) -> Iterator[Callable[[], Caller]]:
    """Makes callers, which hang up at the test's end."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Caller(served[0]))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PeerAgents, bytes, str]]:
    """An agent that has published a model of two pieces; the pieces' bytes and the digest. It began as systemd begins
    it, with few descriptors."""
    files = shards(1)
    with Origin(files) as origin, PeerAgents(tmp_path_factory.mktemp("port"), origin, 2) as fleet:
        origin.add_sums(MODEL)
        with descriptors(FEW):
            fleet.start("n0")
        fleet.wait_until_ready("n0")
        digest = fleet.agents["n0"].ask(lambda client: client.model(MODEL)).digest
        yield fleet, files[f"{MODEL}/shard-0.bin"], digest


def test_a_member_gets_every_byte(served: tuple[PeerAgents, bytes, str], call: Callable[[], Caller]) -> None:
    """The positive control: the server proves who it is, sends what is wanted, and seals each piece with its key."""
    fleet, data, digest = served
    caller = call()
    ask = caller.ask(digest)
    caller.say(ask)
    welcome = caller.note()
    assert isinstance(welcome, protocol.Welcome)
    assert welcome.complete
    session = protocol.Session(digest, "n1", "n0", ask.client_nonce, ask.server_nonce)
    key = (fleet.keys["n0"].public,)
    assert is_signed(protocol.welcome_to_sign(session, welcome), welcome.signature, key)
    found: dict[int, bytes] = {0: b"", 1: b""}
    seals: dict[int, bytes] = {}
    while len(seals) < 2:
        kind, piece, offset, body = caller.message()
        if kind == protocol.CHUNK:
            assert offset == len(found[piece])
            found[piece] += body
        else:
            hashed, signature, signer = protocol.read_seal(body)
            assert (hashed, signer) == (blake3(found[piece]).digest(), "n0")
            assert is_signed(protocol.seal_to_sign(digest, piece, len(found[piece]), hashed), signature, key)
            seals[piece] = hashed
    assert found[0] + found[1] == data


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key": STRANGER}, "signature"),
        ({"client": "n7", "key": STRANGER}, "member"),
        ({"server": "n1"}, "member"),
        ({"time_s": 1_000_000}, "time"),
        ({"server_nonce": b"r" * 32}, "nonce"),
        ({"pieces": 9}, "wants"),
        ({"version": 9}, "version"),
    ],
)
def test_who_says_something_wrong_gets_a_reason_and_no_byte(
    served: tuple[PeerAgents, bytes, str], call: Callable[[], Caller], changes: dict[str, object], code: str
) -> None:
    """Signed rightly but for the first, and still refused; the connection is closed after the reason."""
    _fleet, _, digest = served
    caller = call()
    caller.say(caller.ask(digest, **changes))  # type: ignore[arg-type]
    refusal = caller.note()
    assert isinstance(refusal, protocol.Refusal)
    assert refusal.code == code
    assert caller.is_closed()


def test_what_was_signed_once_is_good_once(served: tuple[PeerAgents, bytes, str], call: Callable[[], Caller]) -> None:
    """A recorded request on a second connection, one without a signature, one for a model that is not here, and one
    that was signed for another model than it names."""
    fleet, _, digest = served
    first, second, third, fourth, fifth = (call() for _ in range(5))
    recorded = first.ask(digest)
    first.say(recorded)
    assert isinstance(first.note(), protocol.Welcome)
    second.say(recorded)
    third.say(protocol.signed(third.ask(digest), b""))
    fourth.say(fourth.ask("sha256:" + "0" * 64))
    fifth.say(structs.replace(fifth.ask("sha256:" + "0" * 64), digest=digest))
    for caller, code in ((second, "nonce"), (third, "signature"), (fourth, "digest"), (fifth, "signature")):
        refusal = caller.note()
        assert isinstance(refusal, protocol.Refusal)
        assert refusal.code == code
        assert caller.is_closed()
    assert "cacheagent_peer_refusals_total" in fleet.agents["n0"].get("/metrics")[1]
    fleet.agents["n0"].wait_until(lambda: fleet.metric("n0", 'cacheagent_peer_refusals_total{result="nonce"}') > 0)


def test_frames_without_end_and_requests_out_of_turn_end_the_connection(
    served: tuple[PeerAgents, bytes, str],
    call: Callable[[], Caller],
) -> None:
    """A length of 4 GB, bytes that are no request, values within values, two requests at once, and a follow-up that
    somebody else signed. The process that all of them spoke to goes on."""
    fleet, _, digest = served
    serving = server_of(fleet.agents["n0"].process.pid)
    endless, nonsense, deep, eager, forged = (call() for _ in range(5))
    endless.socket.sendall(protocol.LENGTH.pack(2**32 - 1) + b"x" * 4096)
    nonsense.socket.sendall(protocol.LENGTH.pack(4) + b"\xff\xff\xff\xff")
    nested = b"\x82\xa1a" + b"\x91" * 2000 + b"\xc0\xa4type\xa3ask"
    deep.socket.sendall(protocol.LENGTH.pack(len(nested)) + nested)
    eager.socket.sendall(protocol.request(protocol.signed(eager.ask(digest), b"")) * 2)
    for caller in (endless, nonsense, deep, eager):
        assert isinstance(caller.note(), protocol.Refusal)
        assert caller.is_closed()
    forged.say(forged.ask(digest, wants={1}))
    assert isinstance(forged.note(), protocol.Welcome)
    forged.say(protocol.More(number=1, wants=b"\1", adopt=b"", drop=b"", signature=b"0" * 64))
    kinds = set()
    try:
        while True:
            kind, piece, _, _ = forged.message()
            kinds.add((kind, piece))
    except (EOFError, ConnectionResetError):
        pass
    assert (protocol.SEAL, 0) not in kinds, "the piece that was asked for by the forged request"
    assert isinstance(answer_to(call(), digest), protocol.Welcome)
    assert server_of(fleet.agents["n0"].process.pid) == serving


def server_of(agent: int) -> psutil.Process:
    """The process that serves an agent's peers."""
    children = psutil.Process(agent).children()
    (found,) = (child for child in children if "cacheagent.peers.server" in child.cmdline())
    return found


def answer_to(caller: Caller, digest: str) -> protocol.Note:
    """What an honest member is told."""
    caller.say(caller.ask(digest))
    return caller.note()


def test_a_crowd_that_says_nothing_keeps_no_member_out(
    served: tuple[PeerAgents, bytes, str], call: Callable[[], Caller]
) -> None:
    """10,000 silent connections; an honest one is answered among them, most are sent away, and the agent serves on."""
    fleet, _, digest = served
    agent = fleet.agents["n0"]
    server = server_of(agent.process.pid)
    with descriptors(CROWD + 1000), ExitStack() as stack:
        for _ in range(CROWD):
            stack.enter_context(socket.create_connection(("127.0.0.1", fleet.ports["n0"]), PATIENCE_S))
        assert isinstance(answer_to(call(), digest), protocol.Welcome)
        agent.wait_until(lambda: server.num_fds() <= MOST_PENDING + MOST_CONNECTIONS)
    assert agent.get("/healthz")[0] == 200
    agent.wait_until(lambda: fleet.metric("n0", 'cacheagent_peer_refusals_total{result="busy"}') > CROWD / 2)


def test_an_agent_takes_the_descriptors_that_it_may_have(served: tuple[PeerAgents, bytes, str]) -> None:
    """And so do all processes that it starts."""
    agent = psutil.Process(served[0].agents["n0"].process.pid)
    for process in (agent, *agent.children()):
        soft, hard = process.rlimit(psutil.RLIMIT_NOFILE)
        assert soft == hard > FEW


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """So many for this process, if it may, and for what it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        missing("room for descriptors", f"ulimit -Hn says {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_member_has_a_few_connections_and_not_more(
    served: tuple[PeerAgents, bytes, str], call: Callable[[], Caller]
) -> None:
    """The fifth at the same time is told that the others are enough."""
    _fleet, _, digest = served
    answers = []
    for _ in range(12):
        caller = call()
        caller.say(caller.ask(digest, wants={0}))
        answers.append(caller.note())
    refused = [answer for answer in answers if isinstance(answer, protocol.Refusal)]
    assert {answer.code for answer in refused} == {"busy"}
    assert 1 <= len(answers) - len(refused) <= 4
