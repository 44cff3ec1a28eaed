"""The process that takes pieces: what counts as progress, whose word is taken, and who hears of what first."""

from __future__ import annotations

import errno
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from cacheagent.peers import protocol, receiver
from cacheagent.peers.keys import NodeKey, is_signed
from cacheagent.peers.orders import (
    Arrived,
    Connect,
    Disconnect,
    Ended,
    Keys,
    Progress,
    ReceiverReport,
    Release,
    Released,
    Say,
    Target,
    Unproved,
)
from cacheagent.peers.receiver import Receiver
from cacheagent.peers.vouchers import Line
from cacheagent.transfer.rate import SharedRate

PATIENCE_S = 90.0
KEY, OTHER, STRANGER, ME = (NodeKey(bytes([number]) * 32) for number in (1, 2, 3, 4))
DIGEST = "sha256:" + "ab" * 32
DATA = blake3(b"data").digest(length=300_000)
HALF = 131_072


class Bench:
    """A receiver in this process, connected to a member n1 that the test plays. The file has one piece, which is
    expected."""

    def __init__(self, path: Path, shared: SharedRate) -> None:
        self.reports: queue.SimpleQueue[ReceiverReport] = queue.SimpleQueue()
        self.kept = b""
        """Of seals, when a piece is told of."""
        self.arriving, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.receiver = Receiver(shared.meter(0), self._report)
        self.target = path / "target"
        with self.target.open("wb") as file:
            file.truncate(len(DATA))
        keys: dict[str, tuple[bytes, ...]] = {"n0": (ME.public,), "n1": (KEY.public,), "n2": (OTHER.public,)}
        self.seals = path / "seals" / "of it"
        self.receiver.accept(Keys(session=1, digest=DIGEST, keys=keys, me="n0", seals=str(self.seals)))
        self.receiver.accept(
            Target(session=1, first=0, path=str(self.target), size_bytes=len(DATA), crcs=("crc64nvme",))
        )
        with socket.create_server(("127.0.0.1", 0)) as listening:
            host, port = listening.getsockname()
            self.receiver.accept(Connect(id=7, session=1, name="n1", host=host, port=port))
            self.server, _ = listening.accept()
        welcome = protocol.Welcome(complete=False, have=b"", homes=(), signature=b"")
        self.server.sendall(protocol.note(welcome))  # after it, it is there to be told what to expect
        self.next()
        self.receiver.accept(Say(id=7, data=b"x", expect=protocol.pack_set([0])))

    def _report(self, report: ReceiverReport) -> None:
        if isinstance(report, Arrived):
            self.kept = self.seals.read_bytes() if self.seals.exists() else b""
            self.arriving.set()
            assert self.go_on.wait(PATIENCE_S)
        self.reports.put(report)

    def next(self) -> ReceiverReport:
        """What it tells."""
        return self.reports.get(timeout=PATIENCE_S)

    def chunk(self, start: int, stop: int, *, piece: int = 0) -> None:
        """A part of the piece."""
        head = protocol.HEAD.pack(protocol.CHUNK, piece, start, stop - start)
        self.server.sendall(head + DATA[start:stop])

    def seal(self, signer: str = "n1", key: NodeKey = KEY, *, data: bytes = DATA) -> None:
        """Its end."""
        hashed = blake3(data).digest()
        signature = key.sign(protocol.seal_to_sign(DIGEST, 0, len(DATA), hashed))
        self.server.sendall(protocol.seal(0, hashed, signature, signer))

    def until(self, kind: type[ReceiverReport]) -> list[ReceiverReport]:
        """All reports up to one of a kind."""
        found = [self.next()]
        while not isinstance(found[-1], kind):
            found.append(self.next())
        return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Its reports of progress come with every message."""
    monkeypatch.setattr(receiver, "PROGRESS_S", 0.0)
    shared = SharedRate.create(1)
    made = Bench(tmp_path, shared)
    yield made
    made.receiver.accept(Disconnect(id=7))
    made.server.close()
    shared.close()


def test_a_piece_arrives(bench: Bench) -> None:
    """The positive control: bytes, progress, and the seal of the member itself."""
    bench.chunk(0, HALF)
    bench.chunk(HALF, len(DATA))
    bench.seal()
    *progress, arrived = bench.until(Arrived)
    assert isinstance(arrived, Arrived)
    assert (arrived.signer, arrived.piece.blake3) == ("n1", blake3(DATA).hexdigest())
    assert sum(each.useful_bytes for each in progress if isinstance(each, Progress)) == len(DATA)
    assert bench.target.read_bytes() == DATA


def test_who_vouches_is_on_disk_before_a_piece_is_told_of(bench: Bench) -> None:
    """So no end of this process or the agent's makes a piece that others brought look like this node's own."""
    bench.chunk(0, len(DATA))
    bench.seal("n2", OTHER)
    *_, arrived = bench.until(Arrived)
    assert isinstance(arrived, Arrived)
    assert arrived.unkept == ""
    piece, hashed, signer, signature = msgspec.json.decode(bench.kept, type=Line)
    assert (piece, hashed, signer) == (0, blake3(DATA).digest(), "n2")
    assert is_signed(protocol.seal_to_sign(DIGEST, 0, len(DATA), hashed), signature, (OTHER.public,))


def test_this_node_s_own_word_is_not_kept(bench: Bench) -> None:
    """Which somebody hands back."""
    bench.chunk(0, len(DATA))
    bench.seal("n0", ME)
    *_, arrived = bench.until(Arrived)
    assert isinstance(arrived, Arrived)
    assert arrived.signer == "n0"
    assert not bench.seals.exists()


def test_a_seal_that_the_disk_does_not_take_costs_nothing_but_itself(bench: Bench) -> None:
    """The piece counts, and it is said why its seal is not there."""
    bench.seals.parent.write_bytes(b"no folder")
    bench.chunk(0, len(DATA))
    bench.seal()
    *_, arrived = bench.until(Arrived)
    assert isinstance(arrived, Arrived)
    assert "seals" in arrived.unkept
    assert bench.target.read_bytes() == DATA


def test_only_what_is_wanted_and_new_is_of_use(bench: Bench) -> None:
    """Neither bytes of a piece that nobody wants, nor the same ones once more."""
    for _ in range(3):
        bench.chunk(0, HALF)
    bench.chunk(0, HALF, piece=5)
    told = [bench.next() for _ in range(4)]
    assert [each.received_bytes for each in told if isinstance(each, Progress)] == [HALF] * 4
    assert [each.useful_bytes for each in told if isinstance(each, Progress)] == [HALF, 0, 0, 0]


def test_what_has_begun_is_told_as_long_as_it_is_wanted(bench: Bench) -> None:
    """Who would have it of somebody else then knows that it would begin anew."""
    bench.chunk(0, HALF)
    assert bench.next() == Progress(id=7, received_bytes=HALF, useful_bytes=HALF, begun=(0,))
    bench.receiver.accept(Release(id=7, number=1, pieces=protocol.pack_set([0])))
    bench.until(Released)
    bench.chunk(HALF, 2 * HALF)
    assert bench.next() == Progress(id=7, received_bytes=HALF, useful_bytes=0)


def test_a_member_that_seals_wrong_bytes_is_told_of(bench: Bench) -> None:
    """Other bytes than the seal says end the connection; so does a seal under its own name that it has not signed."""
    bench.chunk(0, len(DATA))
    bench.seal(data=b"other")
    *_, ended = bench.until(Ended)
    assert isinstance(ended, Ended)
    assert ended.kind == "mismatch"


def test_a_forged_seal_ends_the_connection(bench: Bench) -> None:
    """The member's name, and a stranger's key."""
    bench.chunk(0, len(DATA))
    bench.seal("n1", STRANGER)
    *_, ended = bench.until(Ended)
    assert isinstance(ended, Ended)
    assert ended.kind == "forged"


@pytest.mark.parametrize("number", [0, 1])
def test_a_seal_is_of_one_piece(bench: Bench, number: int) -> None:
    """Right bytes of another piece, with the right seal of that one: it is worth nothing here. The control is the seal
    of the piece that was asked for."""
    bench.chunk(0, len(DATA))
    hashed = blake3(DATA).digest()
    bench.server.sendall(
        protocol.seal(0, hashed, KEY.sign(protocol.seal_to_sign(DIGEST, number, len(DATA), hashed)), "n1")
    )
    *_, last = bench.until(Ended if number else Arrived)
    assert isinstance(last, Arrived) or (isinstance(last, Ended) and last.kind == "forged")


@pytest.mark.parametrize(
    "head",
    [
        (protocol.CHUNK, 0, len(DATA), HALF),
        (protocol.CHUNK, 0, 0, protocol.CHUNK_LIMIT_BYTES + 1),
        (protocol.SEAL, 0, 0, 2**40),
        (protocol.NOTE, 0, 0, 2**63),
        (9, 0, 0, 1),
    ],
    ids=["beyond the piece", "a part without end", "a seal without end", "words without end", "nothing known"],
)
def test_what_is_too_much_ends_the_connection(bench: Bench, head: tuple[int, int, int, int]) -> None:
    """At its head, before there is room made for it; the file is as long as it was. What came before was taken."""
    bench.chunk(0, len(DATA))
    bench.until(Progress)
    bench.server.sendall(protocol.HEAD.pack(*head) + bytes(HALF))
    *_, ended = bench.until(Ended)
    assert isinstance(ended, Ended)
    assert ended.kind == "protocol"
    assert bench.target.read_bytes() == DATA


def test_pieces_of_others_count_for_the_cap_of_what_comes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take no less time than it permits; without one, which is the control, they take less."""
    monkeypatch.setattr(receiver, "PROGRESS_S", 0.0)
    times = []
    for cap in (len(DATA), 0):
        shared = SharedRate.create(1, cap)
        (tmp_path / f"{cap}").mkdir()
        bench = Bench(tmp_path / f"{cap}", shared)
        began = time.monotonic()
        for _ in range(3):
            bench.chunk(0, len(DATA))
        bench.seal()
        bench.until(Arrived)
        times.append(time.monotonic() - began)
        bench.receiver.accept(Disconnect(id=7))
        bench.until(Ended)
        bench.server.close()
        shared.close()
    capped, free = times
    assert capped >= 0.7 * 3
    assert free < capped


