"""A tenant who may write to a mounted tree puts links in place of what was judged, while it is being read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cacheagent.errors import SourceChanged
from cacheagent.location import PathLocation
from cacheagent.model import PIECE_SIZE_BYTES, Checksum, RemoteFile
from cacheagent.nolinks import opened_plainly
from cacheagent.progress import PieceOrigin
from cacheagent.source import posix
from cacheagent.source.posix import PosixSource
from cacheagent.spec import SourceSpec
from cacheagent.transfer.pool import TransferConfig, WorkerPool
from tests.fakes.transfer import Blob, CountingObserver, random_bytes

pytestmark = pytest.mark.asyncio
DATA = random_bytes(5 * PIECE_SIZE_BYTES + 4_567, seed=2)
SECRET = random_bytes(len(DATA), seed=3)
SHA256 = Checksum(algorithm="sha256", value=hashlib.sha256(DATA).hexdigest())
ONE_BY_ONE = TransferConfig(workers=1, connections=1, give_up_after_s=60.0, tick_s=0.1)


class Scene:
    """`export/team/model/sub/a.bin`, which the tenant may write to, and the node's own file of the same name, size and
    time outside of the export."""

    def __init__(self, top: Path) -> None:
        self.shared = top / "export/team/model/sub"
        self.private = top / "node/sub"
        for directory, data in ((self.shared, DATA), (self.private, SECRET)):
            directory.mkdir(parents=True)
            (directory / "a.bin").write_bytes(data)
            os.utime(directory / "a.bin", ns=(10**18, 10**18))
        spec = SourceSpec(uri=f"file://{top}/export/team/model", roots=(f"{top}/export",))
        self.source = PosixSource(spec, mounts={})

    def swap(self) -> None:
        """The attack: at once, as renameat2(RENAME_EXCHANGE) would do it."""
        os.rename(self.shared, self.shared.with_name("old"))
        self.shared.symlink_to(self.private)

    def swap_back(self) -> None:
        self.shared.unlink()
        os.rename(self.shared.with_name("old"), self.shared)

    async def located(self) -> PathLocation:
        listing = await self.source.list()
        (location,) = await self.source.locate(listing.files)
        assert isinstance(location, PathLocation)
        return location


class Attacked(Blob):
    """A file whose first piece is the signal."""

    attacks: Sequence[Callable[[], None]] = ()

    def on_piece(self, index: int, digest: str, length: int, origin: PieceOrigin) -> None:
        super().on_piece(index, digest, length, origin)
        attacks, self.attacks = self.attacks, ()
        for attack in attacks:
            attack()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def leaked(target: Path) -> list[int]:
    """Pages of the node's own file that came along."""
    content = target.read_bytes()
    starts = range(0, len(SECRET), 4096)
    return [start for start in starts if content[start : start + 4096] == SECRET[start : start + 4096]]


@pytest.mark.parametrize("checksums", [(), (SHA256,)], ids=["pieces", "stream"])
async def test_a_directory_that_becomes_a_link_in_mid_pull_leads_nowhere(
    scene: Scene, tmp_path: Path, checksums: tuple[Checksum, ...]
) -> None:
    """Nothing of the other file arrives. Controls: without the attack all of it comes; the other file would have been
    taken for this one."""
    location = await scene.located()
    blob = Attacked(DATA, tmp_path / "target", location, checksums=checksums)
    blob.attacks = [scene.swap]
    async with WorkerPool(ONE_BY_ONE, observer=CountingObserver()) as pool:
        with pytest.raises(SourceChanged, match="a symbolic link stands where a file or a directory was"):
            await blob.fetch(pool)
        assert not blob.attacks
        assert leaked(tmp_path / "target") == []
        blob.require_reported_is_true()

        there = PathLocation(
            path=str(scene.private / "a.bin"), size_bytes=location.size_bytes, mtime_ns=location.mtime_ns
        )
        other = Blob(SECRET, tmp_path / "other", there)
        await other.fetch(pool)
        assert leaked(tmp_path / "other")[:2] == [0, 4096]

        scene.swap_back()
        again = Blob(DATA, tmp_path / "again", await scene.located(), checksums=checksums)
        await again.fetch(pool)
        again.require_whole()


async def test_links_that_stay_inside_are_pulled(scene: Scene, tmp_path: Path) -> None:
    """Of the kinds that trees really have: relative ones and absolute ones, to files and to directories."""
    model = scene.shared.parent
    (model / "relative.bin").symlink_to("sub/a.bin")
    (model / "absolute").symlink_to(scene.shared)
    files = (await scene.source.list()).files
    assert [file.path for file in files] == ["absolute/a.bin", "relative.bin", "sub/a.bin"]
    locations = await scene.source.locate(files)
    async with WorkerPool(ONE_BY_ONE, observer=CountingObserver()) as pool:
        for number, location in enumerate(locations[:2]):
            blob = Blob(DATA, tmp_path / f"target-{number}", location)
            await blob.fetch(pool)
            blob.require_whole()


async def test_a_listing_follows_no_link_either(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of what lies elsewhere are nobody's business; without the link the tree is listed."""
    (file,) = (await scene.source.list()).files

    def swap_first(path: str, flags: int) -> AbstractContextManager[int]:
        if path == str(scene.shared):
            scene.swap()
        return opened_plainly(path, flags)

    with monkeypatch.context() as patch:
        patch.setattr("cacheagent.source.posix.opened_plainly", swap_first)
        with pytest.raises(SourceChanged, match="a symbolic link stands where"):
            await scene.source.list()
    scene.swap_back()
    assert (await scene.source.list()).files == (file,)


async def test_a_small_file_is_read_through_no_link(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link comes after the path was judged and before the file is opened; without it the file is served."""
    (file,) = (await scene.source.list()).files
    real = posix._Tree._locate_one

    def swap_after(tree: posix._Tree, real_root: str, file: RemoteFile) -> PathLocation:
        location = real(tree, real_root, file)
        scene.swap()
        return location

    with monkeypatch.context() as patch:
        patch.setattr(posix._Tree, "_locate_one", swap_after)
        with pytest.raises(SourceChanged, match="a symbolic link stands where"):
            await scene.source.read(file, len(DATA))
    scene.swap_back()
    assert await scene.source.read(file, len(DATA)) == DATA
