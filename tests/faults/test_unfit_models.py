"""Models that must not reach an engine or a disk: incomplete, lying headers, names that go astray."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cacheagent.errors import IncompleteModel, OriginWrong, PickleRefused, UnsafeContent
from cacheagent.model import MIB
from tests.fakes.models import checkpoint, write_files
from tests.fakes.origin import Origin
from tests.faults.scene import (
    Cache,
    OnDisk,
    assert_published,
    directory_spec,
    look,
    put_index,
    put_model,
    web_spec,
)

CHECKPOINT = checkpoint(size_bytes=5 * MIB, shards=3)
INDEX = "model.safetensors.index.json"
SHARDS = sorted(name for name in CHECKPOINT if name.endswith(".safetensors"))
UNFINISHED = "the upload is unfinished, or a pattern leaves them out"
DAMAGED_INDEX = "the index is damaged; ask whoever published the model"
RENAME = "leave it out with an exclude pattern, or rename it at the source"

pytestmark = pytest.mark.asyncio


def assert_no_shard_was_asked_for(origin: Origin) -> None:
    asked = [each.path for each in origin.requests if each.method == "GET" and each.path.endswith(".safetensors")]
    assert asked == []


async def assert_the_right_one_comes(cache: Cache, origin: Origin) -> None:
    """The positive control, and the next try: the checkpoint as it should be."""
    put_model(origin, "m", CHECKPOINT)
    got = await cache.recover(web_spec(origin, "m", kind="checkpoint"), CHECKPOINT)
    assert_published(cache.root, {got.digest: CHECKPOINT})


async def test_a_missing_shard(cache: Cache, origin: Origin) -> None:
    """Named, with who promises it, before a byte of the others travels."""
    put_model(origin, "m", {path: content for path, content in CHECKPOINT.items() if path != SHARDS[1]})
    says = rf"promises 1 shard\(s\) that are not there: {SHARDS[1]}"
    await cache.fail(web_spec(origin, "m", kind="checkpoint"), IncompleteModel, says, UNFINISHED)
    assert look(cache.root) == OnDisk()
    assert_no_shard_was_asked_for(origin)
    await assert_the_right_one_comes(cache, origin)


async def test_a_missing_shard_without_an_index(cache: Cache, origin: Origin) -> None:
    """`-of-00003` in a name is a promise too."""
    put_model(origin, "m", {path: content for path, content in CHECKPOINT.items() if path not in {SHARDS[2], INDEX}})
    says = rf"promises 1 shard\(s\) that are not there: {SHARDS[2]}"
    await cache.fail(web_spec(origin, "m", kind="checkpoint"), IncompleteModel, says, UNFINISHED)
    assert look(cache.root) == OnDisk()
    assert_no_shard_was_asked_for(origin)
    await assert_the_right_one_comes(cache, origin)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (
            f'{{"weight_map": {{"a": "{SHARDS[0]}", "b": "{SHARDS[1]}", "a": "{SHARDS[2]}"}}}}',
            "names a tensor or a field",
        ),
        (
            f'{{"weight_map": {{"a": "{SHARDS[0]}"}}, "weight_map": {{"a": "{SHARDS[1]}"}}}}',
            "names a tensor or a field",
        ),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', "names a shard that is not a plain file name"),
        ('{"weight_map": {"a": 7}}', "names a shard that is not a plain file name"),
        ('{"weight_map": {}}', "names a shard that is not a plain file name"),
        ('{"metadata": {}}', "has no weight_map of tensor names to shard names"),
        ("{", "has no weight_map of tensor names to shard names"),
        ("[" * 100_000, "has no weight_map of tensor names to shard names"),
    ],
    ids=["tensor twice", "map twice", "elsewhere", "number", "empty", "no map", "no JSON", "deep"],
)
async def test_an_index_that_makes_no_sense(cache: Cache, origin: Origin, index: str, says: str) -> None:
    """Two readers could understand it differently, or nobody can: refused before a byte of weights travels."""
    put_model(origin, "m", {**CHECKPOINT, INDEX: index.encode()})
    await cache.fail(web_spec(origin, "m", kind="checkpoint"), IncompleteModel, rf"{INDEX}: {says}", DAMAGED_INDEX)
    assert look(cache.root) == OnDisk()
    assert_no_shard_was_asked_for(origin)
    await assert_the_right_one_comes(cache, origin)


async def test_one_shard_for_two_tensors_is_no_fault(cache: Cache, origin: Origin) -> None:
    """Many tensors in one shard are what shards are for."""
    index = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[0]}}).encode()
    files = {**CHECKPOINT, INDEX: index}
    put_model(origin, "m", files)
    got = await cache.recover(web_spec(origin, "m", kind="checkpoint"), files)
    assert_published(cache.root, {got.digest: files})


def header_of(shard: bytes) -> dict[str, dict[str, list[int]]]:
    (length,) = struct.unpack("<Q", shard[:8])
    header: dict[str, dict[str, list[int]]] = json.loads(shard[8 : 8 + length])
    return header


def with_header(shard: bytes, header: Mapping[str, object] | bytes, *, length: int | None = None) -> bytes:
    """The same data behind another header."""
    (old_length,) = struct.unpack("<Q", shard[:8])
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + shard[8 + old_length :]


def shorter_data(shard: bytes) -> bytes:
    return shard[:-1]


def longer_data(shard: bytes) -> bytes:
    return shard + b"\0"


def overlapping(shard: bytes) -> bytes:
    header = header_of(shard)
    first, second = sorted(
        (name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"]
    )[:2]
    begin, end = header[second]["data_offsets"]
    header[first]["data_offsets"][1] += 4
    header[second]["data_offsets"] = [begin, end]
    return with_header(shard, header)


def wrong_shape(shard: bytes) -> bytes:
    header = header_of(shard)
    name = next(name for name in header if name != "__metadata__")
    header[name]["shape"] = [number + 1 for number in header[name]["shape"]]
    return with_header(shard, header)


def twice(shard: bytes) -> bytes:
    header = json.dumps(header_of(shard))
    name = next(name for name in header_of(shard) if name != "__metadata__")
    again = json.dumps({name: header_of(shard)[name]})
    return with_header(shard, f"{header[:-1]}, {again[1:]}".encode())


def long_claim(shard: bytes) -> bytes:
    return with_header(shard, header_of(shard), length=2 * len(shard))


def huge_claim(shard: bytes) -> bytes:
    return with_header(shard, header_of(shard), length=2**63)


def no_json(shard: bytes) -> bytes:
    return with_header(shard, b"{]" * 20)


def only_a_few_bytes(shard: bytes) -> bytes:
    return shard[:5]


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (shorter_data, r"its tensors end at \d+, its data at \d+"),
        (longer_data, r"its tensors end at \d+, its data at \d+"),
        (overlapping, r"tensor '.*' (begins at \d+ where \d+ was expected|of .* does not fit its \d+ bytes)"),
        (wrong_shape, r"tensor '.*' of .* does not fit its \d+ bytes"),
        (twice, "its header names a tensor or a field twice"),
        (long_claim, r"claims a header of \d+ bytes in a file of \d+"),
        (huge_claim, r"claims a header of 9223372036854775808 bytes, more than the format's 100000000"),
        (no_json, "its header is not JSON"),
        (only_a_few_bytes, "is 5 bytes long, too short for a header"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_a_header_that_lies(cache: Cache, origin: Origin, lie: Callable[[bytes], bytes], says: str) -> None:
    """The bytes are the publisher's, and no engine ever sees them; also where only the file's length gives it away."""
    lying = {**CHECKPOINT, SHARDS[1]: lie(CHECKPOINT[SHARDS[1]])}
    put_model(origin, "m", lying)
    hint = "the file is damaged or lies; ask whoever published the model"
    spec = web_spec(origin, "m", kind="checkpoint")
    await cache.fail(spec, UnsafeContent, rf"{SHARDS[1]}: not a safetensors file: {says}", hint)
    found = look(cache.root)
    assert replace(found, small=(), staged={}) == OnDisk()
    await cache.fail(spec, UnsafeContent, says, hint)  # and it stays so
    put_model(origin, "m", CHECKPOINT)
    got = await cache.recover(spec, CHECKPOINT)
    assert tree_is_published(cache.root, got.digest)
    assert (look(cache.root).trees, look(cache.root).trash) == (0, 0)


def tree_is_published(root: Path, digest: str) -> bool:
    return look(root).models == look(root).records == frozenset({digest.replace(":", "-", 1)})


async def test_pickle_alone(cache: Cache, origin: Origin) -> None:
    """Refused by policy (exit code 4), unless the model's policy says otherwise."""
    put_model(origin, "m", {"pytorch_model.bin": b"\x80\x04." * 1000, "config.json": b"{}"})
    error = await cache.fail(
        web_spec(origin, "m", kind="checkpoint"),
        PickleRefused,
        r"has only pickle weights \(\.bin\), which run code when loaded",
        "convert them to safetensors, or set policy.allow_pickle",
    )
    assert error.exit_code == 4
    assert look(cache.root) == OnDisk()
    await assert_the_right_one_comes(cache, origin)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("../escaped", "has an empty, '.' or '..' component"),
        ("weights/../../escaped", "has an empty, '.' or '..' component"),
        ("weights/./a", "has an empty, '.' or '..' component"),
        ("weights//a", "has an empty, '.' or '..' component"),
        ("/etc/passwd", r"(is absolute|has an empty, '\.' or '\.\.' component)"),
        ("nul\0byte", "has a control character"),
        ("line\nbreak", "has a control character"),
        ("x" * 300, "has a component of more than 255 bytes"),
        ("ä" * 128, "has a component of more than 255 bytes"),
        ("/".join(["d" * 200] * 25), "is longer than"),
    ],
    ids=["up", "up inside", "dot", "empty", "absolute", "NUL", "newline", "300 bytes", "256 bytes of UTF-8", "long"],
)
async def test_a_key_that_must_not_become_a_path(
    cache: Cache, origin: Origin, tmp_path: Path, path: str, says: str
) -> None:
    """Refused before anything is reserved or fetched; nothing appears beside the cache directory."""
    put_model(origin, "m", {"a.bin": b"x" * 1000, path: b"y"}, "index")
    beside = set(tmp_path.iterdir())
    spec = web_spec(origin, "m")
    await cache.fail(spec, UnsafeContent, says, RENAME if "component of" in says or "control" in says else "")
    assert look(cache.root) == OnDisk()
    assert [each for each in origin.requests_for("m/a.bin") if each.method == "GET"] == []
    assert set(tmp_path.iterdir()) - beside <= {cache.root}
    put_model(origin, "m", {"a.bin": b"x" * 1000, "x" * 255: b"y"}, "index")
    got = await cache.recover(spec, {"a.bin": b"x" * 1000, "x" * 255: b"y"})
    assert tree_is_published(cache.root, got.digest)


