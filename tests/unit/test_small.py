"""Batches of small files: one connection, a few requests ahead, each checked before it is written."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from cacheagent.location import HttpLocation, PathLocation
from cacheagent.model import Checksum
from cacheagent.transfer import small
from cacheagent.transfer.orders import Failed, FetchSmall, SmallDone, SmallItem
from cacheagent.transfer.rate import LOOK_S
from cacheagent.transfer.running import Running
from cacheagent.transfer.small import fetch_small
from tests.fakes import faults
from tests.fakes.content import Content
from tests.fakes.origin import Origin
from tests.fakes.tls import Tls
from tests.fakes.worker import Bench, random_bytes

SIZES = [0, 1, 50_000, 300_000, 17, 1_000_000, 999_999, 4096, 0, 20_000, 640_000, 3]
FILES = {f"{number}.bin": random_bytes(size, number) for number, size in enumerate(SIZES)}


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, tls: Tls) -> Iterator[Origin]:
    with Origin(FILES, tls=tls.server_context() if request.param == "https" else None) as started:
        yield started


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


def items(server: Origin, tls: Tls, tmp_path: Path, **changes: object) -> list[SmallItem]:
    made = []
    for name, data in FILES.items():
        values: dict[str, object] = {
            "blob_id": name,
            "location": HttpLocation(url=f"{server.url}/{name}", ca_bundle=str(tls.ca_bundle), checksum_headers=True),
            "size_bytes": len(data),
            "target": str(tmp_path / name),
        }
        made.append(SmallItem(**(values | changes)))  # type: ignore[arg-type]
    return made


def run(bench: Bench, batch: list[SmallItem]) -> SmallDone | Failed:
    return fetch_small(FetchSmall(id=3, items=tuple(batch)), Running(3), bench.tools, bench.buffer)


def expect_all(report: SmallDone | Failed, batch: list[SmallItem], tmp_path: Path) -> None:
    assert isinstance(report, SmallDone), report
    assert [file.blob_id for file in report.files] == [item.blob_id for item in batch]
    for file in report.files:
        assert (tmp_path / file.blob_id).read_bytes() == FILES[file.blob_id]
        assert file.blake3 == blake3(FILES[file.blob_id]).hexdigest()


def test_a_batch_arrives_over_one_connection(server: Origin, tls: Tls, bench: Bench, tmp_path: Path) -> None:
    """Empty files, tiny ones and some that fill the buffer, without ranges, in order."""
    batch = items(server, tls, tmp_path)
    expect_all(run(bench, batch), batch, tmp_path)
    assert [request.path for request in server.requests] == [f"/{name}" for name in FILES]
    assert {request.connection for request in server.requests} == {1}
    assert all(request.range is None for request in server.requests)
    assert bench.shared.received_bytes(0) == sum(SIZES)


def test_a_target_that_is_there_is_replaced(server: Origin, tls: Tls, bench: Bench, tmp_path: Path) -> None:
    """What an interrupted batch left behind: longer, shorter, wrong."""
    batch = items(server, tls, tmp_path)
    for item in batch:
        Path(item.target).write_bytes(b"old" * 10_000)
    expect_all(run(bench, batch), batch, tmp_path)


def test_a_connection_that_closes_between_answers_is_replaced(
    server: Origin, tls: Tls, bench: Bench, tmp_path: Path
) -> None:
    """A limit of requests a connection, announced or not, costs a connection and no failure."""
    batch = items(server, tls, tmp_path)
    closing = [each for each in batch if each.blob_id != "4.bin"]
    server.inject(faults.NotHttp(b""), path="4.bin")
    expect_all(run(bench, batch), batch, tmp_path)
    announced = items(server, tls, tmp_path)
    announced[2] = SmallItem(
        blob_id="2.bin",
        location=HttpLocation(url=f"{server.url}/2.bin", ca_bundle=str(tls.ca_bundle), headers={"Connection": "close"}),
        size_bytes=SIZES[2],
        target=announced[2].target,
    )
    expect_all(run(bench, announced), announced, tmp_path)
    assert len(closing) == len(batch) - 1


def test_checksums_given_and_offered_are_checked(server: Origin, tls: Tls, bench: Bench, tmp_path: Path) -> None:
    """Git's blob hash from the listing, S3's checksum from the answer; both are named."""
    data = FILES["2.bin"]
    crc = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    server.put("2.bin", Content(data, headers={"x-amz-checksum-crc32": crc}))
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    batch = items(server, tls, tmp_path, checksums=())[2:3]
    batch = [
        SmallItem(
            blob_id="2.bin",
            location=batch[0].location,
            size_bytes=len(data),
            target=batch[0].target,
            checksums=(Checksum(algorithm="git-sha1", value=git),),
        )
    ]
    report = run(bench, batch)
    expect_all(report, batch, tmp_path)
    assert isinstance(report, SmallDone)
    assert report.files[0].verified_by == ("git-sha1", "crc32")


def test_a_checksum_that_differs_leaves_no_file(server: Origin, tls: Tls, bench: Bench, tmp_path: Path) -> None:
    """Nothing is written before it is checked; the files before it are reported as done."""
    wrong = base64.b64encode(bytes(4)).decode()
    server.put("2.bin", Content(FILES["2.bin"], headers={"x-amz-checksum-crc32": wrong}))
    report = run(bench, items(server, tls, tmp_path))
    assert isinstance(report, Failed)
    assert report.kind == "mismatch"
    assert f"{server.url}/2.bin: crc32 is " in report.message
    assert "the origin says 00000000" in report.message
    assert [file.blob_id for file in report.files] == ["0.bin", "1.bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.bin", "1.bin"]


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (faults.Status(404), "status", "3.bin: 404 Not Found: Injected"),
        (faults.Status(503, retry_after="2"), "status", "3.bin: 503"),
        (faults.Truncate(after_bytes=100), "reset", "ended before the last byte"),
        (faults.Reset(after_bytes=100), "reset", "the connection"),
        (faults.NoLength(), "protocol", "3.bin: the answer can't be used: a 200 without Content-Length"),
        (faults.Replace(Content(b"other")), "changed", "3.bin: has 5 bytes now, not 300000"),
    ],
)
def test_the_first_failure_ends_the_batch(
    server: Origin, tls: Tls, bench: Bench, tmp_path: Path, fault: faults.Fault, kind: str, said: str
) -> None:
    """Three files are done, the fourth failed, the others were not touched; the next batch succeeds."""
    server.inject(fault, path="3.bin", times=None)
    batch = items(server, tls, tmp_path)
    report = run(bench, batch)
    assert isinstance(report, Failed)
    assert (report.id, report.kind, said in report.message) == (3, kind, True), report
    assert [file.blob_id for file in report.files] == ["0.bin", "1.bin", "2.bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.bin", "1.bin", "2.bin"]
    server.heal()
    server.put("3.bin", FILES["3.bin"])
    expect_all(run(bench, batch), batch, tmp_path)


def test_a_server_that_can_not_be_asked_ahead_is_asked_one_by_one(
    server: Origin, tls: Tls, bench: Bench, tmp_path: Path
) -> None:
    """It breaks off once, in the middle of an answer: the rest of the batch comes without asking ahead."""
    server.inject(faults.Truncate(after_bytes=100), path="3.bin")
    batch = items(server, tls, tmp_path)
    expect_all(run(bench, batch), batch, tmp_path)
    assert len(server.requests_for("3.bin")) == 2


def test_an_etag_that_differs_is_a_change(server: Origin, tls: Tls, bench: Bench, tmp_path: Path) -> None:
    """Same size, other object."""
    location = HttpLocation(url=f"{server.url}/1.bin", ca_bundle=str(tls.ca_bundle), etag='"other"')
    report = run(bench, items(server, tls, tmp_path, location=location)[1:2])
    assert isinstance(report, Failed)
    assert (report.kind, 'was "other"' in report.message) == ("changed", True)


def test_files_of_several_servers_and_mounts_share_a_batch(
    server: Origin, tls: Tls, bench: Bench, tmp_path: Path
) -> None:
    """Each part of the batch goes where it must; order and checks stay."""
    source = tmp_path / "source"
    source.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    with Origin(FILES) as second:
        batch = items(server, tls, out)
        batch[4:8] = items(second, tls, out)[4:8]
        for number in (0, 9):
            path = source / f"{number}.bin"
            path.write_bytes(FILES[path.name])
            facts = path.stat()
            batch[number] = SmallItem(
                blob_id=path.name,
                location=PathLocation(path=str(path), size_bytes=facts.st_size, mtime_ns=facts.st_mtime_ns),
                size_bytes=facts.st_size,
                target=str(out / path.name),
            )
        expect_all(run(bench, batch), batch, out)
        assert [request.path for request in second.requests] == ["/4.bin", "/5.bin", "/6.bin", "/7.bin"]


def test_a_disk_that_fails_is_named(server: Origin, tls: Tls, bench: Bench, tmp_path: Path) -> None:
    """The target's directory is gone."""
    report = run(bench, items(server, tls, tmp_path / "absent"))
    assert isinstance(report, Failed)
    assert (report.kind, report.errno) == ("disk-fault", 2)
    assert f"{tmp_path}/absent/0.bin: No such file or directory" in report.message


