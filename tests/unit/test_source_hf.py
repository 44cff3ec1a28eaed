"""The Hub: revisions, hashes, mirrors, gates, and who gets to see a token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from cacheagent.errors import (
    ChecksumMismatch,
    OriginForbidden,
    OriginNotFound,
    OriginThrottled,
    OriginWrong,
    UsageError,
)
from cacheagent.location import HttpLocation
from cacheagent.model import Checksum, RemoteFile
from cacheagent.source.base import Listing
from cacheagent.source.hf import HfSource
from cacheagent.spec import SourceSpec
from tests.conformance.reading import read_whole
from tests.fakes.faults import Redirect, Status, WrongBytes
from tests.fakes.hub import Hub
from tests.fakes.origin import Origin
from tests.fakes.repo import Repo, git_blob_id
from tests.fakes.tls import Tls

TOKEN = "hf_tokenofthereader"
WEIGHTS = bytes(range(256)) * 100
CONFIG = b'{"hidden_size": 8}'


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub
        assert not hub.tokens_seen_by_storage()


@pytest.fixture
def repo(hub: Hub) -> Repo:
    repo = hub.create("org/model")
    repo.commit({"config.json": CONFIG, "model.safetensors": WEIGHTS}, tag="v1")
    return repo


async def list_of(hub: Hub, uri: str = "hf://org/model", **fields: str) -> Listing:
    """A listing by a source without wrappers."""
    source = HfSource(SourceSpec(uri=uri, endpoint=hub.url, **fields))  # type: ignore[arg-type]  # only strings are passed
    try:
        return await source.list()
    finally:
        await source.close()


@pytest.mark.asyncio
async def test_branch_tag_and_commit_lead_to_the_same_commit(hub: Hub, repo: Repo) -> None:
    """The revision of a listing is the commit, whichever way it was named; a branch's name may have slashes."""
    first = repo.branches["main"]
    repo.commit({"config.json": b"{}"}, branch="refs/pr/1")
    second = repo.commit({"config.json": b"{ }"})
    for uri, revision in (("@v1", ""), ("", "v1"), (f"@{first}", ""), ("@v1", "v1")):
        listing = await list_of(hub, f"hf://org/model{uri}", revision=revision)
        assert (listing.revision, listing.repo_id) == (first, "org/model")
    assert (await list_of(hub)).revision == second
    listing = await list_of(hub, "hf://org/model@refs/pr/1")
    assert listing.revision == repo.branches["refs/pr/1"]
    assert [file.size_bytes for file in listing.files] == [2]


@pytest.mark.asyncio
async def test_every_file_brings_its_proof(hub: Hub, repo: Repo) -> None:
    """LFS files their SHA-256, small ones their git blob id; identity is where and which blob."""
    small, large = (await list_of(hub)).files
    assert small.checksums == (Checksum(algorithm="git-sha1", value=git_blob_id(CONFIG)),)
    assert large.checksums == (Checksum(algorithm="sha256", value=hashlib.sha256(WEIGHTS).hexdigest()),)
    assert small.identity == {"endpoint": hub.url, "repo": "org/model", "blob_id": git_blob_id(CONFIG)}


