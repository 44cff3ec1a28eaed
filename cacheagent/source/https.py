"""`https://host/path/`: files behind any web server, named by a checksum list or an index.

The listing is `SHA256SUMS` in the directory (GNU format), else `index.json`:
`{"files": [{"path": "a/b", "size": 123, "sha256": "<64 hex>"}]}` where `sha256` may be missing. A URI that ends in
`SHA256SUMS` or `.json` names the listing itself. Paths are relative to the listing's directory and not URL-encoded.
`http://` works too.

A listing says what *its own URL space* holds: identity includes the URL, and the trust domain is the server and the
credential, so a list that names somebody else's SHA-256 gets nothing by it. The bearer token of `credential` (see
`tokens.py`) goes to the URI's own server only, never along with a redirect to another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from urllib.parse import quote

import msgspec

from cacheagent.errors import OriginNotFound, OriginWrong, SourceChanged, UnsafeContent
from cacheagent.location import HttpLocation, Location
from cacheagent.model import PIECE_SIZE_BYTES, Checksum, RemoteFile, TrustDomain
from cacheagent.source.address import check_web_url, origin_of
from cacheagent.source.base import Listing
from cacheagent.source.parallel import in_parallel
from cacheagent.source.proof import check_body
from cacheagent.source.sums import SUMS_LIMIT_BYTES, SUMS_NAME, parse_sums
from cacheagent.source.tokens import find_token
from cacheagent.source.web import MAX_CONNECTIONS, Answer, Caller, Web, expect_success
from cacheagent.spec import SourceSpec

INDEX_NAME = "index.json"


class IndexedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `index.json`; unknown fields are left alone."""

    path: str
    size: int | None = None
    sha256: str = ""


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """`index.json`."""

    files: list[IndexedFile]


