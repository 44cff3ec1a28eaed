"""Frames: whole, in bits, many at once, and broken."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.errors import TransferFailed
from cacheagent.location import HttpLocation, PathLocation
from cacheagent.model import Checksum
from cacheagent.transfer.orders import (
    Cancel,
    Failed,
    FetchPiece,
    FetchSmall,
    FetchStream,
    Order,
    PieceDone,
    PieceHash,
    Rehash,
    RehashDone,
    Report,
    Segment,
    SmallDone,
    SmallFile,
    SmallItem,
    StreamDone,
    StreamPiece,
)
from cacheagent.transfer.wire import FRAME_LIMIT_BYTES, FrameReader, frame

HTTP = HttpLocation(url="http://o/a b?sig=é", headers={"X-Token": "t"}, etag='"e"')
PATH = PathLocation(path="/mnt/ä", size_bytes=5, mtime_ns=7)
PIECE = PieceHash(
    index=1, length=2, blake3="ab", segments=(Segment(offset=16, length=2, crcs={"crc64nvme": 2**64 - 1}),)
)
SUM = Checksum(algorithm="sha256", value="00", parts=((5, 2),))

ORDERS: list[Order] = [
    FetchPiece(
        id=1,
        location=HTTP,
        index=2,
        offset=3,
        length=4,
        target="/t",
        write_at=3,
        file_size=9,
        crcs=("crc32",),
        cuts=(5,),
    ),
    FetchSmall(id=2, items=(SmallItem(blob_id="b", location=PATH, size_bytes=5, target="/s", checksums=(SUM,)),)),
    FetchStream(id=3, location=HTTP, file_size=9, target="/t", lanes=2, checksums=(SUM,), claimed={0: "aa", 7: "bb"}),
    Rehash(id=4, target="/t", file_size=9, indexes=(0, 5)),
    Cancel(id=5),
]
REPORTS: list[Report] = [
    PieceDone(id=1, piece=PIECE, seconds=0.5, first_byte_s=0.1),
    SmallDone(id=2, files=(SmallFile(blob_id="b", blake3="cc", verified_by=("sha256",)),)),
    StreamPiece(id=3, piece=PIECE, fetched=False),
    StreamDone(id=3, whole={"sha256": "00"}, verified_by=("sha256",)),
    RehashDone(id=4, pieces=(PIECE,)),
    Failed(id=5, kind="status", message="503", status=503, retry_after_s=1.5),
]


def test_every_message_comes_out_as_it_went_in() -> None:
    """All orders one way, all reports the other, in order."""
    orders: FrameReader[Order] = FrameReader(Order)
    reports: FrameReader[Report] = FrameReader(Report)
    assert orders.feed(b"".join(map(frame, ORDERS))) == ORDERS
    assert reports.feed(b"".join(map(frame, REPORTS))) == REPORTS


@given(st.lists(st.integers(0, 400), max_size=12))
def test_however_the_bytes_are_cut(cuts: list[int]) -> None:
    """A message may arrive in any number of bits."""
    stream = b"".join(map(frame, REPORTS))
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader: FrameReader[Report] = FrameReader(Report)
    found = [report for start, end in pairwise(bounds) for report in reader.feed(stream[start:end])]
    assert found == REPORTS


def test_an_endless_frame_is_refused_before_it_is_read() -> None:
    """A broken worker can't make the agent collect bytes."""
    reader: FrameReader[Report] = FrameReader(Report)
    with pytest.raises(
        TransferFailed, match=rf"a frame of {FRAME_LIMIT_BYTES + 1} bytes .* at most {FRAME_LIMIT_BYTES}"
    ):
        reader.feed(struct.pack(">I", FRAME_LIMIT_BYTES + 1))


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x81\xa4type\xa4nope", frame(Cancel(id=1))[4:]])
def test_what_is_no_report_is_refused(body: bytes) -> None:
    """Also what would be a message in the other direction; a good frame in the same place is taken."""
    with pytest.raises(TransferFailed, match="a frame on a worker's socket that is no message"):
        FrameReader[Report](Report).feed(struct.pack(">I", len(body)) + body)
    assert FrameReader[Report](Report).feed(frame(REPORTS[0])) == REPORTS[:1]