async def test_keys_that_differ_only_in_case(cache: Cache, origin: Origin) -> None:
    """They are two files, byte for byte; so are two forms of one accented letter, and names with spaces and signs."""
    files = {
        "Model.bin": b"upper" * 300_000,
        "model.bin": b"lower" * 300_000,
        "caf\u00e9.txt": b"one code point",
        "cafe\u0301.txt": b"two code points",
        "with space + % ? # & =.txt": b"signs",
        "Dir/a": b"1",
        "dir/a": b"2",
    }
    put_model(origin, "m", files, "index")
    got = await cache.recover(web_spec(origin, "m"), files)
    assert_published(cache.root, {got.digest: files})


async def test_a_file_that_is_also_a_directory(cache: Cache, origin: Origin) -> None:
    """An object store holds both; a directory can't."""
    put_model(origin, "m", {"weights": b"file", "weights/a.bin": b"below it", "b": b"b"}, "index")
    says = "path 'weights' is a file and also a directory of other files"
    await cache.fail(web_spec(origin, "m"), UnsafeContent, says, RENAME)
    assert look(cache.root) == OnDisk()
    files = {"weights/a.bin": b"below it", "b": b"b"}
    put_model(origin, "m", files, "index")
    got = await cache.recover(web_spec(origin, "m"), files)
    assert_published(cache.root, {got.digest: files})


