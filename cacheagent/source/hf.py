"""`hf://org/name[@revision]`: a model repository on the Hugging Face Hub, a private one, or a mirror.

A branch or tag is pinned to its commit by the listing. `endpoint` (or `HF_ENDPOINT`) names the Hub. Its API is asked
directly: every request then has time-outs, can be cancelled, trusts the model's own `ca_bundle`, and shows the token
to nobody else; huggingface_hub contributes what is its own: where the Hub is, whose token applies, and what its URLs
and file entries look like.

Token: `credential` names one (see `tokens.py`); without it huggingface_hub's own chain applies (`HF_TOKEN`, the
login's file), but only at the Hub that `HF_ENDPOINT` names: a model's author who writes another `endpoint` must not
be sent this node's token.

Files in LFS are proved by their SHA-256, small ones by their git blob id. Large ones redirect to storage with a
signed URL, usually valid for an hour."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import partial
from typing import Final, TypeVar
from urllib.parse import quote, urljoin

import msgspec
from huggingface_hub import constants, get_token, hf_hub_url

from cacheagent.errors import OriginForbidden, OriginNotFound, OriginWrong, UsageError
from cacheagent.location import HttpLocation, Location
from cacheagent.model import Checksum, RemoteFile, TrustDomain
from cacheagent.source.address import check_web_url, origin_of
from cacheagent.source.base import Listing
from cacheagent.source.parallel import in_parallel
from cacheagent.source.proof import check_body
from cacheagent.source.tokens import find_token
from cacheagent.source.web import MAX_CONNECTIONS, Answer, Caller, Web, expect_success
from cacheagent.spec import SourceSpec

LISTING_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""A page of the tree has 1,000 files and some 300 KB; the repository's own entry names all of its files. Chosen."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_NEXT = re.compile(r'<([^>]+)>\s*;[^,]*\brel="?next"?')


class _Repo(msgspec.Struct, frozen=True):
    sha: str


class _Lfs(msgspec.Struct, frozen=True):
    oid: str


class _Entry(msgspec.Struct, frozen=True):
    type: str
    path: str
    oid: str
    size: int = 0
    lfs: _Lfs | None = None


class HfSource:
    """One revision of one model repository."""

    kind = "hf"

    def __init__(self, spec: SourceSpec) -> None:
        self._repo, self._revision = _parse_uri(spec.uri, spec.revision)
        self._endpoint = check_web_url(spec.endpoint or constants.ENDPOINT, "Hub endpoint")
        self._credential = spec.credential
        self._ca_bundle = spec.ca_bundle
        self._web = Web(ca_bundle=spec.ca_bundle)
        self._commit = ""
        self.trust_domain = TrustDomain(endpoint=self._endpoint, credential=spec.credential)

    def __repr__(self) -> str:
        return f"HfSource({self._repo!r}, {self._revision!r})"

    async def list(self) -> Listing:
        """See `Source.list`. Two requests, and one more for each thousand files."""
        caller = await self._caller()
        self._commit = await self._resolve(caller)
        entries: list[_Entry] = []
        url = f"{self._endpoint}/api/models/{self._repo}/tree/{self._commit}?recursive=true"
        while url:
            answer = await self._get(url, caller, LISTING_LIMIT_BYTES, self._name)
            entries += _decoded(answer.body, list[_Entry], f"the tree of {self._name}")
            url = self._next_page(answer)
        files = tuple(self._file(entry) for entry in entries if entry.type == "file")
        if not files:
            raise OriginNotFound(f"{self._name} has no files", hint="is it the right revision?")
        return Listing(files=files, revision=self._commit, repo_id=self._repo)

    async def describe(self, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
        """See `Source.describe`. A commit never changes, and the listing brought a hash for every file."""
        return tuple(files)

    async def read(self, file: RemoteFile, limit_bytes: int) -> bytes:
        """See `Source.read`."""
        if file.size_bytes > limit_bytes:
            raise ValueError(f"{file.path} has {file.size_bytes} bytes, more than {limit_bytes}")
        caller = await self._caller()
        url = await self._file_url(file, caller)
        answer = await self._get(url, caller, file.size_bytes + 1, f"{self._name} {file.path}")
        return check_body(file, answer.body, f"{self._name} {file.path}")

    async def locate(self, files: Sequence[RemoteFile]) -> Sequence[Location]:
        """See `Source.locate`. One HEAD for each file, and one more for each redirect that it meets."""
        return await in_parallel(partial(self._located, await self._caller()), files, lanes=MAX_CONNECTIONS)

    async def close(self) -> None:
        """See `Source.close`."""
        await self._web.close()

    @property
    def _name(self) -> str:
        return f"hf://{self._repo}@{self._revision}"

    async def _caller(self) -> Caller:
        if self._credential:
            return Caller(credential=self._credential, token=await asyncio.to_thread(find_token, self._credential))
        if origin_of(self._endpoint) != origin_of(constants.ENDPOINT):
            return Caller()
        token = await asyncio.to_thread(get_token)
        return Caller(credential="HF_TOKEN or hf auth login", token=token) if token else Caller()

    async def _resolve(self, caller: Caller) -> str:
        url = f"{self._endpoint}/api/models/{self._repo}/revision/{quote(self._revision, safe='')}"
        answer = await self._get(url, caller, LISTING_LIMIT_BYTES, self._name)
        commit = _decoded(answer.body, _Repo, self._name).sha
        if not _COMMIT.fullmatch(commit):
            raise OriginWrong(f"{self._name}: {self._endpoint} names no commit", hint="is the endpoint a Hub?")
        return commit

    async def _get(self, url: str, caller: Caller, limit_bytes: int, what: str) -> Answer:
        return self._expect(await self._web.ask("GET", url, caller, limit_bytes=limit_bytes), caller, what)

    def _expect(self, answer: Answer, caller: Caller, what: str) -> Answer:
        who = f"credential {caller.credential!r} was used" if caller.token else "no credential was used"
        if answer.headers.get("X-Error-Code") == "GatedRepo":
            hint = f"{who}; accept the conditions at {self._endpoint}/{self._repo} with that account"
            raise OriginForbidden(f"{what}: the repository is gated", hint=hint)
        if answer.status == 401 and answer.headers.get("X-Error-Code") == "RepoNotFound":
            hint = f"the Hub does not say which; {who}"
            raise OriginForbidden(f"{what}: does not exist, or is private", hint=hint)
        return expect_success(answer, what, origin_of(self._endpoint), caller)

    def _next_page(self, answer: Answer) -> str:
        match = _NEXT.search(answer.headers.get("Link", ""))
        if match is None:
            return ""
        url: str = urljoin(answer.url, match[1])
        if origin_of(url) != origin_of(self._endpoint):
            raise OriginWrong(f"{self._name}: its listing goes on at another server ({origin_of(url)})")
        return url

    def _file(self, entry: _Entry) -> RemoteFile:
        identity = {"endpoint": self._endpoint, "repo": self._repo, "blob_id": entry.oid}
        if entry.lfs:
            checksum = Checksum(algorithm="sha256", value=entry.lfs.oid.removeprefix("sha256:"))
        else:
            checksum = Checksum(algorithm="git-sha1", value=entry.oid)
        if not (_SHA256 if entry.lfs else _COMMIT).fullmatch(checksum.value) or entry.size < 0:
            raise OriginWrong(f"{self._name}: the entry of {entry.path[:200]!r} makes no sense")
        return RemoteFile(path=entry.path, size_bytes=entry.size, identity=identity, checksums=(checksum,))

    async def _file_url(self, file: RemoteFile, caller: Caller) -> str:
        # Whoever locates without having listed gets the revision of now; a file that changed since fails its hash.
        self._commit = self._commit or await self._resolve(caller)
        return str(hf_hub_url(self._repo, file.path, revision=self._commit, endpoint=self._endpoint))

    async def _located(self, caller: Caller, file: RemoteFile) -> Location:
        answer = await self._web.ask("HEAD", await self._file_url(file, caller), caller)
        if answer.at_home:
            self._expect(answer, caller, f"{self._name} {file.path}")
        # Elsewhere a signature may be good for GET only, so what storage says to HEAD is not an answer.
        headers = caller.headers if answer.at_home else {}
        return HttpLocation(url=answer.url, headers=headers, ca_bundle=self._ca_bundle)


def _parse_uri(uri: str, revision: str) -> tuple[str, str]:
    repo, _, in_uri = uri.partition("://")[2].rstrip("/").partition("@")
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise UsageError(
            f"{uri[:200]!r} is not hf://org/name[@revision]", hint="choose files with include patterns, not by path"
        )
    if in_uri and revision not in ("", in_uri):
        raise UsageError(f"{uri[:200]!r} and revision {revision!r} name two revisions", hint="keep one of them")
    return repo, in_uri or revision or constants.DEFAULT_REVISION


T = TypeVar("T")


def _decoded(body: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OriginWrong(f"{what}: the answer is not what a Hub sends", hint="is the endpoint a Hub?") from error
