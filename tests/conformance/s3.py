"""How the suite fills and asks an S3 server, whichever it is."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheagent.demo.seaweedfs import S3Server
from cacheagent.source import open_source
from cacheagent.source.base import Source
from cacheagent.spec import SourceSpec
from tests.fakes.s3 import client_for, new_bucket

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class S3Prefix:
    """`models/llama` in a bucket of its own, beside `models/llama-2`, which nobody asked for."""

    def __init__(self, server: S3Server, client: S3Client, *, keeps_versions: bool) -> None:
        self._server, self._client = server, client
        self.keeps_old_versions = keeps_versions
        self.secrets = (server.secret_key, "X-Amz-Signature")
        self.bucket = new_bucket(client)
        if keeps_versions:
            client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})
        client.put_object(Bucket=self.bucket, Key="models/llama-2/config.json", Body=b"somebody else's")

    def fill(self, files: dict[str, bytes]) -> None:
        def put(path: str) -> None:
            self._client.put_object(Bucket=self.bucket, Key=f"models/llama/{path}", Body=files[path])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, files))

    def source(self) -> Source:
        return self.open("models/llama", "reader")

    def stranger(self) -> Source:
        return self.open("models/llama", "stranger")

    def nowhere(self) -> Source:
        return self.open("models/lla", "reader")

    def elsewhere(self) -> Source:
        return self.open("models/llama", "other")

    def open(self, prefix: str, profile: str) -> Source:
        """A source of a prefix as one of the profiles."""
        return open_source(
            SourceSpec(uri=f"s3://{self.bucket}/{prefix}", endpoint=self._server.endpoint, credential=profile)
        )


@contextmanager
def s3_profiles(server: S3Server, credentials_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Client]:
    """A client, and profiles for the server's key (`reader`) and for one that it does not know (`stranger`)."""
    profiles = {"reader": (server.access_key, server.secret_key), "stranger": ("AKIANOBODY", "unknown")}
    credentials_file.write_text(
        "".join(
            f"[{name}]\naws_access_key_id={key}\naws_secret_access_key={secret}\n"
            for name, (key, secret) in profiles.items()
        )
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials_file))
    client = client_for(server)
    try:
        yield client
    finally:
        client.close()
