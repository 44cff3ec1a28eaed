"""What the agent's process and its transfer workers say to each other. Values only; msgpack on the wire.

Frame: 4 bytes big-endian length, then one msgpack message of `Order` (to the worker) or `Report` (from it). Every
order is answered by exactly one final report (`PieceDone`, `SmallDone`, `StreamDone`, `RehashDone` or `Failed`) with
the same `id`; `StreamPiece`, `PiecePart` and `GoesOn` may come in between. Two orders never write the same byte range
at the same time.
"""

from __future__ import annotations

from typing import Literal

from cacheagent.location import HttpLocation, PathLocation
from cacheagent.model import Checksum, Value

CrcAlgorithm = Literal["crc32", "crc32c", "crc64nvme"]


class Segment(Value):
    """CRCs (as unsigned integers, by algorithm) of one contiguous range, so that they can be folded into parts and
    files.
    """

    offset: int
    length: int
    crcs: dict[str, int] = {}


class PieceHash(Value):
    """One piece that is on disk: BLAKE3 (hex) of its bytes and the CRCs of its segments."""

    index: int
    length: int
    blake3: str
    segments: tuple[Segment, ...] = ()


# --- orders
# ------------------------------------------------------------------------------------------------------------------


class FetchPiece(Value, tag="piece"):
    """Receive one range and write it at the same offset of `target` (which exists with its full size). `cuts`: absolute
    offsets strictly inside the range at which CRC segments end (multipart boundaries). `write_at`: differs from
    `offset` only for a hedge, which writes into a scratch file from 0. `cap`: the number of the cap that its bytes have
    beside everybody's (see `rate`); 0: none. `parts`: tell of what is written on the way.
    """

    id: int
    location: HttpLocation | PathLocation
    index: int
    offset: int
    length: int
    target: str
    write_at: int
    file_size: int
    crcs: tuple[CrcAlgorithm, ...] = ()
    cuts: tuple[int, ...] = ()
    cap: int = 0
    parts: bool = False


class SmallItem(Value):
    """One whole small file: fetched without Range, written plainly to `target` (created, truncated), checked against
    `checksums` and, where the location says so, against the answer's own checksum headers.
    """

    blob_id: str
    location: HttpLocation | PathLocation
    size_bytes: int
    target: str
    checksums: tuple[Checksum, ...] = ()


class FetchSmall(Value, tag="small"):
    """A batch of small files. One report for all; the first failure ends the batch (files done before it are
    reported). `cap`: as for a piece.
    """

    id: int
    items: tuple[SmallItem, ...]
    cap: int = 0


class FetchStream(Value, tag="stream"):
    """Fetch a file whose whole-file hash is serial (SHA-1, SHA-256, composites of them): ranges are received by `lanes`
    threads of one worker and hashed in offset order within a bounded window. Pieces in `claimed` (index -> blake3) are
    on disk already: they are read back, checked and hashed instead of fetched; one that does not match is fetched.
    `cap`: as for a piece. `follows`: nothing is fetched; the other pieces are on their way from elsewhere, and one lane
    waits for them. `Claims` tells when they are here. One that does not match ends the order.
    """

    id: int
    location: HttpLocation | PathLocation
    file_size: int
    target: str
    lanes: int
    checksums: tuple[Checksum, ...]
    claimed: dict[int, str] = {}
    crcs: tuple[CrcAlgorithm, ...] = ()
    cuts: tuple[int, ...] = ()
    cap: int = 0
    follows: bool = False


class Claims(Value, tag="claims"):
    """More pieces (index -> blake3) of a stream that follows are on disk. It has no answer of its own, and says nothing
    to an order that has been answered.
    """

    id: int
    pieces: dict[int, str]


class Rehash(Value, tag="rehash"):
    """Read ranges of a file on disk back (O_DIRECT where possible) and hash them: what a journal claims, what a scrub
    doubts.
    """

    id: int
    target: str
    file_size: int
    indexes: tuple[int, ...]
    crcs: tuple[CrcAlgorithm, ...] = ()
    cuts: tuple[int, ...] = ()


class Cancel(Value, tag="cancel"):
    """Stop an order soon; it is still answered, by `Failed(kind="cancelled")` or by its success if that came first.
    After the answer the worker touches the order's target no more.
    """

    id: int


Order = FetchPiece | FetchSmall | FetchStream | Claims | Rehash | Cancel

# --- reports
# -----------------------------------------------------------------------------------------------------------------

FailureKind = Literal[
    "status",  # an HTTP status that is not the wanted one; `status` and `retry_after_s` are set
    "changed",  # 412, another ETag, another size or mtime
    "connect",  # no connection: refused, unreachable, name not found
    "tls",  # the certificate or the handshake is wrong
    "reset",  # the connection broke or ended before the last byte
    "timeout",  # nothing, or too little, came within the idle limit
    "protocol",  # an answer that HTTP or the request does not allow
    "mismatch",  # all bytes came and a checksum of the origin does not agree
    "disk-full",
    "disk-fault",  # EIO, EROFS and the like on our own disk
    "source-io",  # the mounted source filesystem answered with an error
    "cancelled",
]


class PieceDone(Value, tag="piece"):
    """A range is received, hashed and written. `seconds` from sending the request to the last write."""

    id: int
    piece: PieceHash
    seconds: float
    first_byte_s: float


class SmallFile(Value):
    """One small file that is on disk and verified."""

    blob_id: str
    blake3: str
    verified_by: tuple[str, ...] = ()


class SmallDone(Value, tag="small"):
    """The whole batch is on disk."""

    id: int
    files: tuple[SmallFile, ...]


class StreamPiece(Value, tag="stream-piece"):
    """One more piece of a stream is on disk and hashed; `fetched` is False when it was claimed and proved."""

    id: int
    piece: PieceHash
    fetched: bool


class PiecePart(Value, tag="piece-part"):
    """So many bytes of a piece are written, from its beginning on; nothing is known of them yet."""

    id: int
    length: int


class Listens(Value, tag="listens"):
    """The process has started: what it is given now is begun now."""

    id: int = 0
    """No order has it."""


class GoesOn(Value, tag="goes-on"):
    """Nothing is done yet, and nothing hangs: bytes of the order come, or it waits for a cap. At most one a second."""

    id: int


class StreamDone(Value, tag="stream"):
    """The whole file is on disk; `whole`: algorithm -> hex of what was computed, composites under the same name.
    `resumed`: for each connection that broke and was replaced, how it broke."""

    id: int
    whole: dict[str, str]
    verified_by: tuple[str, ...]
    resumed: tuple[FailureKind, ...] = ()


class RehashDone(Value, tag="rehash"):
    """What the asked pieces really are."""

    id: int
    pieces: tuple[PieceHash, ...]


class Failed(Value, tag="failed"):
    """The order ended without success. `message` is a sentence without secrets; foreign bodies are cut to 200
    characters. `files`: what a batch finished before it failed.
    """

    id: int
    kind: FailureKind
    message: str
    status: int = 0
    retry_after_s: float = -1.0
    errno: int = 0
    files: tuple[SmallFile, ...] = ()


Part = StreamPiece | PiecePart | GoesOn
"""What may come before the final report."""
Report = PieceDone | SmallDone | StreamDone | RehashDone | Failed | Part | Listens
