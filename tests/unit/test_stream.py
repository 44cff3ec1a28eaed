"""One file through a serial hash: by one lane and by several, resumed, broken off, stopped."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from awscrt import checksums as crt
from blake3 import blake3

from cacheagent import model
from cacheagent.checksum import check_file
from cacheagent.location import HttpLocation, Location, PathLocation
from cacheagent.model import MIB, PIECE_SIZE_BYTES, Checksum
from cacheagent.transfer import running as transfer_running
from cacheagent.transfer import stream as transfer_stream
from cacheagent.transfer.disk import Buffer
from cacheagent.transfer.orders import Failed, FailureKind, FetchStream, StreamDone, StreamPiece
from cacheagent.transfer.running import Running
from cacheagent.transfer.stream import Stream
from tests.fakes import faults
from tests.fakes.origin import Origin
from tests.fakes.worker import PATIENCE_S, Bench, preallocated, random_bytes, wait_for

SIZE = 3 * PIECE_SIZE_BYTES + 5 * MIB + 321
DATA = random_bytes(SIZE)
PIECES = [DATA[at : at + PIECE_SIZE_BYTES] for at in range(0, SIZE, PIECE_SIZE_BYTES)]
BLAKE3 = [blake3(piece).hexdigest() for piece in PIECES]
PART = 8_000_000
SHA256 = Checksum(algorithm="sha256", value=hashlib.sha256(DATA).hexdigest())
SHA1_OF_PARTS = Checksum(
    algorithm="sha1",
    value=hashlib.sha1(
        b"".join(hashlib.sha1(DATA[at : at + PART]).digest() for at in range(0, SIZE, PART))
    ).hexdigest(),
    parts=((PART, SIZE // PART), (SIZE % PART, 1)),
)
CRC64 = Checksum(algorithm="crc64nvme", value=f"{crt.crc64nvme(DATA):016x}")

Answer = StreamDone | Failed


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


@pytest.fixture(params=[1, 3])
def lanes(request: pytest.FixtureRequest) -> int:
    """Alone, and side by side."""
    count: int = request.param
    return count


@pytest.fixture
def location(origin: Origin) -> HttpLocation:
    origin.put("a.bin", DATA)
    return HttpLocation(url=f"{origin.url}/a.bin")


def run(bench: Bench, order: FetchStream, running: Running | None = None) -> Answer:
    """As a worker does: each lane in a thread; exactly one of them answers."""
    stream = Stream(order, running or Running(order.id), bench.tools)
    answers: list[Answer | None] = []
    threads = [
        threading.Thread(target=lambda: answers.append(stream.work(Buffer())), name=f"lane {number}")
        for number in range(order.lanes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    (answer,) = [each for each in answers if each is not None]
    return answer


def order(location: Location, target: Path, lanes: int, **changes: object) -> FetchStream:
    values: dict[str, object] = {
        "id": 5,
        "location": location,
        "file_size": SIZE,
        "target": str(target),
        "lanes": lanes,
        "checksums": (SHA256, SHA1_OF_PARTS),
        "crcs": ("crc64nvme",),
        "cuts": (PART, PIECE_SIZE_BYTES + 5),
    }
    return FetchStream(**(values | changes))  # type: ignore[arg-type]


def pieces_reported(bench: Bench) -> list[StreamPiece]:
    found = [report for report in bench.reports if isinstance(report, StreamPiece)]
    assert len(found) == len(bench.reports)
    return found


def expect_done(bench: Bench, answer: Answer, *, kept: set[int], resumed: tuple[FailureKind, ...] = ()) -> None:
    reported = pieces_reported(bench)
    assert answer == StreamDone(
        id=5,
        whole={"sha256": SHA256.value, "sha1": SHA1_OF_PARTS.value},
        verified_by=("sha256", "sha1"),
        resumed=resumed,
    )
    assert [each.piece.index for each in reported] == [0, 1, 2, 3]
    assert [each.piece.blake3 for each in reported] == BLAKE3
    assert {each.piece.index for each in reported if not each.fetched} == kept
    pieces = [each.piece for each in reported]
    assert check_file("a", [SHA256, CRC64], pieces, answer.whole) == ("sha256", "crc64nvme")


def test_all_hashes_and_bytes_are_right(bench: Bench, location: HttpLocation, tmp_path: Path, lanes: int) -> None:
    """Whole and composite serial hashes, CRC segments with cuts, BLAKE3 of pieces, in file order."""
    preallocated(tmp_path / "target", SIZE)
    expect_done(bench, run(bench, order(location, tmp_path / "target", lanes)), kept=set())
    assert (tmp_path / "target").read_bytes() == DATA
    assert bench.shared.received_bytes(0) == SIZE


def test_one_lane_asks_once_and_several_ask_for_spans(
    bench: Bench, origin: Origin, location: HttpLocation, tmp_path: Path, lanes: int
) -> None:
    """One request for everything, or one for each 4 MiB over as many connections as lanes."""
    preallocated(tmp_path / "target", SIZE)
    run(bench, order(location, tmp_path / "target", lanes))
    asked = origin.requests_for("a.bin")
    assert len(asked) == (1 if lanes == 1 else -(-SIZE // (4 * MIB)))
    assert len({request.connection for request in asked}) <= lanes


def test_a_mounted_file_is_streamed_too(bench: Bench, tmp_path: Path, lanes: int) -> None:
    """The same order with a path."""
    (tmp_path / "source").write_bytes(DATA)
    facts = (tmp_path / "source").stat()
    location = PathLocation(path=str(tmp_path / "source"), size_bytes=SIZE, mtime_ns=facts.st_mtime_ns)
    preallocated(tmp_path / "target", SIZE)
    expect_done(bench, run(bench, order(location, tmp_path / "target", lanes)), kept=set())
    assert (tmp_path / "target").read_bytes() == DATA


@pytest.mark.parametrize("claimed", [{0}, {1, 2}, {0, 3}, {0, 1, 2, 3}])
def test_claimed_pieces_are_read_back_and_not_fetched(
    bench: Bench, origin: Origin, location: HttpLocation, tmp_path: Path, lanes: int, claimed: set[int]
) -> None:
    """They go through the same hash; only the others travel."""
    preallocated(tmp_path / "target", SIZE)
    with (tmp_path / "target").open("r+b") as file:
        for index in claimed:
            file.seek(index * PIECE_SIZE_BYTES)
            file.write(PIECES[index])
    asked = order(location, tmp_path / "target", lanes, claimed={index: BLAKE3[index] for index in claimed})
    expect_done(bench, run(bench, asked), kept=claimed)
    assert (tmp_path / "target").read_bytes() == DATA
    assert bench.shared.received_bytes(0) == sum(len(PIECES[index]) for index in {0, 1, 2, 3} - claimed)


def test_pieces_may_be_smaller_than_what_is_received_at_once(
    bench: Bench, location: HttpLocation, tmp_path: Path, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in benchmarks of peers: each is reported by itself, and those that are claimed are not fetched."""
    for module in (model, transfer_stream):
        monkeypatch.setattr(module, "PIECE_SIZE_BYTES", MIB)
    pieces = [DATA[at : at + MIB] for at in range(0, SIZE, MIB)]
    hashes = [blake3(piece).hexdigest() for piece in pieces]
    preallocated(tmp_path / "target", SIZE)
    with (tmp_path / "target").open("r+b") as file:
        for index in (2, 7):
            file.seek(index * MIB)
            file.write(pieces[index])
    asked = order(location, tmp_path / "target", lanes, claimed={index: hashes[index] for index in (2, 7)})
    assert isinstance(run(bench, asked), StreamDone)
    reported = pieces_reported(bench)
    assert [each.piece.blake3 for each in reported] == hashes
    assert {each.piece.index for each in reported if not each.fetched} == {2, 7}
    assert (tmp_path / "target").read_bytes() == DATA


