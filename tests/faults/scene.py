"""The stage on which faults are played: a real node on a cache directory, models behind a web server, its disk."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import pytest
from blake3 import blake3

from cacheagent.errors import CacheAgentError
from cacheagent.model import MIB, PIECE_SIZE_BYTES, piece_range
from cacheagent.node import Node, open_node
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec, SourceSpec
from cacheagent.store import Record, StorePolicy
from cacheagent.transfer.pool import TransferConfig
from tests.fakes.origin import Origin
from tests.fakes.transfer import CountingObserver, random_bytes

E = TypeVar("E", bound=CacheAgentError)

Listing = Literal["sums", "index"]
"""How a web server names its files: with SHA-256 (a serial hash, so one stream a file), or sizes only (piece by piece,
pinned by ETags)."""

POLICY = StorePolicy(floor_bytes=64 * MIB, boot_grace_s=0)
"""For small disks, and machines that booted a moment ago."""

QUICK = TransferConfig(
    workers=1,
    connections=3,
    idle_timeout_s=1.0,
    give_up_after_s=4.0,
    backoff_base_s=0.05,
    backoff_cap_s=0.3,
    answer_limit_s=1.0,
    tick_s=0.1,
)
"""The waits of a day in seconds."""

SHARD_BYTES = 2 * PIECE_SIZE_BYTES + 3 * MIB + 17
"""Three pieces, the last one short and not a whole number of pages."""
SHARD = "weights/shard.bin"
SMALL = {"config.json": b'{"layers": 2}', "empty.txt": b""}


def small_tree(seed: int = 1) -> dict[str, bytes]:
    """One file of three pieces and two small ones."""
    return {SHARD: random_bytes(SHARD_BYTES, seed), **SMALL}


def put_model(origin: Origin, name: str, files: Mapping[str, bytes], listing: Listing = "sums") -> None:
    """Files below `name/`, and their list."""
    for path, content in files.items():
        origin.put(f"{name}/{path}", content)
    put_listing(origin, name, files, listing)


def put_listing(origin: Origin, name: str, files: Mapping[str, bytes], listing: Listing) -> None:
    """The list alone, of what these files should be."""
    if listing == "sums":
        origin.add_sums(name, paths=files)
    else:
        put_index(origin, name, [{"path": path, "size": len(content)} for path, content in files.items()])


def put_index(origin: Origin, name: str, entries: list[dict[str, Any]]) -> None:
    """An `index.json` that says what it is told to."""
    origin.put(f"{name}/index.json", json.dumps({"files": entries}).encode())


def web_spec(origin: Origin, name: str, *, kind: Literal["tree", "checkpoint"] = "tree", **more: Any) -> ModelSpec:
    """A model behind the server."""
    return ModelSpec(name=name, kind=kind, source=SourceSpec(uri=f"{origin.url}/{name}/"), **more)


def directory_spec(directory: Path, name: str = "m") -> ModelSpec:
    """A model on a mounted file system."""
    return ModelSpec(name=name, kind="tree", source=SourceSpec(uri=f"file://{directory}"))


@dataclass(frozen=True)
class OnDisk:
    """What a cache directory holds, in words of sizes: `staged` maps the size of each partial blob to its journal's
    pieces, `small` holds the sizes of small files on their way. Versions and blobs by name; everything that is empty
    where nothing was published is listed, so that `OnDisk()` is a cache as new.
    """

    models: frozenset[str] = frozenset()
    records: frozenset[str] = frozenset()
    resolved: int = 0
    blobs: tuple[int, ...] = ()
    staged: Mapping[int, frozenset[int]] = field(default_factory=dict)
    small: tuple[int, ...] = ()
    trees: int = 0
    trash: int = 0
    quarantine: int = 0
    scratch: int = 0


def look(root: Path) -> OnDisk:
    """Read past the store: what is really there."""
    staged = [path for path in (root / "staging").iterdir() if path.name not in {"small", "trees"}]
    return OnDisk(
        models=_names(root / "models"),
        records=frozenset(name.removesuffix(".json") for name in _names(root / "records")),
        resolved=len(_names(root / "resolved")),
        blobs=_sizes(path for path in (root / "blobs").iterdir()),
        staged={_size(path / "data"): frozenset(claims(path)) for path in staged},
        small=_sizes(path for path in (root / "staging/small").iterdir() if path.name != "journal"),
        trees=len(_names(root / "staging/trees")),
        trash=len(_names(root / "trash")),
        quarantine=len(_names(root / "quarantine")),
        scratch=len(list((root / "staging").glob("*/data.*"))),
    )


def _size(path: Path) -> int:
    """-1 without the file: a process that dies in a publish may have moved the bytes away from beside their journal."""
    return path.stat().st_size if path.exists() else -1


def claims(staged: Path) -> dict[int, str]:
    """Piece to BLAKE3, as the journal of one partial blob says."""
    journal = staged / "journal"
    lines = journal.read_text().splitlines()[1:] if journal.exists() else []
    return {int(index): name for index, _, name in (line.partition(" ") for line in lines if line)}


def assert_claims_are_true(root: Path, *contents: bytes) -> None:
    """Every journalled piece is on disk, and all pieces of a blob are of one and the same content among these."""
    for staged in (root / "staging").glob("*/data"):
        data = staged.read_bytes()
        pieces = claims(staged.parent)
        assert any(
            len(data) == len(content) and all(_is_piece(data, content, *claim) for claim in pieces.items())
            for content in contents
        ), f"{staged} claims {sorted(pieces)} and holds something else"


def _is_piece(data: bytes, content: bytes, index: int, name: str) -> bool:
    offset, length = piece_range(len(content), index)
    wanted = content[offset : offset + length]
    return data[offset : offset + length] == wanted and blake3(wanted).hexdigest() == name


def tree_of(root: Path, digest: str) -> dict[str, bytes]:
    """A published version's files by path."""
    files = root / "models" / digest.replace(":", "-", 1) / "files"
    return {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()}


