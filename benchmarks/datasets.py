"""Data to move: valid safetensors checkpoints, many small files, and one sparse giant; with their hashes."""

import base64
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import awscrt.checksums
import blake3
import msgspec

BLOCK_BYTES = 16 << 20
PAGE_BYTES = 4096
STAMP = struct.Struct("<QQ")


class DataFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file and what its bytes must hash to."""

    path: str
    size_bytes: int
    crc64nvme: str
    sha256: str
    blake3: str


class Dataset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files below one directory, hashed while they were made."""

    name: str
    root: Path
    files: tuple[DataFile, ...]

    @property
    def size_bytes(self) -> int:
        """Sum of all files."""
        return sum(file.size_bytes for file in self.files)


def build_checkpoint(root: Path, *, shards: int, size_bytes: int) -> Dataset:
    """A complete checkpoint of random bytes in equal shards; every page is unique, so none is misplaced unseen."""
    root.mkdir(parents=True)
    names = [f"model-{n:05}-of-{shards:05}.safetensors" for n in range(1, shards + 1)]
    block = os.urandom(BLOCK_BYTES)
    weight_bytes = size_bytes // shards
    for number, name in enumerate(names):
        with (root / name).open("wb") as out:
            out.write(_safetensors_header(f"layer.{number}", weight_bytes))
            for chunk in _stamped(block, number, weight_bytes):
                out.write(chunk)
    weight_map = {f"layer.{number}": name for number, name in enumerate(names)}
    _write_json(
        root / "model.safetensors.index.json", {"metadata": {"total_size": size_bytes}, "weight_map": weight_map}
    )
    _write_json(root / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    return _hashed("checkpoint", root)


def build_small_files(root: Path, *, count: int, size_bytes: int) -> Dataset:
    """Many small files of random bytes, all different."""
    (root / "data").mkdir(parents=True)
    block = os.urandom(size_bytes)
    for number in range(count):
        chunk = bytearray(block)
        STAMP.pack_into(chunk, 0, number, size_bytes)
        (root / "data" / f"{number:06}.bin").write_bytes(chunk)
    return _hashed("small", root)


def build_giant(root: Path, *, size_bytes: int) -> Dataset:
    """One safetensors file, a stamp in every MiB and holes between: fits in memory, and no MiB is misplaced unseen."""
    root.mkdir(parents=True)
    path = root / "model.safetensors"
    header = _safetensors_header("layer.0", size_bytes)
    with path.open("wb") as out:
        out.write(header)
        out.truncate(len(header) + size_bytes)
        for offset in range(1 << 20, size_bytes, 1 << 20):
            os.pwrite(out.fileno(), STAMP.pack(offset, size_bytes), offset)
    _write_json(root / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    return _hashed("giant", root)


def remove(dataset: Dataset) -> None:
    """Give the memory back."""
    shutil.rmtree(dataset.root)


def blake3_of(path: Path) -> str:
    """Hex BLAKE3 of a file, read with the page cache left out of it afterwards."""
    hasher = blake3.blake3()
    with path.open("rb", buffering=0) as source:
        while block := source.read(BLOCK_BYTES):
            hasher.update(block)
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return hasher.hexdigest()


def _safetensors_header(tensor: str, size_bytes: int) -> bytes:
    body = json.dumps({tensor: {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}).encode()
    body += b" " * (-len(body) % 8)
    return struct.pack("<Q", len(body)) + body


def _stamped(block: bytes, number: int, size_bytes: int) -> Iterator[bytes]:
    for offset in range(0, size_bytes, BLOCK_BYTES):
        chunk = bytearray(block)
        for page in range(0, BLOCK_BYTES, PAGE_BYTES):
            STAMP.pack_into(chunk, page, number, offset + page)
        yield bytes(memoryview(chunk)[: size_bytes - offset])


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _hashed(name: str, root: Path) -> Dataset:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        files = tuple(pool.map(lambda path: _hash(root, path), paths))
    return Dataset(name=name, root=root, files=files)


def _hash(root: Path, path: Path) -> DataFile:
    crc, sha, whole = 0, hashlib.sha256(), blake3.blake3()
    with path.open("rb", buffering=0) as source:
        while block := source.read(BLOCK_BYTES):
            crc = awscrt.checksums.crc64nvme(block, crc)
            sha.update(block)
            whole.update(block)
    return DataFile(
        path=str(path.relative_to(root)),
        size_bytes=path.stat().st_size,
        crc64nvme=base64.b64encode(crc.to_bytes(8, "big")).decode(),
        sha256=sha.hexdigest(),
        blake3=whole.hexdigest(),
    )
