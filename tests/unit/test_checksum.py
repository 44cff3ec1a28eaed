"""Checksums: folded from ranges, serial, composite, and what a difference says."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Sequence
from itertools import pairwise

import pytest
from awscrt import checksums as crt
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.checksum import (
    SerialHashes,
    check_bytes,
    check_file,
    find_cuts,
    fold,
    needed_crcs,
    needs_serial,
)
from cacheagent.errors import ChecksumMismatch
from cacheagent.model import Checksum
from cacheagent.transfer.orders import PieceHash, Segment

DATA = random.Random(1).randbytes(10_000)
CRC_OF = {"crc32": crt.crc32, "crc32c": crt.crc32c, "crc64nvme": crt.crc64nvme}
RAW_BYTES = {"crc32": 4, "crc32c": 4, "crc64nvme": 8}


def segments_of(data: bytes, bounds: Sequence[int]) -> tuple[Segment, ...]:
    edges = sorted({0, len(data), *bounds})
    return tuple(
        Segment(offset=start, length=end - start, crcs={name: crc(data[start:end]) for name, crc in CRC_OF.items()})
        for start, end in pairwise(edges)
    )


def pieces_of(data: bytes, bounds: Sequence[int]) -> list[PieceHash]:
    return [PieceHash(index=0, length=len(data), blake3="", segments=segments_of(data, bounds))]


def composite_crc(name: str, data: bytes, part: int) -> str:
    raw = [CRC_OF[name](data[at : at + part]).to_bytes(RAW_BYTES[name], "big") for at in range(0, len(data), part)]
    joined: int = CRC_OF[name](b"".join(raw))
    return joined.to_bytes(RAW_BYTES[name], "big").hex()


def run_length(size: int, part: int) -> tuple[tuple[int, int], ...]:
    full, rest = divmod(size, part)
    return ((part, full), (rest, 1)) if rest else ((part, full),)


def test_crc64nvme_is_always_computed_and_others_when_offered() -> None:
    """Peers compare CRC64NVME, so it is computed even where the origin offers nothing."""
    assert needed_crcs(()) == ("crc64nvme",)
    assert needed_crcs([Checksum(algorithm="crc32", value=""), Checksum(algorithm="sha256", value="")]) == (
        "crc32",
        "crc64nvme",
    )


@pytest.mark.parametrize(
    ("algorithm", "serial"), [("crc32", False), ("crc64nvme", False), ("sha1", True), ("git-sha1", True)]
)
def test_serial_algorithms_are_told_from_those_that_fold(algorithm: str, serial: bool) -> None:  # noqa: FBT001 - a parameter
    """Only hashes that can't be joined force a file into one stream."""
    assert needs_serial([Checksum(algorithm=algorithm, value="")]) is serial  # type: ignore[arg-type]


def test_cuts_are_the_part_boundaries_strictly_inside() -> None:
    """A boundary at the edge of a range needs no cut, and serial composites need none at all."""
    parts = ((10, 3), (4, 1))
    crc = Checksum(algorithm="crc32", value="", parts=parts)
    assert find_cuts([crc], 0, 34) == (10, 20, 30)
    assert find_cuts([crc], 10, 10) == ()
    assert find_cuts([crc], 15, 10) == (20,)
    assert find_cuts([Checksum(algorithm="sha256", value="", parts=parts)], 0, 34) == ()


@given(bounds=st.lists(st.integers(1, len(DATA) - 1), max_size=20), name=st.sampled_from(sorted(CRC_OF)))
def test_folded_ranges_give_the_crc_of_the_whole(bounds: list[int], name: str) -> None:
    """However a file was cut, the folded CRC is the one over all its bytes."""
    assert list(fold(segments_of(DATA, bounds), name, (len(DATA),))) == [CRC_OF[name](DATA)]


def test_crc32_is_the_one_of_zlib() -> None:
    """An independent implementation agrees."""
    assert list(fold(segments_of(DATA, [3, 7777]), "crc32", (len(DATA),))) == [zlib.crc32(DATA)]


def test_fold_refuses_a_gap_and_a_segment_that_crosses_an_end() -> None:
    """Segments that don't cover a part exactly are a programming error, never a silent wrong sum."""
    segments = segments_of(DATA, [4000])
    with pytest.raises(ValueError, match="no segment covers 0"):
        list(fold(segments[1:], "crc32", (len(DATA),)))
    with pytest.raises(ValueError, match="no segment covers 0 up to at most 3999"):
        list(fold(segments, "crc32", (3999,)))
    assert len(list(fold(segments, "crc32", (4000, len(DATA))))) == 2


