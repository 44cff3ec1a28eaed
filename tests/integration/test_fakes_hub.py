"""The fake Hub is one to huggingface_hub itself: what it resolves, downloads and refuses."""

import hashlib
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

from tests.fakes import faults
from tests.fakes.hub import Hub
from tests.fakes.tls import Tls

CONFIG = b'{"model_type": "llama"}'
WEIGHTS = os.urandom(300_000)
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "sub/deep/vocab.txt": b"a\nb\n"}
TOKEN = "hf_right"


def download(hub: Hub, where: Path, *, revision: str = "main", token: str = "") -> Path:
    """snapshot_download into an own cache; the snapshot's directory."""
    return Path(
        snapshot_download("org/model", endpoint=hub.url, cache_dir=where, revision=revision, token=token or False)
    )


def test_snapshot_download_gets_every_file_and_shows_no_token_to_storage(hub: Hub, tmp_path: Path) -> None:
    """huggingface_hub downloads a private repository; the weights come from the other host, which sees no token."""
    repo = hub.create("org/model", private=True, readers=(TOKEN,))
    commit = repo.commit(FILES)

    snapshot = download(hub, tmp_path, token=TOKEN)

    assert snapshot.name == commit
    assert {
        str(path.relative_to(snapshot)): path.read_bytes() for path in snapshot.rglob("*") if path.is_file()
    } == FILES
    assert any(each.headers.get("authorization") == f"Bearer {TOKEN}" for each in hub.requests)
    assert hub.storage.body_bytes_sent() == len(WEIGHTS)
    assert hub.tokens_seen_by_storage() == []
    assert hub.storage.host != hub.host


def test_a_leaked_token_would_be_noticed(hub: Hub) -> None:
    """The record of the storage does show a token when a client sends one."""
    file = hub.create("org/model")
    file.commit(FILES)
    url = hub.storage.signed_url(next(iter(file.commits.values()))["model.safetensors"])
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.read() == WEIGHTS
    assert hub.tokens_seen_by_storage() == [f"Bearer {TOKEN}"]


