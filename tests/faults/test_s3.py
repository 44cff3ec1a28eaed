"""A real S3 server (SeaweedFS): each of its checksums finds a damaged byte, and an object that is replaced is never
mixed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import pytest
from boto3.s3.transfer import TransferConfig

from cacheagent.demo.seaweedfs import S3Server
from cacheagent.errors import ChecksumMismatch, SourceChanged
from cacheagent.model import MIB, PIECE_SIZE_BYTES
from cacheagent.progress import JobStatus
from cacheagent.spec import ModelSpec, SourceSpec
from tests.fakes.cable import Cable, invert_a_byte
from tests.fakes.s3 import client_for, new_bucket
from tests.faults.scene import SHARD, Cache, OnDisk, assert_published, look, small_tree

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

OLD, NEW = small_tree(1), small_tree(2)
SEEN_CHANGED = r"shard\.bin.*412"
RESOLVE = "resolve again to get the new version"
NOTHING_KEPT = "the bytes were damaged on the way or at the origin; nothing of the file was kept"
Algorithm = Literal["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"]

pytestmark = [pytest.mark.asyncio, pytest.mark.s3_real]


class Bucket:
    """A bucket of its own, and the model `m` in it, as it is seen through a cable."""

    def __init__(self, client: S3Client, cable: Cable) -> None:
        self.client = client
        self.name = new_bucket(client)
        source = SourceSpec(uri=f"s3://{self.name}/m", endpoint=f"http://127.0.0.1:{cable.port}", credential="writer")
        self.spec = ModelSpec(name="m", kind="tree", source=source)

    def fill(self, files: dict[str, bytes], algorithm: Algorithm = "CRC64NVME", *, part_bytes: int = 64 * MIB) -> None:
        """As boto3 uploads: in parts what is larger than one."""
        config = TransferConfig(multipart_threshold=part_bytes, multipart_chunksize=part_bytes)
        for path, content in files.items():
            how = {"ChecksumAlgorithm": algorithm}
            self.client.upload_fileobj(io.BytesIO(content), self.name, f"m/{path}", ExtraArgs=how, Config=config)


@pytest.fixture
def cable(seaweedfs: S3Server) -> Iterator[Cable]:
    port = urlsplit(seaweedfs.endpoint).port
    assert port
    with Cable(port) as made:
        yield made


@pytest.fixture
def bucket(seaweedfs: S3Server, cable: Cable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    (tmp_path / "aws").write_text(
        f"[writer]\naws_access_key_id={seaweedfs.access_key}\naws_secret_access_key={seaweedfs.secret_key}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws"))
    client = client_for(seaweedfs)
    yield Bucket(client, cable)
    client.close()


@pytest.mark.parametrize(
    ("algorithm", "part_bytes"),
    [
        *[(algorithm, 64 * MIB) for algorithm in ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256")],
        *[(algorithm, 8 * MIB) for algorithm in ("CRC32", "CRC32C", "CRC64NVME", "SHA256")],
    ],
)
async def test_every_checksum_finds_a_damaged_byte(
    cache: Cache, cable: Cable, bucket: Bucket, algorithm: Algorithm, part_bytes: int
) -> None:
    """Of the whole object or of its parts; nothing of the file is kept, and the next try is proved by the same."""
    bucket.fill(OLD, algorithm, part_bytes=part_bytes)
    cable.arm(PIECE_SIZE_BYTES, invert_a_byte)
    await cache.fail(bucket.spec, ChecksumMismatch, rf"shard\.bin: .*{algorithm.lower()}", NOTHING_KEPT)
    assert cable.acted
    assert replace(look(cache.root), small=()) == OnDisk()
    record = await cache.pull(bucket.spec)
    assert algorithm.lower() in record.hashes[SHARD].verified_by
    assert_published(cache.root, {record.digest: OLD})


async def test_replaced_between_list_and_get(cache: Cache, bucket: Bucket) -> None:
    """The first request meets another object: nothing of either is kept, and the next try brings the new one."""
    bucket.fill(OLD)

    def replace_it(status: JobStatus) -> None:
        if status.phase == "reserving":
            bucket.fill({SHARD: NEW[SHARD]})

    cache.on_event = replace_it
    await cache.fail(bucket.spec, SourceChanged, SEEN_CHANGED, RESOLVE)
    assert replace(look(cache.root), small=()) == OnDisk()
    cache.on_event = lambda _: None
    status = await cache.recover(bucket.spec, NEW)
    assert_published(cache.root, {status.digest: NEW})


async def test_replaced_in_mid_object(cache: Cache, cable: Cable, bucket: Bucket) -> None:
    """While its second piece is on its way: the third is refused, and the two that came are thrown away."""
    bucket.fill(OLD)

    def replace_it(data: bytes) -> bytes:
        bucket.fill({SHARD: NEW[SHARD]})
        return data

    cable.arm(PIECE_SIZE_BYTES + MIB, replace_it)
    await cache.fail(bucket.spec, SourceChanged, SEEN_CHANGED, RESOLVE, connections=1)
    assert cable.acted
    assert replace(look(cache.root), small=()) == OnDisk()
    status = await cache.recover(bucket.spec, NEW)
    assert_published(cache.root, {status.digest: NEW})


async def test_where_versions_are_kept_the_listed_one_comes(cache: Cache, cable: Cable, bucket: Bucket) -> None:
    """The control: a bucket with versions still has the old object, whole; the pull after it brings the new one."""
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    bucket.fill(OLD)

    def replace_it(data: bytes) -> bytes:
        bucket.fill({SHARD: NEW[SHARD]})
        return data

    cable.arm(PIECE_SIZE_BYTES + MIB, replace_it)
    old = await cache.recover(bucket.spec, OLD, connections=1)
    assert cable.acted
    new = await cache.recover(bucket.spec, NEW)
    assert_published(cache.root, {old.digest: OLD, new.digest: NEW})
