"""What there is to say of a version that is all here, at its last place. Blocks for as long as a file is read."""

from __future__ import annotations

from cacheagent.checksum import CRCS
from cacheagent.model import SMALL_FILE_BYTES, FileHashes, blob_id
from cacheagent.peers.orders import Serve
from cacheagent.peers.vouchers import Vouchers
from cacheagent.store import Record, Store


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


def _is_weak(hashes: FileHashes) -> bool:
    """Whether wrong bytes can have passed: only CRCs, or nothing, spoke for the file."""
    return all(algorithm in CRCS for algorithm in hashes.verified_by)
