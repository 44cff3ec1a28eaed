"""A web server is a source, by a checksum list and by an index; over TLS with an authority of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheagent.source import open_source
from cacheagent.source.base import Source
from cacheagent.spec import SourceSpec
from tests.conformance.suite import SourceConformance
from tests.fakes.origin import Origin
from tests.fakes.tls import Tls


class WebServer:
    """A server that wants a token and lists its files in one of two ways."""

    secrets = ("token-of-the-web-server",)
    keeps_old_versions = False

    def __init__(self, server: Origin, listing: str, ca_bundle: str) -> None:
        self._server, self._listing, self._ca_bundle = server, listing, ca_bundle

    def fill(self, files: dict[str, bytes]) -> None:
        for path, body in files.items():
            self._server.put(f"models/llama/{path}", body)
        paths = [path.removeprefix("models/llama/") for path in self._server.files if not path.endswith(self._listing)]
        if self._listing == "SHA256SUMS":
            self._server.add_sums("models/llama", paths=paths)
        else:
            entries = [{"path": path, "size": self._server.files[f"models/llama/{path}"].size_bytes} for path in paths]
            self._server.put("models/llama/index.json", json.dumps({"files": entries}).encode())

    def source(self) -> Source:
        return self._open("models/llama/", "reader")

    def stranger(self) -> Source:
        return self._open("models/llama/", "")

    def nowhere(self) -> Source:
        return self._open("models/nothing", "reader")

    def elsewhere(self) -> Source:
        return self._open("models/llama/", "other")

    def _open(self, path: str, credential: str) -> Source:
        return open_source(
            SourceSpec(uri=f"{self._server.url}/{path}", credential=credential, ca_bundle=self._ca_bundle)
        )


@pytest.fixture(params=["SHA256SUMS over http", "index.json over https"])
def origin(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    listing, _, scheme = request.param.split()
    tls = Tls(tmp_path) if scheme == "https" else None
    token = WebServer.secrets[0]
    monkeypatch.setenv("CACHEAGENT_TOKEN_READER", token)
    with Origin(tls=tls.server_context() if tls else None, token=token) as server:
        yield WebServer(server, listing, str(tls.ca_bundle) if tls else "")


class TestHttps(SourceConformance):
    """All of the suite."""
