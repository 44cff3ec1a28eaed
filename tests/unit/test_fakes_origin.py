"""The fake origin does what its faults promise: a fault that doesn't happen would make every test of it pass."""

import http.client
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.fakes import faults
from tests.fakes.content import Content
from tests.fakes.http_server import HttpServer
from tests.fakes.origin import Origin
from tests.fakes.tls import Tls

BODY = os.urandom(300_000)
BODY_RANGE = BODY[1000:201_000]
RANGE = {"Range": "bytes=1000-200999"}


class Client:
    """One keep-alive connection."""

    def __init__(self, server: HttpServer, *, context: ssl.SSLContext | None = None) -> None:
        if context:
            self.http: http.client.HTTPConnection = http.client.HTTPSConnection(
                server.host, server.port, timeout=30, context=context
            )
        else:
            self.http = http.client.HTTPConnection(server.host, server.port, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str, headers: dict[str, str] | None = None, *, method: str = "GET") -> http.client.HTTPResponse:
        self.http.request(method, path, headers=headers or {})
        return self.http.getresponse()


@pytest.fixture(autouse=True)
def _files(origin: Origin) -> None:
    origin.put("a.bin", BODY)
    origin.put("dir/b c.txt", b"hello")


@pytest.fixture
def client(origin: Origin) -> Iterator[Client]:
    with Client(origin) as mine:
        yield mine


def test_it_serves_ranges_on_one_connection_and_records_them(origin: Origin, client: Client) -> None:
    """Whole files, ranges and HEAD come right over keep-alive, and the record says who got how much."""
    whole = client.get("/a.bin")
    assert (whole.status, whole.read()) == (200, BODY)
    part = client.get("/a.bin", RANGE)
    assert (part.status, part.headers["Content-Range"], part.read()) == (206, "bytes 1000-200999/300000", BODY_RANGE)
    tail = client.get("/a.bin", {"Range": "bytes=299999-400000"})
    assert (tail.headers["Content-Range"], tail.read()) == ("bytes 299999-299999/300000", BODY[-1:])
    head = client.get("/dir/b%20c.txt", method="HEAD")
    assert (head.status, head.headers["Content-Length"], head.read()) == (200, "5", b"")

    origin.wait_until_idle()
    assert [each.range for each in origin.requests_for("a.bin")] == [None, (1000, 201_000), (299_999, 400_001)]
    assert origin.body_bytes_sent("a.bin") == 300_000 + 200_000 + 1
    assert {each.connection for each in origin.requests} == {1}
    assert (origin.open_connections, origin.peak_connections) == (1, 1)


def test_it_serves_files_of_a_directory_and_their_sums(tmp_path: Path) -> None:
    """A tree on disk is served as it is, with a checksum list that sha256sum would write."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_bytes(BODY)
    (tmp_path / "y").write_bytes(b"")
    with Origin.of_directory(tmp_path) as origin, Client(origin) as client:
        origin.add_sums()
        origin.add_sums("sub")

        assert client.get("/sub/x", RANGE).read() == BODY_RANGE
        assert client.get("/y").read() == b""
        sums = client.get("/SHA256SUMS").read().decode()
        assert [line.split("  ")[1] for line in sums.splitlines()] == ["sub/x", "y"]
        assert client.get("/sub/SHA256SUMS").read().decode() == f"{Content(BODY).sha256()}  x\n"


def test_conditions_and_bad_ranges_are_refused(origin: Origin, client: Client) -> None:
    """A stale If-Match or If-Unmodified-Since answers 412, a range behind the end 416, an unknown path 404."""
    first = client.get("/a.bin", method="HEAD")
    first.read()
    etag, modified = first.headers["ETag"], first.headers["Last-Modified"]

    def status(path: str, **headers: str) -> int:
        answer = client.get(path, {name.replace("_", "-"): value for name, value in headers.items()})
        answer.read()
        return answer.status

    assert status("/a.bin", If_Match=etag) == 200
    assert status("/a.bin", If_Match='"other"') == 412
    assert status("/a.bin", If_Unmodified_Since=modified) == 200
    assert status("/a.bin", If_Unmodified_Since="Mon, 01 Jan 2001 00:00:00 GMT") == 412
    assert status("/a.bin", Range="bytes=300000-") == 416
    assert status("/nothing") == 404
    origin.remove("a.bin")
    assert status("/a.bin") == 404


def test_a_token_is_asked_for() -> None:
    """Without the token 401, with another 403, with the right one the file."""
    with Origin({"a": b"x"}, token="right") as origin, Client(origin) as client:
        for shown, status in ((None, 401), ("Bearer wrong", 403), ("Bearer right", 200)):
            answer = client.get("/a", {"Authorization": shown} if shown else {})
            answer.read()
            assert answer.status == status


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_tls_is_served_to_those_who_trust_the_authority(tmp_path: Path, tls: Tls, place: str) -> None:
    """Over TLS the same bytes come; a client that doesn't trust the authority refuses, and the server lives on."""
    (tmp_path / "file").write_bytes(BODY)
    with Origin({"a.bin": tmp_path / "file" if place == "disk" else BODY}, tls=tls.server_context()) as origin:
        with Client(origin, context=ssl.create_default_context()) as stranger, pytest.raises(ssl.SSLError):
            stranger.get("/a.bin")
        with Client(origin, context=tls.client_context()) as client:
            assert client.get("/a.bin", RANGE).read() == BODY_RANGE


