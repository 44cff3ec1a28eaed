"""What there is to say of a version that is all here, at its last place. Blocks for as long as a file is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from msgspec import structs

from cacheagent.checksum import CRCS
from cacheagent.model import SMALL_FILE_BYTES, FileHashes, blob_id
from cacheagent.peers.orders import Have, Serve
from cacheagent.peers.protocol import HASH_BYTES
from cacheagent.peers.vouchers import Vouchers
from cacheagent.store import Record, Store

PIECES_AT_ONCE: Final = 64 * 1024
"""Of which one order tells: 1 TB in 2 MB, or in 20 with the seals of others, where a frame may have 64 MiB. Chosen."""


def serve_whole(store: Store, record: Record, vouchers: Vouchers) -> Serve | None:
    """Without its members; None where some of it is not here any more."""
    large = {
        blob_id(record.domain, file): file.size_bytes
        for file in record.manifest.files
        if file.size_bytes >= SMALL_FILE_BYTES
    }
    hashes: list[bytes] = []
    weak: set[int] = set()
    for blob in large:
        known = store.blob_hashes(blob)
        if known is None:
            return None
        if _is_weak(known):
            weak.update(range(len(hashes), len(hashes) + len(known.pieces)))
        hashes.extend(bytes.fromhex(piece) for piece in known.pieces)
    seals = vouchers.read(record.digest) if weak else {}
    return Serve(
        digest=record.digest,
        members={},
        homes=(),
        sizes=tuple(large.values()),
        paths=tuple(str(store.blob_path(blob)) for blob in large),
        hashes=b"".join(hashes),
        seals=tuple(seal for piece, seal in seals.items() if piece in weak and seal.blake3 == hashes[piece]),
    )


def in_parts(order: Serve) -> Iterator[Serve]:
    """What is to be sent, so that no message is too long; nearly always the one order."""
    if len(order.hashes) <= PIECES_AT_ONCE * HASH_BYTES:
        yield order
        return
    seals: defaultdict[int, list[Have]] = defaultdict(list)
    for seal in order.seals:
        seals[seal.piece // PIECES_AT_ONCE].append(seal)
    pieces = len(order.hashes) // HASH_BYTES
    for part, first in enumerate(range(0, pieces, PIECES_AT_ONCE)):
        end = first + PIECES_AT_ONCE
        hashes = order.hashes[first * HASH_BYTES : end * HASH_BYTES]
        yield structs.replace(order, hashes=hashes, seals=tuple(seals[part]), first=first, goes_on=end < pieces)


def _is_weak(hashes: FileHashes) -> bool:
    """Whether wrong bytes can have passed: only CRCs, or nothing, spoke for the file."""
    return all(algorithm in CRCS for algorithm in hashes.verified_by)
