"""What the sources stand on: threads that may hang, lanes, tokens, checksum lists, retries."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.errors import (
    ChecksumMismatch,
    ConfigError,
    OriginNotFound,
    OriginUnavailable,
    OriginWrong,
    SourceChanged,
    UsageError,
)
from cacheagent.model import Checksum, RemoteFile
from cacheagent.source import open_source
from cacheagent.source.blocking import BlockingCalls
from cacheagent.source.parallel import in_parallel
from cacheagent.source.proof import check_body
from cacheagent.source.sums import parse_sums
from cacheagent.source.tokens import find_token
from cacheagent.source.wrap import Limited, Retrying
from cacheagent.spec import SourceSpec
from tests.fakes.simulated import SimulatedOrigin

SHA = hashlib.sha256(b"").hexdigest()


# --- blocking calls ---


@pytest.mark.asyncio
async def test_a_cancelled_call_keeps_its_permit_until_its_thread_ends() -> None:
    """The bound holds for threads, not for those who wait for them."""
    calls = BlockingCalls("test", 1)
    started, gate, order = threading.Event(), threading.Event(), list[str]()

    def first() -> None:
        started.set()
        gate.wait(60)
        order.append("first ended")

    task = asyncio.ensure_future(calls.run(first))
    await asyncio.to_thread(started.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    second = asyncio.ensure_future(calls.run(lambda: order.append("second ran")))
    await asyncio.sleep(0.01)
    assert order == []
    gate.set()
    await second
    assert order == ["first ended", "second ran"]


@pytest.mark.asyncio
async def test_a_blocking_call_raises_what_it_raises() -> None:
    """Errors cross the thread as they are, and the next call finds its permit."""
    calls = BlockingCalls("test", 1)

    def fail() -> None:
        raise OriginWrong("as it is")

    for _ in range(2):
        with pytest.raises(OriginWrong, match="as it is"):
            await calls.run(fail)
    assert await calls.run(lambda: 7) == 7


@pytest.mark.asyncio
async def test_a_call_that_stops_moving_is_left_behind() -> None:
    """No progress for the limit is an error that names what hangs; slow progress is none."""
    calls = BlockingCalls("test", 2)
    gate, steps = threading.Event(), 0

    def slow() -> str:
        nonlocal steps
        for _ in range(5):
            steps += 1
            gate.wait(0.05)
        return "done"

    watched = calls.run_watched(slow, progress=lambda: steps, stall_s=10, what="mount")
    assert await watched == "done"
    with pytest.raises(OriginUnavailable, match=r"nfs://server/export did not answer for 0\.01 s"):
        await calls.run_watched(lambda: gate.wait(60), progress=lambda: 1, stall_s=0.01, what="nfs://server/export")
    gate.set()


@pytest.mark.asyncio
async def test_lanes_keep_order_and_bound() -> None:
    """Results come in the order of the items, and never more than so many run at once."""
    running = peak = 0

    async def work(item: int) -> int:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1
        return item * 2

    assert await in_parallel(work, range(50), lanes=4) == [item * 2 for item in range(50)]
    assert peak == 4
    assert await in_parallel(work, [], lanes=4) == []


@pytest.mark.asyncio
async def test_the_first_error_stops_the_lanes() -> None:
    """The error is raised as it is, and nothing runs on behind the caller's back."""
    ended: list[int] = []

    async def work(item: int) -> None:
        if item == 1:
            raise SourceChanged("item 1")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    with pytest.raises(SourceChanged, match="item 1"):
        await in_parallel(work, [0, 1, 2, 3], lanes=3)
    assert sorted(ended) == [0, 2]


# --- tokens ---