def test_a_fault_meets_the_nth_request_of_its_path_only(origin: Origin, client: Client) -> None:
    """The second GET of one path fails twice; others, HEADs and later ones don't."""
    origin.inject(faults.Status(503, retry_after="7"), path="a.bin", nth=2, times=2)

    def status(path: str, method: str = "GET") -> int:
        answer = client.get(path, method=method)
        answer.read()
        return answer.status

    assert [status("/a.bin") for _ in range(4)] == [200, 503, 503, 200]
    assert [status("/dir/b%20c.txt") for _ in range(3)] == [200, 200, 200]
    assert status("/a.bin", "HEAD") == 200
    assert [each.fault for each in origin.requests_for("a.bin")] == ["", "Status", "Status", ""]


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
def test_a_status_comes_with_its_retry_after(origin: Origin, client: Client, status: int) -> None:
    """Errors carry the status, Retry-After and a body, and keep the connection."""
    origin.inject(faults.Status(status, retry_after="1"), times=None)
    for _ in range(2):
        answer = client.get("/a.bin", RANGE)
        assert (answer.status, answer.headers["Retry-After"]) == (status, "1")
        assert b"Injected" in answer.read()
    origin.heal()
    assert client.get("/a.bin", RANGE).read() == BODY_RANGE
    assert origin.peak_connections == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_reset_arrives_after_the_bytes_before_it(tls: Tls, scheme: str) -> None:
    """The client gets exactly the promised bytes and then ECONNRESET (Python's TLS calls it an end)."""
    context = tls.client_context() if scheme == "https" else None
    with Origin({"a.bin": BODY}, tls=tls.server_context() if scheme == "https" else None) as origin:
        origin.inject(faults.Reset(after_bytes=5000))
        with Client(origin, context=context) as client:
            answer = client.get("/a.bin", RANGE)
            assert answer.read(5000) == BODY_RANGE[:5000]
            if scheme == "https":
                assert answer.read(1) == b""
            else:
                with pytest.raises(ConnectionResetError):
                    answer.read(1)
        with Client(origin, context=context) as client:
            assert client.get("/a.bin", RANGE).read() == BODY_RANGE
        origin.wait_until_idle()
        assert [each.body_bytes_sent for each in origin.requests] == [5000, 200_000]


def test_a_truncated_body_ends_cleanly_and_too_early(origin: Origin, client: Client) -> None:
    """Content-Length promises all, the connection closes after a part."""
    origin.inject(faults.Truncate(after_bytes=10))
    answer = client.get("/a.bin", RANGE)
    assert answer.headers["Content-Length"] == "200000"
    with pytest.raises(http.client.IncompleteRead) as caught:
        answer.read()
    assert caught.value.partial == BODY_RANGE[:10]


def test_wrong_bytes_have_the_right_length(origin: Origin, client: Client) -> None:
    """Only the named bytes differ."""
    origin.inject(faults.WrongBytes(at=500, count=2))
    got = client.get("/a.bin", RANGE).read()
    assert len(got) == len(BODY_RANGE)
    assert [at for at in range(len(got)) if got[at] != BODY_RANGE[at]] == [500, 501]


def test_a_stall_ends_by_release(origin: Origin, client: Client) -> None:
    """Nothing comes after the first bytes until the test lets go."""
    origin.inject(faults.Stall(after_bytes=100))
    answer = client.get("/a.bin", RANGE)
    assert answer.read(100) == BODY_RANGE[:100]
    readable, _, _ = select.select([client.http.sock], [], [], 0.2)
    assert not readable
    origin.wait_until(lambda: origin.requests[0].body_bytes_sent == 100)
    assert not origin.requests[0].finished

    origin.release()
    assert answer.read() == BODY_RANGE[100:]


def test_a_client_that_gives_up_frees_a_stalled_connection(origin: Origin) -> None:
    """The server notices that the client of a stall has left."""
    origin.inject(faults.Stall())
    with Client(origin) as client:
        client.get("/a.bin", RANGE)
        assert origin.open_connections == 1
    origin.wait_until(lambda: not origin._connections)
    assert origin.requests[0].finished


