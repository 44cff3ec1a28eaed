"""A real S3 server (SeaweedFS) is a source, with versions and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheagent.demo.seaweedfs import S3Server
from tests.conformance.s3 import S3Prefix, s3_profiles
from tests.conformance.suite import SourceConformance


@pytest.fixture(params=["plain", "versions"])
def origin(
    request: pytest.FixtureRequest, seaweedfs: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Prefix]:
    with s3_profiles(seaweedfs, tmp_path / "aws", monkeypatch) as client:
        yield S3Prefix(seaweedfs, client, keeps_versions=request.param == "versions")


@pytest.mark.s3_real
class TestSeaweedFs(SourceConformance):
    """All of the suite."""
