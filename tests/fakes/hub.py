"""A Hugging Face Hub on loopback, with the storage that it redirects to on another host (127.0.0.2) and port.

    with Hub() as hub:
        commit = hub.create("org/model").commit({"config.json": b"{}", "model.safetensors": weights})
        HfApi(endpoint=hub.url).repo_info("org/model", files_metadata=True)
        assert not hub.tokens_seen_by_storage()

It says what the Hub says: its error codes, 401 to strangers for what does not exist (`hides_unknown`), the commit in
`X-Repo-Commit`, git blob ids as ETags of small files and SHA-256 for LFS, whose bytes only the storage has, behind
signed URLs that expire. Both are `HttpServer`s: faults can be injected into either.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import ssl
import time
from typing import Any, Self
from urllib.parse import parse_qs, quote

from tests.fakes.content import Content
from tests.fakes.exchange import Answer, Request
from tests.fakes.http_server import HttpServer
from tests.fakes.origin import answer_with
from tests.fakes.repo import Repo, RepoFile

STORAGE_HOST = "127.0.0.2"


class Storage(HttpServer):
    """Blobs by SHA-256 for whoever shows a URL that was signed here and has not expired; looks at no token.

    `get_only`: refuses HEAD, as S3 does for a URL that was signed for GET.
    """

    def __init__(self, *, tls: ssl.SSLContext | None, bytes_per_s: float | None, host: str) -> None:
        super().__init__(tls=tls, bytes_per_s=bytes_per_s, host=host)
        self.blobs: dict[str, Content] = {}
        self.url_lifetime_s = 3600.0
        self.get_only = False
        self._key = 0

    def signed_url(self, file: RepoFile) -> str:
        """A URL that works for `url_lifetime_s` from now."""
        self.blobs.setdefault(file.sha256, file.content)
        path, expires = f"/repos/{file.sha256}", f"{time.time() + self.url_lifetime_s:.3f}"
        return f"{self.url}{path}?Expires={expires}&Signature={self._sign(path, expires)}"

    def expire_urls(self) -> None:
        """All URLs given out so far are refused from now on."""
        self._key += 1

    def replace(self, path: str, content: Content) -> None:
        self.blobs[path.removeprefix("/repos/")] = content

    def respond(self, request: Request) -> Answer:
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        expires = query.get("Expires", "0")
        signed = hmac.compare_digest(query.get("Signature", ""), self._sign(request.path, expires))
        if not signed or float(expires) < time.time() or (self.get_only and request.method == "HEAD"):
            return Answer(status=403, content=Content(b"<Error><Code>AccessDenied</Code></Error>", etag=""))
        return answer_with(self.blobs[request.path.removeprefix("/repos/")], request)

    def _sign(self, path: str, expires: str) -> str:
        return hmac.new(str(self._key).encode(), f"{path} {expires}".encode(), hashlib.sha256).hexdigest()


class Hub(HttpServer):
    """The API and the small files. `page_size` is the tree's; `moved` names repositories that have another id now.
    `host`: where nodes of a cluster reach both it and its storage, in place of loopback."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, bytes_per_s: float | None = None, host: str = "") -> None:
        super().__init__(tls=tls, bytes_per_s=bytes_per_s, host=host or "127.0.0.1")
        self.storage = Storage(tls=tls, bytes_per_s=bytes_per_s, host=host or STORAGE_HOST)
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        self.tokens: set[str] = set()
        self.page_size = 1000
        self.hides_unknown = True
        self._stack = contextlib.ExitStack()

    def create(
        self, repo_id: str, *, private: bool = False, gated: bool = False, readers: tuple[str, ...] = ()
    ) -> Repo:
        """A repository without commits. `readers` become valid tokens too."""
        self.repos[repo_id] = Repo(repo_id=repo_id, private=private, gated=gated, readers=set(readers))
        self.tokens |= set(readers)
        return self.repos[repo_id]

    def tokens_seen_by_storage(self) -> list[str]:
        """Authorization headers that reached the other host: there should be none."""
        return [shown for each in self.storage.requests if (shown := each.headers.get("authorization"))]

    def __enter__(self) -> Self:
        self._stack.enter_context(self.storage)
        return super().__enter__()

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._stack.close()

    def respond(self, request: Request) -> Answer:
        try:
            return self._respond(request)
        except _Refused as refusal:
            return refusal.answer

    def _respond(self, request: Request) -> Answer:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        api, path = request.path.startswith("/api/models/"), request.path.removeprefix("/api/models/").lstrip("/")
        moved = next((each for each in self.moved if path == each or path.startswith(f"{each}/")), None)
        if moved:
            location = request.path.replace(moved, self.moved[moved], 1) + (
                f"?{request.query}" if request.query else ""
            )
            return Answer(status=307, headers={"Location": quote(location, safe="/?=&%")})
        repo = self._find_repo(path, token)
        rest = path.removeprefix(repo.repo_id).lstrip("/")
        if api:
            return self._answer_api(request, repo, rest)
        verb, _, rest = rest.partition("/")
        if verb != "resolve":
            raise _Refused(404, "", "no such page")
        if repo.gated and token not in repo.readers:
            raise _Refused(403 if token else 401, "GatedRepo", f"Access to model {repo.repo_id} is restricted.")
        return self._answer_file(request, repo, rest)

    def _find_repo(self, path: str, token: str) -> Repo:
        found = [repo for repo in self.repos.values() if path == repo.repo_id or path.startswith(f"{repo.repo_id}/")]
        if found and (not found[0].private or token in found[0].readers):
            return found[0]
        status = 404 if token or not self.hides_unknown else 401
        raise _Refused(status, "RepoNotFound", "Repository not found")

    def _answer_api(self, request: Request, repo: Repo, rest: str) -> Answer:
        verb, _, rest = rest.partition("/")
        if verb == "refs":
            return _json_answer(_refs(repo))
        if verb in ("", "revision"):
            return _json_answer(self._describe(repo, rest or "main"))
        if verb == "tree":
            return self._answer_tree(request, repo, rest)
        raise _Refused(404, "", "no such page")

    def _describe(self, repo: Repo, revision: str) -> dict[str, Any]:
        commit = _find_commit(repo, revision)
        return {
            "_id": hashlib.sha1(repo.repo_id.encode()).hexdigest()[:24],
            "id": repo.repo_id,
            "modelId": repo.repo_id,
            "sha": commit,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [file.sibling() for file in repo.commits[commit].values()],
        }

    def _answer_tree(self, request: Request, repo: Repo, rest: str) -> Answer:
        revision, directory = repo.split_revision(rest)
        query = parse_qs(request.query)
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = _tree(repo.commits[_find_commit(repo, revision)], directory, recursive=recursive)
        start = int(query.get("cursor", ["0"])[0])
        answer = _json_answer(entries[start : start + self.page_size])
        if start + self.page_size < len(entries):
            url = f"{self.url}{quote(request.path)}?recursive={recursive}&cursor={start + self.page_size}"
            answer.headers["Link"] = f'<{url}>; rel="next"'
        return answer

    def _answer_file(self, request: Request, repo: Repo, rest: str) -> Answer:
        revision, path = repo.split_revision(rest)
        commit = _find_commit(repo, revision)
        headers = {"X-Repo-Commit": commit}
        file = repo.commits[commit].get(path)
        if file is None:
            raise _Refused(404, "EntryNotFound", "Entry not found", **headers)
        if file.sha256:
            headers |= {"X-Linked-Etag": file.etag, "X-Linked-Size": str(file.content.size_bytes)}
            headers |= {"ETag": f'"{file.blob_id}"', "Location": self.storage.signed_url(file)}
            return Answer(status=302, headers=headers)
        answer = answer_with(file.content, request)
        answer.headers |= {**headers, "ETag": file.etag}
        return answer


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        headers |= {"X-Error-Code": code} if code else {}
        content = Content(json.dumps({"error": message}).encode(), etag="")
        self.answer = Answer(status=status, content=content, headers={**headers, "X-Error-Message": message})
        super().__init__(message)


def _find_commit(repo: Repo, revision: str) -> str:
    commit = repo.find_commit(revision)
    if commit is None:
        raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit


def _refs(repo: Repo) -> dict[str, Any]:
    def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in refs.items()]

    return {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []}


def _tree(files: dict[str, RepoFile], directory: str, *, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{directory.rstrip('/')}/" if directory else ""
    below = {path: file for path, file in files.items() if path.startswith(prefix)}
    if not below:
        raise _Refused(404, "EntryNotFound", f"{directory} does not exist")
    folders = sorted({path[: at + len(prefix)] for path in below for at in _slashes(path.removeprefix(prefix))})
    entries: list[dict[str, Any]] = [
        {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
        for path in folders
    ]
    entries += [file.entry() for file in below.values()]
    return [each for each in entries if recursive or "/" not in each["path"].removeprefix(prefix)]


def _slashes(path: str) -> list[int]:
    return [at for at, character in enumerate(path) if character == "/"]


def _json_answer(value: Any) -> Answer:
    content = Content(json.dumps(value).encode(), etag="")
    return Answer(status=200, content=content, headers={"Content-Type": "application/json; charset=utf-8"})
