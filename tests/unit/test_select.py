"""Which files make a model: every refusal beside the case that is accepted."""

from __future__ import annotations

import json
from contextlib import nullcontext
from itertools import product

import pytest

from cacheagent.errors import IncompleteModel, PickleRefused, UnsafeContent
from cacheagent.model import Kind, RemoteFile
from cacheagent.select import check_complete, check_paths, index_files, select_files
from cacheagent.spec import ModelSpec, Policy, SourceSpec


def files(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path=path, size_bytes=1, identity={"key": path}) for path in paths]


def spec(
    *,
    kind: Kind = "checkpoint",
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    policy: Policy | None = None,
) -> ModelSpec:
    source = SourceSpec(uri="s3://b/m", include=include, exclude=exclude)
    return ModelSpec(name="m", source=source, kind=kind, policy=policy or Policy())


def chosen(paths: list[str], wanted: ModelSpec) -> list[str]:
    return [file.path for file in select_files(files(*paths), wanted)]


def index(**weights: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weights}).encode()


def test_files_come_out_sorted() -> None:
    """The manifest's order does not depend on the listing's."""
    assert chosen(["z.json", "m.safetensors", "a.json"], spec()) == ["a.json", "m.safetensors", "z.json"]


def test_patterns_match_as_on_the_hub() -> None:
    """A star crosses slashes, a trailing slash means everything below, exclude wins."""
    paths = ["m.safetensors", "original/m.pth", "original/deep/x.json", "onnx/model.onnx", "config.json"]
    assert chosen(paths, spec(exclude=("original/", "*.onnx"))) == ["config.json", "m.safetensors"]
    assert chosen(paths, spec(include=("*.safetensors", "original/*.json"))) == [
        "m.safetensors",
        "original/deep/x.json",
    ]


def test_pickle_is_left_out_where_safetensors_exist() -> None:
    """The same weights twice would cost twice the space, and the pickle runs code."""
    assert chosen(["m.safetensors", "pytorch_model.bin", "training_args.BIN"], spec()) == ["m.safetensors"]


def test_only_pickle_is_refused_unless_allowed() -> None:
    """The error names the suffixes and the setting; with the setting the files come."""
    with pytest.raises(PickleRefused, match=r"only pickle weights \(\.bin, \.pt\).*policy\.allow_pickle") as caught:
        chosen(["a.bin", "b.pt", "config.json"], spec())
    assert caught.value.exit_code == 4
    assert chosen(["a.bin", "config.json"], spec(policy=Policy(allow_pickle=True))) == ["a.bin", "config.json"]


def test_a_checkpoint_without_weights_is_refused_and_a_tree_is_not() -> None:
    """A prefix with a spelling mistake does not become an empty model."""
    with pytest.raises(IncompleteModel, match="no weights among its 1 files"):
        chosen(["config.json"], spec())
    assert chosen(["config.json", "1/model.pt"], spec(kind="tree")) == ["1/model.pt", "config.json"]


def test_patterns_that_leave_nothing_are_refused() -> None:
    """The sentence tells how many files there were."""
    with pytest.raises(IncompleteModel, match="none of its 2 files is wanted"):
        chosen(["m.safetensors", "config.json"], spec(include=("*.gguf",)))


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/etc/passwd", "absolute"),
        ("../up", "'..' component"),
        ("a/../../up", "'..' component"),
        ("a//b", "empty"),
        ("./a", "'.'"),
        ("a/", "empty"),
        ("", "empty"),
        ("a\0b", "control character"),
        ("a\nb", "control character"),
        ("x" * 256, "more than 255 bytes"),
        ("é" * 128, "more than 255 bytes"),
        ("/".join(["d" * 200] * 11), "longer than 2048"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_a_path_that_must_not_reach_a_disk_is_refused(path: str, complaint: str) -> None:
    """Traversal, control characters and names that no filesystem takes are refused before the first byte."""
    with pytest.raises(UnsafeContent, match=complaint):
        check_paths([path])


def test_strange_but_harmless_paths_are_accepted() -> None:
    """Spaces, Unicode, dots, the longest name, and names that differ only in case."""
    check_paths(["a b/ü.txt", "..a", "a..b/c...", "x" * 255, "Readme", "readme", "Dir/f", "dir", ".hidden"])


@pytest.mark.parametrize("paths", [["a", "a/b"], ["a/b/c", "a/b"], ["x/a/b", "x/a"]])
def test_a_file_that_is_also_a_directory_is_refused(paths: list[str]) -> None:
    """An object store allows both keys; a filesystem does not."""
    with pytest.raises(UnsafeContent, match="is a file and also a directory"):
        check_paths(paths)


def test_what_is_judged_at_a_glance_is_judged_as_by_its_parts() -> None:
    """Every path of up to six of the characters that mean something and two plain ones."""
    seen = {True: 0, False: 0}
    for length in range(1, 7):
        for path in map("".join, product("ab./\n", repeat=length)):
            allowed = "\n" not in path and not {"", ".", ".."}.intersection(path.split("/"))
            seen[allowed] += 1
            with nullcontext() if allowed else pytest.raises(UnsafeContent):
                check_paths([path])
    assert min(seen.values()) > 1000, seen


def test_a_path_listed_twice_is_refused() -> None:
    """Two objects for one file: nobody can say which is meant."""
    with pytest.raises(UnsafeContent, match="listed twice"):
        check_paths(["a", "b", "a"])


def test_every_shard_that_the_index_names_must_be_there() -> None:
    """Shards are looked for beside their index; a missing one is named."""
    there = files("sub/a.safetensors", "sub/b.safetensors", "sub/model.safetensors.index.json")
    assert [file.path for file in index_files(there, spec())] == ["sub/model.safetensors.index.json"]
    check_complete(there, {there[2].path: index(t1="a.safetensors", t2="b.safetensors", t3="a.safetensors")}, spec())
    with pytest.raises(IncompleteModel, match=r"promises 1 shard\(s\) that are not there: sub/c\.safetensors"):
        check_complete(there, {there[2].path: index(t1="a.safetensors", t2="c.safetensors")}, spec())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"not json", "has no weight_map"),
        (b'{"weight_map": 3}', "has no weight_map"),
        (b"[]", "has no weight_map"),
        (b'{"weight_map": {"t": {}}}', "has no weight_map"),
        (b'{"weight_map": {"t": 1}}', "not a plain file name"),
        (b'{"weight_map": {}}', "not a plain file name"),
        (b'{"weight_map": {"t": "../a.safetensors"}}', "not a plain file name"),
        (b'{"weight_map": {"t": "a.safetensors", "t": "b.safetensors"}}', "names a tensor or a field twice"),
        (b'{"weight_map": {"t": "a"}, "weight_map": {"t": "b"}}', "names a tensor or a field twice"),
        (b"[" * 100_000, "has no weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(text: bytes, complaint: str) -> None:
    """Malformed, empty, escaping or contradictory indexes never pass for complete ones."""
    there = files("a.safetensors", "b.safetensors")
    with pytest.raises(IncompleteModel, match=complaint):
        check_complete(there, {"model.safetensors.index.json": text}, spec())


def test_numbered_shards_are_complete_also_without_an_index() -> None:
    """`-00002-of-00003` promises three."""
    three = files(*(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)))
    check_complete(three, {}, spec())
    check_complete(three[1:], {}, spec(kind="tree"))
    with pytest.raises(IncompleteModel, match="model-00001-of-00003"):
        check_complete(three[1:], {}, spec())
    with pytest.raises(IncompleteModel, match="not there"):
        check_complete(files("m-00001-of-99999.safetensors"), {}, spec())
