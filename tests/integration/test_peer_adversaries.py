"""Members with right keys that mean harm: what they give is never published, they are named, and nobody waits for them.

Each has an honest control: the same peer, that gives what the origin has.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from awscrt import checksums

from cacheagent.demo.seaweedfs import S3Server
from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers import protocol
from tests.fakes.exchange import Exchange
from tests.fakes.faults import Fault, Stall, Status
from tests.fakes.lying_peer import STEP, LyingPeer, lengths_of
from tests.fakes.origin import Origin
from tests.fakes.peer_agents import MODEL, PeerAgents, add_index, shards
from tests.fakes.s3 import client_for, new_bucket

PIECES = 5
EACH = 6
"""What each of three members brings of a file."""
SLACK = 3
"""Pieces that change hands, or that a node fetches itself because another one's file is being judged just then."""
CRC64NVME = 0xAD93D23594C93659
"""The polynomial, without its highest bit."""


class FloodingPeer(LyingPeer):
    """Begins the first piece that it is asked for over and over, and never ends it."""

    def _send(self, sock: socket.socket, digest: str, piece: int) -> None:
        data = self._forge(piece, self._lengths[piece])[:STEP]
        while True:
            sock.sendall(protocol.HEAD.pack(protocol.CHUNK, piece, 0, len(data)) + data)


def with_the_same_crc(data: bytes) -> bytes:
    """Nine other bytes in the middle: what a CRC says does not change with a multiple of its polynomial."""
    bits = [1, *(CRC64NVME >> (63 - bit) & 1 for bit in range(64))]
    altered, at = bytearray(data), len(data) // 2
    for number, bit in enumerate(bits):
        altered[at + number // 8] ^= bit << number % 8
    return bytes(altered)


def the_same(data: bytes) -> bytes:
    return data


def of(
    data: bytes, alter: Callable[[bytes], bytes] = the_same, *, off: int = 0, pieces: int = PIECES
) -> Callable[[int, int], bytes]:
    """Gives the pieces of a file, or of several, or those `off` numbers further on, altered."""
    return lambda piece, length: alter(data[(piece + off) % pieces * PIECE_SIZE_BYTES :][:length])


class After:
    """Nothing until something holds, and then a fault."""

    def __init__(self, holds: Callable[[], bool], fault: Fault) -> None:
        self._holds = holds
        self._fault = fault

    def play(self, exchange: Exchange) -> None:
        if self._holds():
            self._fault.play(exchange)
        else:
            exchange.play()


@pytest.mark.parametrize("off", [0, 1], ids=["honest", "another piece"])
def test_right_bytes_of_another_piece(tmp_path: Path, off: int) -> None:
    """Sealed as the piece that was asked for: the file's hash finds them, and who sealed them is named."""
    files = shards(PIECES, odd=0)
    data = files[f"{MODEL}/shard-0.bin"]
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 2) as fleet:
        origin.add_sums(MODEL)
        with LyingPeer(fleet.ports["n1"], "n1", fleet.keys["n1"], lengths_of(len(data)), of(data, off=off)) as peer:
            fleet.start("n0")
            fleet.wait_until_ready("n0")
        assert peer.asks
        fleet.require(files, "n0")
        agent = fleet.agents["n0"]
        assert [event["peer"] for event in agent.events("a peer lied")] == ["n1"] * off
        sent = origin.body_bytes_sent(f"{MODEL}/shard-0.bin")
        assert (sent < len(data)) is (off == 0), "what it gave was taken, or fetched anew"


@pytest.mark.parametrize("off", [0, 1], ids=["honest", "another piece"])
def test_one_liar_among_three_costs_each_honest_one_what_it_gave(tmp_path: Path, off: int) -> None:
    """All that it seals is wrong, and the file's hash says that something is: of the other honest one's pieces each
    fetches a single one again."""
    files = shards(3 * EACH, odd=0)
    path = f"{MODEL}/shard-0.bin"
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 3) as fleet:
        origin.add_sums(MODEL)
        forge = of(files[path], off=off, pieces=3 * EACH)
        with LyingPeer(fleet.ports["n2"], "n2", fleet.keys["n2"], lengths_of(len(files[path])), forge) as peer:
            fleet.start_together("n0", "n1")
            fleet.wait_until_ready("n0", "n1")
        assert len(peer.asks) >= 2
        fleet.require(files, "n0", "n1")
        accused = [[event["peer"] for event in fleet.agents[name].events("a peer lied")] for name in ("n0", "n1")]
        assert accused == [["n2"] * off] * 2
        sent = origin.body_bytes_sent(path) / PIECE_SIZE_BYTES
        needed = 2 * EACH + (2 * EACH + 2) * off
        assert abs(sent - needed) <= SLACK, "all that came from others anew would be 2 * EACH more"


