"""Ranges over HTTP: what a healthy origin gives, and how each misfortune is named."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheagent.location import HttpLocation
from cacheagent.transfer import tls as tls_connection
from cacheagent.transfer.failure import OrderFailed
from cacheagent.transfer.http1 import HttpBody
from cacheagent.transfer.request import make_request
from cacheagent.transfer.running import Running
from tests.fakes import faults
from tests.fakes.content import Content
from tests.fakes.origin import Origin
from tests.fakes.tls import Tls
from tests.fakes.worker import PATIENCE_S, Bench, random_bytes

DATA = random_bytes(700_000)
SIZE = len(DATA)


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, tls: Tls) -> Iterator[Origin]:
    """Both kinds of connection keep the same promises."""
    with Origin({"a.bin": DATA}, tls=tls.server_context() if request.param == "https" else None) as started:
        yield started


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


@pytest.fixture
def impatient() -> Iterator[Bench]:
    """Gives a silent server up soon."""
    with Bench(idle_timeout_s=0.3) as made:
        yield made


def at(server: Origin, tls: Tls, path: str = "a.bin", **more: object) -> HttpLocation:
    return HttpLocation(url=f"{server.url}/{path}", ca_bundle=str(tls.ca_bundle), **more)  # type: ignore[arg-type]


def fetch(
    bench: Bench,
    location: HttpLocation,
    offset: int = 0,
    length: int = SIZE,
    *,
    size: int = SIZE,
    running: Running | None = None,
) -> bytes:
    view = memoryview(bytearray(length))
    half = length // 2
    with HttpBody(bench.tools.connections, location, running or Running(1), bench.tools.meter) as body:
        body.open(offset, length, size)
        body.receive(view[:half])
        body.receive(view[half:])
        body.finish()
    return bytes(view)


def failure(bench: Bench, location: HttpLocation, offset: int = 0, length: int = SIZE) -> OrderFailed:
    with pytest.raises(OrderFailed) as caught:
        fetch(bench, location, offset, length)
    return caught.value


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (1, 1), (1000, 300_000), (SIZE - 1, 1)])
def test_a_range_arrives_as_it_is(server: Origin, tls: Tls, bench: Bench, offset: int, length: int) -> None:
    """Whatever its place in the file, in two receives; every byte is counted once."""
    assert fetch(bench, at(server, tls), offset, length) == DATA[offset : offset + length]
    assert bench.shared.received_bytes(0) == length


def test_a_connection_serves_many_ranges(server: Origin, tls: Tls, bench: Bench) -> None:
    """Keep-alive: one handshake for all."""
    for offset in range(0, SIZE, 100_000):
        assert fetch(bench, at(server, tls), offset, 100_000) == DATA[offset : offset + 100_000]
    assert {request.connection for request in server.requests} == {1}
    assert len(server.requests) == 7


def test_a_kept_connection_that_died_is_replaced_silently(server: Origin, tls: Tls, bench: Bench) -> None:
    """The server closed it while nobody looked: no failure, one more connection."""
    fetch(bench, at(server, tls), 0, 10)
    with server.gone():
        pass
    assert fetch(bench, at(server, tls), 10, 10) == DATA[10:20]
    assert [request.connection for request in server.requests] == [1, 2]


def test_a_session_is_resumed_only_in_the_context_that_it_began_in(tls: Tls, bench: Bench) -> None:
    """Threads that connect for the first time at once may have made a context each; a session of another one's is an
    error that no second try would mend.
    """
    with Origin({"a.bin": DATA}, tls=tls.server_context()) as server:
        location = at(server, tls, headers={"Connection": "close"})
        kept = at(server, tls)
        fetch(bench, kept, 0, 10)
        assert make_request(kept).endpoint in tls_connection._sessions
        tls_connection._context.cache_clear()
        assert fetch(bench, location, 10, 10) == DATA[10:20]  # on the kept connection, which the server then closes
        assert fetch(bench, location, 20, 10) == DATA[20:30]
        assert [request.connection for request in server.requests] == [1, 1, 2]


def test_a_new_connection_that_ends_before_an_answer_is_a_failure(server: Origin, tls: Tls, bench: Bench) -> None:
    """Only a kept one may be dead without blame."""
    server.inject(faults.NotHttp(b""))
    assert failure(bench, at(server, tls)).kind == "reset"
    assert len(server.requests) == 1
    assert fetch(bench, at(server, tls)) == DATA


def test_a_server_that_closes_after_each_answer_is_believed(server: Origin, tls: Tls, bench: Bench) -> None:
    """Connection: close is obeyed on the next request."""
    location = at(server, tls, headers={"Connection": "close"})
    assert fetch(bench, location, 0, 10) + fetch(bench, location, 10, 10) == DATA[:20]
    assert [request.connection for request in server.requests] == [1, 2]


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (faults.Reset(after_bytes=1000), "reset", "connection"),
        (faults.Truncate(after_bytes=600_000), "reset", "connection"),
        (faults.Status(503, retry_after="7"), "status", "503 Status: Injected: a fault of the test"),
        (faults.Status(404), "status", "404 Not Found: Injected"),
        (faults.Status(412), "changed", "412 Precondition Failed"),
        (faults.Status(416), "changed", "416 Status"),
        (faults.Redirect("http://elsewhere/"), "status", "302 Found"),
        (faults.NoLength(), "protocol", "without Content-Length"),
        (faults.Chunked(), "protocol", "without Content-Length"),
        (faults.WrongRange(), "protocol", "Content-Range is 'bytes 1-700000/700000'"),
        (faults.EndlessHeader(), "protocol", "longer than 16384 bytes"),
        (faults.NotHttp(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "protocol", "it begins with 'SSH-2.0-OpenSSH_9.2'"),
        (faults.Replace(Content(DATA[:-1])), "changed", "ETag is"),
    ],
)
def test_each_misfortune_has_its_name(
    server: Origin, tls: Tls, bench: Bench, fault: faults.Fault, kind: str, said: str
) -> None:
    """The kind tells the pool what to do, the message tells a person; the next try is served."""
    location = at(server, tls, etag=server.files["a.bin"].etag)
    server.inject(fault)
    found = failure(bench, location)
    assert (found.kind, said in found.message) == (kind, True), found.message
    if kind != "reset":
        assert f"{server.url}/a.bin" in found.message or kind == "protocol"
    server.put("a.bin", DATA)
    assert fetch(bench, location) == DATA


def test_a_file_of_another_size_has_changed(server: Origin, tls: Tls, bench: Bench) -> None:
    """Without an ETag the total in Content-Range tells."""
    server.put("a.bin", DATA + b"x")
    found = failure(bench, at(server, tls))
    assert (found.kind, found.message) == (
        "changed",
        f"{server.url}/a.bin: has {SIZE + 1} bytes now, not {SIZE}",
    )


def test_a_server_without_ranges_serves_whole_files_only(server: Origin, tls: Tls, bench: Bench) -> None:
    """A 200 is everything or nothing."""
    server.inject(faults.IgnoreRange(), times=2)
    assert fetch(bench, at(server, tls)) == DATA
    found = failure(bench, at(server, tls), 10, 10)
    assert (found.kind, "ignored Range" in found.message) == ("protocol", True)


def test_status_and_retry_after_are_handed_on(server: Origin, tls: Tls, bench: Bench) -> None:
    """As numbers, for whoever decides when to ask again; after an error the connection isn't used again."""
    server.inject(faults.Status(429, retry_after="3"))
    found = failure(bench, at(server, tls))
    assert (found.status, found.retry_after_s) == (429, 3.0)
    server.inject(faults.Status(500))
    assert failure(bench, at(server, tls)).retry_after_s == -1.0


