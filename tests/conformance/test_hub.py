"""The Hugging Face Hub is a source."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cacheagent.source import open_source
from cacheagent.source.base import Source
from cacheagent.spec import SourceSpec
from tests.conformance.suite import SourceConformance
from tests.fakes.hub import Hub


class PrivateRepository:
    """A private repository, to be read with a token. A commit stays what it is when the branch moves on."""

    secrets = ("hf_tokenofthereader", "Signature=")
    keeps_old_versions = True

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._repo = hub.create("org/model", private=True, readers=(self.secrets[0],))

    def fill(self, files: dict[str, bytes]) -> None:
        self._repo.commit(files)

    def source(self) -> Source:
        return self._open("org/model", "reader")

    def stranger(self) -> Source:
        return self._open("org/model", "")

    def nowhere(self) -> Source:
        return self._open("org/nothing", "reader")

    def elsewhere(self) -> Source:
        return self._open("org/model", "other")

    def _open(self, repo: str, credential: str) -> Source:
        return open_source(SourceSpec(uri=f"hf://{repo}", endpoint=self._hub.url, credential=credential))


@pytest.fixture
def origin(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateRepository]:
    monkeypatch.setenv("CACHEAGENT_TOKEN_READER", PrivateRepository.secrets[0])
    with Hub() as hub:
        yield PrivateRepository(hub)
        assert not hub.tokens_seen_by_storage()


class TestHub(SourceConformance):
    """All of the suite."""
