"""The contract between the engine and whatever moves bytes: the real pool of workers, or a scripted one in tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

from cacheagent.location import Location
from cacheagent.model import Checksum, FileHashes, Value
from cacheagent.progress import PieceOrigin
from cacheagent.transfer.orders import PieceHash

Locate = Callable[[], Awaitable[Location]]
"""Where the blob's bytes are; asked again when a signed URL has expired."""

OnPiece = Callable[[int, str, int, PieceOrigin], None]
"""Called on the event loop with (piece index, blake3 hex, length in bytes, origin) as soon as a piece is on disk, in
any order. Must not block longer than an append to a file takes."""


class PieceSink(Protocol):
    """One blob under way, for whoever shares its pieces out."""

    def want(self, indexes: Sequence[int]) -> None:
        """These are to be fetched from the origin."""

    def put(self, piece: PieceHash) -> None:
        """This one is at its place in the target: it came from elsewhere, and is what it was said to be."""

    def fail(self, error: Exception) -> None:
        """The call is to end with this, unless it has ended already."""


class Share(Protocol):
    """Who brings which piece of one blob. One event loop. Never two write the same piece at the same time: what was
    wanted of the sink stays with the origin."""

    def begin(self, sink: PieceSink, missing: Sequence[int]) -> None:
        """The target is there; these pieces must travel. Each of them is wanted of the sink sooner or later, or
        put there."""

    def came(self, index: int, length: int) -> None:
        """So many bytes of a piece that the sink was to want are in the target, from the piece's beginning on."""

    async def end(self) -> None:
        """Returns when nobody but the origin's workers writes into the target. Raises TargetAbandoned if somebody still
        may."""


class BlobOrder(Value):
    """One file to bring to `target`, which exists with its full size (preallocated) when `fetch` is called.

    `claimed`: piece index -> blake3, what the journal says is there already: re-hashed before it is believed.
    `priority`: larger goes first; a waiting pod overtakes background work. `cap`: the name of the cap that it has with
    others of the same job (see `Transport.set_cap`); empty: none.
    """

    blob_id: str
    size_bytes: int
    target: str
    source_kind: str
    claimed: dict[int, str] = {}
    checksums: tuple[Checksum, ...] = ()
    priority: int = 0
    cap: str = ""


class SmallOrder(Value):
    """One file of less than `SMALL_FILE_BYTES`, fetched in a batch; `target` is created by the worker."""

    blob_id: str
    size_bytes: int
    target: str
    location: Location
    checksums: tuple[Checksum, ...] = ()


class SmallResult(Value):
    """A small file that is on disk and agrees with every checksum of its origin."""

    blob_id: str
    hashes: FileHashes


OnSmall = Callable[[Sequence[SmallResult]], None]


class Transport(Protocol):
    """Moves bytes onto this node's disk and proves them against the origin's checksums.

    `fetch` and `fetch_small` return only when every byte is on disk (written, not yet fsynced), hashed, and agrees
    with every checksum given. Errors: `ChecksumMismatch`, `SourceChanged`, `OriginForbidden`, `OriginNotFound` at
    once; `OriginUnavailable`, `OriginThrottled` after the retry budget; `DiskFault`. Cancelling waits until no worker
    touches the target any more (a hung worker is given up after 5 s and its target must then be abandoned, not
    reused).
    """

    async def fetch(
        self, order: BlobOrder, locate: Locate, on_piece: OnPiece, share: Share | None = None
    ) -> FileHashes:
        """Bring one blob to disk. `share`: who brings what, where it is not all left to the origin."""

    async def fetch_piece(self, order: BlobOrder, index: int, locate: Locate) -> str:
        """Bring one piece to its place in the target, which has the whole file's size, and return its BLAKE3."""

    async def fetch_small(
        self, orders: Sequence[SmallOrder], source_kind: str, on_done: OnSmall, *, priority: int = 0, cap: str = ""
    ) -> None:
        """Bring many small blobs to disk; `on_done` is called as batches finish. An expired location is reported as
        `LocationExpired`; what was done before an error has been handed to `on_done`."""

    def raise_priority(self, blobs: Collection[str], priority: int) -> None:
        """Somebody waits for these blobs: what is under way or queued for them counts at least this much from now on.
        Blobs that nobody fetches are ignored."""

    def set_cap(self, name: str, bytes_per_s: int) -> None:
        """All that is ordered under this name comes no faster than this together, from now on, also what is under way;
        0: no limit. To be set back when nobody orders under it any more."""

    async def rehash(self, target: str, size_bytes: int, indexes: Sequence[int]) -> dict[int, str]:
        """BLAKE3 of pieces at rest: index -> hex. Raises DiskFault."""

    async def close(self) -> None:
        """Cancel everything and end the workers within 2 seconds."""