def test_a_seal_of_somebody_else_is_judged_by_itself(bench: Bench) -> None:
    """One of a stranger costs the piece, which is not expected any more, and not the connection; one of another member
    is good."""
    bench.chunk(0, len(DATA))
    bench.seal("n9", STRANGER)
    *_, unproved = bench.until(Unproved)
    assert unproved == Unproved(id=7, number=0, signer="n9")
    bench.chunk(0, HALF)
    assert bench.next() == Progress(id=7, received_bytes=HALF, useful_bytes=0)
    bench.receiver.accept(Say(id=7, data=b"x", expect=protocol.pack_set([0])))
    bench.chunk(0, len(DATA))
    bench.seal("n2", OTHER)
    *_, arrived = bench.until(Arrived)
    assert isinstance(arrived, Arrived)
    assert arrived.signer == "n2"


def test_what_was_let_go_does_not_arrive(bench: Bench) -> None:
    """Nothing of a released piece is told of after the release was answered: by then somebody else may write it."""
    bench.chunk(0, len(DATA))
    bench.until(Progress)
    bench.receiver.accept(Release(id=7, number=1, pieces=protocol.pack_set([0])))
    assert bench.next() == Released(number=1)
    bench.seal()
    bench.chunk(0, HALF)
    assert bench.next() == Progress(id=7, received_bytes=HALF, useful_bytes=0)


