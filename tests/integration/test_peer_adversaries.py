"""Members with right keys that mean harm: what they give is never published, they are named, and nobody waits for them.

Each has an honest control: the same peer, that gives what the origin has.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from awscrt import checksums

from cacheagent.demo.seaweedfs import S3Server
from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers import protocol
from tests.fakes.lying_peer import STEP, LyingPeer, lengths_of
from tests.fakes.origin import Origin
from tests.fakes.peer_agents import MODEL, PeerAgents, shards
from tests.fakes.s3 import client_for, new_bucket

PIECES = 5
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


def of(data: bytes, alter: Callable[[bytes], bytes] = the_same, *, off: int = 0) -> Callable[[int, int], bytes]:
    """Gives the pieces of a file, or those `off` numbers further on, altered."""
    return lambda piece, length: alter(data[(piece + off) % PIECES * PIECE_SIZE_BYTES :][:length])


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


@pytest.mark.s3_real
@pytest.mark.parametrize("alter", [the_same, with_the_same_crc])
def test_right_crcs_of_wrong_bytes(
    tmp_path: Path, seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch, alter: Callable[[bytes], bytes]
) -> None:
    """At a source that has CRC64NVME and nothing better every piece agrees with it: the check of the first piece that
    came from another node finds out, all that came from it is fetched anew, and it is named."""
    files = shards(PIECES, odd=0)
    data = files[f"{MODEL}/shard-0.bin"]
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
        with LyingPeer(fleet.ports["n1"], "n1", fleet.keys["n1"], lengths_of(len(data)), of(data, alter)) as peer:
            fleet.start("n0")
            fleet.wait_until_ready("n0")
        assert peer.asks
        fleet.require(files, "n0")
        accused = [event["peer"] for event in fleet.agents["n0"].events("a peer lied")]
        assert accused == ([] if alter is the_same else ["n1"])


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