def test_repo_info_lists_sizes_blob_ids_and_lfs_hashes(hub: Hub) -> None:
    """What `model_info(files_metadata=True)` says is what git and LFS would say about the bytes."""
    commit = hub.create("org/model").commit(FILES)
    info = HfApi(endpoint=hub.url, token=False).model_info("org/model", files_metadata=True)

    assert info.sha == commit
    siblings = {each.rfilename: each for each in info.siblings or []}
    assert siblings["config.json"].blob_id == hashlib.sha1(b"blob 23\0" + CONFIG).hexdigest()
    assert siblings["config.json"].lfs is None
    assert siblings["model.safetensors"].size == len(WEIGHTS)
    assert siblings["model.safetensors"].lfs is not None
    assert siblings["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()


@pytest.mark.parametrize("page_size", [1, 2, 1000])
def test_the_tree_is_listed_page_by_page(hub: Hub, page_size: int) -> None:
    """Recursive and flat listings have all entries, however small the pages are."""
    hub.page_size = page_size
    hub.create("org/model").commit(FILES)
    api = HfApi(endpoint=hub.url, token=False)

    deep = list(api.list_repo_tree("org/model", recursive=True))
    assert {each.path for each in deep if isinstance(each, RepoFile)} == set(FILES)
    assert {each.path for each in deep if isinstance(each, RepoFolder)} == {"sub", "sub/deep"}
    flat = {each.path for each in api.list_repo_tree("org/model")}
    assert flat == {"config.json", "model.safetensors", "sub"}
    assert [each.path for each in api.list_repo_tree("org/model", "sub/deep")] == ["sub/deep/vocab.txt"]


def test_branches_tags_and_commits_name_revisions(hub: Hub, tmp_path: Path) -> None:
    """A branch moves on, a tag and a commit stay; a branch's name may hold a slash."""
    repo = hub.create("org/model")
    first = repo.commit({"config.json": b"1"}, tag="v1")
    second = repo.commit({"config.json": b"2"})
    other = repo.commit({"config.json": b"3"}, branch="feature/x")
    api = HfApi(endpoint=hub.url, token=False)

    refs = api.list_repo_refs("org/model")
    assert {each.name: each.target_commit for each in refs.branches} == {"main": second, "feature/x": other}
    assert {each.name: each.target_commit for each in refs.tags} == {"v1": first}
    for revision, content in (("main", b"2"), ("v1", b"1"), (first, b"1"), (second, b"2"), ("feature/x", b"3")):
        snapshot = download(hub, tmp_path, revision=revision)
        assert (snapshot / "config.json").read_bytes() == content


def test_refusals_are_the_ones_that_huggingface_hub_knows(hub: Hub, tmp_path: Path) -> None:
    """Private, gated, unknown repository, revision and file, and a wrong token: each as its own error."""
    hub.create("org/private", private=True, readers=(TOKEN,)).commit(FILES)
    hub.create("org/gated", gated=True, readers=(TOKEN,)).commit(FILES)
    hub.create("org/open").commit(FILES)
    hub.tokens.add("hf_other")
    api = HfApi(endpoint=hub.url, token=False)

    for name, token, status in (
        ("org/private", False, 401),
        ("org/private", "hf_other", 404),
        ("org/none", False, 401),
    ):
        with pytest.raises(RepositoryNotFoundError) as caught:
            api.repo_info(name, token=token)
        assert caught.value.response.status_code == status
    hub.hides_unknown = False
    with pytest.raises(RepositoryNotFoundError, match="404"):
        api.repo_info("org/none")
    assert api.repo_info("org/private", token=TOKEN).private
    assert api.repo_info("org/gated").gated == "manual"
    for token, status in ((False, 401), ("hf_other", 403)):
        with pytest.raises(GatedRepoError) as gated:
            api.hf_hub_download("org/gated", "config.json", cache_dir=tmp_path, token=token)
        assert gated.value.response.status_code == status
    api.hf_hub_download("org/gated", "config.json", cache_dir=tmp_path, token=TOKEN)
    with pytest.raises(RevisionNotFoundError):
        api.repo_info("org/open", revision="nothing")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("org/open", "nothing", cache_dir=tmp_path)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        api.repo_info("org/open", token="hf_wrong")


def test_files_have_the_headers_of_the_hub_and_ranges(hub: Hub) -> None:
    """Small files have ranges and their blob id; LFS files redirect to a signed URL that serves ranges too."""
    commit = hub.create("org/model").commit(FILES)
    with httpx2.Client() as client:
        small = client.get(f"{hub.url}/org/model/resolve/main/config.json", headers={"Range": "bytes=2-11"})
        assert (small.status_code, small.content) == (206, CONFIG[2:12])
        assert small.headers["ETag"] == f'"{hashlib.sha1(b"blob 23" + bytes(1) + CONFIG).hexdigest()}"'
        large = client.head(f"{hub.url}/org/model/resolve/{commit}/model.safetensors")
        assert large.status_code == 302
        assert large.headers["X-Repo-Commit"] == commit
        assert large.headers["X-Linked-Size"] == "300000"
        assert large.headers["X-Linked-Etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
        part = client.get(large.headers["Location"], headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, WEIGHTS[10:20])


def test_signed_urls_expire_and_can_not_be_made_up(hub: Hub) -> None:
    """After its time, after `expire_urls`, or with another expiry date a URL is refused; a fresh one works."""
    hub.create("org/model").commit(FILES)
    with httpx2.Client() as client:

        def location() -> str:
            url: str = client.head(f"{hub.url}/org/model/resolve/main/model.safetensors").headers["Location"]
            return url

        assert client.get(location()).status_code == 200
        hub.storage.url_lifetime_s = -1
        assert client.get(location()).status_code == 403
        hub.storage.url_lifetime_s = 60
        old = location()
        assert client.get(old.replace("Expires=", "Expires=9")).status_code == 403
        hub.storage.expire_urls()
        assert client.get(old).status_code == 403
        assert client.get(location()).status_code == 200
        hub.storage.get_only = True
        assert client.head(location()).status_code == 403
        assert client.get(location()).status_code == 200


def test_a_renamed_repository_redirects(hub: Hub) -> None:
    """The old name answers 307 to the new one."""
    hub.create("org/new").commit(FILES)
    hub.moved["org/old"] = "org/new"
    with httpx2.Client() as client:
        answer = client.get(f"{hub.url}/org/old/resolve/main/config.json")
        assert (answer.status_code, answer.headers["Location"]) == (307, "/org/new/resolve/main/config.json")
        assert client.get(f"{hub.url}/api/models/org/old", follow_redirects=True).json()["id"] == "org/new"


def test_faults_reach_the_api_and_the_storage(hub: Hub, tmp_path: Path) -> None:
    """A 500 of the API and a truncated body of the storage are survived by huggingface_hub's own retries."""
    hub.create("org/model").commit(FILES)
    hub.storage.inject(faults.Truncate(after_bytes=1000))
    started_s = time.monotonic()
    snapshot = download(hub, tmp_path)
    assert (snapshot / "model.safetensors").read_bytes() == WEIGHTS
    assert time.monotonic() - started_s < 60
    assert [each.fault for each in hub.storage.requests_for(hub.storage.requests[0].path)] == ["Truncate", ""]

    hub.inject(faults.Status(500), path="/api/models/org/model")
    with pytest.raises(HfHubHTTPError, match="500"):
        HfApi(endpoint=hub.url, token=False).repo_info("org/model")


def test_it_serves_tls(tls: Tls) -> None:
    """API and storage are https with the authority's certificate."""
    with Hub(tls=tls.server_context()) as hub:
        hub.create("org/model").commit(FILES)
        with httpx2.Client(verify=tls.client_context(), follow_redirects=True) as client:
            assert client.get(f"{hub.url}/org/model/resolve/main/model.safetensors").content == WEIGHTS
        assert hub.storage.url.startswith("https://127.0.0.2:")
