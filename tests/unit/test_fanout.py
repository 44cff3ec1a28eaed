"""The fanout benchmark's own arithmetic: links, counters, the torrent, and figures from runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from blake3 import blake3

from benchmarks.cgroup import Cgroup
from benchmarks.datasets import DataFile, Dataset
from benchmarks.fanout.cell import Cell, Run
from benchmarks.fanout.figures import figures, summarize
from benchmarks.fanout.measure import compared, moments_of
from benchmarks.fanout.network import is_leftover
from benchmarks.fanout.shaping import BURST_BYTES, shape
from benchmarks.fanout.torrent import PIECE_BYTES, Swarm, bencode, make_torrent
from benchmarks.fanout.watch import Look, Traffic, parse_counters, program

CELL = Cell(
    variant="peers",
    nodes=16,
    size_bytes=100_000_000,
    piece_bytes=1 << 20,
    rate_bytes_per_s=10e6,
    origin_links=2.0,
)

COUNTERS = """Inter-| Receive | Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    n1:    1000       5    0    0    0     0   0   0     7000      60    0    0    0     0       0          0
origin:    9000       5    0    0    0     0   0   0      300      60    0    0    0     0       0          0
"""


def run(cell: Cell, *times_s: float, copies: float = 1.0, failure: str = "") -> Run:
    return Run(
        cell=cell,
        version="1",
        at="",
        times_s=times_s,
        origin_bytes=int(copies * cell.size_bytes),
        received_bytes=10**9,
        sent_bytes=10**9,
        cpu_s=4.0,
        cpu_by_program_s={"cacheagent.peers.server": 0.3},
        machine_cpu=0.5,
        pss_bytes=(1, 2),
        failure=failure,
    )


def test_a_queue_holds_packets_of_every_sender() -> None:
    """And a part of a second of the link, if that is more."""
    assert shape(20e6, 1).queue_bytes == 8_000_000 + BURST_BYTES
    assert shape(1e6, 32).queue_bytes == 32 * 24 * 9000 + BURST_BYTES
    assert shape(20e6, 1).arguments()[:3] == ["tbf", "rate", "160000000bit"]


def test_what_a_port_receives_its_node_has_sent() -> None:
    """The hub's counters are turned round."""
    assert parse_counters(COUNTERS) == {
        "n1": Traffic(received=7000, sent=1000),
        "origin": Traffic(received=300, sent=9000),
    }


def test_two_moments_a_second_and_the_last() -> None:
    """Counted from the first look."""
    looks = [
        Look(at_s=at, traffic={"n1": Traffic(received=int(at * 100) + 50), "origin": Traffic(sent=int(at * 100) + 7)})
        for at in (0.0, 0.25, 0.5, 0.75, 0.8)
    ]
    moments = list(moments_of(looks, 1))
    assert [moment.at_s for moment in moments] == [0.0, 0.5, 0.8]
    assert [moment.received for moment in moments] == [0, 50, 80]
    assert moments[-1].origin_sent == 80


class Published:
    """A fleet that has published what is in a folder of each node."""

    groups: Sequence[Cgroup] = ()

    def __init__(self, root: Path) -> None:
        self._root = root

    def fetch(self, counted: Sequence[int], timeout_s: float) -> Mapping[int, float]:
        raise NotImplementedError

    def find(self, node: int, path: str) -> Path:
        return self._root / str(node) / path

    def digest(self, node: int) -> str:
        raise NotImplementedError

    def version(self) -> str:
        return "1"


def test_a_run_with_a_wrong_byte_has_failed(tmp_path: Path) -> None:
    """Whichever node it is on; what was measured is kept with the reason. Right bytes are no failure."""
    data = b"right"
    file = DataFile(path="a", size_bytes=len(data), crc64nvme="", sha256="", blake3=blake3(data).hexdigest())
    dataset = Dataset(name="", root=tmp_path, files=(file,))
    for node in ("0", "1"):
        (tmp_path / node).mkdir()
        (tmp_path / node / "a").write_bytes(data)
    measured = run(msgspec.structs.replace(CELL, nodes=2), 1.0, 2.0)
    assert compared(measured, dataset, Published(tmp_path)) == measured
    (tmp_path / "1" / "a").write_bytes(b"wrong")
    found = compared(measured, dataset, Published(tmp_path))
    assert found.times_s == measured.times_s
    assert str(tmp_path / "1" / "a") in found.failure


def test_programs_have_the_names_that_they_were_started_by() -> None:
    """A module, or a script, whatever Python runs it."""
    assert program(["/usr/bin/python3", "-P", "-m", "a.b", "--fd", "3", ""]) == "a.b"
    assert program(["/venv/bin/python", "/venv/bin/cacheagent", "agent", ""]) == "cacheagent"
    assert program(["/usr/bin/aria2c", "--quiet", ""]) == "aria2c"
    assert program([""]) == ""


def test_leftovers_are_ours_and_nobodys(tmp_path: Path) -> None:
    """A name of a process that lives is left alone, and so is everybody else's."""
    (tmp_path / "77").mkdir()
    assert is_leftover("caf78n1", tmp_path)
    assert not is_leftover("caf77n1", tmp_path)
    assert not is_leftover("cafe", tmp_path)
    assert not is_leftover("cae2e1n1", tmp_path)
    assert not is_leftover(f"caf{os.getpid()}hub")


