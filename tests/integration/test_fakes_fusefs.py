"""The faulty disk fails exactly as it was told, shows the truth otherwise, and never stays mounted."""

import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.fakes.fusefs import REPOSITORY, DiskFaults, FaultyDisk

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("fuse")]

MIB = 2**20


def test_without_faults_it_is_a_file_system(faulty_disk: FaultyDisk) -> None:
    """Everything that the store does works: allocate, write past the page cache, fsync, rename, link, mode, time."""
    root = faulty_disk.mountpoint
    (root / "dir").mkdir()
    fd = os.open(root / "dir" / "new", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    try:
        os.posix_fallocate(fd, 0, 2 * MIB)
        buffer = mmap.mmap(-1, MIB)
        buffer.write(b"x" * MIB)
        assert os.pwrite(fd, buffer, MIB) == MIB
        os.fsync(fd)
        assert os.preadv(fd, [buffer], 0) == MIB
        assert buffer[:] == bytes(MIB)
        os.ftruncate(fd, MIB + 100)
    finally:
        os.close(fd)
    os.rename(root / "dir" / "new", root / "dir" / "final")
    os.link(root / "dir" / "final", root / "linked")
    os.symlink("linked", root / "symbolic")
    os.chmod(root / "linked", 0o444)
    os.utime(root / "linked", ns=(1, 2))
    directory = os.open(root / "dir", os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)

    facts = (root / "dir" / "final").stat()
    assert (facts.st_size, facts.st_mode & 0o777, facts.st_mtime_ns, facts.st_nlink) == (MIB + 100, 0o444, 2, 2)
    assert facts.st_ino == (root / "linked").stat().st_ino
    assert (root / "symbolic").read_bytes() == bytes(MIB) + b"x" * 100
    assert (faulty_disk.backing / "linked").read_bytes() == bytes(MIB) + b"x" * 100
    assert os.statvfs(root).f_blocks == os.statvfs(faulty_disk.backing).f_blocks
    os.unlink(root / "linked")
    assert sorted(os.listdir(root)) == ["dir", "symbolic"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_the_nth_write_fails_and_those_before_are_on_disk(faulty_disk: FaultyDisk, number: int) -> None:
    """Two writes succeed, the third and all later ones fail, in files of the pattern only."""
    faulty_disk.inject(DiskFaults(paths="staging/*", write_errno=number, after_writes=2))
    (faulty_disk.mountpoint / "staging").mkdir()
    with (faulty_disk.mountpoint / "staging" / "a").open("wb", buffering=0) as file:
        assert file.write(b"1") == file.write(b"2") == 1
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                file.write(b"3")
            assert caught.value.errno == number
        (faulty_disk.mountpoint / "other").write_bytes(b"unharmed")
        assert faulty_disk.state().failed == 2
        faulty_disk.heal()
        file.write(b"4")
    assert (faulty_disk.backing / "staging" / "a").read_bytes() == b"124"
    assert (faulty_disk.backing / "other").read_bytes() == b"unharmed"


def test_writes_past_an_offset_fail(faulty_disk: FaultyDisk) -> None:
    """Whatever reaches past the byte fails, whatever stays before it works."""
    faulty_disk.inject(DiskFaults(write_errno=errno.EIO, past_byte=10))
    fd = os.open(faulty_disk.mountpoint / "a", os.O_RDWR | os.O_CREAT)
    try:
        assert os.pwrite(fd, b"12345", 5) == 5
        with pytest.raises(OSError, match="Input/output error"):
            os.pwrite(fd, b"12345", 6)
    finally:
        os.close(fd)


def test_fsync_allocation_and_reads_fail(faulty_disk: FaultyDisk) -> None:
    """The other calls fail with the error they were given."""
    (faulty_disk.mountpoint / "a").write_bytes(b"x")
    faulty_disk.inject(
        DiskFaults(fsync_errno=errno.EIO, fallocate_errno=errno.ENOSPC, read_errno=errno.EIO, after_reads=1)
    )
    fd = os.open(faulty_disk.mountpoint / "a", os.O_RDWR | os.O_DIRECT)
    try:
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(fd)
        with pytest.raises(OSError, match="No space left on device"):
            os.posix_fallocate(fd, 0, 100)
        buffer = mmap.mmap(-1, 4096)
        assert os.preadv(fd, [buffer], 0) == 1
        with pytest.raises(OSError, match="Input/output error"):
            os.preadv(fd, [buffer], 0)
    finally:
        os.close(fd)


def test_o_direct_is_refused(faulty_disk: FaultyDisk) -> None:
    """Opening past the page cache gives EINVAL, opening plainly works."""
    (faulty_disk.mountpoint / "a").write_bytes(b"x")
    faulty_disk.inject(DiskFaults(refuse_o_direct=True))
    with pytest.raises(OSError, match="Invalid argument"):
        os.open(faulty_disk.mountpoint / "a", os.O_RDWR | os.O_DIRECT)
    assert (faulty_disk.mountpoint / "a").read_bytes() == b"x"


def test_it_turns_read_only_and_back(faulty_disk: FaultyDisk) -> None:
    """Nothing can be changed, also by a file that is open for writing; everything can be read."""
    root = faulty_disk.mountpoint
    with (root / "a").open("wb", buffering=0) as file:
        file.write(b"before")
        faulty_disk.inject(DiskFaults(read_only=True))
        for change in (
            lambda: file.write(b"x"),
            (root / "b").touch,
            lambda: (root / "a").rename(root / "c"),
            (root / "a").unlink,
            (root / "d").mkdir,
            lambda: os.link(root / "a", root / "e"),
            lambda: (root / "a").chmod(0o600),
        ):
            with pytest.raises(OSError, match="Read-only file system"):
                change()
        assert (root / "a").read_bytes() == b"before"
        faulty_disk.heal()
        file.write(b" and after")
    assert (faulty_disk.backing / "a").read_bytes() == b"before and after"


def test_reads_hang_until_released(faulty_disk: FaultyDisk) -> None:
    """A read waits while others of the disk go on, and brings the right bytes when it is let go."""
    (faulty_disk.backing / "slow").write_bytes(b"s" * 5000)
    (faulty_disk.backing / "fast").write_bytes(b"f")
    faulty_disk.inject(DiskFaults(paths="slow", hang_reads=True))
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((faulty_disk.mountpoint / "slow").read_bytes()))
    reader.start()
    faulty_disk.wait_until(lambda state: state.hanging == 1)
    assert (faulty_disk.mountpoint / "fast").read_bytes() == b"f"
    assert got == []
    faulty_disk.heal()
    reader.join(60)
    assert got == [b"s" * 5000]
    assert faulty_disk.state().hanging == 0


def test_a_process_in_a_hanging_read_can_not_be_killed_until_the_disk_goes(tmp_path: Path) -> None:
    """Like on a dead network mount, kill -9 has no effect on a direct read; unmounting frees the process."""
    with FaultyDisk(tmp_path / "backing", tmp_path / "disk") as disk:
        (disk.backing / "a").write_bytes(b"x" * 100)
        disk.inject(DiskFaults(hang_reads=True))
        command = ["dd", f"if={disk.mountpoint / 'a'}", "iflag=direct", "of=/dev/null"]
        reader = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        disk.wait_until(lambda state: state.hanging == 1)
        reader.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(0.3)
    assert reader.wait(60) == -signal.SIGKILL


def test_slow_reads_take_their_time(faulty_disk: FaultyDisk) -> None:
    """A delay for each call, and a rate for all calls together."""
    (faulty_disk.backing / "a").write_bytes(b"x" * 100_000)
    for faults in (DiskFaults(read_delay_s=0.2), DiskFaults(read_bytes_per_s=500_000)):
        faulty_disk.inject(faults)
        started_s = time.monotonic()
        assert len((faulty_disk.mountpoint / "a").read_bytes()) == 100_000
        assert time.monotonic() - started_s > 0.19
        assert faulty_disk.state().reads >= 1


def test_a_file_changes_while_it_is_read(faulty_disk: FaultyDisk) -> None:
    """Before the second read call the mtime moves on; a change of the backing file is seen at once as well."""
    path = faulty_disk.mountpoint / "a"
    (faulty_disk.backing / "a").write_bytes(b"x" * 4 * MIB)
    faulty_disk.inject(DiskFaults(touch_at_read=2))
    before = path.stat().st_mtime_ns
    with path.open("rb", buffering=0) as file:
        file.read(1)
        assert path.stat().st_mtime_ns == before
        file.seek(3 * MIB)
        file.read(1)
        assert path.stat().st_mtime_ns == before + 1_000_000_000
    with (faulty_disk.backing / "a").open("ab") as backing:
        backing.write(b"more")
    assert path.stat().st_size == 4 * MIB + 4


def test_it_is_unmounted_after_an_exception_and_after_kill_9(tmp_path: Path) -> None:
    """However the test that used it ended, the mount and its process are gone."""

    def mounted() -> bool:
        return str(tmp_path) in Path("/proc/self/mountinfo").read_text()

    def fail() -> None:
        with FaultyDisk(tmp_path / "backing", tmp_path / "disk"):
            assert mounted()
            raise RuntimeError("in the block")

    with pytest.raises(RuntimeError, match="in the block"):
        fail()
    assert not mounted()

    program = (
        "import sys, pathlib; from tests.fakes.fusefs import FaultyDisk\n"
        "with FaultyDisk(*map(pathlib.Path, sys.argv[1:])): print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "backing"), str(tmp_path / "disk")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        assert mounted()
        owner.kill()
    deadline = time.monotonic() + 30
    while mounted():
        assert time.monotonic() < deadline
        time.sleep(0.02)