def test_secrets_stay_out_of_messages(server: Origin, tls: Tls, bench: Bench) -> None:
    """Neither the query of a signed URL nor a token, even when the server repeats them."""
    server.inject(faults.Status(403, body=b"signature s3cr3t-signature of hf_verysecret is wrong"), times=1)
    location = HttpLocation(
        url=f"{server.url}/a.bin?X-Amz-Signature=s3cr3t-signature",
        headers={"Authorization": "Bearer hf_verysecret"},
        ca_bundle=str(tls.ca_bundle),
    )
    found = failure(bench, location)
    assert found.message == f"GET {server.url}/a.bin: 403 Status: signature *** of *** is wrong"


@pytest.mark.parametrize("fault", [faults.Stall(after_bytes=1000), faults.SlowFirstByte(), faults.Drip(200)])
def test_silence_and_dripping_end_within_the_idle_limit(
    server: Origin, tls: Tls, impatient: Bench, fault: faults.Fault
) -> None:
    """A drip of 200 bytes/s is never silent for long and still as good as stalled."""
    server.inject(fault)
    found = failure(impatient, at(server, tls))
    assert (found.kind, "within 0.3 s" in found.message) == ("timeout", True)
    server.heal()
    assert fetch(impatient, at(server, tls)) == DATA


