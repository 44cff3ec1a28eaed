"""Opening by paths in which nothing is a link: by the kernel's own call, and where it is missing."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from cacheagent import nolinks
from cacheagent.nolinks import LinkInTheWay, look_at, open_plainly, opened_plainly


@pytest.fixture(autouse=True, params=["openat2", "ENOSYS", "EPERM"])
def door(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the call; on an old kernel; below a seccomp profile that doesn't know it."""
    number = getattr(errno, request.param, 0)

    def refuse(top: int, path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number))

    if number:
        monkeypatch.setattr(nolinks, "_openat2", refuse)
    else:
        monkeypatch.setattr(nolinks, "_open_in_steps", lambda *_: pytest.skip("this kernel has no openat2"))


def content(path: Path) -> bytes:
    with opened_plainly(str(path), os.O_RDONLY) as fd:
        return os.read(fd, 100)


def test_plain_paths_are_opened(tmp_path: Path) -> None:
    """A file, its directory, the root of everything; a descriptor isn't handed to children."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("c")
    assert content(tmp_path / "a/b/c") == b"c"
    with opened_plainly(str(tmp_path / "a"), os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert os.listdir(fd) == ["b"]
        assert not os.get_inheritable(fd)
    with opened_plainly("/", os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert os.path.samestat(os.fstat(fd), os.stat("/"))
    assert look_at(str(tmp_path / "a/b/c")).st_size == 1
    assert os.path.samestat(look_at("/"), os.stat("/"))


@pytest.mark.parametrize("absolute", [False, True])
def test_links_are_refused_wherever_they_lead(tmp_path: Path, absolute: bool) -> None:  # noqa: FBT001 - a case
    """In the place of the file, of its directory, or above; also those that stay inside. Without the link it opens."""
    (tmp_path / "real/sub").mkdir(parents=True)
    (tmp_path / "real/sub/file").write_text("x")
    start = f"{tmp_path}/" if absolute else ""
    (tmp_path / "link").symlink_to(f"{start}real")
    (tmp_path / "real/linked").symlink_to(f"{start}real/sub" if absolute else "sub")
    (tmp_path / "real/sub/to-file").symlink_to(f"{start}real/sub/file" if absolute else "file")
    (tmp_path / "real/sub/to-nothing").symlink_to("/nothing")
    for path in ("link/sub/file", "real/linked/file", "real/sub/to-file", "real/sub/to-nothing"):
        with pytest.raises(LinkInTheWay, match="a symbolic link stands where") as caught:
            open_plainly(str(tmp_path / path), os.O_RDONLY)
        assert caught.value.errno == errno.ELOOP
    for directory in ("link", "real/linked"):
        with pytest.raises(LinkInTheWay):
            open_plainly(str(tmp_path / directory), os.O_RDONLY | os.O_DIRECTORY)
        with pytest.raises(LinkInTheWay):
            look_at(str(tmp_path / directory / "file"))
    assert stat.S_ISLNK(look_at(str(tmp_path / "real/sub/to-file")).st_mode)
    assert content(tmp_path / "real/sub/file") == b"x"


def test_what_else_can_stand_in_the_way(tmp_path: Path) -> None:
    """The kernel's own errors stay what they are, and a fifo that nobody writes to holds nobody up."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError):
        open_plainly(str(tmp_path / "absent/file"), os.O_RDONLY)
    with pytest.raises(NotADirectoryError):
        open_plainly(str(tmp_path / "file/below"), os.O_RDONLY)
    os.mkfifo(tmp_path / "fifo")
    with opened_plainly(str(tmp_path / "fifo"), os.O_RDONLY) as fd:
        assert stat.S_ISFIFO(os.fstat(fd).st_mode)


@pytest.mark.parametrize("path", ["relative/file", "/tmp/../etc/passwd"])
def test_only_resolved_paths_are_opened(path: str) -> None:
    """Anything else was never judged."""
    with pytest.raises(ValueError, match="is not a resolved path"):
        open_plainly(path, os.O_RDONLY)