def test_a_token_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable wins; the file is read anew each time, so that rotation needs no restart."""
    monkeypatch.setenv("CACHEAGENT_CREDENTIALS_DIR", str(tmp_path))
    (tmp_path / "team-a.hub").write_text("one\n")
    assert find_token("team-a.hub") == "one"
    (tmp_path / "team-a.hub").write_text("two")
    assert find_token("team-a.hub") == "two"
    monkeypatch.setenv("CACHEAGENT_TOKEN_TEAM_A_HUB", "three")
    assert find_token("team-a.hub") == "three"


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", ".hidden", "a\0b", "x" * 300])
def test_a_credential_is_a_name_and_not_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing outside the directory can be named."""
    monkeypatch.setenv("CACHEAGENT_CREDENTIALS_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="is not usable"):
        find_token(name)


def test_a_missing_token_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both places are named; a value that is no token is refused without being shown."""
    with pytest.raises(ConfigError, match="CACHEAGENT_TOKEN_TEAM is not set and CACHEAGENT_CREDENTIALS_DIR is not set"):
        find_token("team")
    monkeypatch.setenv("CACHEAGENT_CREDENTIALS_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=f"and file {tmp_path}/team holds none"):
        find_token("team")
    monkeypatch.setenv("CACHEAGENT_TOKEN_TEAM", "not one\nword")
    with pytest.raises(ConfigError) as caught:
        find_token("team")
    assert "word" in caught.value.message
    assert "not one\nword" not in str(caught.value)


# --- checksum lists and proof ---


def test_sums_are_read_as_coreutils_writes_them() -> None:
    """Text and binary markers, `./`, comments, CRLF, upper case and escaped names."""
    body = f"# made by hand\n{SHA}  a.txt\n{SHA.upper()} *b bin\r\n\n{SHA}  ./c/d\n\\{SHA}  new\\nline\\\\x\n".encode()
    assert parse_sums(body, "SHA256SUMS") == dict.fromkeys(["a.txt", "b bin", "c/d", "new\nline\\x"], SHA)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"hello\n", "SHA256SUMS line 1 is not '<64 hex digits>  <path>'"),
        (f"{SHA}\n".encode(), "line 1 is not"),
        (f"{SHA[:-1]}  a\n".encode(), "line 1 is not"),
        (f"\\{SHA}  a\\q\n".encode(), r"line 1 has an unknown escape '\\\\q'"),
        (f"{SHA}  a\n{SHA.replace('e', 'f')}  a\n".encode(), "line 2 lists 'a' a second time with another checksum"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_list_that_is_none_is_refused(body: bytes, message: str) -> None:
    """The message names the line."""
    with pytest.raises(OriginWrong, match=message):
        parse_sums(body, "SHA256SUMS")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_an_error(body: bytes) -> None:
    """No other exception leaves the parser."""
    with contextlib.suppress(OriginWrong):
        parse_sums(body, "x")


def test_a_small_file_is_proved_by_what_was_listed() -> None:
    """Size, SHA-256 and git blob id are compared; CRCs are the transfer's."""
    body = b"hello"
    git = hashlib.sha1(b"blob 5\0hello").hexdigest()
    sums = [Checksum(algorithm="git-sha1", value=git), Checksum(algorithm="crc32", value="00000000")]
    sums.append(Checksum(algorithm="sha256", value=hashlib.sha256(body).hexdigest()))
    file = RemoteFile(path="a", size_bytes=5, identity={}, checksums=tuple(sums))
    assert check_body(file, body, "a") == body
    with pytest.raises(SourceChanged, match="a has 4 bytes, 5 were listed"):
        check_body(file, b"hell", "a")
    with pytest.raises(ChecksumMismatch, match=r"a has git-sha1 [0-9a-f]{40}, the listing says"):
        check_body(file, b"hullo", "a")


# --- wrappers ---


@pytest.fixture
def simulated() -> Iterator[SimulatedOrigin]:
    with SimulatedOrigin({"a": b"1"}) as origin:
        yield origin


@pytest.mark.asyncio
async def test_passing_trouble_is_asked_again_and_no_other(simulated: SimulatedOrigin) -> None:
    """TransferFailed is tried as often as there are delays; OriginWrong is raised at once."""
    source = Retrying(simulated.source(), delays_s=(0, 0))
    simulated.fail("list", OriginUnavailable("later"), times=2)
    assert [file.path for file in (await source.list()).files] == ["a"]
    assert simulated.calls["list"] == 3
    simulated.fail("list", OriginUnavailable("much later"), times=3)
    with pytest.raises(OriginUnavailable, match="much later"):
        await source.list()
    simulated.fail("locate", OriginNotFound("never"))
    with pytest.raises(OriginNotFound, match="never"):
        await source.locate([])
    assert simulated.calls["locate"] == 1


@pytest.mark.asyncio
async def test_wrappers_are_the_source_that_they_wrap(simulated: SimulatedOrigin) -> None:
    """Kind, trust domain, results and close go through any stack of them."""
    inner = simulated.source(credential="c")
    source = Retrying(Limited(inner, limit=1))
    assert (source.kind, source.trust_domain) == (inner.kind, inner.trust_domain)
    files = (await source.list()).files
    assert await source.describe(files) == files
    assert await source.read(files[0], 1) == b"1"
    assert len(await source.locate(files)) == 1
    await source.close()
    assert simulated.calls["close"] == 1


@pytest.mark.asyncio
async def test_calls_beyond_the_limit_wait(simulated: SimulatedOrigin) -> None:
    """Of two calls with a limit of one, the second begins when the first has ended."""
    gate, started = asyncio.Event(), list[str]()

    class Slow:
        kind = "simulated"
        trust_domain = simulated.source().trust_domain

        async def list(self) -> object:
            started.append("list")
            await gate.wait()
            return None

    source = Limited(Slow(), limit=1)  # type: ignore[arg-type]  # only list() is called
    tasks = [asyncio.ensure_future(source.list()) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert started == ["list"]
    gate.set()
    await asyncio.gather(*tasks)
    assert started == ["list", "list"]


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("s3://bucket/prefix", "s3"),
        ("S3://bucket", "s3"),
        ("hf://org/name@main", "hf"),
        ("https://host/path/", "https"),
        ("http://host", "https"),
        ("file:///path", "posix"),
        ("nfs://server/export/path", "posix"),
    ],
)
def test_the_scheme_chooses_the_source(uri: str, kind: str) -> None:
    """Opening asks nobody anything."""
    assert open_source(SourceSpec(uri=uri), mounts={"server:/export": "/mnt"}).kind == kind


@pytest.mark.parametrize("uri", ["gs://bucket/x", "models/llama", "", "://x"])
def test_an_unknown_scheme_is_a_usage_error(uri: str) -> None:
    """The hint lists what there is."""
    with pytest.raises(UsageError) as caught:
        open_source(SourceSpec(uri=uri))
    assert "s3://bucket/prefix" in caught.value.hint


def test_the_table_of_mounts_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """CACHEAGENT_NFS_MOUNTS is read when nobody passes a table."""
    monkeypatch.setenv("CACHEAGENT_NFS_MOUNTS", "server:/export=/mnt/x")
    assert open_source(SourceSpec(uri="nfs://server/export/path")).trust_domain.endpoint == "nfs://server/export"
    monkeypatch.setenv("CACHEAGENT_NFS_MOUNTS", "nonsense")
    with pytest.raises(ConfigError, match="'nonsense' is not server:/export=/directory"):
        open_source(SourceSpec(uri="nfs://server/export/path"))
