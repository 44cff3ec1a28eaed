"""The values that everything else speaks in: files, manifests, digests, piece hashes. Pure; no I/O.

`docs/design.md` writes the digest's inputs down byte by byte; a golden test holds them there.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any, Final, Literal, dataclass_transform

import msgspec

MIB: Final = 1024 * 1024
PIECE_SIZE_BYTES: Final = 16 * MIB
"""The unit of fetching, hashing, resuming and exchanging. Part of the record format."""
NO_BLAKE3: Final = "0" * 64
"""In place of a piece's, where a journal is to claim nothing of it any more."""

SMALL_FILE_BYTES: Final = 1 * MIB
"""Files below this are fetched in batches and written plainly. Chosen, not measured."""

MANIFEST_FORMAT: Final = 1

Kind = Literal["checkpoint", "tree"]
Algorithm = Literal["crc32", "crc32c", "crc64nvme", "sha1", "sha256", "git-sha1"]
"""`git-sha1` is SHA-1 over `blob <size>\\0` + bytes: the blob id of a small file on the Hugging Face Hub."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An immutable value that is parsed strictly at the border."""


class Checksum(Value):
    """What an origin promises about one file.

    `value` is lower-case hex. `parts` empty: over the whole file. Otherwise composite: the algorithm over the
    concatenated raw checksums of the parts, whose sizes are given run-length coded as (size_bytes, count) pairs in
    file order.
    """

    algorithm: Algorithm
    value: str
    parts: tuple[tuple[int, int], ...] = ()


class TrustDomain(Value):
    """Who vouches for bytes and who may see them: blobs are linked instead of fetched only within one."""

    endpoint: str
    credential: str = ""


class RemoteFile(Value):
    """One file of a source, pinned. `identity` holds what pins it (S3: endpoint, region, bucket, key, version_id, etag;
    HF: endpoint, repo, blob_id; HTTPS: url, etag, last_modified, sha256; POSIX: path, size, mtime_ns).
    """

    path: str
    size_bytes: int
    identity: dict[str, str]
    checksums: tuple[Checksum, ...] = ()


class Manifest(Value, dict=True):
    """The resolved list of a model's files: immutable, canonical, named by its digest. Files are sorted by path.

    Size and digest are worked out once: a dataset may have a hundred thousand files.
    """

    kind: Kind
    source_kind: str
    files: tuple[RemoteFile, ...]
    revision: str = ""
    repo_id: str = ""
    format: int = MANIFEST_FORMAT

    @cached_property
    def size_bytes(self) -> int:
        """Sum of all file sizes."""
        return sum(file.size_bytes for file in self.files)

    @cached_property
    def digest(self) -> str:
        """`sha256:` + hex of the canonical JSON: the name of this exact version everywhere."""
        return "sha256:" + hashlib.sha256(canonical_json(self)).hexdigest()


class FileHashes(Value):
    """What is known of a file's bytes after verification: BLAKE3 (hex) of every piece in order, and whole-file hashes
    that were computed on the way (algorithm -> hex). `verified_by` names the origin checksums that agreed.
    """

    pieces: tuple[str, ...]
    whole: dict[str, str] = {}
    verified_by: tuple[str, ...] = ()


_CANONICAL: Final = msgspec.json.Encoder(order="sorted")


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: keys sorted, no spaces, UTF-8, no escapes beyond JSON's own needs. The same
    bytes as `json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)` in a tenth of the time."""
    return _CANONICAL.encode(value)


def blob_id(domain: TrustDomain, file: RemoteFile) -> str:
    """64 hex digits: the name of one file's bytes on this node, from trust domain, identity and size."""
    named = {"domain": domain, "identity": file.identity, "size": file.size_bytes}
    return hashlib.sha256(canonical_json(named)).hexdigest()


def piece_count(size_bytes: int) -> int:
    """Number of pieces of a file; an empty file has none."""
    return -(-size_bytes // PIECE_SIZE_BYTES)


def piece_range(size_bytes: int, index: int) -> tuple[int, int]:
    """(offset, length) in bytes of one piece."""
    offset = index * PIECE_SIZE_BYTES
    if not 0 <= offset < size_bytes:
        raise IndexError(f"piece {index} of a file of {size_bytes} bytes")
    return offset, min(PIECE_SIZE_BYTES, size_bytes - offset)