def test_what_was_let_go_and_is_wanted_again_comes_from_its_first_byte(bench: Bench) -> None:
    """Somebody else may have written over what came before: its rest and its seal alone are not the piece."""
    bench.chunk(0, HALF)
    bench.until(Progress)
    bench.receiver.accept(Release(number=1, id=7, pieces=protocol.pack_set([0])))
    bench.until(Released)
    with bench.target.open("r+b") as file:
        file.write(bytes(HALF))
    bench.receiver.accept(Say(id=7, data=b"x", expect=protocol.pack_set([0])))
    bench.chunk(HALF, len(DATA))
    bench.seal()
    bench.chunk(0, len(DATA))
    bench.seal()
    *before, arrived = bench.until(Arrived)
    assert isinstance(arrived, Arrived)
    assert not any(isinstance(report, Arrived | Ended) for report in before)
    assert bench.target.read_bytes() == DATA


def test_what_arrives_is_told_before_it_is_let_go(bench: Bench) -> None:
    """A release that comes while a piece is being told of is answered after it."""
    bench.go_on.clear()
    bench.chunk(0, len(DATA))
    bench.seal()
    assert bench.arriving.wait(PATIENCE_S)
    order = Release(id=7, number=1, pieces=protocol.pack_set([0]))
    releasing = threading.Thread(target=bench.receiver.accept, args=(order,))
    releasing.start()
    releasing.join(0.2)
    bench.go_on.set()
    releasing.join(PATIENCE_S)
    *_, arrived, released = bench.until(Released)
    assert isinstance(arrived, Arrived)
    assert released == Released(number=1)


def none_left(*arguments: object) -> None:
    """As when there are no more descriptors than the process has."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def no_thread(self: threading.Thread) -> None:
    """As with a pids limit."""
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    "lacking", [(socket, "socket", none_left), (threading.Thread, "start", no_thread)], ids=["descriptors", "threads"]
)
def test_what_has_no_room_ends_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, lacking: tuple[Any, str, Any]
) -> None:
    """A connection for which there is no descriptor or no thread is none; the one that there is brings its piece, and
    when there is room again, there is another one."""
    host, port = bench.server.getsockname()
    order = Connect(id=8, session=1, name="n2", host=host, port=port)
    with monkeypatch.context() as poor:
        poor.setattr(*lacking)
        bench.receiver.accept(order)
    ended = bench.next()
    assert isinstance(ended, Ended)
    assert (ended.id, ended.kind) == (8, "connect")
    assert "no room" in ended.message
    bench.receiver.accept(Disconnect(id=8))
    bench.chunk(0, len(DATA))
    bench.seal()
    bench.until(Arrived)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        bench.receiver.accept(msgspec.structs.replace(order, id=9, host=host, port=port))
        listening.accept()[0].close()
    *_, last = bench.until(Ended)
    assert isinstance(last, Ended)
    assert (last.id, last.kind) == (9, "reset")