class HttpsSource:
    """One directory on a web server. Requests: the listing, a HEAD for each file that the listing leaves unpinned."""

    kind = "https"

    def __init__(self, spec: SourceSpec) -> None:
        url = check_web_url(spec.uri, "uri")
        name = url.rpartition("/")[2]
        names_listing = name == SUMS_NAME or name.endswith(".json")
        self._base = (url.rpartition("/")[0] if names_listing else url) + "/"
        self._listings = [name] if names_listing else [SUMS_NAME, INDEX_NAME]
        self._origin = origin_of(url)
        self._credential = spec.credential
        self._ca_bundle = spec.ca_bundle
        self._refused_networks = spec.refused_networks
        self._web = Web(ca_bundle=spec.ca_bundle, refused_networks=spec.refused_networks)
        self._direct: set[str] = set()
        self.trust_domain = TrustDomain(endpoint=self._origin, credential=spec.credential)

    def __repr__(self) -> str:
        return f"HttpsSource({self._base!r})"

    async def list(self) -> Listing:
        """See `Source.list`. One HEAD for each file without size or checksum and each larger than a piece; one in all
        else."""
        caller = await self._caller()
        entries = await self._read_listing(caller)
        unpinned = [entry for entry in entries if _needs_asking(entry)]
        settled = [entry for entry in entries if not _needs_asking(entry)]
        files = {entry.path: self._from_index(entry) for entry in settled}
        # Where the listing says it all, one file is asked for as a sample: a server that redirects one may redirect
        # all.
        if settled and (await self._ask_for(caller, settled[0])).redirected:
            unpinned += settled[1:]
        else:
            self._direct.update(files)
        for file in await in_parallel(partial(self._pinned, caller), unpinned, lanes=MAX_CONNECTIONS):
            files[file.path] = file
        return Listing(files=tuple(files[entry.path] for entry in entries))

    async def describe(self, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
        """See `Source.describe`. Asks again for each file that is larger than a piece, or that no checksum proves."""
        caller = await self._caller()
        asked = [file for file in files if file.size_bytes > PIECE_SIZE_BYTES or not file.checksums]

        async def check(file: RemoteFile) -> None:
            entry = IndexedFile(path=file.path, size=file.size_bytes, sha256=file.identity.get("sha256", ""))
            if (await self._pinned(caller, entry)).identity != file.identity:
                raise self._changed(file)

        await in_parallel(check, asked, lanes=MAX_CONNECTIONS)
        return tuple(files)

    async def read(self, file: RemoteFile, limit_bytes: int) -> bytes:
        """See `Source.read`."""
        if file.size_bytes > limit_bytes:
            raise ValueError(f"{file.path} has {file.size_bytes} bytes, more than {limit_bytes}")
        caller = await self._caller()
        answer = await self._web.ask(
            "GET", file.identity["url"], caller, headers=_conditions(file), limit_bytes=file.size_bytes + 1
        )
        expect_success(answer, file.path, self._origin, caller)
        etag = file.identity.get("etag", "")
        if etag and answer.headers.get("ETag", "") != etag:
            raise self._changed(file)
        return check_body(file, answer.body, self._base + file.path)

    async def locate(self, files: Sequence[RemoteFile]) -> Sequence[Location]:
        """See `Source.locate`. A file whose server redirects is followed (by HEAD) to where it is now."""
        caller = await self._caller()
        return await in_parallel(partial(self._located, caller), files, lanes=MAX_CONNECTIONS)

    async def close(self) -> None:
        """See `Source.close`."""
        await self._web.close()

    async def _caller(self) -> Caller:
        if not self._credential:
            return Caller()
        token = await asyncio.to_thread(find_token, self._credential)
        return Caller(credential=self._credential, token=token)

    async def _read_listing(self, caller: Caller) -> Sequence[IndexedFile]:
        for name in self._listings:
            answer = await self._web.ask("GET", self._base + name, caller, limit_bytes=SUMS_LIMIT_BYTES)
            if answer.status in (404, 410):
                continue
            expect_success(answer, self._base + name, self._origin, caller)
            return _parse_listing(name, answer.body, self._base + name)
        raise OriginNotFound(
            f"{self._base} has no {' and no '.join(self._listings)}",
            hint="a web source needs a list of its files: sha256sum * > SHA256SUMS",
        )

    def _changed(self, file: RemoteFile) -> SourceChanged:
        return SourceChanged(f"{self._base}{file.path} is no longer the one that was listed", hint="resolve again")

    def _url(self, path: str) -> str:
        return self._base + quote(path, safe="/~!$&'()*+,;=:@")

    async def _ask_for(self, caller: Caller, entry: IndexedFile) -> Answer:
        url = self._url(entry.path)
        # Clients, proxies and servers each resolve such segments in their own way: not even asked for.
        if any(part in ("", ".", "..") for part in entry.path.split("/")):
            raise UnsafeContent(f"{self._base} lists {entry.path[:200]!r}, which has an empty, '.' or '..' component")
        return expect_success(await self._web.ask("HEAD", url, caller), url, self._origin, caller)

    async def _pinned(self, caller: Caller, entry: IndexedFile) -> RemoteFile:
        answer = await self._ask_for(caller, entry)
        size = answer.headers.get("Content-Length", "")
        if not size.isdecimal():
            raise OriginWrong(
                f"{self._url(entry.path)}: HEAD brings no Content-Length", hint="give sizes and checksums in index.json"
            )
        if entry.size not in (None, int(size)):
            raise SourceChanged(
                f"{self._url(entry.path)} has {size} bytes, the listing says {entry.size}",
                hint="write the listing again",
            )
        if not answer.redirected:
            self._direct.add(entry.path)
        validators = {"etag": answer.headers.get("ETag", ""), "last_modified": answer.headers.get("Last-Modified", "")}
        return self._file(entry, int(size), {name: value for name, value in validators.items() if value})

    def _from_index(self, entry: IndexedFile) -> RemoteFile:
        assert entry.size is not None
        return self._file(entry, entry.size, {})

    def _file(self, entry: IndexedFile, size_bytes: int, validators: dict[str, str]) -> RemoteFile:
        identity = {"url": self._url(entry.path), **validators}
        checksums: tuple[Checksum, ...] = ()
        if entry.sha256:
            identity["sha256"] = entry.sha256
            checksums = (Checksum(algorithm="sha256", value=entry.sha256),)
        return RemoteFile(path=entry.path, size_bytes=size_bytes, identity=identity, checksums=checksums)

    async def _located(self, caller: Caller, file: RemoteFile) -> Location:
        url, at_home = file.identity["url"], True
        if file.path not in self._direct:
            answer = await self._web.ask("HEAD", url, caller)
            if answer.at_home:
                expect_success(answer, url, self._origin, caller)
            url, at_home = answer.url, answer.at_home
        return HttpLocation(
            url=url,
            headers=_conditions(file) | (caller.headers if at_home else {}),
            etag=file.identity.get("etag", ""),
            ca_bundle=self._ca_bundle,
            refused_networks=self._refused_networks,
        )


def _needs_asking(entry: IndexedFile) -> bool:
    """Small files with a checksum are one request each, proved by their SHA-256: nothing could be mixed."""
    return entry.size is None or not entry.sha256 or entry.size > PIECE_SIZE_BYTES


def _conditions(file: RemoteFile) -> dict[str, str]:
    """Only strong ETags may stand in If-Match (RFC 9110 13.1.1)."""
    etag, date = file.identity.get("etag", ""), file.identity.get("last_modified", "")
    if etag and not etag.startswith("W/"):
        return {"If-Match": etag}
    return {"If-Unmodified-Since": date} if date else {}


def _parse_listing(name: str, body: bytes, where: str) -> list[IndexedFile]:
    if name == SUMS_NAME:
        return [IndexedFile(path=path, sha256=value) for path, value in parse_sums(body, where).items()]
    try:
        entries = msgspec.json.decode(body, type=Index).files
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OriginWrong(
            f"{where} is not a listing: {error}", hint='{"files": [{"path": …, "size": …, "sha256": …}]}'
        ) from error
    for entry in entries:
        if (entry.size is not None and entry.size < 0) or (entry.sha256 and not _is_sha256(entry.sha256)):
            raise OriginWrong(f"{where}: size or sha256 of {entry.path[:200]!r} makes no sense")
    if len({entry.path for entry in entries}) != len(entries):
        raise OriginWrong(f"{where} lists a path twice")
    return [msgspec.structs.replace(entry, sha256=entry.sha256.lower()) for entry in entries]


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and all(character in "0123456789abcdefABCDEF" for character in text)