def test_a_wrong_claim_is_fetched(bench: Bench, location: HttpLocation, tmp_path: Path, lanes: int) -> None:
    """Piece 1 is damaged on disk, piece 3 was never written: the hash goes on as if they had not been claimed."""
    preallocated(tmp_path / "target", SIZE)
    with (tmp_path / "target").open("r+b") as file:
        file.write(PIECES[0] + PIECES[1][:-1] + bytes([PIECES[1][-1] ^ 1]) + PIECES[2])
    asked = order(location, tmp_path / "target", lanes, claimed=dict(enumerate(BLAKE3)))
    expect_done(bench, run(bench, asked), kept={0, 2})
    assert (tmp_path / "target").read_bytes() == DATA


class Following:
    """A stream that follows, in a thread: pieces are put on disk and claimed as a test likes."""

    def __init__(self, bench: Bench, location: Location, target: Path, running: Running, **changes: object) -> None:
        preallocated(target, SIZE)
        self._target = target
        self._stream = Stream(order(location, target, 1, follows=True, **changes), running, bench.tools)
        self._answers: list[Answer | None] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(self._stream.work(Buffer())))
        self._thread.start()

    def put(self, *indexes: int) -> None:
        """On disk, and claimed."""
        with self._target.open("r+b") as file:
            for index in indexes:
                file.seek(index * PIECE_SIZE_BYTES)
                file.write(PIECES[index])
        self.claim(*indexes)

    def claim(self, *indexes: int) -> None:
        """Whether they are there or not."""
        self._stream.claim({index: BLAKE3[index] for index in indexes})

    def answer(self) -> Answer:
        """The one that it gives."""
        self._thread.join(PATIENCE_S)
        (answer,) = self._answers
        assert answer is not None
        return answer


