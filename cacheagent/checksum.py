"""Which checksums a file's bytes must be put through on the way, and whether they agree with the origin. Pure.

CRCs fold: each range is summed wherever it arrives, and `fold` joins ranges into parts and files. SHA-1, SHA-256 and
git's blob hash are serial: `SerialHashes` wants the bytes in file order. A composite checksum (S3's `-N` values) is
the algorithm over the concatenated raw, big-endian checksums of the parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, pairwise, repeat
from typing import Final, NamedTuple

from awscrt import checksums as crt
from isal import isal_zlib

from cacheagent.errors import ChecksumMismatch
from cacheagent.model import Algorithm, Checksum
from cacheagent.transfer.orders import CrcAlgorithm, PieceHash, Segment


class Crc(NamedTuple):
    """One CRC: how to go on with it over more bytes, how to join two, how long its raw form is."""

    update: Callable[[memoryview | bytes, int], int]
    combine: Callable[[int, int, int], int]
    size_bytes: int


CRCS: Final[dict[str, Crc]] = {
    "crc32": Crc(isal_zlib.crc32, crt.combine_crc32, 4),
    "crc32c": Crc(crt.crc32c, crt.combine_crc32c, 4),
    "crc64nvme": Crc(crt.crc64nvme, crt.combine_crc64nvme, 8),
}
ALWAYS: Final[CrcAlgorithm] = "crc64nvme"
"""Computed for every file: 0.07 CPU-s/GB, and what peers compare when the origin has nothing better."""


def needed_crcs(checksums: Iterable[Checksum]) -> tuple[CrcAlgorithm, ...]:
    """The CRCs that workers must compute so that `check_file` can judge these checksums."""
    offered = {checksum.algorithm for checksum in checksums}
    wanted: tuple[CrcAlgorithm, ...] = ("crc32", "crc32c", "crc64nvme")
    return tuple(crc for crc in wanted if crc in offered or crc == ALWAYS)


def needs_serial(checksums: Iterable[Checksum]) -> bool:
    """True where one of them can only be computed in file order (so the file is fetched as one stream)."""
    return any(checksum.algorithm not in CRCS for checksum in checksums)


def find_cuts(checksums: Iterable[Checksum], offset: int, length: int) -> tuple[int, ...]:
    """Part boundaries of composite CRCs that fall strictly inside the range: absolute offsets, ascending."""
    inside = {
        bound
        for checksum in checksums
        if checksum.algorithm in CRCS
        for bound in _bounds(checksum)
        if offset < bound < offset + length
    }
    return tuple(sorted(inside))


def fold(segments: Iterable[Segment], algorithm: str, ends: Iterable[int]) -> Iterator[int]:
    """The CRCs of [0, ends[0]), [ends[0], ends[1]) and so on, out of segments in file order that leave no gap and cross
    no end. One pass: a file of 10,000 parts costs 10,000 steps. ValueError where the segments don't fit.
    """
    crc = CRCS[algorithm]
    rest = iter(segments)
    reached = 0
    for end in ends:
        value = 0
        while reached < end:
            segment = next(rest, None)
            if segment is None or segment.offset != reached or reached + segment.length > end:
                raise ValueError(f"no segment covers {reached} up to at most {end}; the next one is {segment}")
            value = crc.combine(value, segment.crcs[algorithm], segment.length)
            reached += segment.length
        yield value


def check_file(
    path: str, checksums: Sequence[Checksum], pieces: Sequence[PieceHash], whole: Mapping[str, str]
) -> tuple[str, ...]:
    """The algorithms that agreed, in the order given. `pieces`: every piece of the file, with CRC segments cut at
    `find_cuts`; `whole`: what `SerialHashes` computed. Raises ChecksumMismatch at the first one that differs.
    """
    segments = sorted(chain.from_iterable(piece.segments for piece in pieces), key=lambda segment: segment.offset)
    for checksum in checksums:
        actual = _folded(path, checksum, segments) if checksum.algorithm in CRCS else whole[checksum.algorithm]
        require_equal(path, checksum, actual)
    return tuple(checksum.algorithm for checksum in checksums)


def check_bytes(path: str, checksums: Sequence[Checksum], data: memoryview | bytes) -> tuple[str, ...]:
    """The same for a whole small file in memory."""
    for checksum in checksums:
        require_equal(path, checksum, _digest_of(checksum, data))
    return tuple(checksum.algorithm for checksum in checksums)


def require_equal(path: str, checksum: Checksum, actual: str) -> None:
    """Raises ChecksumMismatch, naming file, algorithm, expected and actual."""
    if actual != checksum.value:
        parts = sum(count for _, count in checksum.parts)
        name = f"{checksum.algorithm} of {parts} parts" if parts else checksum.algorithm
        raise ChecksumMismatch(
            f"{path}: {name} is {actual}, the origin says {checksum.value}",
            hint="the bytes were damaged on the way or at the origin; nothing of the file was kept",
        )


class SerialHashes:
    """The serial checksums of one file, fed in file order. Not thread-safe; `copy` is cheap."""

    def __init__(self, checksums: Iterable[Checksum], size_bytes: int) -> None:
        wanted = [checksum for checksum in checksums if checksum.algorithm not in CRCS]
        self._hashes = [_SerialHash(checksum, size_bytes) for checksum in wanted]

    def update(self, data: memoryview) -> None:
        """The next bytes. Releases the GIL while it hashes."""
        for serial in self._hashes:
            serial.update(data)

    def copy(self) -> SerialHashes:
        """The same state, to come back to."""
        twin = SerialHashes((), 0)
        twin._hashes = [serial.copy() for serial in self._hashes]
        return twin

    def digests(self) -> dict[str, str]:
        """Algorithm -> hex of what was promised (a composite stands under its algorithm's name)."""
        return {serial.checksum.algorithm: serial.hexdigest() for serial in self._hashes}

    def check(self, path: str) -> tuple[str, ...]:
        """The algorithms, all of which agree; raises ChecksumMismatch."""
        for serial in self._hashes:
            require_equal(path, serial.checksum, serial.hexdigest())
        return tuple(serial.checksum.algorithm for serial in self._hashes)


class _SerialHash:
    """One serial checksum, whole or of parts."""

    def __init__(self, checksum: Checksum, size_bytes: int) -> None:
        self.checksum = checksum
        self._size_bytes = size_bytes
        self._running = _new_hash(checksum.algorithm, size_bytes)
        self._parts = _part_sizes(checksum)
        self._left = next(self._parts, 0)
        self._done: list[bytes] = []

    def update(self, data: memoryview) -> None:
        if not self.checksum.parts:
            self._running.update(data)
            return
        while len(data):
            taken = data[: self._left]
            self._running.update(taken)
            self._left -= len(taken)
            data = data[len(taken) :]
            if self._left == 0:
                self._end_part()

    def _end_part(self) -> None:
        self._done.append(self._running.digest())
        self._running = _new_hash(self.checksum.algorithm, self._size_bytes)
        self._left = next(self._parts, self._size_bytes)

    def copy(self) -> _SerialHash:
        twin = _SerialHash(self.checksum, self._size_bytes)
        twin._running, twin._left, twin._done = self._running.copy(), self._left, self._done.copy()
        for _ in self._done:
            next(twin._parts, 0)
        return twin

    def hexdigest(self) -> str:
        if not self.checksum.parts:
            return self._running.hexdigest()
        composite = _new_hash(self.checksum.algorithm, self._size_bytes)
        composite.update(b"".join(self._done))
        return composite.hexdigest()


def _new_hash(algorithm: Algorithm, size_bytes: int) -> hashlib._Hash:
    if algorithm == "sha256":
        return hashlib.sha256()
    if algorithm == "git-sha1":
        return hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    return hashlib.sha1(usedforsecurity=False)


def _part_sizes(checksum: Checksum) -> Iterator[int]:
    return chain.from_iterable(repeat(size, count) for size, count in checksum.parts)


def _bounds(checksum: Checksum) -> Iterator[int]:
    return accumulate(_part_sizes(checksum))


def _folded(path: str, checksum: Checksum, segments: Sequence[Segment]) -> str:
    crc = CRCS[checksum.algorithm]
    size_bytes = segments[-1].offset + segments[-1].length if segments else 0
    if not checksum.parts:
        return _crc_hex(crc, next(fold(segments, checksum.algorithm, (size_bytes,))))
    _require_whole(path, checksum, size_bytes)
    parts = fold(segments, checksum.algorithm, _bounds(checksum))
    return _crc_hex(crc, crc.update(b"".join(part.to_bytes(crc.size_bytes, "big") for part in parts), 0))


def _require_whole(path: str, checksum: Checksum, size_bytes: int) -> None:
    covered = sum(size * count for size, count in checksum.parts)
    if covered != size_bytes:
        raise ChecksumMismatch(
            f"{path}: the parts of its {checksum.algorithm} cover {covered} bytes, the file has {size_bytes}",
            hint="the origin contradicts itself; upload the file again",
        )


def _crc_hex(crc: Crc, value: int) -> str:
    return value.to_bytes(crc.size_bytes, "big").hex()


def _digest_of(checksum: Checksum, data: memoryview | bytes) -> str:
    view = memoryview(data)
    if checksum.algorithm not in CRCS:
        serial = _SerialHash(checksum, len(view))
        serial.update(view)
        return serial.hexdigest()
    crc = CRCS[checksum.algorithm]
    if not checksum.parts:
        return _crc_hex(crc, crc.update(view, 0))
    bounds = pairwise(chain((0,), _bounds(checksum)))
    parts = (crc.update(view[start:end], 0).to_bytes(crc.size_bytes, "big") for start, end in bounds)
    return _crc_hex(crc, crc.update(b"".join(parts), 0))
