"""The worker as a process: orders in, reports out, stopping, and ending with its parent."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from cacheagent.location import HttpLocation
from cacheagent.model import MIB, PIECE_SIZE_BYTES, Checksum
from cacheagent.transfer.orders import (
    Cancel,
    Claims,
    Failed,
    FetchPiece,
    FetchSmall,
    FetchStream,
    GoesOn,
    PieceDone,
    Rehash,
    RehashDone,
    SmallDone,
    SmallItem,
    StreamDone,
    StreamPiece,
)
from tests.fakes import faults
from tests.fakes.origin import Origin
from tests.fakes.worker import PATIENCE_S, WorkerProcess, preallocated, random_bytes, wait_for

SIZE = 2 * PIECE_SIZE_BYTES + 1234
DATA = random_bytes(SIZE)
PIECES = [DATA[at : at + PIECE_SIZE_BYTES] for at in range(0, SIZE, PIECE_SIZE_BYTES)]
SHA256 = Checksum(algorithm="sha256", value=hashlib.sha256(DATA).hexdigest())


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess() as started:
        yield started


@pytest.fixture
def location(origin: Origin) -> HttpLocation:
    origin.put("a.bin", DATA)
    return HttpLocation(url=f"{origin.url}/a.bin")


def piece(number: int, location: HttpLocation, target: str, index: int) -> FetchPiece:
    offset = index * PIECE_SIZE_BYTES
    return FetchPiece(
        id=number,
        location=location,
        index=index,
        offset=offset,
        length=len(PIECES[index]),
        target=target,
        write_at=offset,
        file_size=SIZE,
        crcs=("crc64nvme",),
    )


def test_pieces_are_fetched_side_by_side_and_found_on_disk(
    worker: WorkerProcess, origin: Origin, location: HttpLocation, tmp_path: Path
) -> None:
    """Answers come as they are ready; re-hashing tells the same; what was received can be read in shared memory."""
    target = preallocated(tmp_path / "target", SIZE)
    worker.send(*(piece(10 + index, location, target, index) for index in range(3)))
    answers = [worker.receive() for _ in range(3)]
    done = {answer.id: answer.piece for answer in answers if isinstance(answer, PieceDone)}
    assert {number: found.blake3 for number, found in done.items()} == {
        10 + index: blake3(data).hexdigest() for index, data in enumerate(PIECES)
    }
    assert (tmp_path / "target").read_bytes() == DATA
    worker.send(Rehash(id=20, target=target, file_size=SIZE, indexes=(2, 0), crcs=("crc64nvme",)))
    assert worker.receive() == RehashDone(id=20, pieces=(done[12], done[10]))
    assert worker.shared.received_bytes(0) == SIZE
    assert origin.peak_connections <= 3


def test_small_files_and_a_stream(worker: WorkerProcess, location: HttpLocation, tmp_path: Path) -> None:
    """The other two orders, through the process."""
    item = SmallItem(blob_id="b", location=location, size_bytes=SIZE, target=str(tmp_path / "small"))
    worker.send(FetchSmall(id=1, items=(item, item)))
    answer = worker.receive()
    assert isinstance(answer, SmallDone)
    assert [file.blake3 for file in answer.files] == [blake3(DATA).hexdigest()] * 2
    target = preallocated(tmp_path / "target", SIZE)
    worker.send(FetchStream(id=2, location=location, file_size=SIZE, target=target, lanes=4, checksums=()))
    parts = [worker.receive() for _ in range(3)]
    assert [part.piece.index for part in parts if isinstance(part, StreamPiece)] == [0, 1, 2]
    assert worker.receive() == StreamDone(id=2, whole={}, verified_by=())
    assert (tmp_path / "target").read_bytes() == (tmp_path / "small").read_bytes() == DATA


def test_a_stream_that_follows_is_told_what_has_come(
    worker: WorkerProcess, origin: Origin, location: HttpLocation, tmp_path: Path
) -> None:
    """Through the process. An order that has been answered, or is unknown, is told without an answer."""
    target = preallocated(tmp_path / "target", SIZE)
    claims = [Claims(id=3, pieces={index: blake3(data).hexdigest()}) for index, data in enumerate(PIECES)]
    order = FetchStream(
        id=3, location=location, file_size=SIZE, target=target, lanes=1, checksums=(SHA256,), follows=True
    )
    worker.send(Claims(id=99, pieces={0: ""}), order)
    (tmp_path / "target").write_bytes(DATA)
    worker.send(*reversed(claims))
    reports = list(iter(worker.receive, StreamDone(id=3, whole={"sha256": SHA256.value}, verified_by=("sha256",))))
    parts = [report for report in reports if not isinstance(report, GoesOn)]
    assert [(part.piece.index, part.fetched) for part in parts if isinstance(part, StreamPiece)] == [
        (index, False) for index in range(3)
    ]
    assert len(parts) == 3
    worker.send(claims[0], piece(4, location, target, 0))
    assert isinstance(worker.receive(), PieceDone)
    assert len(origin.requests) == 1


def test_a_cancelled_order_is_answered_soon_and_others_go_on(
    worker: WorkerProcess, origin: Origin, location: HttpLocation, tmp_path: Path
) -> None:
    """In the middle of a receive; an order that is already answered, or unknown, is cancelled without an answer."""
    target = preallocated(tmp_path / "target", SIZE)
    origin.inject(faults.Stall(after_bytes=MIB))
    worker.send(piece(1, location, target, 0))
    origin.wait_until(lambda: origin.body_bytes_sent() == MIB)
    worker.send(Cancel(id=1), Cancel(id=99))
    assert worker.receive() == Failed(id=1, kind="cancelled", message="the order was cancelled")
    worker.send(Cancel(id=1), piece(2, location, target, 0))
    answer = worker.receive()
    assert isinstance(answer, PieceDone)
    assert answer.id == 2


def test_an_order_that_waits_for_a_thread_can_be_cancelled(
    origin: Origin, location: HttpLocation, tmp_path: Path
) -> None:
    """One thread, busy with a stalled order: the waiting one is answered when its turn comes, without a request."""
    target = preallocated(tmp_path / "target", SIZE)
    origin.inject(faults.Stall())
    with WorkerProcess(threads=1) as worker:
        worker.send(piece(1, location, target, 0))
        origin.wait_until(lambda: len(origin.requests) == 1)
        worker.send(piece(2, location, target, 1), Cancel(id=2), Cancel(id=1))
        assert [worker.receive(), worker.receive()] == [
            Failed(id=number, kind="cancelled", message="the order was cancelled") for number in (1, 2)
        ]
        assert len(origin.requests) == 1


def test_the_worker_ends_with_its_parents_socket(origin: Origin, location: HttpLocation, tmp_path: Path) -> None:
    """At once, whatever its threads are doing."""
    target = preallocated(tmp_path / "target", SIZE)
    origin.inject(faults.Stall())
    with WorkerProcess() as worker:
        worker.send(piece(1, location, target, 0))
        origin.wait_until(lambda: len(origin.requests) == 1)
        worker.channel.close()
        assert worker.process.wait(PATIENCE_S) == 0
    origin.wait_until(lambda: origin.open_connections == 0)


def test_the_worker_ends_with_its_parents_process(tmp_path: Path) -> None:
    """Killed without a word, with the socket still open somewhere else."""
    program = (
        "import socket, subprocess, sys\n"
        "from cacheagent.transfer.rate import SharedRate\n"
        "shared = SharedRate.create(1)\n"
        "ours, theirs = socket.socketpair()\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'cacheagent.transfer.worker', '--fd', str(theirs.fileno()),\n"
        "    '--shared-fd', str(shared.fd), '--slot', '0', '--threads', '1', '--idle-timeout-s', '5'],\n"
        "    pass_fds=(theirs.fileno(), shared.fd, ours.fileno()))\n"
        "print(worker.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_for(lambda: b"transfer.worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
        wait_for(lambda: _sleeps_in_recv(pid))
        parent.kill()
        parent.wait(PATIENCE_S)
    wait_for(lambda: not _is_alive(pid))


def _sleeps_in_recv(pid: int) -> bool:
    """It has set itself up: SIGINT is ignored (bit 1 of the mask)."""
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn:")).split()[1]
    return bool(int(ignored, 16) & 1 << signal.SIGINT - 1)


def _is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_ctrl_c_is_left_to_the_parent_and_sigterm_ends(worker: WorkerProcess, tmp_path: Path) -> None:
    """A terminal's SIGINT reaches the whole group; the worker must not die in the middle of the parent's clean-up."""
    wait_for(lambda: _sleeps_in_recv(worker.process.pid))
    os.kill(worker.process.pid, signal.SIGINT)
    target = preallocated(tmp_path / "target", 0)
    worker.send(Rehash(id=1, target=target, file_size=0, indexes=()))
    assert worker.receive() == RehashDone(id=1, pieces=())
    worker.process.terminate()
    assert worker.process.wait(PATIENCE_S) != 0