def test_a_stopped_batch_is_cancelled_and_keeps_what_is_done(
    server: Origin, tls: Tls, bench: Bench, tmp_path: Path
) -> None:
    """Stopped before it began: nothing was asked."""
    running = Running(3)
    running.stop()
    report = fetch_small(
        FetchSmall(id=3, items=tuple(items(server, tls, tmp_path))), running, bench.tools, bench.buffer
    )
    assert isinstance(report, Failed)
    assert (report.kind, report.files, server.requests) == ("cancelled", (), [])


def test_the_cap_holds_for_small_files(server: Origin, tls: Tls, tmp_path: Path) -> None:
    """Each file reserves its size before it is asked for."""
    with Bench(cap_bytes_per_s=20_000_000) as bench:
        batch = items(server, tls, tmp_path)
        expect_all(run(bench, batch), batch, tmp_path)


class Impatient(Running):
    """Its waits for a cap take no time; `at_wait` is asked at each."""

    def __init__(self, at_wait: Callable[[], None]) -> None:
        super().__init__(3)
        self.waits: list[float] = []
        self._at_wait = at_wait

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._at_wait()


def test_nothing_waits_at_the_origin_while_a_cap_is_waited_for(
    server: Origin, tls: Tls, bench: Bench, tmp_path: Path
) -> None:
    """Under a tiny cap every answer is read as soon as it is there, and no connection is held meanwhile: whatever the
    origin's patience, it has nothing to complain of. Files that come within a hundredth of a second go together."""
    batch = items(server, tls, tmp_path)

    def look() -> None:
        done = sum(Path(item.target).exists() for item in batch)
        assert len(server.requests) == done, f"{len(server.requests)} asked for, {done} read"
        assert sum(map(len, bench.tools.connections._idle.values())) == min(done, 1)

    running = Impatient(look)
    bench.shared.whole.set(50_000)
    report = fetch_small(FetchSmall(id=3, items=tuple(batch)), running, bench.tools, bench.buffer)
    expect_all(report, batch, tmp_path)
    assert sum(running.waits) > 0.8 * sum(SIZES) / 50_000
    assert {request.connection for request in server.requests} == {1}
    assert [request.path for request in server.requests] == [f"/{name}" for name in FILES]


def test_a_cap_may_come_and_go_in_the_middle_of_a_batch(server: Origin, tls: Tls, bench: Bench, tmp_path: Path) -> None:
    """What is on its way when it comes is read; what waits when it goes waits no longer."""
    batch = items(server, tls, tmp_path)
    running = Impatient(lambda: bench.shared.whole.set(0))
    write = small._write_new

    def capped(path: str, data: memoryview) -> None:
        write(path, data)
        if path.endswith("/3.bin"):
            bench.shared.whole.set(1)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(small, "_write_new", capped)
        report = fetch_small(FetchSmall(id=3, items=tuple(batch)), running, bench.tools, bench.buffer)
    expect_all(report, batch, tmp_path)
    assert running.waits == [LOOK_S]
    assert len(server.requests) == len(FILES)