def test_a_head_that_drips_is_given_up(impatient: Bench) -> None:
    """A byte now and then, for ever, before the first byte of the body."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def drip() -> None:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):  # the client leaves
                client.settimeout(0.05)
                for byte in b"HTTP/1.1 206 Partial Content\r\n" * 1000:
                    client.sendall(bytes([byte]))
                    with contextlib.suppress(TimeoutError):
                        while client.recv(4096):
                            pass

        thread = threading.Thread(target=drip)
        thread.start()
        found = failure(impatient, HttpLocation(url=f"http://127.0.0.1:{listener.getsockname()[1]}/x"))
        thread.join(PATIENCE_S)
    assert (found.kind, "within 0.3 s" in found.message) == ("timeout", True)


def test_a_slow_server_is_not_a_stalled_one(server: Origin, tls: Tls) -> None:
    """As long as each idle period brings enough, the range may take longer than the limit."""
    with Bench(idle_timeout_s=0.5) as bench:
        server.inject(faults.Drip(400_000))
        assert fetch(bench, at(server, tls)) == DATA


def test_stopping_an_order_ends_its_receive_at_once(server: Origin, tls: Tls, bench: Bench) -> None:
    """Its socket is shut down; the server sees the client leave."""
    server.inject(faults.Stall(after_bytes=1000))
    running = Running(1)
    caught: list[OrderFailed] = []

    def work() -> None:
        try:
            fetch(bench, at(server, tls), running=running)
        except OrderFailed as found:
            caught.append(found)

    thread = threading.Thread(target=work)
    thread.start()
    server.wait_until(lambda: server.body_bytes_sent() == 1000)
    running.stop()
    thread.join(PATIENCE_S)
    assert [found.kind for found in caught] == ["reset"]
    server.wait_until(lambda: server.open_connections == 0)
    with pytest.raises(OrderFailed, match="cancelled"):
        fetch(bench, at(server, tls), running=running)
    assert fetch(bench, at(server, tls)) == DATA


def test_a_kept_connection_that_is_too_old_is_not_used(
    server: Origin, tls: Tls, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has probably closed it by now."""
    fetch(bench, at(server, tls), 0, 10)
    monkeypatch.setattr("cacheagent.transfer.http1.KEPT_S", 0.0)
    fetch(bench, at(server, tls), 0, 10)
    assert [request.connection for request in server.requests] == [1, 2]
    bench.tools.connections.close_idle()
    server.wait_until(lambda: server.open_connections == 0)


def test_the_cap_slices_what_is_received(server: Origin, tls: Tls) -> None:
    """The bytes are the same, and the schedule has moved by as many."""
    with Bench(cap_bytes_per_s=10_000_000) as bench:
        assert fetch(bench, at(server, tls)) == DATA
        assert bench.shared.received_bytes(0) == SIZE


def test_nobody_listening_is_a_connect_failure(bench: Bench, server: Origin, tls: Tls) -> None:
    """Refused, or a name that doesn't exist."""
    with server.gone():
        found = failure(bench, at(server, tls))
    assert (found.kind, found.errno, "Connection refused" in found.message) == ("connect", 111, True)
    found = failure(bench, HttpLocation(url="http://does-not-exist.invalid/x"))
    assert (found.kind, "does-not-exist.invalid:80: no connection" in found.message) == ("connect", True)


def test_a_connection_that_is_never_answered_times_out(impatient: Bench) -> None:
    """A full backlog: the SYN is dropped, as behind a firewall."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        found = failure(impatient, HttpLocation(url=f"http://127.0.0.1:{listener.getsockname()[1]}/x"))
        for filler in fillers:
            filler.close()
    assert (found.kind, "timed out" in found.message) == ("connect", True)


def test_an_untrusted_certificate_is_named(tls: Tls, bench: Bench) -> None:
    """TLS failures have a kind of their own: asking again doesn't help."""
    with Origin({"a.bin": DATA}, tls=tls.server_context()) as server:
        found = failure(bench, HttpLocation(url=f"{server.url}/a.bin"))
        assert (found.kind, "its certificate is not trusted" in found.message) == ("tls", True)
        assert fetch(bench, at(server, tls)) == DATA


def test_what_is_no_tls_is_named(tls: Tls, bench: Bench, tmp_path: Path) -> None:
    """A plain server behind an https URL, and a CA bundle that isn't there."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        found = failure(bench, HttpLocation(url=f"https://127.0.0.1:{port}/x", ca_bundle=str(tls.ca_bundle)))
        thread.join(PATIENCE_S)
        assert (found.kind, "the TLS handshake failed: WRONG_VERSION_NUMBER" in found.message) == ("tls", True)
        found = failure(bench, HttpLocation(url=f"https://127.0.0.1:{port}/x", ca_bundle=str(tmp_path / "no.pem")))
        assert (found.kind, "TLS can't be set up" in found.message) == ("tls", True)