def assert_published(root: Path, records: Mapping[str, Mapping[str, bytes]]) -> None:
    """Exactly these versions (digest to files) are published, byte by byte, sealed, and nothing else is left over."""
    names = frozenset(digest.replace(":", "-", 1) for digest in records)
    found = look(root)
    assert (found.models, found.records) == (names, names)
    assert (found.trees, found.trash, found.quarantine, found.scratch) == (0, 0, 0, 0)
    for digest, files in records.items():
        assert tree_of(root, digest) == files
    sealed = [path for name in ("models", "blobs") for path in (root / name).rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in sealed} <= {"0o444"}


class SentSince:
    """What an origin sends from now on: connections that were left in the middle of an answer may take a minute to end,
    and count no more."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._first = len(origin.requests)

    def bytes_of(self, path: str) -> int:
        """Of the bodies of one file, when all of them have ended."""
        asked = [each for each in self._origin.requests[self._first :] if each.path == f"/{path}"]
        self._origin.wait_until(lambda: all(each.finished for each in asked))
        return sum(each.body_bytes_sent for each in asked)


class Cache:
    """A cache directory. Each `pull` opens a node of its own on it, as a restarted agent would; `node` keeps one."""

    def __init__(self, root: Path, *, policy: StorePolicy = POLICY, transfer: TransferConfig = QUICK) -> None:
        self.root = root
        self.policy = policy
        self.transfer = transfer
        self.observer = CountingObserver()
        self.last: JobStatus | None = None
        self.on_event: Callable[[JobStatus], None] = lambda _: None

    def node(self, **transfer: Any) -> Any:
        """An open node; keywords change the transfer's settings."""
        config = msgspec.structs.replace(self.transfer, **transfer)
        return open_node(
            self.root, store_policy=self.policy, transfer=config, on_event=self._tell, observer=self.observer
        )

    async def pull(self, spec: ModelSpec, **transfer: Any) -> Record:
        """Ask the origin what the model is now, and bring it."""
        async with self.node(**transfer) as node:
            return await ensure(node, spec)

    async def fail(self, spec: ModelSpec, error: type[E], says: str, next_step: str, **transfer: Any) -> E:
        """The pull fails with exactly this error: `says` and `next_step` are patterns of message and hint."""
        async with self.node(**transfer) as node:
            return await ensure_fails(node, spec, error, says, next_step)

    async def recover(self, spec: ModelSpec, files: Mapping[str, bytes], **transfer: Any) -> JobStatus:
        """The next try succeeds with equal bytes and leaves nothing else behind; returns how it went."""
        record = await self.pull(spec, **transfer)
        assert tree_of(self.root, record.digest) == files
        assert record.digest.replace(":", "-", 1) in look(self.root).models
        assert self.last is not None
        assert self.last.phase == "ready"
        return self.last

    def _tell(self, status: JobStatus) -> None:
        self.last = status
        self.on_event(status)


async def ensure(node: Node, spec: ModelSpec) -> Record:
    """Generous: nothing here takes longer unless it hangs."""
    async with asyncio.timeout(120):
        return await node.flights.ensure(spec, refresh=True)


async def ensure_fails(node: Node, spec: ModelSpec, error: type[E], says: str, next_step: str) -> E:
    """See `Cache.fail`; what a person reads in the job's status is the same."""
    with pytest.raises(error, match=says) as caught:
        await ensure(node, spec)
    assert type(caught.value) is error
    assert re.search(next_step, caught.value.hint), caught.value.hint
    job = node.flights.job(spec)
    assert job is not None
    assert (job.phase, job.error) == ("failed", error.code)
    assert (job.message, job.hint) == (caught.value.message, caught.value.hint)
    return caught.value


def _names(directory: Path) -> frozenset[str]:
    return frozenset(path.name for path in directory.iterdir())


def _sizes(paths: Iterator[Path] | Collection[Path]) -> tuple[int, ...]:
    return tuple(sorted(path.stat().st_size for path in paths))
