"""What S3 says of an object's checksums, as values. Pure: headers and attributes in, `Checksum` out.

A checksum is either FULL_OBJECT or COMPOSITE (over the raw checksums of a multipart upload's parts; value with
`-<parts>`). An ETag is *not* used as a checksum: it is an MD5 only for objects uploaded in one part without KMS, and
nothing in an answer says so."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Final

from cacheagent.model import Algorithm, Checksum

LENGTHS_BYTES: Final[Mapping[Algorithm, int]] = {"crc64nvme": 8, "sha256": 32, "sha1": 20, "crc32c": 4, "crc32": 4}
"""S3's header for each is `x-amz-checksum-<algorithm>`."""

Parts = tuple[tuple[int, int], ...]


def found_checksums(headers: Mapping[str, str]) -> dict[Algorithm, tuple[str, int]]:
    """Algorithm -> (hex, number of parts or 0 for the whole object), of a HEAD's answer. What is malformed counts as
    absent."""
    found: dict[Algorithm, tuple[str, int]] = {}
    for algorithm, length_bytes in LENGTHS_BYTES.items():
        encoded, dash, count = headers.get(f"x-amz-checksum-{algorithm}", "").partition("-")
        value = _hex(encoded, length_bytes)
        parts = int(count) if count.isdecimal() else 0
        composite = bool(dash) or headers.get("x-amz-checksum-type") == "COMPOSITE"
        if value and composite == (parts > 0):
            found[algorithm] = (value, parts)
    return found


def to_checksums(found: Mapping[Algorithm, tuple[str, int]], parts: Parts) -> tuple[Checksum, ...]:
    """The usable ones: all of the whole object, and composites of as many parts as are known."""
    known = sum(count for _, count in parts)
    return tuple(
        Checksum(algorithm=algorithm, value=value, parts=parts if count else ())
        for algorithm, (value, count) in found.items()
        if not count or count == known
    )


def run_lengths(sizes: Sequence[int], size_bytes: int) -> Parts:
    """Part sizes in order as (size, count) pairs; empty if they don't add up to the object."""
    if sum(sizes) != size_bytes or not all(size > 0 for size in sizes):
        return ()
    return tuple((size, len(list(run))) for size, run in groupby(sizes))


def uniform_parts(first: int, last: int, count: int, size_bytes: int) -> Parts:
    """Part sizes from the first and the last part's, if all but the last are alike; else empty."""
    return run_lengths([first] * (count - 1) + [last], size_bytes) if 0 < last <= first else ()


def _hex(encoded: str, length_bytes: int) -> str:
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return raw.hex() if len(raw) == length_bytes else ""
