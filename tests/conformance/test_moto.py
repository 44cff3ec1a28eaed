"""moto, a second S3 implementation, is a source, with versions and without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from moto.core.authorization import enable_iam_authentication

from cacheagent.demo.seaweedfs import S3Server
from cacheagent.source.base import Source
from tests.conformance.s3 import S3Prefix, s3_profiles
from tests.conformance.suite import SourceConformance
from tests.fakes.moto import running_moto

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class MotoPrefix(S3Prefix):
    """Credentials are looked at from the moment that a stranger appears; nobody reads from a location after that."""

    def __init__(self, server: S3Server, client: S3Client, *, keeps_versions: bool, stack: ExitStack) -> None:
        super().__init__(server, client, keeps_versions=keeps_versions)
        self._stack = stack

    def stranger(self) -> Source:
        self._stack.enter_context(enable_iam_authentication())
        return super().stranger()


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with running_moto() as server:
        yield server


@pytest.fixture(params=["plain", "versions"])
def origin(
    request: pytest.FixtureRequest, moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Prefix]:
    with s3_profiles(moto, tmp_path / "aws", monkeypatch) as client, ExitStack() as stack:
        yield MotoPrefix(moto, client, keeps_versions=request.param == "versions", stack=stack)


class TestMoto(SourceConformance):
    """All of the suite."""
