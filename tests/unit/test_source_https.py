"""Web servers as sources: what is asked, what is refused, and to whom a token is shown."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheagent.errors import (
    ChecksumMismatch,
    ConfigError,
    OriginForbidden,
    OriginNotFound,
    OriginThrottled,
    OriginUnavailable,
    OriginWrong,
    SourceChanged,
    UnsafeContent,
    UsageError,
)
from cacheagent.location import HttpLocation
from cacheagent.model import MIB, RemoteFile, blob_id
from cacheagent.source import web
from cacheagent.source.address import origin_of
from cacheagent.source.https import HttpsSource
from cacheagent.source.web import Caller, Web
from cacheagent.spec import SourceSpec
from tests.fakes.content import Content
from tests.fakes.faults import NotHttp, Redirect, Reset, SlowFirstByte, Status
from tests.fakes.origin import Origin
from tests.fakes.tls import Tls

TOKEN = "token-of-the-reader"
READER = Caller(credential="reader", token=TOKEN)


@pytest.fixture
def server() -> Iterator[Origin]:
    with Origin({"m/a.bin": b"aaaa", "m/b.bin": b"bb"}) as origin:
        yield origin


@pytest.fixture
def other() -> Iterator[Origin]:
    """Another host: its own address."""
    with Origin({"moved.bin": b"moved"}, host="127.0.0.2") as origin:
        yield origin


def source_of(server: Origin, path: str = "m/", **fields: str) -> HttpsSource:
    """A source without wrappers, so that nothing is tried twice."""
    return HttpsSource(SourceSpec(uri=f"{server.url}/{path}", **fields))  # type: ignore[arg-type]  # only strings are passed


def put_index(server: Origin, *entries: dict[str, object]) -> None:
    server.put("m/index.json", json.dumps({"files": entries}).encode())


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


# --- redirects and tokens ---


@pytest.mark.asyncio
async def test_a_token_stays_with_the_host_it_was_given_for(server: Origin, other: Origin) -> None:
    """Across a redirect the other host, and the other port of the same host, see no Authorization."""
    with Origin({"moved.bin": b"moved"}) as other_port:
        for target in (other, other_port):
            server.inject(Redirect(f"{target.url}/moved.bin?sig=1"), path="m/a.bin")
            async with Web() as client:
                answer = await client.ask("GET", f"{server.url}/m/a.bin", READER, limit_bytes=100)
            assert (answer.status, answer.body, answer.at_home) == (200, b"moved", False)
            assert server.requests[-1].headers["authorization"] == f"Bearer {TOKEN}"
            assert "authorization" not in target.requests[-1].headers


@pytest.mark.asyncio
async def test_a_token_is_shown_again_after_a_relative_redirect(server: Origin) -> None:
    """A redirect within the host is still the host."""
    server.inject(Redirect("b.bin", status=307), path="m/a.bin")
    async with Web() as client:
        answer = await client.ask("GET", f"{server.url}/m/a.bin", READER, limit_bytes=100)
    assert (answer.body, answer.at_home, answer.redirected) == (b"bb", True, True)
    assert server.requests_for("m/b.bin")[0].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.asyncio
async def test_nobody_else_can_send_the_token_home_for_us(server: Origin, other: Origin) -> None:
    """A redirect that comes back from another host is followed as a stranger."""
    server.inject(Redirect(f"{other.url}/x"), path="m/a.bin")
    other.inject(Redirect(f"{server.url}/m/b.bin"), path="x")
    async with Web() as client:
        answer = await client.ask("GET", f"{server.url}/m/a.bin", READER, limit_bytes=100)
    assert (answer.body, answer.at_home) == (b"bb", False)
    assert "authorization" not in server.requests_for("m/b.bin")[0].headers


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://127.0.0.2:9/x", "redirects from https to http"),
        ("ftp://127.0.0.2/x", "not a plain http"),
        ("https://user:pass@127.0.0.2/x", "not a plain http"),
        ("file:///etc/passwd", "not a plain http"),
    ],
)
async def test_redirects_that_are_not_followed(location: str, message: str, tmp_path: Path) -> None:
    """A step down to plain HTTP, another scheme, or a password in the URL."""
    tls = Tls(tmp_path)
    with Origin({"a": b"a"}, tls=tls.server_context()) as server:
        async with Web(ca_bundle=str(tls.ca_bundle)) as client:
            assert (await client.ask("GET", f"{server.url}/a", READER, limit_bytes=1)).body == b"a"
            server.inject(Redirect(location), path="a")
            with pytest.raises(OriginWrong, match=message) as caught:
                await client.ask("GET", f"{server.url}/a", READER)
    assert "pass@" not in str(caught.value)


@pytest.mark.asyncio
async def test_redirects_in_a_circle_end(server: Origin) -> None:
    """Five are followed; a sixth is an error."""
    server.inject(Redirect("/m/a.bin"), path="m/a.bin", times=5)
    async with Web() as client:
        assert (await client.ask("GET", f"{server.url}/m/a.bin", Caller())).status == 200
        server.inject(Redirect("/m/a.bin"), path="m/a.bin", times=None)
        with pytest.raises(OriginWrong, match="redirects more than 5 times"):
            await client.ask("GET", f"{server.url}/m/a.bin", Caller())
    assert len(server.requests) == 12


# --- the network ---


@pytest.mark.asyncio
async def test_nobody_listening_is_unavailable() -> None:
    """The sentence names scheme, host and port."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with Web() as client:
            with pytest.raises(OriginUnavailable, match=f"{url} cannot be reached"):
                await client.ask("GET", f"{url}/secret-path", Caller())


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", [Reset(), NotHttp(), SlowFirstByte()])
async def test_a_broken_answer_is_unavailable(
    fault: Reset | NotHttp | SlowFirstByte, server: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reset, garbage and silence may pass; the next request is served."""
    server.inject(fault, path="m/a.bin", times=None)
    with monkeypatch.context() as patch:
        patch.setattr(web, "IDLE_TIMEOUT_S", 0.2)
        async with Web() as client:
            with pytest.raises(OriginUnavailable, match=f"{server.url} cannot be reached"):
                await client.ask("GET", f"{server.url}/m/a.bin", Caller(), limit_bytes=10)
    server.heal()
    async with Web() as client:
        assert (await client.ask("GET", f"{server.url}/m/a.bin", Caller(), limit_bytes=10)).body == b"aaaa"


@pytest.mark.asyncio
async def test_an_unknown_authority_is_named_with_the_way_out(tmp_path: Path) -> None:
    """Without ca_bundle the certificate is refused with a hint; with it, it is taken; an unreadable one is a
    ConfigError."""
    tls = Tls(tmp_path)
    with Origin({"SHA256SUMS": f"{sha256(b'a')}  a\n".encode(), "a": b"a"}, tls=tls.server_context()) as server:
        with pytest.raises(OriginWrong, match="is not signed by this system's authorities") as caught:
            await _list(source_of(server, ""))
        assert "ca_bundle" in caught.value.hint
        assert [file.path for file in await _list(source_of(server, "", ca_bundle=str(tls.ca_bundle)))] == ["a"]
        with pytest.raises(ConfigError, match="ca_bundle /nonexistent cannot be read"):
            await _list(source_of(server, "", ca_bundle="/nonexistent"))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, OriginForbidden),
        (403, OriginForbidden),
        (404, OriginNotFound),
        (429, OriginThrottled),
        (500, OriginUnavailable),
        (503, OriginUnavailable),
        (418, OriginWrong),
    ],
)
async def test_each_status_has_its_error(status: int, kind: type[Exception], server: Origin) -> None:
    """The listing's own status decides, and bodies are not repeated."""
    server.add_sums("m")
    server.inject(Status(status, body=b"the body says secret things"), path="m/SHA256SUMS", times=None)
    with pytest.raises(kind) as caught:
        await _list(source_of(server))
    assert type(caught.value) is kind
    assert "secret things" not in str(caught.value)
    server.heal()
    assert len(await _list(source_of(server))) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_moments_trouble_is_not_noticed(status: int, server: Origin) -> None:
    """One request of many may fail twice; what does not pass by itself is asked for once."""
    server.add_sums("m")
    server.inject(Status(status), path="m/a.bin", method="HEAD", times=2)
    assert len(await _list(source_of(server))) == 2
    assert len(server.requests_for("m/a.bin", "HEAD")) == 3
    server.inject(Status(403), path="m/a.bin", method="HEAD", times=None)
    with pytest.raises(OriginForbidden, match=r"m/a\.bin"):
        await _list(source_of(server))
    assert len(server.requests_for("m/a.bin", "HEAD")) == 4


# --- listings ---


async def _list(source: HttpsSource) -> list[RemoteFile]:
    try:
        return list((await source.list()).files)
    finally:
        await source.close()


@pytest.mark.asyncio
async def test_a_complete_index_costs_one_question(server: Origin) -> None:
    """Sizes and checksums in index.json leave one sample HEAD, whatever the number of small files; large ones are
    pinned by one each."""
    large = bytes(17 * MIB)
    server.put("m/large.bin", large)
    small = [{"path": f"{number}.txt", "size": 1, "sha256": sha256(b"x")} for number in range(50)]
    for entry in small:
        server.put(f"m/{entry['path']}", b"x")
    put_index(server, *small, {"path": "large.bin", "size": len(large), "sha256": sha256(large).upper()})
    source = source_of(server)
    files = (await source.list()).files
    assert sorted(request.path for request in server.requests if request.method == "HEAD") == [
        "/m/0.txt",
        "/m/large.bin",
    ]
    assert "etag" in files[-1].identity
    assert files[-1].checksums[0].value == sha256(large)
    assert await source.describe(files) == files
    locations = await source.locate(files)
    await source.close()
    assert len([request for request in server.requests if request.method == "HEAD"]) == 3
    assert isinstance(locations[0], HttpLocation)
    assert locations[0].url == f"{server.url}/m/0.txt"


@pytest.mark.asyncio
async def test_a_server_that_redirects_files_is_followed_for_each(server: Origin, other: Origin) -> None:
    """Where the sample is redirected, all are asked for, and locations are where they ended, without the token."""
    put_index(server, *({"path": f"{name}.bin", "size": 5, "sha256": sha256(b"moved")} for name in "ab"))
    for name in "ab":
        server.inject(Redirect(f"{other.url}/moved.bin?for={name}"), path=f"m/{name}.bin", method="HEAD", times=None)
    source = HttpsSource(SourceSpec(uri=f"{server.url}/m/", credential="reader"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHEAGENT_TOKEN_READER", TOKEN)
        located = await source.locate((await source.list()).files)
    await source.close()
    assert [
        (location.url, location.headers.get("Authorization"))
        for location in located
        if isinstance(location, HttpLocation)
    ] == [
        (f"{other.url}/moved.bin?for=a", None),
        (f"{other.url}/moved.bin?for=b", None),
    ]
    assert all("authorization" not in request.headers for request in other.requests)


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["", "SHA256SUMS", "other.json", "index.json"])
async def test_the_listing_may_be_named(server: Origin, name: str) -> None:
    """A URI is the directory, or the listing in it."""
    server.add_sums("m", paths=["a.bin"])
    for index in ("index.json", "other.json"):
        server.put(f"m/{index}", json.dumps({"files": [{"path": "b.bin"}]}).encode())
    files = await _list(source_of(server, f"m/{name}"))
    assert [file.path for file in files] == (["b.bin"] if name.endswith("json") else ["a.bin"])


@pytest.mark.asyncio
async def test_no_listing_says_how_to_make_one(server: Origin) -> None:
    """The hint is the command."""
    with pytest.raises(OriginNotFound, match=r"has no SHA256SUMS and no index\.json") as caught:
        await _list(source_of(server))
    assert "sha256sum" in caught.value.hint


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"<html>", "is not a listing"),
        (b"[]", "is not a listing"),
        (b'{"files": [{"size": 1}]}', "is not a listing"),
        (b'{"files": [{"path": "a", "size": -1}]}', "size or sha256 of 'a' makes no sense"),
        (b'{"files": [{"path": "a", "sha256": "xyz"}]}', "size or sha256 of 'a' makes no sense"),
        (b'{"files": [{"path": "a.bin"}, {"path": "a.bin"}]}', "lists a path twice"),
    ],
)
async def test_an_index_that_makes_no_sense_is_refused(server: Origin, index: bytes, message: str) -> None:
    """Before any file is asked for."""
    server.put("m/index.json", index)
    with pytest.raises(OriginWrong, match=message):
        await _list(source_of(server))
    assert not [request for request in server.requests if request.method == "HEAD"]


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "a//b", "./a", "//evil.example/x"])
async def test_a_path_that_leads_elsewhere_is_not_even_asked_for(server: Origin, path: str) -> None:
    """Clients, proxies and servers resolve such paths each in their own way."""
    server.put("secret", b"s")
    server.put("m/SHA256SUMS", f"{sha256(b's')}  {path.replace('./a', './././a')}\n".encode())
    with pytest.raises(UnsafeContent, match=r"which has an empty, '\.' or '\.\.' component"):
        await _list(source_of(server))
    assert [request.path for request in server.requests] == ["/m/SHA256SUMS"]


