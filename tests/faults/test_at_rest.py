"""Bytes that rot on disk, layouts of another release, clocks that are set back, and two owners of one directory."""

from __future__ import annotations

import asyncio
import mmap
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from cacheagent.errors import CorruptModel, StoreBusy, UnknownLayout
from cacheagent.flights import Flights
from cacheagent.model import MIB, PIECE_SIZE_BYTES
from cacheagent.node import Node
from cacheagent.refetch import Refetch
from cacheagent.scrub import Scrub, ScrubPolicy
from cacheagent.source import open_source
from cacheagent.spec import ModelSpec
from cacheagent.store import Store, StorePolicy
from cacheagent.transfer.pool import WorkerPool
from tests.fakes.models import write_files
from tests.fakes.origin import Origin
from tests.fakes.transfer import until
from tests.faults.scene import (
    QUICK,
    SHARD,
    Cache,
    OnDisk,
    assert_published,
    directory_spec,
    ensure,
    look,
    put_model,
    small_tree,
    tree_of,
    web_spec,
)

FILES, NEW = small_tree(1), small_tree(2)
SIZE = len(FILES[SHARD])
PATIENCE_S = 60.0
YEAR_S = 365 * 86400.0

pytestmark = pytest.mark.asyncio


def rot(path: Path, at: int) -> None:
    """A bit flips under everybody's feet: same inode, same mode, same time."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """As an engine reads weights: a mapping that stays open."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        yield mapping


def scrub_of(cache: Cache, node: Node, spec: ModelSpec) -> Scrub:
    """As the agent puts it together, with everything due."""
    transport = node.transport
    refetch = Refetch(cache.root, node.store, transport.fetch_piece, open_source, lambda: iter([spec.source]))
    return Scrub(node.store, transport, refetch, ScrubPolicy(period_s=1e-6, busy_fraction=1.0))


@pytest.fixture(params=["web", "directory"])
def rotting(request: pytest.FixtureRequest, cache: Cache, origin: Origin, tmp_path: Path) -> ModelSpec:
    """A model behind each kind of source whose pieces can be fetched alone."""
    if request.param == "web":
        put_model(origin, "m", FILES)
        return web_spec(origin, "m")
    write_files(tmp_path / "source", FILES)
    return directory_spec(tmp_path / "source")


@pytest.mark.parametrize(
    ("path", "at"),
    [(SHARD, 0), (SHARD, PIECE_SIZE_BYTES + 4097), (SHARD, SIZE - 1), ("config.json", 5)],
    ids=["first byte", "second piece", "last byte", "small file"],
)
async def test_a_rotten_byte_is_found_and_restored(cache: Cache, rotting: ModelSpec, path: str, at: int) -> None:
    """`verify` names the piece; the scrub restores it in the same inode, and whoever has it mapped sees it whole."""
    async with cache.node() as node:
        record = await ensure(node, rotting)
        digest = record.digest
        tree = cache.root / "models" / digest.replace(":", "-", 1) / "files"
        scrub = scrub_of(cache, node, rotting)
        await scrub.scrub_due()
        assert scrub.counts.pieces_wrong == 0, "the control: nothing is wrong yet"
        with mapped(tree / path) as reader:
            rot(tree / path, at)
            assert reader[:] != FILES[path]
            piece = at // PIECE_SIZE_BYTES
            with pytest.raises(CorruptModel, match=rf"1 piece\(s\) on disk differ.*{path} piece {piece}") as caught:
                await node.flights.verify(digest)
            assert "the agent's scrub fetches them again" in caught.value.hint
            await scrub.scrub_due()
            assert reader[:] == FILES[path]
        assert (scrub.counts.pieces_wrong, scrub.counts.pieces_repaired, scrub.counts.blobs_lost) == (1, 1, 0)
        await node.flights.verify(digest)
        node.store.lease("volume", digest)
    assert_published(cache.root, {digest: FILES})


async def test_a_rotten_byte_while_the_origin_is_gone(cache: Cache, origin: Origin) -> None:
    """The version takes no new volumes, those that have it keep it, and it is repaired when the origin is back."""
    put_model(origin, "m", FILES)
    spec = web_spec(origin, "m")
    async with cache.node(give_up_after_s=1.0) as node:
        digest = (await ensure(node, spec)).digest
        node.store.lease("running", digest)
        scrub = scrub_of(cache, node, spec)
        rot(cache.root / "models" / digest.replace(":", "-", 1) / "files" / SHARD, 7)
        with origin.gone():
            await scrub.scrub_due()
        with pytest.raises(CorruptModel, match="m takes no new volumes: 1 of its pieces on this disk went bad"):
            node.store.lease("new", digest)
        assert node.store.lease("running", digest).is_dir()
        await scrub.scrub_due()
        node.store.lease("new", digest)
    assert_published(cache.root, {digest: FILES})


async def test_a_rotten_byte_that_nobody_can_restore(cache: Cache, origin: Origin) -> None:
    """The origin has another object now: the version goes, a copy of the bad file stays, and the new version comes."""
    put_model(origin, "m", FILES)
    spec = web_spec(origin, "m")
    async with cache.node() as node:
        digest = (await ensure(node, spec)).digest
        rot(cache.root / "models" / digest.replace(":", "-", 1) / "files" / SHARD, 7)
        put_model(origin, "m", NEW)
        scrub = scrub_of(cache, node, spec)
        await scrub.scrub_due()
        assert scrub.counts.blobs_lost == 1
        assert look(cache.root) == OnDisk(quarantine=1)
        (kept,) = (cache.root / "quarantine").iterdir()
        assert kept.read_bytes() == bytes([*FILES[SHARD][:7], FILES[SHARD][7] ^ 1]) + FILES[SHARD][8:]
        record = await ensure(node, spec)
    assert tree_of(cache.root, record.digest) == NEW