@pytest.mark.asyncio
async def test_small_files_come_from_the_hub_and_large_ones_from_storage(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each location has the headers for its own host: the token for the Hub, none for the storage."""
    monkeypatch.setenv("CACHEAGENT_TOKEN_READER", TOKEN)
    hub.create("org/private", private=True, readers=(TOKEN,)).commit(
        {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    )
    source = HfSource(SourceSpec(uri="hf://org/private", endpoint=hub.url, credential="reader"))
    for hub.storage.get_only in (False, True):  # S3 refuses HEAD on a URL that was signed for GET
        located = await source.locate((await source.list()).files)
        small, large = located
        assert isinstance(small, HttpLocation)
        assert isinstance(large, HttpLocation)
        assert small.url.startswith(f"{hub.url}/org/private/resolve/")
        assert small.headers == {"Authorization": f"Bearer {TOKEN}"}
        assert large.url.startswith(f"{hub.storage.url}/")
        assert large.headers == {}
        assert [read_whole(location)[0] for location in located] == [CONFIG, WEIGHTS]
    await source.close()


@pytest.mark.asyncio
async def test_small_files_behind_a_relative_redirect_keep_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the real Hub does it since 2025: resolve redirects to its own cache, on the same host."""
    monkeypatch.setenv("CACHEAGENT_TOKEN_READER", TOKEN)
    repo = hub.create("org/private", private=True, readers=(TOKEN,))
    commit = repo.commit({"config.json": CONFIG})
    target = f"/org/private/resolve/main/config.json?cached={commit}"
    hub.inject(Redirect(target, status=307), path=f"org/private/resolve/{commit}/config.json", method="HEAD")
    source = HfSource(SourceSpec(uri="hf://org/private", endpoint=hub.url, credential="reader"))
    (location,) = await source.locate((await source.list()).files)
    await source.close()
    assert isinstance(location, HttpLocation)
    assert (location.url, location.headers) == (hub.url + target, {"Authorization": f"Bearer {TOKEN}"})


@pytest.mark.asyncio
async def test_the_nodes_own_token_goes_only_to_the_configured_hub(
    hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_TOKEN is for HF_ENDPOINT. A model's `endpoint` that is another host never sees it."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.tokens.add(TOKEN)
    await list_of(hub)
    assert not [request for request in hub.requests if "authorization" in request.headers]
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    await list_of(hub)
    assert {request.headers.get("authorization") for request in hub.requests[-2:]} == {f"Bearer {TOKEN}"}


@pytest.mark.asyncio
async def test_a_mirror_that_passes_on_to_another_mirror(hub: Hub, repo: Repo) -> None:
    """The chain is followed to the storage."""
    with Origin() as mirror:
        for path in ("api/models/org/model/revision/main", f"api/models/org/model/tree/{repo.branches['main']}"):
            query = "?recursive=true" if "tree" in path else ""
            mirror.inject(Redirect(f"{hub.url}/{path}{query}", status=308), path=path)
        resolve = f"org/model/resolve/{repo.branches['main']}/model.safetensors"
        mirror.inject(Redirect(f"{hub.url}/{resolve}", status=308), path=resolve, method="HEAD")
        source = HfSource(SourceSpec(uri="hf://org/model", endpoint=mirror.url))
        files = (await source.list()).files
        (location,) = await source.locate([file for file in files if file.path == "model.safetensors"])
        await source.close()
    assert isinstance(location, HttpLocation)
    assert location.url.startswith(f"{hub.storage.url}/")
    assert read_whole(location)[0] == WEIGHTS


@pytest.mark.asyncio
async def test_a_renamed_repository_is_followed(hub: Hub, repo: Repo) -> None:
    """The Hub redirects old names."""
    hub.moved["old/name"] = "org/model"
    assert len((await list_of(hub, "hf://old/name")).files) == 2


@pytest.mark.asyncio
async def test_an_own_authority_is_trusted_for_all_hosts_of_the_hub(tmp_path: Path) -> None:
    """ca_bundle holds for the API and for the storage that it redirects to."""
    tls = Tls(tmp_path)
    with Hub(tls=tls.server_context()) as hub:
        hub.create("org/model").commit({"model.safetensors": WEIGHTS})
        source = HfSource(SourceSpec(uri="hf://org/model", endpoint=hub.url, ca_bundle=str(tls.ca_bundle)))
        (location,) = await source.locate((await source.list()).files)
        await source.close()
        assert read_whole(location)[0] == WEIGHTS
        with pytest.raises(OriginWrong, match="is not signed by this system's authorities"):
            await list_of(hub)


@pytest.mark.asyncio
async def test_refusals_say_what_to_do(hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gated, private or absent, unknown revision, wrong token: each has its own sentence."""
    monkeypatch.setenv("CACHEAGENT_TOKEN_STRANGER", "hf_unknown")
    hub.create("org/private", private=True)
    with pytest.raises(OriginForbidden, match="hf://org/nothing@main: does not exist, or is private") as caught:
        await list_of(hub, "hf://org/nothing")
    assert "no credential was used" in caught.value.hint
    with pytest.raises(OriginNotFound, match="hf://org/model@v9"):
        await list_of(hub, "hf://org/model@v9")
    with pytest.raises(OriginForbidden, match="answered 401") as caught:
        await list_of(hub, "hf://org/private", credential="stranger")
    assert "'stranger'" in caught.value.hint
    assert "hf_unknown" not in str(caught.value)

    hub.create("org/gated", gated=True).commit({"config.json": CONFIG})
    source = HfSource(SourceSpec(uri="hf://org/gated", endpoint=hub.url))
    files = (await source.list()).files
    with pytest.raises(OriginForbidden, match="the repository is gated") as caught:
        await source.locate(files)
    await source.close()
    assert f"accept the conditions at {hub.url}/org/gated" in caught.value.hint

    hub.inject(Status(429), path="api/models/org/model/revision/main", times=3)
    with pytest.raises(OriginThrottled):
        await list_of(hub)
    assert len((await list_of(hub)).files) == 2


@pytest.mark.asyncio
async def test_a_listing_does_not_go_on_elsewhere(hub: Hub, repo: Repo) -> None:
    """A next page at another host would be asked for with the token, so it is refused; pages of the same host are all
    read."""
    hub.page_size = 1
    assert len((await list_of(hub)).files) == 2
    with Origin() as elsewhere:
        right = Hub.url.fget  # type: ignore[attr-defined]  # a property
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Hub, "url", property(lambda _: elsewhere.url))
            source = HfSource(SourceSpec(uri="hf://org/model", endpoint=right(hub)))
            with pytest.raises(OriginWrong, match="its listing goes on at another server"):
                await source.list()
            await source.close()
        assert not elsewhere.requests


@pytest.mark.asyncio
async def test_answers_that_no_hub_gives_are_refused() -> None:
    """A web server that is no Hub, and one whose entries make no sense."""
    commit = "a" * 40
    with Origin() as server:
        source = HfSource(SourceSpec(uri="hf://org/model", endpoint=server.url))
        for revision, tree, message in (
            (b"<html>", b"", "the answer is not what a Hub sends"),
            (b'{"sha": "main"}', b"", "names no commit"),
            (f'{{"sha": "{commit}"}}'.encode(), b'{"error": 1}', "the answer is not what a Hub sends"),
            (f'{{"sha": "{commit}"}}'.encode(), b"[]", "has no files"),
            (
                f'{{"sha": "{commit}"}}'.encode(),
                b'[{"type": "file", "path": "a", "oid": "x", "size": 1}]',
                "the entry of 'a' makes no sense",
            ),
        ):
            server.put("api/models/org/model/revision/main", revision)
            server.put(f"api/models/org/model/tree/{commit}", tree)
            with pytest.raises((OriginWrong, OriginNotFound), match=message):
                await source.list()
        await source.close()


@pytest.mark.asyncio
async def test_an_index_is_proved_when_it_is_read(hub: Hub, repo: Repo) -> None:
    """One wrong byte is a ChecksumMismatch, for small files and for those in LFS."""
    source = HfSource(SourceSpec(uri="hf://org/model", endpoint=hub.url))
    files: tuple[RemoteFile, ...] = (await source.list()).files
    hub.inject(WrongBytes(), path=f"org/model/resolve/{repo.branches['main']}/config.json")
    with pytest.raises(ChecksumMismatch, match=r"config\.json has git-sha1"):
        await source.read(files[0], 1000)
    assert await source.read(files[0], 1000) == CONFIG
    hub.storage.inject(WrongBytes())
    with pytest.raises(ChecksumMismatch, match=r"model\.safetensors has sha256"):
        await source.read(files[1], 10**6)
    assert await source.read(files[1], 10**6) == WEIGHTS
    await source.close()


@pytest.mark.asyncio
async def test_files_can_be_located_by_a_source_that_did_not_list(hub: Hub, repo: Repo) -> None:
    """A fresh source resolves the revision first."""
    files = (await list_of(hub)).files
    source = HfSource(SourceSpec(uri="hf://org/model", endpoint=hub.url))
    located = await source.locate(files)
    await source.close()
    assert [read_whole(location)[0] for location in located] == [CONFIG, WEIGHTS]


@pytest.mark.parametrize(
    ("uri", "revision", "message"),
    [
        ("hf://org/model/sub/folder", "", "is not hf://org/name"),
        ("hf://", "", "is not hf://org/name"),
        ("hf://../x", "", "is not hf://org/name"),
        ("hf://org/..", "", "is not hf://org/name"),
        ("hf://org/na me", "", "is not hf://org/name"),
        ("hf://org/model@v1", "v2", "name two revisions"),
    ],
)
def test_uris_that_name_no_repository(uri: str, revision: str, message: str) -> None:
    """Refused before anybody is asked."""
    with pytest.raises(UsageError, match=message):
        HfSource(SourceSpec(uri=uri, revision=revision))