@pytest.mark.asyncio
async def test_a_listing_that_lies_about_sizes_is_caught(server: Origin) -> None:
    """The server's Content-Length and the listing must agree."""
    put_index(server, {"path": "a.bin", "size": 5})
    with pytest.raises(SourceChanged, match=r"/m/a\.bin has 4 bytes, the listing says 5"):
        await _list(source_of(server))
    put_index(server, {"path": "a.bin", "size": 4})
    assert len(await _list(source_of(server))) == 1


@pytest.mark.asyncio
async def test_small_files_are_proved_when_they_are_read(server: Origin) -> None:
    """A body that is not what the list says is a ChecksumMismatch; read() trusts no index blindly."""
    put_index(server, {"path": "a.bin", "size": 4, "sha256": sha256(b"bbbb")})
    source = source_of(server)
    (file,) = (await source.list()).files
    with pytest.raises(ChecksumMismatch, match=r"/m/a\.bin has sha256"):
        await source.read(file, 100)
    await source.close()


@pytest.mark.asyncio
async def test_weak_etags_pin_by_date_instead(server: Origin) -> None:
    """If-Match takes strong ETags only; a weak one still must stay the same, and the date goes into
    If-Unmodified-Since."""
    server.put("m/a.bin", Content(b"aaaa", etag='W/"weak"'))
    server.put("m/b.bin", Content(b"bb", etag=""))
    server.add_sums("m")
    source = source_of(server)
    weak, none = await source.locate((await source.list()).files)
    await source.close()
    assert isinstance(weak, HttpLocation)
    assert isinstance(none, HttpLocation)
    assert (weak.etag, none.etag) == ('W/"weak"', "")
    for location in (weak, none):
        assert set(location.headers) == {"If-Unmodified-Since"}


