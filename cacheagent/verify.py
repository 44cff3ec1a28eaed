"""Read a published model back and compare every piece with what was recorded when it was fetched."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from blake3 import blake3

from cacheagent.errors import CorruptModel
from cacheagent.lanes import in_lanes
from cacheagent.model import SMALL_FILE_BYTES, RemoteFile, blob_id, piece_count
from cacheagent.store import Record, Store
from cacheagent.threads import in_thread
from cacheagent.transfer.base import Transport

FILES_AT_ONCE: Final = 16
"""Large files that are read at once; two readers already fill a disk. Chosen."""

SMALL_AT_ONCE: Final = 512
"""Small files that are read in one go of a thread. Chosen."""


async def verify_record(store: Store, transport: Transport, record: Record) -> None:
    """Raise CorruptModel that names the first wrong pieces, DiskFault if one can't be read."""
    small = [file for file in record.manifest.files if file.size_bytes < SMALL_FILE_BYTES]
    large = [file for file in record.manifest.files if file.size_bytes >= SMALL_FILE_BYTES]
    batches = [small[at : at + SMALL_AT_ONCE] for at in range(0, len(small), SMALL_AT_ONCE)]
    wrong: list[str] = []

    async def look_at(files: Sequence[RemoteFile]) -> None:
        wrong.extend(await _wrong_pieces(store, transport, record, files))

    await in_lanes([*batches, *([file] for file in large)], look_at, lanes=FILES_AT_ONCE)
    if wrong:
        raise CorruptModel(
            f"{record.name}: {len(wrong)} piece(s) on disk differ from what was fetched, "
            f"among them {', '.join(sorted(wrong)[:3])}",
            hint="the agent's scrub fetches them again; or evict the model and pull it once more",
        )


async def _wrong_pieces(store: Store, transport: Transport, record: Record, files: Sequence[RemoteFile]) -> list[str]:
    """Of one large file, or of many small ones."""
    paths = {file.path: store.blob_path(blob_id(record.domain, file)) for file in files}
    if files[0].size_bytes < SMALL_FILE_BYTES:
        return await in_thread(partial(_wrong_small, paths, record))
    (file,) = files
    found = await transport.rehash(str(paths[file.path]), file.size_bytes, range(piece_count(file.size_bytes)))
    recorded = record.hashes[file.path].pieces
    return [f"{file.path} piece {number}" for number, name in enumerate(recorded) if found.get(number) != name]


def _wrong_small(paths: dict[str, Path], record: Record) -> list[str]:
    return [f"{name} piece 0" for name, path in paths.items() if hash_small_file(path) != record.hashes[name].pieces]


def hash_small_file(path: Path) -> tuple[str, ...]:
    """The pieces of a file of less than a piece: one, or none of an empty file. Raises OSError."""
    content = path.read_bytes()
    return (blake3(content).hexdigest(),) if content else ()
