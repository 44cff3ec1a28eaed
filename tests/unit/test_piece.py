"""One range from its source to disk, with its hashes, and back from disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from awscrt import checksums as crt
from blake3 import blake3

from cacheagent.location import HttpLocation, Location, PathLocation
from cacheagent.model import MIB, PIECE_SIZE_BYTES
from cacheagent.transfer import running as running_module
from cacheagent.transfer.failure import OrderFailed
from cacheagent.transfer.orders import FetchPiece, PieceDone, Rehash
from cacheagent.transfer.piece import fetch_piece, rehash
from cacheagent.transfer.running import Running
from tests.fakes import faults
from tests.fakes.origin import Origin
from tests.fakes.worker import Bench, preallocated, random_bytes

SIZE = PIECE_SIZE_BYTES + 3 * MIB + 777
DATA = random_bytes(SIZE)
CUTS = (5 * MIB, 5 * MIB + 1, 9_999_999)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


@pytest.fixture(params=["http", "path"])
def location(request: pytest.FixtureRequest, origin: Origin, tmp_path: Path) -> Location:
    """The same bytes from both kinds of source."""
    if request.param == "http":
        origin.put("a.bin", DATA)
        return HttpLocation(url=f"{origin.url}/a.bin")
    return mounted(tmp_path / "a.bin")


def mounted(path: Path) -> PathLocation:
    path.write_bytes(DATA)
    facts = path.stat()
    return PathLocation(path=str(path), size_bytes=facts.st_size, mtime_ns=facts.st_mtime_ns)


def order(location: Location, target: str, index: int, **changes: object) -> FetchPiece:
    offset = index * PIECE_SIZE_BYTES
    values: dict[str, object] = {
        "id": 7,
        "location": location,
        "index": index,
        "offset": offset,
        "length": min(PIECE_SIZE_BYTES, SIZE - offset),
        "target": target,
        "write_at": offset,
        "file_size": SIZE,
        "crcs": ("crc32", "crc32c", "crc64nvme"),
        "cuts": CUTS,
    }
    return FetchPiece(**(values | changes))  # type: ignore[arg-type]


def expect_piece(done: PieceDone, index: int) -> None:
    data = DATA[index * PIECE_SIZE_BYTES :][:PIECE_SIZE_BYTES]
    assert (done.id, done.piece.index, done.piece.length) == (7, index, len(data))
    assert done.piece.blake3 == blake3(data).hexdigest()
    at = index * PIECE_SIZE_BYTES
    for segment in done.piece.segments:
        part = DATA[segment.offset : segment.offset + segment.length]
        assert segment.offset == at
        assert segment.crcs == {
            "crc32": crt.crc32(part),
            "crc32c": crt.crc32c(part),
            "crc64nvme": crt.crc64nvme(part),
        }
        at += segment.length
    assert at == index * PIECE_SIZE_BYTES + len(data)
    assert 0 <= done.first_byte_s <= done.seconds


def test_pieces_land_at_their_places_with_their_hashes(bench: Bench, location: Location, tmp_path: Path) -> None:
    """Full piece and tail; CRC segments end at the cuts; the target keeps its size."""
    target = preallocated(tmp_path / "target", SIZE)
    for index in (1, 0):
        done = fetch_piece(order(location, target, index), Running(7), bench.tools, bench.buffer)
        expect_piece(done, index)
        assert len(done.piece.segments) == (4 if index == 0 else 1)
    assert (tmp_path / "target").read_bytes() == DATA
    assert bench.shared.received_bytes(0) == SIZE


def test_a_hedge_writes_into_its_own_file_from_the_start(bench: Bench, location: Location, tmp_path: Path) -> None:
    """The tail's bytes at offset 0 of a scratch file: the target isn't touched by two."""
    scratch = preallocated(tmp_path / "scratch", SIZE - PIECE_SIZE_BYTES)
    done = fetch_piece(order(location, scratch, 1, write_at=0), Running(7), bench.tools, bench.buffer)
    expect_piece(done, 1)
    assert (tmp_path / "scratch").read_bytes() == DATA[PIECE_SIZE_BYTES:]


def test_what_is_on_disk_is_hashed_as_it_is(bench: Bench, tmp_path: Path) -> None:
    """Re-hashing tells the same as fetching did, and sees a flipped byte."""
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    asked = Rehash(id=7, target=str(path), file_size=SIZE, indexes=(1, 0), crcs=("crc64nvme",), cuts=CUTS)
    done = rehash(asked, Running(7), bench.tools, bench.buffer)
    assert [piece.index for piece in done.pieces] == [1, 0]
    assert done.pieces[0].blake3 == blake3(DATA[PIECE_SIZE_BYTES:]).hexdigest()
    assert done.pieces[1].blake3 == blake3(DATA[:PIECE_SIZE_BYTES]).hexdigest()
    with path.open("r+b") as file:
        file.seek(PIECE_SIZE_BYTES - 1)
        file.write(bytes([DATA[PIECE_SIZE_BYTES - 1] ^ 1]))
    again = rehash(asked, Running(7), bench.tools, bench.buffer)
    assert again.pieces[0] == done.pieces[0]
    assert again.pieces[1].blake3 != done.pieces[1].blake3


def test_a_blob_that_became_shorter_is_a_disk_fault(bench: Bench, tmp_path: Path) -> None:
    """Somebody cut it; the message says where it ends."""
    path = tmp_path / "blob"
    path.write_bytes(DATA[:MIB])
    with pytest.raises(OrderFailed, match=f"ends at {MIB}, wanted") as caught:
        rehash(Rehash(id=7, target=str(path), file_size=SIZE, indexes=(0,)), Running(7), bench.tools, bench.buffer)
    assert caught.value.kind == "disk-fault"


def test_a_missing_target_is_a_disk_fault(bench: Bench, location: Location, tmp_path: Path) -> None:
    """Workers create no targets: a missing one was abandoned, and stays missing."""
    with pytest.raises(OrderFailed, match=r"absent: No such file or directory \(errno 2\)") as caught:
        fetch_piece(order(location, str(tmp_path / "absent"), 0), Running(7), bench.tools, bench.buffer)
    assert (caught.value.kind, caught.value.errno) == ("disk-fault", 2)
    assert not (tmp_path / "absent").exists()


def test_a_full_disk_is_told_from_a_broken_one(bench: Bench, location: Location) -> None:
    """/dev/full answers ENOSPC to every write."""
    with pytest.raises(OrderFailed, match=r"/dev/full: No space left on device") as caught:
        fetch_piece(order(location, "/dev/full", 0), Running(7), bench.tools, bench.buffer)
    assert caught.value.kind == "disk-full"


def test_a_range_that_breaks_off_is_no_piece(bench: Bench, origin: Origin, tmp_path: Path) -> None:
    """Bytes before the break may be on disk, but nobody is told that the piece is there."""
    origin.put("a.bin", DATA)
    origin.inject(faults.Truncate(after_bytes=5 * MIB))
    target = preallocated(tmp_path / "target", SIZE)
    asked = order(HttpLocation(url=f"{origin.url}/a.bin"), target, 0)
    with pytest.raises(OrderFailed, match="ended before the last byte") as caught:
        fetch_piece(asked, Running(7), bench.tools, bench.buffer)
    assert caught.value.kind == "reset"
    assert (tmp_path / "target").stat().st_size == SIZE
    expect_piece(fetch_piece(asked, Running(7), bench.tools, bench.buffer), 0)


class TestMountedSources:
    """Files that change, vanish or can't be read while they are copied."""

    def fetch(self, bench: Bench, location: PathLocation, tmp_path: Path, index: int = 0) -> PieceDone:
        target = preallocated(tmp_path / "target", SIZE)
        return fetch_piece(order(location, target, index), Running(7), bench.tools, bench.buffer)

    def failure(self, bench: Bench, location: PathLocation, tmp_path: Path) -> tuple[str, str]:
        with pytest.raises(OrderFailed) as caught:
            self.fetch(bench, location, tmp_path)
        return caught.value.kind, caught.value.message

    def test_another_mtime_or_size_is_a_change(self, bench: Bench, tmp_path: Path) -> None:
        """Seen before the first byte; the untouched file is served."""
        location = mounted(tmp_path / "a.bin")
        expect_piece(self.fetch(bench, location, tmp_path), 0)
        os.utime(location.path, ns=(1, 1))
        kind, said = self.failure(bench, location, tmp_path)
        assert (kind, "mtime 1 ns; was listed with" in said) == ("changed", True)
        os.utime(location.path, ns=(1, location.mtime_ns))
        with open(location.path, "ab") as file:
            file.write(b"x")
        os.utime(location.path, ns=(1, location.mtime_ns))
        kind, said = self.failure(bench, location, tmp_path)
        assert (kind, f"size {SIZE + 1}" in said) == ("changed", True)

    def test_a_change_while_reading_is_seen_after(self, bench: Bench, tmp_path: Path) -> None:
        """The file is written to between two buffers."""
        location = mounted(tmp_path / "a.bin")

        class Meddling(Running):
            """Asked once for each buffer."""

            buffers = 0

            def require_wanted(self) -> None:
                self.buffers += 1
                if self.buffers == 2:
                    os.utime(location.path, ns=(1, 2))

        running = Meddling(7)
        target = preallocated(tmp_path / "target", SIZE)
        with pytest.raises(OrderFailed, match="mtime 2 ns") as caught:
            fetch_piece(order(location, target, 0), running, bench.tools, bench.buffer)
        assert caught.value.kind == "changed"

    def test_a_file_that_vanished_was_changed(self, bench: Bench, tmp_path: Path) -> None:
        """Listing again will tell what is there now."""
        location = mounted(tmp_path / "a.bin")
        os.unlink(location.path)
        kind, said = self.failure(bench, location, tmp_path)
        assert (kind, "No such file or directory" in said) == ("changed", True)

    def test_a_directory_in_its_place_is_the_sources_trouble(self, bench: Bench, tmp_path: Path) -> None:
        """Any other error of the mounted filesystem keeps its number."""
        location = PathLocation(path=str(tmp_path), size_bytes=SIZE, mtime_ns=tmp_path.stat().st_mtime_ns)
        kind, _ = self.failure(bench, location, tmp_path)
        assert kind in {"source-io", "changed"}

    def test_a_listing_that_disagrees_with_the_location_is_a_change(self, bench: Bench, tmp_path: Path) -> None:
        """Located with another size than the order has."""
        path = tmp_path / "a.bin"
        path.write_bytes(DATA + b"x")
        other = PathLocation(path=str(path), size_bytes=SIZE + 1, mtime_ns=path.stat().st_mtime_ns)
        kind, said = self.failure(bench, other, tmp_path)
        assert (kind, said) == ("changed", f"{path}: has {SIZE + 1} bytes now, not {SIZE}")


def test_an_order_that_goes_on_says_so(
    bench: Bench, location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While bytes come, while it waits for a cap and while it reads back; not more often than it should."""
    signs: list[int] = []
    running = Running(7, lambda: signs.append(1))
    target = preallocated(tmp_path / "target", SIZE)
    monkeypatch.setattr(running_module, "SIGN_EVERY_S", 3600.0)
    expect_piece(fetch_piece(order(location, target, 0), running, bench.tools, bench.buffer), 0)
    assert signs == []
    monkeypatch.setattr(running_module, "SIGN_EVERY_S", 0.0)
    expect_piece(fetch_piece(order(location, target, 1), running, bench.tools, bench.buffer), 1)
    assert signs
    signs.clear()
    running.sleep(0.0)
    assert signs == [1]
    asked = Rehash(id=7, target=target, file_size=SIZE, indexes=(0,))
    rehash(asked, running, bench.tools, bench.buffer)
    assert len(signs) > 1