@pytest.mark.asyncio
async def test_naming_anothers_checksum_gives_no_identity_of_his(server: Origin, other: Origin) -> None:
    """Two servers that list the same SHA-256 name different blobs, so nothing is linked by knowing a hash."""
    ours = server.files["m/a.bin"]
    server.add_sums("m", paths=["a.bin"])
    other.put("m/SHA256SUMS", f"{ours.sha256()}  a.bin\n".encode())
    other.put("m/a.bin", b"????")
    honest, thief = source_of(server), source_of(other)
    (file,), (claimed,) = (await honest.list()).files, (await thief.list()).files
    await honest.close()
    await thief.close()
    assert file.checksums == claimed.checksums
    assert file.identity != claimed.identity
    assert honest.trust_domain != thief.trust_domain
    assert blob_id(honest.trust_domain, file) != blob_id(thief.trust_domain, claimed)


# --- URIs ---


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("https://user:geheim@host/x", "holds a user, a password or a query"),
        ("https:///x", "is not http"),
        ("https://host:0/x", "is not http"),
        ("https://host:port/x", "is not a URL"),
        ("https://host/x?sig=geheim", "holds a user, a password or a query"),
        ("https://host/x#geheim", "holds a user, a password or a query"),
        ("file://host/x", "is not http"),
    ],
)
def test_uris_that_are_no_directories_or_hold_secrets(uri: str, message: str) -> None:
    """Refused without repeating what may be secret."""
    with pytest.raises(UsageError, match=message) as caught:
        HttpsSource(SourceSpec(uri=uri))
    assert "geheim" not in str(caught.value)


def test_origins_have_one_spelling() -> None:
    """Case and the default port make no difference, other ports and schemes do."""
    assert origin_of("HTTPS://Host/x") == origin_of("https://host:443/y?z") == "https://host:443"
    assert len({origin_of("http://host/"), origin_of("https://host/"), origin_of("https://host:444/")}) == 3
    assert origin_of("http://[::1]/x") == "http://[::1]:80"
