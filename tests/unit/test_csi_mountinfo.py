"""Reading /proc/self/mountinfo: any path, mounts on top of each other, and which of them are the cache's."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.errors import StoreError
from csi.leases import find_mounted
from csi.mountinfo import CacheDirectory, Mount, find_cache, find_top, locate, parse, read_mounts, watching

CACHE = CacheDirectory("259:1", "/disk/cacheagent")
TREE = "sha256-" + "ab" * 32


def escape(path: bytes) -> bytes:
    """As the kernel does: mangle() in fs/proc_namespace.c."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in path)


paths = st.binary(min_size=1, max_size=60).filter(lambda name: b"\0" not in name).map(lambda name: b"/" + name)
words = st.text("abcdefghij=0123456789", min_size=1, max_size=12).map(str.encode)


@st.composite
def lines(draw: st.DrawFn) -> tuple[bytes, Mount]:
    """A line, and what it says."""
    number, parent, major, minor = (draw(st.integers(0, 2**31)) for _ in range(4))
    root, target = draw(paths), draw(paths)
    options = draw(st.lists(words, min_size=1, max_size=5))
    optional = draw(
        st.lists(st.sampled_from([b"shared:12", b"master:3", b"propagate_from:7", b"unbindable"]), max_size=3)
    )
    fields = [
        *(b"%d %d %d:%d" % (number, parent, major, minor), escape(root), escape(target), b",".join(options)),
        *(*optional, b"-", draw(words), escape(draw(paths)), draw(words)),
    ]
    told = Mount(
        id=number,
        parent=parent,
        device=f"{major}:{minor}",
        root=os.fsdecode(root),
        target=os.fsdecode(target),
        options=frozenset(option.decode() for option in options),
    )
    return b" ".join(fields), told


@given(st.lists(lines(), max_size=5))
def test_every_line_is_read_as_it_was_meant(made: list[tuple[bytes, Mount]]) -> None:
    """Any path, any number of optional fields: parsing gives back what was written."""
    text = b"".join(line + b"\n" for line, _ in made)
    assert parse(text) == [mount for _, mount in made]


@given(st.binary(max_size=200))
def test_anything_else_is_refused_or_read(text: bytes) -> None:
    """No input makes it fail in another way than by ValueError."""
    with contextlib.suppress(ValueError):
        parse(text)


def test_the_kernels_own_is_read() -> None:
    """This machine's mounts, with the root among them."""
    mounts = read_mounts()
    top = find_top(mounts, "/")
    assert top is not None
    assert top.root.startswith("/")
    assert find_top(mounts, "/nothing/is/mounted/here") is None


def _mount(number: int, target: str, *, parent: int = 1, root: str = "/", device: str = "259:1") -> Mount:
    return Mount(number, parent, device, root, target, frozenset({"ro"}))


def test_the_uppermost_of_several_is_found() -> None:
    """What is seen is what nothing lies on, in whatever order the kernel tells of them."""
    lower, upper = _mount(30, "/t"), _mount(31, "/t", parent=30)
    for mounts in ([lower, upper], [upper, lower]):
        assert find_top(mounts, "/t") == upper
    assert find_top([lower], "/t") == lower


@pytest.mark.parametrize(
    ("root", "target", "path", "found"),
    [
        ("/", "/", "/var/lib/cacheagent", "/var/lib/cacheagent"),
        ("/disk/cacheagent", "/var/lib/cacheagent", "/var/lib/cacheagent", "/disk/cacheagent"),
        ("/disk", "/mnt/nvme", "/mnt/nvme/cacheagent", "/disk/cacheagent"),
        ("/", "/mnt/nvme", "/mnt/nvme", "/"),
    ],
)
def test_where_the_cache_is(root: str, target: str, path: str, found: str) -> None:
    """The cache directory is a path inside its filesystem, whatever of it is mounted where."""
    assert locate([_mount(7, target, root=root)], 7, path) == CacheDirectory("259:1", found)


def test_the_cache_is_found(tmp_path: Path) -> None:
    """A real directory is found on a real filesystem; one that is missing is said to be."""
    (tmp_path / "cache").mkdir()
    cache = find_cache(tmp_path / "cache")
    assert cache.root.endswith("/cache")
    with pytest.raises(StoreError, match="can't be opened"):
        find_cache(tmp_path / "none")


@pytest.mark.parametrize(
    ("mount", "path"),
    [
        (_mount(1, "/t", root=f"/disk/cacheagent/models/{TREE}/files"), f"models/{TREE}/files"),
        (_mount(1, "/t", root="/disk/cacheagent"), None),
        (_mount(1, "/t", root="/disk/cacheagent2/models"), None),
        (_mount(1, "/t", root="/disk/cacheagent/models", device="259:2"), None),
        (_mount(1, "/t", root="/disk/cacheagent/models/x//deleted"), None),
    ],
)
def test_what_is_ours(mount: Mount, path: str | None) -> None:
    """Below the cache directory on its own filesystem, and still there."""
    assert CACHE.find_path(mount) == path
    assert CacheDirectory("259:1", "/").find_path(_mount(1, "/t", root="/models")) == "models"


def test_what_is_reported() -> None:
    """CSI volumes and local volumes of pods, by their ids; neither the driver's own mount of the cache nor subpaths."""
    uid = "2b8d0c4e-8f0e-4a51-9a51-1f5a3f6d7c11"
    pod, root = f"/var/lib/kubelet/pods/{uid}", f"/disk/cacheagent/models/{TREE}/files"
    mounts = [
        _mount(1, "/var/lib/cacheagent", root="/disk/cacheagent"),
        _mount(2, f"{pod}/volumes/kubernetes.io~csi/w/mount", root=root),
        _mount(3, f"{pod}/volumes/kubernetes.io~local-volume/pv-1", root=root),
        _mount(4, f"{pod}/volume-subpaths/w/main/0", root=f"{root}/sub"),
        _mount(5, f"{pod}/volumes/kubernetes.io~csi/other/mount", root="/somewhere/else"),
    ]
    found = {mount.volume_id: mount.path for mount in find_mounted(mounts, CACHE, Path("/var/lib/kubelet"))}
    assert set(found.values()) == {f"models/{TREE}/files"}
    assert len(found) == 2
    assert f"pv-{uid}-pv-1" in found


def test_the_watch_begins_and_ends() -> None:
    """The thread lives as long as its block. (That it hears of mounts is shown where there are some.)"""
    before = threading.active_count()
    with watching(lambda: None):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