def test_what_comes_from_elsewhere_is_hashed_as_it_comes(
    bench: Bench, origin: Origin, location: HttpLocation, tmp_path: Path
) -> None:
    """In file order, whatever order it comes in; what is here in a row is hashed before the rest is; nothing is asked
    of the origin."""
    following = Following(bench, location, tmp_path / "target", Running(5))
    following.put(2)
    following.put(0)
    wait_for(lambda: len(bench.reports) == 1)
    following.put(3, 1)
    expect_done(bench, following.answer(), kept={0, 1, 2, 3})
    assert origin.requests == []


def test_a_stream_that_follows_ends_at_what_is_not_there(
    bench: Bench, origin: Origin, location: HttpLocation, tmp_path: Path
) -> None:
    """It fetches nothing and writes nothing: another one does."""
    following = Following(bench, location, tmp_path / "target", Running(5))
    following.put(0, 2)
    following.claim(1)
    answer = following.answer()
    assert isinstance(answer, Failed)
    assert (answer.kind, str(tmp_path / "target") in answer.message) == ("disk-fault", True)
    assert [each.piece.index for each in pieces_reported(bench)] == [0]
    assert origin.requests == []
    content = (tmp_path / "target").read_bytes()
    assert content == PIECES[0] + bytes(len(PIECES[1])) + PIECES[2] + bytes(len(PIECES[3]))