@given(part=st.integers(1, 12_000), bounds=st.lists(st.integers(1, len(DATA) - 1), max_size=5))
def test_composites_of_any_part_size_agree(part: int, bounds: list[int]) -> None:
    """Composite CRCs are folded by part out of arbitrarily cut pieces, the last part being shorter."""
    parts = run_length(len(DATA), min(part, len(DATA)))
    checksums = [
        Checksum(algorithm=name, value=composite_crc(name, DATA, min(part, len(DATA))), parts=parts)  # type: ignore[arg-type]
        for name in CRC_OF
    ]
    cuts = find_cuts(checksums, 0, len(DATA))
    assert check_file("model", checksums, pieces_of(DATA, [*bounds, *cuts]), {}) == tuple(CRC_OF)
    assert check_bytes("model", checksums, DATA) == tuple(CRC_OF)


def test_a_composite_whose_parts_do_not_cover_the_file_is_the_origins_contradiction() -> None:
    """Part sizes come from the origin: a wrong sum is its mistake and says both numbers."""
    wrong = Checksum(algorithm="crc32", value="00000000", parts=((4000, 2),))
    with pytest.raises(ChecksumMismatch, match="cover 8000 bytes, the file has 10000"):
        check_file("a/b.safetensors", [wrong], pieces_of(DATA, [4000, 8000]), {})


def test_a_difference_names_file_algorithm_expected_and_actual() -> None:
    """What a person needs to look at the origin; the right value passes."""
    right = f"{zlib.crc32(DATA):08x}"
    assert check_file("a", [Checksum(algorithm="crc32", value=right)], pieces_of(DATA, []), {}) == ("crc32",)
    with pytest.raises(ChecksumMismatch, match=f"^a: crc32 is {right}, the origin says 00000000"):
        check_file("a", [Checksum(algorithm="crc32", value="00000000")], pieces_of(DATA, []), {})
    with pytest.raises(ChecksumMismatch, match=r"^a: crc32 of 2 parts is .*, the origin says 00000000"):
        check_bytes("a", [Checksum(algorithm="crc32", value="00000000", parts=((5000, 2),))], DATA)


def test_an_empty_file_has_checksums_too() -> None:
    """No piece, no segment: the checksum of nothing."""
    checksums = [
        Checksum(algorithm="crc64nvme", value="0" * 16),
        Checksum(algorithm="sha256", value=hashlib.sha256().hexdigest()),
    ]
    whole = SerialHashes(checksums, 0).digests()
    assert check_file("empty", checksums, [], whole) == ("crc64nvme", "sha256")
    assert check_bytes("empty", checksums, b"") == ("crc64nvme", "sha256")


def serial_checksums(data: bytes, part: int) -> list[Checksum]:
    parts = run_length(len(data), part)
    digests = b"".join(hashlib.sha1(data[at : at + part]).digest() for at in range(0, len(data), part))
    return [
        Checksum(algorithm="sha256", value=hashlib.sha256(data).hexdigest()),
        Checksum(algorithm="sha1", value=hashlib.sha1(digests).hexdigest(), parts=parts),
        Checksum(algorithm="git-sha1", value=hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()),
    ]


@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=8), part=st.integers(1, len(DATA)))
def test_serial_hashes_take_bytes_in_any_slices(cuts: list[int], part: int) -> None:
    """Whole, composite and git hashes come out the same however the stream is sliced; a copy is independent."""
    checksums = serial_checksums(DATA, part)
    hashes = SerialHashes(checksums, len(DATA))
    view = memoryview(DATA)
    for start, end in pairwise(sorted({0, len(DATA), *cuts})):
        wrong_way = hashes.copy()
        wrong_way.update(view[: end - start + 1])
        hashes.update(view[start:end])
    assert hashes.check("model") == ("sha256", "sha1", "git-sha1")
    assert check_file("model", checksums, [], hashes.digests()) == ("sha256", "sha1", "git-sha1")
    assert check_bytes("model", checksums, DATA) == ("sha256", "sha1", "git-sha1")


def test_a_copy_of_a_composite_goes_on_by_itself() -> None:
    """Going back to a copy gives the digest as if the other way was never taken."""
    checksums = serial_checksums(DATA, 999)
    hashes = SerialHashes(checksums, len(DATA))
    hashes.update(memoryview(DATA)[:5000])
    kept = hashes.copy()
    hashes.update(memoryview(b"x" * 5000))
    with pytest.raises(ChecksumMismatch, match=r"^m: sha256 is .*, the origin says "):
        hashes.check("m")
    kept.update(memoryview(DATA)[5000:])
    assert kept.check("m") == ("sha256", "sha1", "git-sha1")
