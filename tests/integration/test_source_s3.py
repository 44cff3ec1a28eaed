"""A real S3 server's checksums, and its TLS, as the source sees them."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from awscrt import checksums as crt
from boto3.s3.transfer import TransferConfig

from cacheagent.demo.seaweedfs import S3Server, running_seaweedfs
from cacheagent.errors import OriginWrong
from cacheagent.model import MIB, Checksum, RemoteFile
from cacheagent.source.s3 import S3Source, client
from cacheagent.spec import SourceSpec
from tests.conformance.reading import read_whole
from tests.fakes.s3 import client_for, new_bucket
from tests.fakes.tls import Tls

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.s3_real

PART_BYTES = 8 * MIB
BODY = bytes(range(251)) * (20 * MIB // 251)
PARTS = ((PART_BYTES, 2), (len(BODY) - 2 * PART_BYTES, 1))

HASHES: dict[str, Callable[[bytes], bytes]] = {
    "crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "crc32c": lambda data: crt.crc32c(data).to_bytes(4, "big"),
    "crc64nvme": lambda data: crt.crc64nvme(data).to_bytes(8, "big"),
    "sha1": lambda data: hashlib.sha1(data).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}


def expected(algorithm: str, *, composite: bool) -> str:
    """The reference: over the body, or over its parts' raw checksums."""
    if not composite:
        return HASHES[algorithm](BODY).hex()
    parts = [BODY[at : at + PART_BYTES] for at in range(0, len(BODY), PART_BYTES)]
    return HASHES[algorithm](b"".join(HASHES[algorithm](part) for part in parts)).hex()


@pytest.fixture
def writer(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Client]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)
    writer = client_for(seaweedfs)
    yield writer
    writer.close()


def upload_in_parts(writer: S3Client, bucket: str, algorithm: str) -> None:
    """As boto3 uploads what is large."""
    config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
    writer.upload_fileobj(io.BytesIO(BODY), bucket, "large", ExtraArgs={"ChecksumAlgorithm": algorithm}, Config=config)


async def described(server: S3Server, bucket: str, **fields: str) -> RemoteFile:
    """The only file of a bucket, described."""
    source = S3Source(SourceSpec(uri=f"s3://{bucket}", endpoint=server.endpoint, **fields))  # type: ignore[arg-type]
    try:
        (file,) = await source.describe((await source.list()).files)
    finally:
        await source.close()
    return file


@pytest.mark.asyncio
@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
async def test_checksums_of_objects_in_one_part(seaweedfs: S3Server, writer: S3Client, algorithm: str) -> None:
    """Whatever the uploader chose is found, over the whole object."""
    bucket = new_bucket(writer)
    writer.put_object(Bucket=bucket, Key="large", Body=BODY, ChecksumAlgorithm=algorithm)  # type: ignore[arg-type]
    name = algorithm.lower()
    file = await described(seaweedfs, bucket)
    assert file.checksums == (Checksum(algorithm=name, value=expected(name, composite=False)),)  # type: ignore[arg-type]


@pytest.mark.asyncio
@pytest.mark.parametrize("ways", ["attributes", "part numbers"])
@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "SHA256"])
async def test_checksums_of_objects_in_parts(
    seaweedfs: S3Server, writer: S3Client, algorithm: str, ways: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto3's multipart uploads give composites; the sizes of their parts are learned in either of two ways."""
    bucket = new_bucket(writer)
    upload_in_parts(writer, bucket, algorithm)
    if ways == "part numbers":
        monkeypatch.setattr(client, "_attributed_parts", lambda *_: ())
    name = algorithm.lower()
    file = await described(seaweedfs, bucket)
    assert file.checksums == (Checksum(algorithm=name, value=expected(name, composite=True), parts=PARTS),)  # type: ignore[arg-type]


@pytest.mark.asyncio
async def test_a_multipart_crc64_is_over_the_whole_object(seaweedfs: S3Server, writer: S3Client) -> None:
    """CRC64NVME is always FULL_OBJECT."""
    bucket = new_bucket(writer)
    upload_in_parts(writer, bucket, "CRC64NVME")
    file = await described(seaweedfs, bucket)
    assert file.checksums == (Checksum(algorithm="crc64nvme", value=expected("crc64nvme", composite=False)),)


@pytest.mark.asyncio
@pytest.mark.usefixtures("writer")
async def test_objects_without_checksums_have_none(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older client sent none: fewer proofs, no error."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    older = client_for(seaweedfs)
    bucket = new_bucket(older)
    older.put_object(Bucket=bucket, Key="large", Body=BODY)
    older.close()
    assert (await described(seaweedfs, bucket)).checksums == ()


@pytest.mark.asyncio
async def test_whole_answers_of_small_objects_bring_their_checksum(seaweedfs: S3Server, writer: S3Client) -> None:
    """A location of a small file says so, and its answer has the header that it was signed for."""
    bucket = new_bucket(writer)
    writer.put_object(Bucket=bucket, Key="a b/small.json", Body=b"{}", ChecksumAlgorithm="CRC64NVME")
    source = S3Source(SourceSpec(uri=f"s3://{bucket}", endpoint=seaweedfs.endpoint))
    (location,) = await source.locate((await source.list()).files)
    await source.close()
    body, headers = read_whole(location)
    assert body == b"{}"
    assert "x-amz-checksum-crc64nvme" in headers


@pytest.mark.asyncio
async def test_tls_with_an_authority_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ca_bundle, or AWS_CA_BUNDLE, listing and reading work; without, the sentence names ca_bundle."""
    tls = Tls(tmp_path)
    with running_seaweedfs(tmp_path / "data", certificate=tls.certificate, volumes=20) as server:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        writer = client_for(server, ca_bundle=tls.ca_bundle)
        bucket = new_bucket(writer)
        writer.put_object(Bucket=bucket, Key="large", Body=BODY)
        writer.close()
        with pytest.raises(OriginWrong, match="is not signed by this system's authorities") as caught:
            await described(server, bucket)
        assert "ca_bundle" in caught.value.hint
        assert (await described(server, bucket, ca_bundle=str(tls.ca_bundle))).checksums
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tls.ca_bundle))
        source = S3Source(SourceSpec(uri=f"s3://{bucket}", endpoint=server.endpoint))
        (location,) = await source.locate((await source.list()).files)
        await source.close()
        assert read_whole(location)[0] == BODY
