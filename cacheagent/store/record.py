"""The record of a published version: everything that is known of it, one JSON file. The file's mtime is its last use.

A golden test holds the bytes; a change of the format is a new `LAYOUT_VERSION`.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from cacheagent.errors import CorruptModel
from cacheagent.model import FileHashes, Manifest, TrustDomain, Value, canonical_json

_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


class Record(Value):
    """One published version. `hashes` by path. `name` and `uri` are those of the request that brought it. Times are
    seconds since the epoch. `content_digest` is the same wherever the same bytes under the same paths come from.
    `withdrawn`: why it takes no new leases; empty for a healthy one.
    """

    manifest: Manifest
    digest: str
    domain: TrustDomain
    uri: str
    name: str
    hashes: dict[str, FileHashes]
    content_digest: str
    published_at: float
    pin: bool
    priority: int
    withdrawn: str = ""
    last_used: float = 0.0

    @property
    def size_bytes(self) -> int:
        """Sum of all file sizes."""
        return self.manifest.size_bytes

    @property
    def suspect(self) -> bool:
        """Bytes at rest were found wrong and are not repaired yet."""
        return bool(self.withdrawn)


class Resolution(Value):
    """What a request (named by `key`, see `flights.source_key`) was last resolved to."""

    key: str
    name: str
    uri: str
    digest: str


def content_digest(manifest: Manifest, hashes: dict[str, FileHashes]) -> str:
    """`sha256:` over [[path, size, [BLAKE3 of each piece]], …] in path order, as canonical JSON."""
    files = [[file.path, file.size_bytes, hashes[file.path].pieces] for file in manifest.files]
    return "sha256:" + hashlib.sha256(canonical_json(files)).hexdigest()


def encode_record(record: Record) -> bytes:
    """The record's file. Last use is the file's mtime, so that a touch rewrites nothing."""
    fields = msgspec.to_builtins(record)
    del fields["last_used"]
    return _ENCODER.encode(fields) + b"\n"


def decode_record(content: bytes, digest: str, last_used: float) -> Record:
    """Read a record's file. Raises CorruptModel when it is not what was written for this digest."""
    try:
        record = msgspec.json.decode(content, type=Record)
        sound = record.digest == digest == record.manifest.digest and record.content_digest == content_digest(
            record.manifest, record.hashes
        )
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise CorruptModel(f"the record of {digest} can't be read: {error}") from error
    if not sound:
        raise CorruptModel(f"the record of {digest} names other contents than its own")
    return msgspec.structs.replace(record, last_used=last_used)
