"""Images of static programs, made by hand; the pause image is one: every pod's first process, which keeps the pod's
namespaces and does nothing."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from pathlib import Path

PAUSE_IMAGE = "localhost/pause:test"

# x86-64: mov eax, 34 (pause); syscall; jump back. The runtime ends it with SIGKILL.
_PAUSE = bytes.fromhex("b822000000 0f05 ebf7".replace(" ", ""))
# xor edi, edi; mov eax, 60 (exit); syscall
_TRUE = bytes.fromhex("31ff b83c000000 0f05".replace(" ", ""))
_LOADED_AT = 0x400000


def pause_program() -> bytes:
    """It waits until it is killed."""
    return _program(_PAUSE)


def true_program() -> bytes:
    """It ends at once, well."""
    return _program(_TRUE)


def _program(code: bytes) -> bytes:
    """A static ELF program (elf(5)): header, one loadable segment, and the code."""
    start = 64 + 56
    size = start + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, _LOADED_AT + start, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOADED_AT, _LOADED_AT, size, size, 0x1000)
    return header + segment + code


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o755
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def write_pause_archive(path: Path) -> None:
    """As `docker save` would write it."""
    write_archive(path, PAUSE_IMAGE, {"pause": pause_program()}, entrypoint="/pause")


def write_archive(path: Path, reference: str, programs: dict[str, bytes], *, entrypoint: str) -> None:
    """An image of nothing but these programs, for a user that isn't root; as `docker save` would write it."""
    layer = _tar(programs)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [entrypoint], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    manifest = [{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
    path.write_bytes(_tar({"config.json": config, "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()}))
