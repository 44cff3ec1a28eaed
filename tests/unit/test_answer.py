"""Heads of answers: what is understood, what is refused, and what is said about it."""

from __future__ import annotations

import base64
import hashlib

import pytest

from cacheagent.model import Checksum
from cacheagent.transfer.answer import (
    HEAD_LIMIT_BYTES,
    Head,
    excerpt,
    find_end,
    offered_checksums,
    parse_head,
    require_length,
    require_range,
    require_same,
    retry_after_s,
)
from cacheagent.transfer.failure import OrderFailed


def head(*lines: str, status: str = "HTTP/1.1 206 Partial Content") -> Head:
    return parse_head("\r\n".join([status, *lines, "", ""]).encode("latin-1"))


def ranged(length: str = "10", content_range: str = "bytes 5-14/100") -> Head:
    return head(f"Content-Length: {length}", f"Content-Range: {content_range}")


def test_a_head_is_understood_whatever_its_case_and_spaces() -> None:
    """Names are case-insensitive, values keep theirs, spaces around a value don't count."""
    found = head("CONTENT-length:  10 ", 'eTag: "Ab"', "X-Empty:", status="HTTP/1.1 200 OK")
    assert (found.status, found.reason, found.length, found.keep_alive) == (200, "OK", 10, True)
    assert found.headers == {"content-length": "10", "etag": '"Ab"', "x-empty": ""}
    assert head(status="HTTP/1.1 204").reason == ""


@pytest.mark.parametrize(
    ("status", "line", "keep_alive"),
    [
        ("HTTP/1.1 200 OK", "X: y", True),
        ("HTTP/1.1 200 OK", "Connection: Close", False),
        ("HTTP/1.0 200 OK", "X: y", False),
        ("HTTP/1.0 200 OK", "Connection: keep-alive", True),
    ],
)
def test_who_may_be_asked_again_on_the_same_connection(status: str, line: str, keep_alive: bool) -> None:  # noqa: FBT001
    """HTTP/1.1 unless it says close, HTTP/1.0 only if it says so."""
    assert head(line, status=status).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["no colon"], "a header line is 'no colon'"),
        ([" folded: 1"], "a header line is"),
        (["Name : 1"], "a header line is 'Name : 1'"),
        (["A: 1\nB: 2"], "a header line is"),
        (["Content-Length: 1", "Content-Length: 2"], "several lengths, 1, 2"),
        (["Content-Length: 1", "Transfer-Encoding: chunked"], "a Content-Length and a Transfer-Encoding"),
        (["Content-Length: +1"], r"Content-Length is '\+1'"),
        (["Content-Length: 1_0"], "Content-Length is '1_0'"),
        (["Content-Length: ²"], "Content-Length is"),
        ([f"X{n}: y" for n in range(101)], "it has 101 headers, more than 100"),
    ],
)
def test_ambiguous_heads_are_refused(lines: list[str], said: str) -> None:
    """What two readers could understand differently is nobody's answer."""
    with pytest.raises(OrderFailed, match=said) as caught:
        head(*lines)
    assert caught.value.kind == "protocol"


@pytest.mark.parametrize("status", ["SSH-2.0-OpenSSH", "HTTP/2 200", "HTTP/1.1 20", "HTTP/1.1 2000 x", "ICY 200 OK"])
def test_what_is_no_http_is_refused(status: str) -> None:
    """A wrong port answers with anything."""
    with pytest.raises(OrderFailed, match="it begins with"):
        head(status=status)


def test_two_equal_lengths_are_one() -> None:
    """Proxies do that, and nobody can misunderstand it."""
    assert head("Content-Length: 7", "content-length: 7").length == 7


def test_the_end_of_a_head_is_found_as_it_grows() -> None:
    """-1 until it is there, and no further than the limit."""
    data = memoryview(bytearray(b"HTTP/1.1 200 OK\r\n\r\nbody" + b"x" * HEAD_LIMIT_BYTES))
    assert find_end(data, 18) == -1
    assert find_end(data, 23) == 19
    with pytest.raises(OrderFailed, match="longer than 16384 bytes"):
        find_end(data[1000:], HEAD_LIMIT_BYTES)


