"""Files past the page cache, and what happens where a filesystem refuses that."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cacheagent.transfer.disk import ALIGNMENT, Buffer, DirectFile, aligned_up
from tests.fakes.worker import preallocated, random_bytes

SIZE = 3 * ALIGNMENT + 123
DATA = random_bytes(SIZE)


def filled(data: bytes) -> memoryview:
    view = Buffer().view(max(1, len(data)))
    view[: len(data)] = data
    return view


@pytest.fixture
def refuse_at_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem without O_DIRECT."""
    really_open = os.open

    def refusing(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really_open(path, flags, mode)

    monkeypatch.setattr(os, "open", refusing)


@pytest.fixture
def refuse_at_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes the flag and refuses the call: as FUSE file systems or odd block sizes do."""
    for name in ("pwrite", "preadv"):
        really = getattr(os, name)

        def refusing(fd: int, *args: object, really: Callable[..., int] = really) -> int:
            if os.get_blocking(fd) and _flags(fd) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return really(fd, *args)

        monkeypatch.setattr(os, name, refusing)


def _flags(fd: int) -> int:
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("flags:")).split()[1], 8)


def test_memory_is_aligned_and_grows() -> None:
    """O_DIRECT needs the page; a buffer is made at its first use and kept while it is large enough."""
    buffer = Buffer()
    small = buffer.view(1)
    assert len(small) == ALIGNMENT
    assert len(buffer.view(ALIGNMENT)) == ALIGNMENT
    assert len(buffer.view(ALIGNMENT + 1)) == 2 * ALIGNMENT
    assert aligned_up(0) == 0


def write_and_read_back(path: Path) -> tuple[bool, list[int]]:
    buffered: list[int] = []
    with DirectFile(preallocated(path, SIZE), writable=True, on_buffered=buffered.append) as file:
        file.write(filled(DATA[:ALIGNMENT])[:ALIGNMENT], 0)
        file.write(filled(DATA[ALIGNMENT:])[: SIZE - ALIGNMENT], ALIGNMENT)
        assert bytes(file.read(Buffer().view(SIZE), SIZE, 0)) == DATA
        assert bytes(file.read(Buffer().view(SIZE), 123, 3 * ALIGNMENT)) == DATA[-123:]
        is_direct = file.is_direct
    assert path.read_bytes() == DATA
    return is_direct, buffered


def test_direct_files_keep_their_size_and_leave_the_page_cache_alone(tmp_path: Path) -> None:
    """A tail that doesn't fill a page is written plainly, so that the file never changes its size."""
    is_direct, buffered = write_and_read_back(tmp_path / "x")
    if not is_direct:
        pytest.skip("this filesystem has no O_DIRECT")
    assert buffered == []


@pytest.mark.usefixtures("refuse_at_open")
def test_a_refusal_at_open_is_counted_and_works(tmp_path: Path) -> None:
    """Buffered I/O gives the same bytes, and somebody is told how many went that way."""
    is_direct, buffered = write_and_read_back(tmp_path / "x")
    assert not is_direct
    assert sum(buffered) >= SIZE


@pytest.mark.usefixtures("refuse_at_first_call")
def test_a_refusal_at_the_first_call_is_counted_and_works(tmp_path: Path) -> None:
    """The same when the filesystem says so late."""
    is_direct, buffered = write_and_read_back(tmp_path / "x")
    assert not is_direct
    assert sum(buffered) >= SIZE


def test_other_errors_are_not_taken_for_a_refusal(tmp_path: Path) -> None:
    """A missing file stays missing."""
    with pytest.raises(FileNotFoundError):
        DirectFile(str(tmp_path / "absent"))


def test_an_unaligned_offset_is_written_plainly(tmp_path: Path) -> None:
    """Nobody asks for it today; it would still be right."""
    with DirectFile(preallocated(tmp_path / "x", SIZE), writable=True) as file:
        file.write(filled(DATA[:100])[:100], 50)
        assert bytes(file.read(Buffer().view(100), 100, 50)) == DATA[:100]
    assert (tmp_path / "x").read_bytes() == bytes(50) + DATA[:100] + bytes(SIZE - 150)


@pytest.mark.parametrize("room", [ALIGNMENT, 123])
def test_a_tail_is_read_whether_or_not_there_is_room_for_its_page(tmp_path: Path, room: int) -> None:
    """Callers may hand a view of exactly the tail's length."""
    (tmp_path / "x").write_bytes(DATA)
    with DirectFile(str(tmp_path / "x")) as file:
        assert bytes(file.read(Buffer().view(room)[:room], 123, 3 * ALIGNMENT)) == DATA[-123:]


def test_a_file_that_ends_early_says_where(tmp_path: Path) -> None:
    """Never fewer bytes than asked for, in silence."""
    (tmp_path / "x").write_bytes(DATA)
    with DirectFile(str(tmp_path / "x")) as file, pytest.raises(EOFError, match=f"ends at {SIZE}, wanted 16384"):
        file.read(Buffer().view(4 * ALIGNMENT), 4 * ALIGNMENT, 0)
    (tmp_path / "y").write_bytes(DATA[: 2 * ALIGNMENT])
    with DirectFile(str(tmp_path / "y")) as file, pytest.raises(EOFError, match="ends at 8192"):
        file.read(Buffer().view(4 * ALIGNMENT), 3 * ALIGNMENT, 0)


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    """The second time there is nothing left to close."""
    file = DirectFile(preallocated(tmp_path / "x", 1))
    before = file.stat().st_size
    file.close()
    file.close()
    assert before == 1
