"""Which of a source's files make the model, and whether they are all there. Pure rules that raise.

Patterns are shell patterns on the whole path, as `huggingface_hub` uses them: `*` also matches `/`, and `dir/` means
all below.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any, Final

from cacheagent.errors import IncompleteModel, PickleRefused, UnsafeContent
from cacheagent.model import RemoteFile
from cacheagent.spec import ModelSpec

PICKLE_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
SAFE_WEIGHT_SUFFIXES: Final = frozenset({".safetensors", ".gguf"})
INDEX_SUFFIX: Final = ".safetensors.index.json"
MAX_NAME_BYTES: Final = 255
"""Linux NAME_MAX."""
MAX_PATH_BYTES: Final = 2048
"""Half of Linux PATH_MAX: the cache's own prefix has to fit too. Chosen."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_NUMBERED_SHARD: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


def select_files(files: Sequence[RemoteFile], spec: ModelSpec) -> tuple[RemoteFile, ...]:
    """The files of the model, sorted by path. Raises UnsafeContent, PickleRefused, IncompleteModel."""
    source = spec.source
    chosen = [file for file in files if _wanted(file.path, source.include, source.exclude)]
    if not chosen:
        raise IncompleteModel(
            f"{source.uri}: none of its {len(files)} files is wanted",
            hint="look at the URI and the include and exclude patterns",
        )
    if spec.kind == "checkpoint":
        chosen = _without_pickle(chosen, spec)
    check_paths(file.path for file in chosen)
    return tuple(sorted(chosen, key=lambda file: file.path))


def check_paths(paths: Iterable[str]) -> None:
    """Raise UnsafeContent for a path that must not reach a disk: absolute, `..`, control characters, over-long, twice,
    or one that is a file here and a directory there."""
    names: set[str] = set()
    directories = {""}
    for path in paths:
        _check_path(path)
        if path in names:
            raise _unsafe(path, "is listed twice")
        names.add(path)
        parent = path.rpartition("/")[0]
        while parent not in directories:
            directories.add(parent)
            parent = parent.rpartition("/")[0]
    for clash in sorted(names & directories):
        raise _unsafe(clash, "is a file and also a directory of other files")


def index_files(files: Sequence[RemoteFile], spec: ModelSpec) -> list[RemoteFile]:
    """The shard indexes whose contents `check_complete` wants to see."""
    return [file for file in files if spec.kind == "checkpoint" and file.path.endswith(INDEX_SUFFIX)]


def check_complete(files: Sequence[RemoteFile], indexes: Mapping[str, bytes], spec: ModelSpec) -> None:
    """Raise IncompleteModel unless every shard that an index, or a numbered name, promises is among the files."""
    if spec.kind != "checkpoint":
        return
    present = {file.path for file in files}
    for index_path, text in indexes.items():
        _report_missing(index_path, _shards_of(index_path, text) - present)
    for file in files:
        if match := _NUMBERED_SHARD.fullmatch(file.path):
            count = int(match["count"])
            # A name may promise 99,999 shards: one more than there are files is enough to see that some are missing.
            numbers = range(1, min(count, len(files) + 1) + 1)
            promised = {f"{match['stem']}-{number:05d}-of-{count:05d}.safetensors" for number in numbers}
            _report_missing(file.path, promised - present)


def _wanted(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    return (not include or _matches(path, include)) and not _matches(path, exclude)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern) for pattern in patterns)


def _without_pickle(files: list[RemoteFile], spec: ModelSpec) -> list[RemoteFile]:
    suffixes = {PurePosixPath(file.path).suffix.lower() for file in files}
    has_safe, has_pickle = bool(suffixes & SAFE_WEIGHT_SUFFIXES), bool(suffixes & PICKLE_SUFFIXES)
    if has_safe:
        return [file for file in files if PurePosixPath(file.path).suffix.lower() not in PICKLE_SUFFIXES]
    if has_pickle and not spec.policy.allow_pickle:
        raise PickleRefused(
            f"{spec.source.uri}: has only pickle weights ({', '.join(sorted(suffixes & PICKLE_SUFFIXES))}), "
            "which run code when loaded",
            hint="convert them to safetensors, or set policy.allow_pickle for this model",
        )
    if not has_pickle:
        raise IncompleteModel(
            f"{spec.source.uri}: no weights among its {len(files)} files (no .safetensors)",
            hint="look at the URI and the patterns; for other kinds of files use kind: tree",
        )
    return files


def _is_plain(path: str) -> bool:
    """Short and printable ASCII, and no dot or slash where one could mean something: so are nearly all, and a data set
    of 20,000 files is looked at twice."""
    return (
        0 < len(path) <= MAX_NAME_BYTES
        and path.isascii()
        and path.isprintable()
        and path[0] not in "/."
        and path[-1] != "/"
        and "//" not in path
        and "/." not in path
    )


def _check_path(path: str) -> None:
    if _is_plain(path):
        return
    parts = path.split("/")
    if path.startswith("/"):
        raise _unsafe(path, "is absolute")
    if any(part in ("", ".", "..") for part in parts):
        raise _unsafe(path, "has an empty, '.' or '..' component")
    if _CONTROL.search(path):
        raise _unsafe(path, "has a control character")
    try:
        encoded = [part.encode() for part in parts]
    except UnicodeEncodeError:
        raise _unsafe(path, "is not valid Unicode") from None
    if any(len(part) > MAX_NAME_BYTES for part in encoded):
        raise _unsafe(path, f"has a component of more than {MAX_NAME_BYTES} bytes")
    if sum(map(len, encoded)) + len(encoded) > MAX_PATH_BYTES:
        raise _unsafe(path, f"is longer than {MAX_PATH_BYTES} bytes")


def _shards_of(index_path: str, text: bytes) -> set[str]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise _bad_index(index_path, "names a tensor or a field twice")
        return dict(pairs)

    try:
        weight_map = json.loads(text, object_pairs_hook=unique)["weight_map"]
        shards = set(weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad_index(index_path, "has no weight_map of tensor names to shard names") from error
    if not shards or not all(isinstance(shard, str) and shard and "/" not in shard for shard in shards):
        raise _bad_index(index_path, "names a shard that is not a plain file name")
    directory = index_path.rpartition("/")[0]
    return {f"{directory}/{shard}" if directory else shard for shard in shards}


def _report_missing(named_by: str, missing: set[str]) -> None:
    if missing:
        some = ", ".join(sorted(missing)[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise IncompleteModel(
            f"{named_by} promises {len(missing)} shard(s) that are not there: {some}",
            hint="the upload is unfinished, or a pattern leaves them out",
        )


def _bad_index(path: str, what: str) -> IncompleteModel:
    return IncompleteModel(f"{path}: {what}", hint="the index is damaged; ask whoever published the model")


def _unsafe(path: str, what: str) -> UnsafeContent:
    return UnsafeContent(
        f"path {path[:200]!r} {what}", hint="leave it out with an exclude pattern, or rename it at the source"
    )