def test_a_range_must_be_the_one_that_was_asked_for() -> None:
    """206 with both lengths and the right bytes of a file of the right size."""
    require_range(ranged(), offset=5, length=10, file_size=100)
    require_range(ranged(content_range="bytes 5-14/*"), offset=5, length=10, file_size=100)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (ranged(content_range="bytes 6-15/100"), "protocol", r"Content-Range is 'bytes 6-15/100', wanted bytes 5-14"),
        (ranged(content_range="bytes 5-14/101"), "changed", "has 101 bytes now, not 100"),
        (ranged(length="11"), "protocol", "Content-Length is 11, wanted 10"),
        (head("Content-Range: bytes 5-14/100"), "protocol", "a 206 without Content-Length"),
        (head("Content-Length: 10"), "protocol", "Content-Range is 'none'"),
        (head("Content-Length: 100", status="HTTP/1.1 200 OK"), "protocol", "the server ignored Range"),
    ],
)
def test_any_other_range_is_refused(answer: Head, kind: str, said: str) -> None:
    """Bytes from elsewhere would only be noticed at the end of the file."""
    with pytest.raises(OrderFailed, match=said) as caught:
        require_range(answer, offset=5, length=10, file_size=100)
    assert caught.value.kind == kind


def test_a_200_serves_who_wants_everything() -> None:
    """A server without ranges can still send small or whole files, of the listed size only."""
    whole = head("Content-Length: 100", status="HTTP/1.1 200 OK")
    require_range(whole, offset=0, length=100, file_size=100)
    require_length(whole, 100)
    with pytest.raises(OrderFailed, match="has 100 bytes now, not 99") as caught:
        require_length(whole, 99)
    assert caught.value.kind == "changed"
    with pytest.raises(OrderFailed, match="a 200 without Content-Length"):
        require_length(head("Transfer-Encoding: chunked", status="HTTP/1.1 200 OK"), 100)


def test_the_etag_must_stay() -> None:
    """Compared without quotes and the weakness mark; a missing one is a different one."""
    require_same(head('ETag: W/"abc"'), "abc")
    require_same(head("X: y"), "")
    for answer in (head('ETag: "abd"'), head("X: y")):
        with pytest.raises(OrderFailed, match="ETag is") as caught:
            require_same(answer, '"abc"')
        assert caught.value.kind == "changed"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 37.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("soon", -1.0),
        ("-5", -1.0),
        ("", -1.0),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(value: str, seconds: float) -> None:
    """-1 where the server says nothing that can be understood; never a time in the past."""
    half_past = 784111740.0  # Sun, 06 Nov 1994 08:49:00 GMT
    assert retry_after_s(head(f"Retry-After: {value}"), half_past) == seconds


def test_checksum_headers_of_whole_objects_are_used() -> None:
    """Base64 as S3 sends it; composites only where one part is the whole."""
    raw = hashlib.sha256(b"x").digest()
    value = base64.b64encode(raw).decode()
    assert offered_checksums(head(f"x-amz-checksum-sha256: {value}")) == (
        Checksum(algorithm="sha256", value=raw.hex()),
    )
    assert offered_checksums(head("Content-Length: 9", f"x-amz-checksum-sha256: {value}-1")) == (
        Checksum(algorithm="sha256", value=raw.hex(), parts=((9, 1),)),
    )
    assert offered_checksums(head(f"x-amz-checksum-sha256: {value}-2", "x-amz-checksum-type: COMPOSITE")) == ()
    with pytest.raises(OrderFailed, match="a checksum header is '!'"):
        offered_checksums(head("x-amz-checksum-crc32: !"))


def test_an_excerpt_is_short_readable_and_keeps_secrets() -> None:
    """S3's code and message, or the beginning; what the request kept secret is blackened."""
    body = b"<?xml?><Error><Code>SlowDown</Code><Message>Reduce\n your request rate.</Message></Error>"
    assert excerpt(body, ()) == "SlowDown: Reduce your request rate."
    assert excerpt(b"denied for token hf_secret\x1b[31m!", ("hf_secret",)) == "denied for token *** [31m!"
    assert len(excerpt(b"x" * 1000, ())) == 200