def test_dripping_and_late_answers_are_right_in_the_end(origin: Origin, client: Client) -> None:
    """A drip and a slow first byte take their time and bring the right bytes."""
    origin.inject(faults.Drip(bytes_per_s=2_000_000))
    origin.inject(faults.SlowFirstByte(seconds=0.1), nth=2)
    for fault in ("Drip", "SlowFirstByte"):
        started_s = time.monotonic()
        assert client.get("/a.bin", RANGE).read() == BODY_RANGE
        assert time.monotonic() - started_s > 0.09
        assert origin.requests[-1].fault == fault


def test_an_object_is_replaced_between_or_within_requests(origin: Origin, client: Client) -> None:
    """Before the answer; after a part, with the old bytes to the end; or with new bytes from there on."""
    old, new = origin.files["a.bin"], Content(b"n" * 300_000)
    origin.inject(faults.Replace(new))
    answer = client.get("/a.bin", RANGE)
    assert (answer.headers["ETag"], answer.read()) == (new.etag, b"n" * 200_000)

    origin.inject(faults.Replace(old, after_bytes=7))
    answer = client.get("/a.bin", RANGE)
    assert (answer.headers["ETag"], answer.read()) == (new.etag, b"n" * 200_000)

    origin.inject(faults.Replace(new, after_bytes=7, mixed=True))
    answer = client.get("/a.bin", RANGE)
    assert (answer.headers["ETag"], answer.read()) == (old.etag, BODY_RANGE[:7] + b"n" * 199_993)
    assert client.get("/a.bin", {"If-Match": old.etag}).status == 412


def test_framing_faults(origin: Origin) -> None:
    """No length, chunks, a false Content-Range, the whole object, another place, no HTTP: each as its name says."""

    def get(fault: faults.Fault, header: str = "Content-Length") -> tuple[int, str | None, bytes]:
        origin.inject(fault)
        with Client(origin) as client:
            answer = client.get("/a.bin", RANGE)
            return answer.status, answer.headers[header], answer.read()

    assert get(faults.NoLength()) == (206, None, BODY_RANGE)
    assert get(faults.Chunked(), "Transfer-Encoding") == (206, "chunked", BODY_RANGE)
    assert get(faults.WrongRange(shift=16), "Content-Range") == (206, "bytes 1016-201015/300000", BODY_RANGE)
    assert get(faults.IgnoreRange()) == (200, "300000", BODY)
    assert get(faults.Redirect("http://127.0.0.1:1/x", status=307), "Location") == (307, "http://127.0.0.1:1/x", b"")
    with pytest.raises(http.client.BadStatusLine):
        get(faults.NotHttp())
    with pytest.raises(http.client.HTTPException, match="got more than 100 headers"):
        get(faults.EndlessHeader())
    assert get(faults.Status(404))[0] == 404


def test_a_server_that_is_gone_refuses_and_comes_back_on_its_port(origin: Origin, client: Client) -> None:
    """Open connections are reset, new ones refused, and afterwards the same port serves again."""
    assert client.get("/a.bin").read() == BODY
    for _ in range(2):
        with origin.gone():
            with pytest.raises(ConnectionResetError):
                client.http.sock.recv(1)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((origin.host, origin.port), timeout=30)
        client.http.close()
        assert client.get("/a.bin").read() == BODY


def test_going_away_resets_an_answer_in_the_middle(origin: Origin, client: Client) -> None:
    """A body under way breaks by a reset, not by a clean end."""
    origin.inject(faults.Stall(after_bytes=100))
    answer = client.get("/a.bin", RANGE)
    assert answer.read(100) == BODY_RANGE[:100]
    with origin.gone(), pytest.raises(ConnectionResetError):
        answer.read(1)


def test_the_pace_holds_for_all_connections_together(origin: Origin) -> None:
    """Four readers at once take as long as the shared rate says."""
    origin.pace.bytes_per_s = 4_000_000
    started_s = time.monotonic()

    def read() -> None:
        with Client(origin) as client:
            assert client.get("/a.bin", RANGE).read() == BODY_RANGE

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert time.monotonic() - started_s > 0.19  # 0.8 MB at 4 MB/s, less one slice
    assert origin.peak_connections == 4


def test_stopping_ends_stalled_connections() -> None:
    """Leaving the block doesn't wait for clients that hang."""
    with Origin({"a": BODY}) as origin:
        origin.inject(faults.Stall(after_bytes=1))
        client = Client(origin)
        client.get("/a")
        threads = origin._threads
    assert not any(thread.is_alive() for thread in threads)
    client.http.close()


def test_waiting_for_something_that_does_not_happen_says_so(origin: Origin) -> None:
    """A test that waits in vain ends with what was asked so far."""
    with pytest.raises(AssertionError, match="did not happen within"):
        origin.wait_until(lambda: False, timeout_s=0.01)