def test_a_torrent_hashes_over_the_ends_of_files(tmp_path: Path) -> None:
    """Pieces are of all files in a row; keys are in order."""
    contents = {"a": b"x" * (PIECE_BYTES - 1), "b": b"yz"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = tuple(
        DataFile(path=name, size_bytes=len(content), crc64nvme="", sha256="", blake3="")
        for name, content in contents.items()
    )
    whole = b"".join(contents.values())
    hashes = hashlib.sha1(whole[:PIECE_BYTES]).digest() + hashlib.sha1(b"z").digest()
    torrent = make_torrent(Dataset(name="", root=tmp_path, files=files), "http://t/")
    assert torrent.startswith(b"d8:announce9:http://t/4:infod5:filesl")
    assert b"6:pieces40:" + hashes in torrent
    assert bencode({"b": [1, "x"], "a": b""}) == b"d1:a0:1:bli1e1:xee"


def test_a_tracker_tells_of_all_others() -> None:
    """And forgets those who stop."""
    swarm = Swarm()
    swarm.announce("198.19.0.1", "port=6881&event=started")
    assert b"5:peers6:" + bytes([198, 19, 0, 1, 26, 225]) in swarm.announce("198.19.0.2", "port=6881")
    swarm.announce("198.19.0.1", "port=6881&event=stopped")
    assert b"5:peers0:" in swarm.announce("198.19.0.2", "port=6881")


def test_figures_are_of_medians_and_of_the_worst_of_all() -> None:
    """T(16) is compared with T(1) of the same links, each kind of disturbance with what is beside it. Behind an origin
    whose connections are thin, peers are compared with none, and with nothing else."""
    replace = msgspec.structs.replace
    one = replace(CELL, nodes=1)
    found = {
        figure.title: figure.value
        for figure in figures(
            summarize(
                [
                    run(one, 10.0),
                    run(replace(one, rate_bytes_per_s=5e6), 20.0),
                    run(CELL, 10.0, 11.0, 13.0, copies=1.01),
                    run(CELL, 10.0, 10.8, 12.0, copies=1.01),
                    run(CELL, 1.0, failure="gone"),
                    run(replace(CELL, scenario="killed"), 12.0, 13.0, 14.17, copies=1.1),
                    run(replace(CELL, scenario="lying"), 11.99, copies=1.5),
                    run(replace(CELL, origin_links=0.25), 44.0),
                    run(replace(CELL, variant="aria2"), 21.8),
                    run(replace(CELL, connection_bytes_per_s=10**6), 30.0, copies=2.0),
                    run(replace(CELL, variant="direct", connection_bytes_per_s=10**6), 25.0, copies=16.0),
                ]
            )
        )
    }
    assert round(found["T(16) / T(1), median node; s3, cubic, 100 MB at 10 MB/s"] or 0, 3) == 1.09
    assert found["T(16) / T(1), slowest node of all runs; s3, cubic, 100 MB at 10 MB/s"] == 1.3
    assert found["T(32) / T(1), median node"] is None
    assert found["origin bytes, undisturbed"] == 1.01
    assert found["origin bytes, one member killed or slow"] == 1.1
    assert found["thin connections to the origin, peers on against off"] == 1.2
    assert round(found["origin of a quarter of a link, 16 nodes"] or 0, 3) == 1.1
    assert round(found["one member of 16 killed, worst of all runs"] or 0, 3) == 1.3
    assert found["one member of 16 slow, median"] is None
    assert round(found["one member of 16 lying, median"] or 0, 3) == 1.1
    assert found["CPU to send"] == 0.3
    assert found["against aria2"] == 2.0


def test_copies_are_counted_where_no_spot_checks_are_made() -> None:
    """If that source was measured too. Fleets are compared with one node for each source and each congestion control,
    and with nothing where that node is missing."""
    replace = msgspec.structs.replace
    one = replace(CELL, nodes=1)
    checked, proved = run(CELL, 11.0, copies=1.05), run(replace(CELL, source="sha256"), 24.0, copies=1.01)

    def found(*runs: Run) -> dict[str, float | None]:
        values = {figure.title: figure.value for figure in figures(summarize([run(one, 10.0), *runs]))}
        return {title: value for title, value in values.items() if title.startswith(("T(16)", "origin bytes, und"))}

    alone = {
        "T(16) / T(1), median node; s3, cubic, 100 MB at 10 MB/s": 1.1,
        "T(16) / T(1), slowest node of all runs; s3, cubic, 100 MB at 10 MB/s": 1.1,
        "origin bytes, undisturbed": 1.05,
    }
    assert found(checked) == alone
    assert found(checked, proved) == {**alone, "origin bytes, undisturbed": 1.01}
    assert found(checked, run(replace(CELL, tcp="bbr"), 30.0)) == alone
    assert found(checked, proved, run(replace(one, source="sha256"), 20.0)) == {
        **alone,
        "origin bytes, undisturbed": 1.01,
        "T(16) / T(1), median node; sha256, cubic, 100 MB at 10 MB/s": 1.2,
        "T(16) / T(1), slowest node of all runs; sha256, cubic, 100 MB at 10 MB/s": 1.2,
    }


def test_peers_on_are_compared_with_off_where_both_were_measured() -> None:
    """With one size of model or several; the most counts."""
    replace = msgspec.structs.replace
    small, large = replace(CELL, nodes=1), replace(CELL, nodes=1, size_bytes=10 * CELL.size_bytes)

    def found(*runs: Run) -> float | None:
        return {figure.title: figure.value for figure in figures(summarize(runs))}["N = 1, peers on against off"]

    of_small = [run(small, 11.0), run(replace(small, variant="direct"), 10.0)]
    assert found(run(small, 11.0), run(large, 100.0)) is None
    assert found(*of_small, run(large, 100.0)) == 1.1
    assert found(*of_small, run(large, 120.0), run(replace(large, variant="direct"), 100.0)) == 1.2