@pytest.mark.parametrize("content", ["cacheagent layout 2\n", "", "something else\n"])
async def test_an_unknown_layout_is_refused_and_untouched(cache: Cache, origin: Origin, content: str) -> None:
    """By the engine and by the commands; with the right release everything is there as before."""
    put_model(origin, "m", FILES)
    digest = (await cache.pull(web_spec(origin, "m"))).digest
    version = cache.root / "VERSION"
    right = version.read_text()
    version.write_text(content)
    before = everything_in(cache.root)
    says = rf"VERSION says '{content.strip()}', expected '{right.strip()}'; nothing was touched"
    with pytest.raises(UnknownLayout, match=says) as caught:
        async with cache.node():
            pass
    assert "use the release of cacheagent that wrote it" in caught.value.hint
    for command in (["ls"], ["pull", f"{origin.url}/m/", "--kind", "tree"]):
        ended = await run_cli(cache.root, *command)
        assert ended.returncode == 1
        assert "nothing was touched" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert everything_in(cache.root) == before
    version.write_text(right)
    await cache.recover(web_spec(origin, "m"), FILES)
    assert_published(cache.root, {digest: FILES})


async def test_a_clock_that_is_set_back(small_disk: Path, origin: Origin) -> None:
    """Who was used last is still known, so the right one is evicted; what is published is found, and new ones come."""
    names = ("one", "two", "three")
    files = {name: {"a.bin": small_tree(seed)[SHARD]} for seed, name in enumerate(names)}
    for name in names:
        put_model(origin, name, files[name])
    one, two, three = (web_spec(origin, name) for name in names)
    root, now = small_disk / "cache", time.time()
    async with opened(root, now) as flights:
        await flights.ensure(one)
        await flights.ensure(two)
    async with opened(root, now - 10 * YEAR_S) as flights:
        first = await flights.ensure(one)  # a hit, used after `two`, ten years before it
        assert flights.find(two) is not None
        third = await flights.ensure(three)  # does not fit beside both
        assert flights.find(two) is None
    assert_published(root, {first.digest: files["one"], third.digest: files["three"]})
    async with opened(root, now - 20 * YEAR_S) as flights:
        await flights.ensure(one)
        second = await flights.ensure(two)
        assert flights.find(three) is None
    assert_published(root, {first.digest: files["one"], second.digest: files["two"]})


async def test_two_owners_of_one_directory(cache: Cache, origin: Origin) -> None:
    """The second is told who the first is and disturbs nothing, not even a pull that is under way."""
    put_model(origin, "m", FILES)
    origin.pace.bytes_per_s = 20e6
    async with cache.node() as node:
        node.flights.start(web_spec(origin, "m"))
        await until(lambda: origin.body_bytes_sent(f"m/{SHARD}") > MIB, "the first bytes")
        with pytest.raises(StoreBusy, match=rf"{cache.root} is in use by process {os.getpid()}") as caught:
            async with cache.node():
                pass
        assert caught.value.hint == "one agent owns a cache directory; stop that one, or choose another directory"
        ended = await run_cli(cache.root, "pull", f"{origin.url}/m/", "--kind", "tree")
        assert ended.returncode == 1
        assert f"{cache.root} is in use by process {os.getpid()}" in ended.stderr
        assert "  next: one agent owns a cache directory" in ended.stderr
        assert "Traceback" not in ended.stderr
        record = await ensure(node, web_spec(origin, "m"))
        assert node.flights.job(web_spec(origin, "m")) is not None
    origin.wait_until_idle()
    assert origin.body_bytes_sent(f"m/{SHARD}") == SIZE
    assert_published(cache.root, {record.digest: FILES})
    origin.pace.bytes_per_s = None
    ended = await run_cli(cache.root, "pull", f"{origin.url}/m/", "--kind", "tree")
    assert ended.returncode == 0, ended.stderr
    assert_published(cache.root, {record.digest: FILES})


@asynccontextmanager
async def opened(root: Path, now: float) -> AsyncIterator[Flights]:
    """A node whose clock stands at `now`."""
    store = Store.open(root, StorePolicy(floor_bytes=4 * MIB, boot_grace_s=0), now=lambda: now)
    try:
        async with WorkerPool(QUICK) as pool:
            flights = Flights(store, pool, open_source, on_event=lambda _: None)
            try:
                yield flights
            finally:
                await flights.close()
    finally:
        store.close()


async def run_cli(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`cacheagent …` on this directory."""
    command = [sys.executable, "-m", "cacheagent", *arguments, "--root", str(root)]
    environment = {**os.environ, "HOME": str(root.parent)}
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, env=environment
    )


def everything_in(root: Path) -> dict[str, tuple[int, int, int, int]]:
    """Inode, mode, size and time of everything, by path."""
    found = {}
    for path in sorted([root, *root.rglob("*")]):
        facts = path.lstat()
        found[str(path)] = (facts.st_ino, facts.st_mode, facts.st_size, facts.st_mtime_ns)
    return found
