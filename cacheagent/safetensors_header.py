"""The safetensors header, judged: a file whose header lies never reaches an engine. Pure; bytes in, verdict out.

Format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length N, N bytes of JSON
`{name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {str: str}}`, then the data, without holes, to the
end of the file. The library `safetensors` refuses the same files; the tests hold the two against each other.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from cacheagent.errors import UnsafeContent

LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 100_000_000
"""The limit of the reference implementation."""

_DTYPE_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def header_length(path: str, file_size: int, first_bytes: bytes) -> int:
    """How many bytes the header claims, after judging the claim. `first_bytes`: at least 8 bytes of the file."""
    if file_size < LENGTH_BYTES or len(first_bytes) < LENGTH_BYTES:
        raise _bad(path, f"is {file_size} bytes long, too short for a header")
    length = int.from_bytes(first_bytes[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise _bad(path, f"claims a header of {length} bytes, more than the format's {MAX_HEADER_BYTES}")
    if LENGTH_BYTES + length > file_size:
        raise _bad(path, f"claims a header of {length} bytes in a file of {file_size}")
    return length


def check_header(path: str, file_size: int, header: bytes) -> None:
    """Raise UnsafeContent unless the header describes exactly the data that follows it: known shapes, no holes, no
    overlap, and the last tensor ends where the file ends.
    """
    tensors = _parse(path, header)
    spans = sorted(_span(path, name, entry) for name, entry in tensors.items() if name != "__metadata__")
    expected_begin = 0
    for begin, end, name in spans:
        if begin != expected_begin:
            raise _bad(path, f"tensor {name!r} begins at {begin} where {expected_begin} was expected")
        expected_begin = end
    data_bytes = file_size - LENGTH_BYTES - len(header)
    if expected_begin != data_bytes:
        raise _bad(path, f"its tensors end at {expected_begin}, its data at {data_bytes}")


def _parse(path: str, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) != len(pairs):
            raise _bad(path, "its header names a tensor or a field twice")
        return seen

    try:
        parsed = json.loads(header, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _bad(path, "its header is not JSON") from error
    if not isinstance(parsed, dict):
        raise _bad(path, "its header is not a JSON object")
    return parsed


def _span(path: str, name: str, entry: Any) -> tuple[int, int, str]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _bad(path, f"tensor {name!r} has no dtype, shape and data_offsets") from error
    if not isinstance(shape, list) or not all(_natural(number) for number in [*shape, begin, end]) or begin > end:
        raise _bad(path, f"tensor {name!r} has a shape or offsets that are not natural numbers in order")
    # A dtype newer than this program is not an error: its offsets are still judged.
    bits = _DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is not None and math.prod(shape) * bits != (end - begin) * 8:
        raise _bad(path, f"tensor {name!r} of {dtype}{shape} does not fit its {end - begin} bytes")
    return begin, end, name


def _natural(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _bad(path: str, what: str) -> UnsafeContent:
    return UnsafeContent(
        f"{path}: not a safetensors file: {what}", hint="the file is damaged or lies; ask whoever published the model"
    )