@pytest.mark.s3_real
@pytest.mark.parametrize("alter", [the_same, with_the_same_crc])
def test_right_crcs_of_wrong_bytes(
    tmp_path: Path, seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch, alter: Callable[[bytes], bytes]
) -> None:
    """At a source that has CRC64NVME and nothing better every piece agrees with it: the check of the first piece that
    came from another node finds out, all that came from it is fetched anew, in the other files too, of which no piece
    is checked, and it is named."""
    files = shards(2, 2, 2, 2, odd=0)
    data = b"".join(content for path, content in sorted(files.items()) if "shard" in path)
    altered = alter(data[:PIECE_SIZE_BYTES])
    assert (altered == data[:PIECE_SIZE_BYTES]) is (alter is the_same)
    assert checksums.crc64nvme(altered) == checksums.crc64nvme(data[:PIECE_SIZE_BYTES])
    client = client_for(seaweedfs)
    bucket = new_bucket(client)
    for path, content in files.items():
        client.put_object(Bucket=bucket, Key=path, Body=content, ChecksumAlgorithm="CRC64NVME")
    client.close()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)
    with Origin() as nothing, PeerAgents(tmp_path, nothing, 2) as fleet:
        source = {"uri": f"s3://{bucket}/{MODEL}", "endpoint": seaweedfs.endpoint, "region": seaweedfs.region}
        fleet.agents["n0"].configure(fleet.model(source=source))
        forge = of(data, alter, pieces=8)
        with LyingPeer(fleet.ports["n1"], "n1", fleet.keys["n1"], lengths_of(len(data)), forge) as peer:
            fleet.start("n0")
            fleet.wait_until_ready("n0")
        assert peer.asks
        fleet.require(files, "n0")
        accused = [event["peer"] for event in fleet.agents["n0"].events("a peer lied")]
        assert accused == ([] if alter is the_same else ["n1"])


@pytest.mark.parametrize("alter", [the_same, with_the_same_crc])
def test_a_lie_that_is_found_when_all_has_come(tmp_path: Path, alter: Callable[[bytes], bytes]) -> None:
    """The origin answers the check last: by then all other files have come, with what the liar gave of them."""
    files = shards(2, 2, 2, odd=0)
    data = b"".join(content for path, content in sorted(files.items()) if "shard" in path)
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 2) as fleet:
        add_index(origin)
        agent = fleet.agents["n0"]
        given: set[int] = set()

        def forge(piece: int, length: int) -> bytes:
            given.add(piece)
            return of(data, alter, pieces=6)(piece, length)

        def is_all_here() -> bool:
            return any(0 < job.bytes_total == job.bytes_done for job in agent.status().jobs)

        class CheckLast:
            def __init__(self, first: int) -> None:
                self._first = first

            def play(self, exchange: Exchange) -> None:
                at = exchange.request.range
                if at is not None and self._first + at[0] // PIECE_SIZE_BYTES in given:
                    agent.wait_until(is_all_here)
                    exchange.wait(0.5)
                exchange.play()

        for number in range(3):
            origin.inject(CheckLast(2 * number), path=f"{MODEL}/shard-{number}.bin", times=None)
        with LyingPeer(fleet.ports["n1"], "n1", fleet.keys["n1"], lengths_of(len(data)), forge):
            fleet.start("n0")
            fleet.wait_until_ready("n0")
        assert given
        fleet.require(files, "n0")
        assert [event["peer"] for event in agent.events("a peer lied")] == ([] if alter is the_same else ["n1"])


@pytest.mark.parametrize("fault", [Status(404), Stall()], ids=["the origin fails", "the agent is restarted"])
def test_a_lie_that_can_not_be_mended_at_once_is_mended_later(tmp_path: Path, fault: Fault) -> None:
    """Nothing speaks for the file, and the origin gives nothing more once the lie is found: the liar is named all the
    same, and the next try, also of an agent that knows nothing of it any more, publishes what the origin has."""
    files = shards(PIECES, odd=0)
    data = files[f"{MODEL}/shard-0.bin"]
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 2) as fleet:
        add_index(origin)
        agent = fleet.agents["n0"]

        def is_found() -> bool:
            return bool(agent.events("a peer lied"))

        for path in files:
            origin.inject(After(is_found, fault), path=path, times=None)
        forge = of(data, with_the_same_crc)
        with LyingPeer(fleet.ports["n1"], "n1", fleet.keys["n1"], lengths_of(len(data)), forge):
            fleet.start("n0")
            agent.wait_until(is_found)
            if isinstance(fault, Stall):
                agent.send(signal.SIGTERM)
                agent.wait()
            else:
                agent.wait_until(lambda: agent.status().wanted[0].state == "failed")
        assert [event["peer"] for event in agent.events("a peer lied")] == ["n1"]
        origin.heal()
        if isinstance(fault, Stall):
            fleet.start("n0")
        else:
            agent.send(signal.SIGHUP)
        fleet.wait_until_ready("n0")
        fleet.require(files, "n0")


@pytest.mark.parametrize("kind", [LyingPeer, FloodingPeer], ids=["honest", "endless"])
def test_who_sends_without_end_holds_nobody_up(tmp_path: Path, kind: type[LyingPeer]) -> None:
    """Bytes of a piece that never ends are no progress: what is missing comes from the origin."""
    files = shards(PIECES, odd=0)
    data = files[f"{MODEL}/shard-0.bin"]
    with Origin(files) as origin, PeerAgents(tmp_path, origin, 2) as fleet:
        origin.add_sums(MODEL)
        with kind(fleet.ports["n1"], "n1", fleet.keys["n1"], lengths_of(len(data)), of(data)) as peer:
            fleet.start("n0")
            fleet.wait_until_ready("n0")
        assert peer.asks
        fleet.require(files, "n0")
        sent = origin.body_bytes_sent(f"{MODEL}/shard-0.bin")
        assert (sent < len(data)) is (kind is LyingPeer)
