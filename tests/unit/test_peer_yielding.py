"""Serving peers steps back for whoever else reads from the disk, and comes forward again."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from cacheagent.peers import server
from cacheagent.peers.orders import ServerOrder, Start
from cacheagent.peers.yielding import FLOOR_BYTES_PER_S, OTHERS_BYTES_PER_S, DiskCounters, Use, Yielding
from cacheagent.transfer.channel import Channel

MB = 1_000_000
OWN = 400 * MB


class Disk:
    """Counters that go on by what one look after the other finds, and what each look answers."""

    def __init__(self, cap: int = 0) -> None:
        self.rule = Yielding(cap)
        self.use, self.now = Use(0, 0, 0.0), 0.0
        self.rule.look(self.use, self.now)

    def looks(self, others: int, own: int, busy: float, times: int = 1) -> list[int]:
        """Limits, while others and this process read so many bytes a second and the disk is so busy."""
        answers = []
        for _ in range(times):
            before = self.use
            self.now += 0.5
            self.use = Use(
                before.read_bytes + (others + own) // 2, before.own_bytes + own // 2, before.busy_s + busy * 0.5
            )
            answers.append(self.rule.look(self.use, self.now))
        return answers


def rising(values: Iterable[int]) -> bool:
    numbers = list(values)
    return all(a < b for a, b in pairwise(numbers))


def test_a_pod_that_reads_goes_first_and_afterwards_peers_get_all_again() -> None:
    """Half at each look down to a floor; back step by step, until nothing is limited."""
    disk = Disk()
    assert disk.looks(0, OWN, 1.0, 3) == [0, 0, 0]
    down = disk.looks(1000 * MB, OWN, 1.0, 3)
    assert down == [OWN // 2, OWN // 4, OWN // 8]
    assert disk.looks(1000 * MB, OWN // 8, 1.0, 5)[-1] == FLOOR_BYTES_PER_S
    back = disk.looks(0, FLOOR_BYTES_PER_S, 0.3, 20)
    assert back[-1] == 0
    assert rising(back[: back.index(0)])
    assert disk.rule.times == 1
    assert disk.looks(1000 * MB, OWN, 1.0) == [OWN // 2]
    assert disk.rule.times == 2


@pytest.mark.parametrize(
    ("others", "own", "busy"),
    [(OTHERS_BYTES_PER_S - MB, OWN, 1.0), (1000 * MB, OWN, 0.8), (1000 * MB, FLOOR_BYTES_PER_S - MB, 1.0)],
    ids=["others read next to nothing", "the disk has time", "peers take next to nothing"],
)
def test_nobody_steps_back_for_nothing(others: int, own: int, busy: float) -> None:
    """Each condition is needed."""
    disk = Disk()
    assert disk.looks(others, own, busy, 5) == [0] * 5
    assert disk.looks(1000 * MB, OWN, 1.0) == [OWN // 2], "the control: all of them together"


def test_the_administrators_cap_holds_with_and_without_it() -> None:
    """The smaller one holds."""
    disk = Disk(cap=150 * MB)
    assert disk.looks(0, 150 * MB, 1.0) == [150 * MB]
    assert disk.looks(1000 * MB, 150 * MB, 1.0) == [75 * MB]
    assert disk.looks(0, 75 * MB, 0.5, 10)[-1] == 150 * MB


def test_counters_are_the_kernels(tmp_path: Path) -> None:
    """Bytes and busy time of the directory's own disk, and this process' reads; None where no single disk is."""
    (tmp_path / "io").write_text("rchar: 7\nread_bytes: 4096\nwrite_bytes: 1\n")
    counters = DiskCounters(tmp_path, sys=tmp_path, io=tmp_path / "io")
    assert counters.read() is None
    device = tmp_path.stat().st_dev
    folder = tmp_path / f"dev/block/{os.major(device)}:{os.minor(device)}"
    folder.mkdir(parents=True)
    (folder / "stat").write_text("10 0 16 3 5 0 8 4 0 1500 9 0 0 0 0 0 0\n")
    assert counters.read() == Use(16 * 512, 4096, 1.5)


def test_counters_of_this_machine_go_on(tmp_path: Path) -> None:
    """What is read past the page cache is counted as this process' own."""
    counters = DiskCounters(tmp_path)
    before = counters.read()
    if before is None:
        pytest.skip("the directory of tests is on no single disk: an agent there does not yield either")
    path, buffer = tmp_path / "data", mmap.mmap(-1, 1 << 20)
    with path.open("wb") as file:
        file.write(os.urandom(len(buffer)))
        file.flush()
        os.fsync(file.fileno())
    direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.preadv(direct, [buffer], 0) == len(buffer)
    finally:
        os.close(direct)
    after = counters.read()
    assert after is not None
    assert after.own_bytes >= before.own_bytes + len(buffer)
    assert after.read_bytes >= before.read_bytes + len(buffer)


def test_the_server_sends_no_faster_than_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a look says is what all subscribers together get from then on."""
    uses = iter(
        [Use(0, 0, 0.0), *(Use(n * 10**12, n * 10**11, n * 10.0**6) for n in range(1, 4)), Use(4 * 10**13, 0, 0.0)]
    )
    monkeypatch.setattr(server, "LOOK_S", 0.0)
    monkeypatch.setattr(DiskCounters, "read", lambda _: next(uses))
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listening:
        start = Start(name="n1", seed=b"k" * 32, root=str(tmp_path))
        serving = server.Server(Channel(theirs, ServerOrder), listening, start)
        limits = []
        for _ in range(4):
            serving._tidy()
            limits.append(serving._egress.bytes_per_s)
        assert limits[0] == 0
        assert limits[1] > limits[2] > limits[3] > 0
