"""Requests: the bytes that go out, and what may be said about them."""

from __future__ import annotations

import pytest

from cacheagent.location import HttpLocation, PathLocation
from cacheagent.transfer.failure import OrderFailed
from cacheagent.transfer.request import Endpoint, describe, make_request


@pytest.mark.parametrize(
    ("url", "endpoint", "target", "host"),
    [
        ("http://h/a/b?c=d#e", ("http", "h", 80), "/a/b?c=d", "h"),
        ("https://h:9/", ("https", "h", 9), "/", "h:9"),
        ("https://h", ("https", "h", 443), "/", "h"),
        ("http://h?x=http://y/", ("http", "h", 80), "/?x=http://y/", "h"),
        ("http://[::1]:80/x", ("http", "::1", 80), "/x", "[::1]:80"),
        ("http://[::1]/x", ("http", "::1", 80), "/x", "[::1]"),
        ("http://user:pass@h/x", ("http", "h", 80), "/x", "h"),
    ],
)
def test_urls_become_endpoint_target_and_host(url: str, endpoint: tuple[str, str, int], target: str, host: str) -> None:
    """User info is dropped: sources send credentials as headers."""
    request = make_request(HttpLocation(url=url, ca_bundle="ca"))
    assert request.endpoint == Endpoint(*endpoint, "ca")
    lines = request.range(5, 10).decode().split("\r\n")
    assert lines[0] == f"GET {target} HTTP/1.1"
    assert f"Host: {host}" in lines
    assert lines[-3:] == ["Range: bytes=5-14", "", ""]
    assert b"Range" not in request.whole()


def test_a_locations_headers_win() -> None:
    """A signed Host or an agent of the source's own is sent once, as given."""
    request = make_request(HttpLocation(url="http://h/", headers={"host": "other", "Authorization": "Bearer t"}))
    text = request.whole().decode()
    assert "host: other\r\nAuthorization: Bearer t\r\n\r\n" in text
    assert "Host: h" not in text
    assert "Accept-Encoding: identity\r\n" in text


def test_headers_belong_to_one_location() -> None:
    """What requests to one server share holds no value of theirs, and a value that can't be sent is refused whatever
    was sent before it."""
    for etag in ('"a"', '"b"', '"a"'):
        request = make_request(HttpLocation(url="http://h/x", headers={"If-Match": etag}))
        assert request.whole().decode().endswith(f"\r\nIf-Match: {etag}\r\n\r\n")
    with pytest.raises(OrderFailed, match="header 'If-Match' has characters"):
        make_request(HttpLocation(url="http://h/x", headers={"If-Match": '"a"\r\nX: y'}))


@pytest.mark.parametrize(
    "location",
    [
        HttpLocation(url="ftp://h/"),
        HttpLocation(url="http:///x"),
        HttpLocation(url="http://h:port/"),
        HttpLocation(url="http://h/a b"),
        HttpLocation(url="http://h/ä"),
        HttpLocation(url="http://h/\r\nX: y"),
        HttpLocation(url="http://h\r\nX: y/"),
        HttpLocation(url="http://h/", headers={"X": "a\r\nY: b"}),
        HttpLocation(url="http://h/", headers={"X\n": "a"}),
    ],
)
def test_what_would_break_a_request_is_refused(location: HttpLocation) -> None:
    """No URL or header value begins a second header or a second request."""
    with pytest.raises(OrderFailed) as caught:
        make_request(location)
    assert caught.value.kind == "protocol"
    assert "\r" not in caught.value.message


def test_names_hold_no_secret_and_secrets_are_known() -> None:
    """Messages show scheme, host and path; the query's and the headers' values are blackened in foreign texts."""
    location = HttpLocation(url="http://u:p@h/a?sig=abcdef%2Fg&n=1", headers={"Authorization": "Bearer hf_token"})
    assert describe(location) == "http://h/a"
    assert describe(PathLocation(path="/m/x", size_bytes=1, mtime_ns=1)) == "/m/x"
    assert set(make_request(location).secrets) == {"abcdef%2Fg", "abcdef/g", "hf_token", "Bearer hf_token"}