def test_a_stream_that_follows_can_be_stopped_and_says_that_it_goes_on(
    bench: Bench, location: HttpLocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing comes it is not taken for hung."""
    for module in (transfer_running, transfer_stream):
        monkeypatch.setattr(module, "SIGN_EVERY_S", 0.01)
    signs: list[int] = []
    running = Running(5, lambda: signs.append(1))
    following = Following(bench, location, tmp_path / "target", running)
    following.put(0)
    wait_for(lambda: bool(bench.reports) and len(signs) >= 3)
    running.stop()
    assert following.answer() == Failed(id=5, kind="cancelled", message="the order was cancelled")


def test_a_url_that_no_request_can_carry_is_an_answer_also_where_nothing_is_asked(
    bench: Bench, tmp_path: Path, lanes: int
) -> None:
    """Everything is there, and nobody would notice before the end; an order without an answer would wait for ever."""
    (tmp_path / "target").write_bytes(DATA)
    location = HttpLocation(url="http://127.0.0.1:1/a b.bin")
    answer = run(bench, order(location, tmp_path / "target", lanes, claimed=dict(enumerate(BLAKE3))))
    assert isinstance(answer, Failed)
    assert (answer.kind, "a URL with characters that a request can't carry" in answer.message) == ("protocol", True)


def test_an_empty_file_is_done_at_once(bench: Bench, origin: Origin, tmp_path: Path, lanes: int) -> None:
    """No piece, no request, and the hash of nothing."""
    preallocated(tmp_path / "target", 0)
    nothing = Checksum(algorithm="sha256", value=hashlib.sha256().hexdigest())
    location = HttpLocation(url=f"{origin.url}/a.bin")
    answer = run(bench, order(location, tmp_path / "target", lanes, file_size=0, checksums=(nothing,)))
    assert answer == StreamDone(id=5, whole={"sha256": nothing.value}, verified_by=("sha256",))
    assert (bench.reports, origin.requests) == ([], [])


def test_a_checksum_that_differs_fails_the_file(
    bench: Bench, origin: Origin, location: HttpLocation, tmp_path: Path, lanes: int
) -> None:
    """One inverted byte with the right length: all pieces come, and the end says no."""
    origin.inject(faults.WrongBytes(at=100))
    preallocated(tmp_path / "target", SIZE)
    answer = run(bench, order(location, tmp_path / "target", lanes))
    assert isinstance(answer, Failed)
    assert answer.kind == "mismatch"
    assert f"{origin.url}/a.bin: sha256 is " in answer.message
    assert f"the origin says {SHA256.value}" in answer.message


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(faults.Truncate(after_bytes=MIB), "reset"), (faults.Status(503), "status"), (faults.Status(412), "changed")],
)
def test_a_failure_stops_all_lanes_and_resuming_completes_the_file(
    bench: Bench, origin: Origin, location: HttpLocation, tmp_path: Path, lanes: int, fault: faults.Fault, kind: str
) -> None:
    """One report, of the first failure; what was reported before is claimed at the next try and not fetched again."""
    origin.inject(fault, nth=1 if lanes == 1 else 7, times=None)
    preallocated(tmp_path / "target", SIZE)
    answer = run(bench, order(location, tmp_path / "target", lanes))
    assert isinstance(answer, Failed)
    assert answer.kind == kind
    reported = pieces_reported(bench)
    assert [each.piece.blake3 for each in reported] == BLAKE3[: len(reported)]
    origin.heal()
    bench.reports.clear()
    claimed = {each.piece.index: each.piece.blake3 for each in reported}
    again = run(bench, order(location, tmp_path / "target", lanes, claimed=claimed))
    expect_done(bench, again, kept=set(claimed))
    assert (tmp_path / "target").read_bytes() == DATA


@pytest.mark.parametrize("fault", [faults.Truncate(after_bytes=3 * MIB), faults.Reset(after_bytes=MIB)])
def test_a_connection_that_breaks_once_is_replaced_inside_the_stream(
    bench: Bench, origin: Origin, location: HttpLocation, tmp_path: Path, lanes: int, fault: faults.Fault
) -> None:
    """What was hashed stays hashed: one more request goes on where the last whole buffer ended."""
    origin.inject(fault, nth=1 if lanes == 1 else 7)
    preallocated(tmp_path / "target", SIZE)
    expect_done(bench, run(bench, order(location, tmp_path / "target", lanes)), kept=set(), resumed=("reset",))
    assert (tmp_path / "target").read_bytes() == DATA
    assert len(origin.requests) == (2 if lanes == 1 else -(-SIZE // (4 * MIB)) + 1)


def test_stopping_ends_all_lanes(
    bench: Bench, origin: Origin, location: HttpLocation, tmp_path: Path, lanes: int
) -> None:
    """One lane is stalled, the others wait for their turn behind it; all leave, and one says so."""
    origin.inject(faults.Stall(after_bytes=MIB))
    preallocated(tmp_path / "target", SIZE)
    running = Running(5)
    answers: list[Answer] = []
    asked = order(location, tmp_path / "target", lanes)
    thread = threading.Thread(target=lambda: answers.append(run(bench, asked, running)))
    thread.start()
    origin.wait_until(lambda: len(origin.requests) >= lanes)
    running.stop()
    thread.join(PATIENCE_S)
    assert answers == [Failed(id=5, kind="cancelled", message="the order was cancelled")]


def test_a_lane_that_comes_late_finds_nothing_to_do(bench: Bench, location: HttpLocation, tmp_path: Path) -> None:
    """All threads of a worker may be busy when the stream begins; the answer is given once all the same."""
    preallocated(tmp_path / "target", SIZE)
    stream = Stream(order(location, tmp_path / "target", 2), Running(5), bench.tools)
    answer = stream.work(Buffer())
    assert isinstance(answer, StreamDone)
    expect_done(bench, answer, kept=set())
    assert stream.work(Buffer()) is None


def test_a_missing_target_fails_without_a_request(bench: Bench, origin: Origin, tmp_path: Path, lanes: int) -> None:
    """Nothing travels that has nowhere to go."""
    answer = run(bench, order(HttpLocation(url=f"{origin.url}/a.bin"), tmp_path / "absent", lanes))
    assert isinstance(answer, Failed)
    assert (answer.kind, answer.errno, origin.requests) == ("disk-fault", 2, [])