async def test_a_key_that_is_listed_twice(cache: Cache, origin: Origin) -> None:
    """Which of the two would be meant?"""
    put_model(origin, "m", {"a": b"1", "b": b"2"}, "index")
    put_index(origin, "m", [{"path": "a", "size": 1}, {"path": "a", "size": 1}, {"path": "b", "size": 1}])
    await cache.fail(web_spec(origin, "m"), OriginWrong, "lists a path twice", "")
    assert look(cache.root) == OnDisk()
    put_model(origin, "m", {"a": b"1", "b": b"2"}, "index")
    await cache.recover(web_spec(origin, "m"), {"a": b"1", "b": b"2"})


async def test_a_link_that_leaves_the_tree(cache: Cache, tmp_path: Path) -> None:
    """A directory source gives nothing from outside it; a link inside it is the file that it leads to."""
    tree, secret = tmp_path / "m", tmp_path / "secret"
    write_files(tree, {"a.bin": b"x" * 1000})
    secret.write_bytes(b"not yours")
    (tree / "leak").symlink_to(secret)
    says, hint = "leak is a link that leaves the tree", "copy the file, or name a directory that holds both"
    await cache.fail(directory_spec(tree), UnsafeContent, says, hint)
    assert look(cache.root) == OnDisk()
    (tree / "leak").unlink()
    (tree / "again").symlink_to("a.bin")
    got = await cache.recover(directory_spec(tree), {"a.bin": b"x" * 1000, "again": b"x" * 1000})
    assert tree_is_published(cache.root, got.digest)
