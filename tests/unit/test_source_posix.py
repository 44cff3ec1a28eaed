"""Trees on a mount: links, odd files, changes, mounts that hang."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheagent.errors import (
    ConfigError,
    OriginForbidden,
    OriginNotFound,
    OriginUnavailable,
    OriginWrong,
    PolicyRefused,
    SourceChanged,
    UnsafeContent,
    UsageError,
)
from cacheagent.location import PathLocation
from cacheagent.source import posix
from cacheagent.source.posix import PosixSource, parse_mounts
from cacheagent.spec import SourceSpec


def source_of(root: Path, *, stall_limit_s: float = 60.0) -> PosixSource:
    return PosixSource(SourceSpec(uri=f"file://{root}"), mounts={}, stall_limit_s=stall_limit_s)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "a.bin").write_bytes(b"aaaa")
    (root / "sub" / "b.bin").write_bytes(b"bb")
    return root


@pytest.mark.asyncio
async def test_links_that_stay_inside_are_followed(tree: Path) -> None:
    """A link to a file, or to a directory, reads as what it points to; locations are real paths."""
    (tree / "link.bin").symlink_to("sub/b.bin")
    (tree / "linked").symlink_to("sub")
    source = source_of(tree)
    files = (await source.list()).files
    assert [file.path for file in files] == ["a.bin", "link.bin", "linked/b.bin", "sub/b.bin"]
    located = await source.locate(files)
    assert {location.path for location in located[1:] if isinstance(location, PathLocation)} == {
        str(tree / "sub/b.bin")
    }


@pytest.mark.asyncio
async def test_links_and_files_that_are_refused(tree: Path) -> None:
    """Outside, in a circle, dangling, a fifo: each is named; without it the tree is listed."""
    outside = tree.parent / "secret"
    outside.write_text("s")
    for target, message in (
        (str(outside), "bad is a link that leaves the tree"),
        ("../secret", "bad is a link that leaves the tree"),
        (str(tree), "bad is a link to a directory that it is in"),
        ("bad", "in a circle"),
    ):
        (tree / "bad").symlink_to(target)
        with pytest.raises(UnsafeContent, match=message):
            await source_of(tree).list()
        (tree / "bad").unlink()
    (tree / "bad").symlink_to("nothing")
    with pytest.raises(OriginNotFound, match="does not exist"):
        await source_of(tree).list()
    (tree / "bad").unlink()
    os.mkfifo(tree / "bad")
    with pytest.raises(UnsafeContent, match="bad is neither a file nor a directory"):
        await source_of(tree).list()
    (tree / "bad").unlink()
    assert len((await source_of(tree).list()).files) == 2


@pytest.mark.asyncio
async def test_a_file_that_becomes_a_link_outside_is_not_followed(tree: Path) -> None:
    """What was listed as a file and now leads out is refused when it is located or read."""
    source = source_of(tree)
    file = (await source.list()).files[0]
    (tree.parent / "secret").write_bytes(b"ssss")
    (tree / "a.bin").unlink()
    (tree / "a.bin").symlink_to(tree.parent / "secret")
    with pytest.raises(UnsafeContent, match="leaves the tree"):
        await source.locate([file])
    with pytest.raises(UnsafeContent, match="leaves the tree"):
        await source.read(file, 100)


@pytest.mark.asyncio
@pytest.mark.parametrize("change", ["mtime", "size", "kind"])
async def test_a_file_that_changed_is_noticed(tree: Path, change: str) -> None:
    """Another mtime, another size, a directory in its place: SourceChanged from describe, locate and read."""
    source = source_of(tree)
    file = (await source.list()).files[0]
    assert await source.describe([file]) == (file,)
    status = (tree / "a.bin").stat()
    if change == "mtime":
        os.utime(tree / "a.bin", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "size":
        (tree / "a.bin").write_bytes(b"aaaaa")
        os.utime(tree / "a.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        (tree / "a.bin").unlink()
        (tree / "a.bin").mkdir()
    for call in (lambda: source.describe([file]), lambda: source.locate([file]), lambda: source.read(file, 100)):
        with pytest.raises(SourceChanged, match=r"a\.bin is no longer the file that was listed \(4 bytes\)"):
            await call()


@pytest.mark.asyncio
async def test_a_file_that_is_gone_is_not_found(tree: Path) -> None:
    """Listed, then removed."""
    source = source_of(tree)
    file = (await source.list()).files[0]
    (tree / "a.bin").unlink()
    with pytest.raises(OriginNotFound, match=r"a\.bin does not exist"):
        await source.locate([file])


@pytest.mark.asyncio
async def test_a_checksum_list_in_the_root_is_used(tree: Path) -> None:
    """Its sums become checksums of the files it names; the list is a file like the others; a broken one is an error."""
    sha = hashlib.sha256(b"aaaa").hexdigest()
    (tree / "SHA256SUMS").write_text(f"{sha}  ./a.bin\n")
    files = {file.path: file.checksums for file in (await source_of(tree).list()).files}
    assert set(files) == {"a.bin", "sub/b.bin", "SHA256SUMS"}
    assert [checksum.value for checksum in files["a.bin"]] == [sha]
    assert files["sub/b.bin"] == ()
    (tree / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(OriginWrong, match="SHA256SUMS line 1"):
        await source_of(tree).list()


@pytest.mark.asyncio
async def test_a_mount_that_hangs_does_not_hang_us(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory read that never returns is left behind after the limit, and the tree is listed once it answers
    again."""
    gate, real = threading.Event(), os.scandir

    def hang(path: str) -> object:
        gate.wait(60)
        return real(path)

    monkeypatch.setattr(os, "scandir", hang)
    with pytest.raises(OriginUnavailable, match=f"file://{tree} did not answer for 0.05 s"):
        await source_of(tree, stall_limit_s=0.05).list()
    gate.set()
    assert len((await source_of(tree).list()).files) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.EIO, OriginUnavailable, "answered EIO"),
        (errno.ESTALE, OriginUnavailable, "answered ESTALE"),
        (errno.EACCES, OriginForbidden, "may not be read"),
        (errno.ENOENT, OriginNotFound, "does not exist"),
        (errno.ENOTDIR, OriginNotFound, "is not a directory"),
    ],
)
async def test_each_errno_has_its_error(
    number: int, kind: type[Exception], message: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filesystem's answers, in our words."""

    def fail(path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", fail)
        with pytest.raises(kind, match=message) as caught:
            await source_of(tree).list()
    assert type(caught.value) is kind
    assert (await source_of(tree).list()).files


@pytest.mark.asyncio
async def test_an_empty_directory_is_probably_not_mounted(tmp_path: Path) -> None:
    """Nothing there is an error that asks the right question; so is a file."""
    with pytest.raises(OriginNotFound, match="holds no files") as caught:
        await source_of(tmp_path).list()
    assert "mounted" in caught.value.hint
    (tmp_path / "file").write_text("x")
    with pytest.raises(OriginNotFound, match="is not a directory"):
        await source_of(tmp_path / "file").list()


@pytest.mark.asyncio
async def test_nfs_names_are_the_same_on_every_node(tree: Path, tmp_path: Path) -> None:
    """Identity and trust domain speak of server and export, wherever it is mounted; the longest export wins."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(tree.parent)
    spec = SourceSpec(uri="nfs://filer/export/llms/model")
    tables = [
        {"filer:/export/llms": str(tree.parent), "filer:/export": "/wrong"},
        {"filer:/export/llms": str(elsewhere)},
    ]
    listings = []
    for mounts in tables:
        source = PosixSource(spec, mounts=mounts)
        assert source.trust_domain.endpoint == "nfs://filer/export/llms"
        listings.append(await source.list())
        assert await source.read(listings[-1].files[0], 10) == b"aaaa"
    assert listings[0] == listings[1]
    assert listings[0].files[0].identity["path"] == "nfs://filer/export/llms/model/a.bin"
    with pytest.raises(ConfigError, match="is on no known mount \\(known: filer:/export/other\\)"):
        PosixSource(spec, mounts={"filer:/export/other": "/x"})
    with pytest.raises(ConfigError, match="is on no known mount"):
        PosixSource(SourceSpec(uri="nfs://filer/export2/x"), mounts={"filer:/export": "/x"})


@pytest.mark.asyncio
async def test_a_link_in_an_export_leads_out_of_nothing(tree: Path, tmp_path: Path) -> None:
    """Tenants write there: a link of theirs leads to no other place on the node, and, where only a prefix is permitted
    to them, to no other directory of the export either."""
    export = tmp_path / "export"
    (export / "team-a/model").mkdir(parents=True)
    (export / "team-a/model/a.bin").write_bytes(b"aaaa")
    (export / "team-b").mkdir()
    (export / "team-b/b.bin").write_bytes(b"bb")
    (export / "team-a/outside").symlink_to(tree)
    (export / "team-a/theirs").symlink_to("../team-b")
    mount = tmp_path / "mount"
    mount.symlink_to(export)

    def source(path: str, *, plain: bool) -> PosixSource:
        spec = SourceSpec(uri=f"nfs://filer/x/team-a/{path}", plain_path=plain)
        return PosixSource(spec, mounts={"filer:/x": str(mount)})

    for plain in (False, True):
        assert (await source("model", plain=plain).list()).files[0].path == "a.bin"
        with pytest.raises(PolicyRefused, match="below none of the directories"):
            await source("outside", plain=plain).list()
    assert (await source("theirs", plain=False).list()).files[0].path == "b.bin"
    with pytest.raises(PolicyRefused, match="behind a symbolic link"):
        await source("theirs", plain=True).list()


@pytest.mark.asyncio
@pytest.mark.parametrize("roots", [(), ("root",), ("elsewhere", "root")])
async def test_a_plain_path_has_no_link_below_its_root(tree: Path, tmp_path: Path, roots: tuple[str, ...]) -> None:
    """The root itself may be one: an administrator named it."""
    (tmp_path / "root").symlink_to(tree.parent) if roots else (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere").mkdir()
    named = tuple(str(tmp_path / root) for root in roots)
    top = named[-1] if named else str(tree.parent)
    (tree.parent / "link").symlink_to("model")
    for name, is_plain in (("model", True), ("link", False)):
        spec = SourceSpec(uri=f"file://{top}/{name}", roots=named, plain_path=True)
        listing = PosixSource(spec, mounts={}).list()
        if is_plain:
            assert len((await listing).files) == 2
        else:
            with pytest.raises(PolicyRefused, match="behind a symbolic link"):
                await listing


def test_the_table_of_mounts() -> None:
    """Written as server:/export=/directory, with commas between."""
    assert parse_mounts("a:/x=/mnt/x/, b.c:/y/z/=/mnt/y,") == {"a:/x": "/mnt/x", "b.c:/y/z": "/mnt/y"}
    assert parse_mounts("") == {}
    for wrong in ("a:/x", "a=/x", "a:/x=relative", "=/x"):
        with pytest.raises(ConfigError, match="is not server:/export=/directory"):
            parse_mounts(wrong)


@pytest.mark.parametrize(
    "uri",
    [
        "file://host/path",
        "file://relative",
        "file:///a/../b",
        "file:///a/%2e%2e/b",
        "file:///a%00b",
        "file:///a?b",
        "file:///",
        "nfs://server",
    ],
)
def test_uris_that_are_no_absolute_path(uri: str) -> None:
    """Refused with the URI in the message."""
    with pytest.raises(UsageError):
        PosixSource(SourceSpec(uri=uri), mounts={"server:": "/"})


@pytest.mark.asyncio
async def test_names_in_uris_are_percent_encoded(tmp_path: Path) -> None:
    """%20 is a space and %25 a percent sign; a raw space is understood too."""
    (tmp_path / "a b%c").mkdir()
    (tmp_path / "a b%c" / "x").write_text("x")
    for name in ("a%20b%25c", "a b%25c"):
        assert [file.path for file in (await source_of(tmp_path / name).list()).files] == ["x"]


@pytest.mark.asyncio
async def test_checksums_that_became_a_fifo_are_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the listing and the reading, with somebody who would write into it: nobody waits, and nothing is read."""
    sums, walk = tree / "SHA256SUMS", posix._Tree._walk
    sums.write_text(f"{hashlib.sha256(b'').hexdigest()}  gone\n")

    def swapped(self: posix._Tree, real_root: str, steps: posix._Steps) -> Iterator[tuple[str, os.stat_result]]:
        yield from walk(self, real_root, steps)
        sums.unlink()
        os.mkfifo(sums)

    with monkeypatch.context() as patched:
        patched.setattr(posix._Tree, "_walk", swapped)
        with pytest.raises(UnsafeContent, match="SHA256SUMS is neither a file nor a directory"):
            await source_of(tree).list()
    assert sums.is_fifo()
    sums.unlink()
    assert sorted(path.name for path in tree.rglob("*") if path.is_file()) == ["a.bin", "b.bin"]
    assert len((await source_of(tree).list()).files) == 2
