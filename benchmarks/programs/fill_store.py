"""Fills a cache with published models whose files are holes. Its argument is JSON: root, models, model_bytes.

Everything but the bytes is as the engine does it: the store's own publish, with records of full length.
"""

import json
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from blake3 import blake3

from cacheagent.model import FileHashes, Manifest, RemoteFile, TrustDomain, blob_id, piece_count, piece_range
from cacheagent.store import Store

FILES = 8
DOMAIN = TrustDomain(endpoint="https://s3.example")


def _leave_holes(descriptor: int, offset: int, length: int) -> None:
    os.ftruncate(descriptor, offset + length)


def _manifest(number: int, size_bytes: int) -> Manifest:
    files = tuple(
        RemoteFile(
            path=f"model-{part:05}-of-{FILES:05}.safetensors",
            size_bytes=size_bytes // FILES,
            identity={"bucket": "sparse", "key": f"{number}/{part}", "etag": f'"{number:032x}-{part}"'},
        )
        for part in range(FILES)
    )
    return Manifest(kind="tree", source_kind="s3", files=files)


def _hashes(size_bytes: int) -> FileHashes:
    """The true ones: the agent begins to read back what it has as soon as it is up."""
    lengths = (piece_range(size_bytes, index)[1] for index in range(piece_count(size_bytes)))
    return FileHashes(pieces=tuple(map(_of_zeros, lengths)), verified_by=("crc64nvme",))


@lru_cache
def _of_zeros(length: int) -> str:
    return blake3(bytes(length)).hexdigest()


def _publish(store: Store, number: int, size_bytes: int) -> None:
    manifest = _manifest(number, size_bytes)
    hashes = dict(_staged(store, manifest))
    uri = f"s3://sparse/{number}"
    store.publish(manifest, DOMAIN, hashes, uri=uri, name=f"sparse-{number}", pin=False, priority=0)


def _staged(store: Store, manifest: Manifest) -> Iterator[tuple[str, FileHashes]]:
    for file in manifest.files:
        blob = blob_id(DOMAIN, file)
        hashes = _hashes(file.size_bytes)
        store.stage(blob, file.size_bytes).verified(hashes)
        yield blob, hashes


request = json.loads(sys.argv[1])
os.posix_fallocate = _leave_holes
store = Store.open(Path(request["root"]))
for number in range(request["models"]):
    _publish(store, number, request["model_bytes"])
store.close()
