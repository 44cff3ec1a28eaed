"""The facts about SeaweedFS that the S3 source's tests stand on, and that it never outlives its owner."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import trustme
from awscrt.checksums import crc64nvme

from cacheagent.demo.child import running_child, wait_until_ready
from cacheagent.demo.seaweedfs import Certificate, S3Server, running_seaweedfs
from cacheagent.errors import CacheAgentError
from tests.fakes.s3 import client_for, new_bucket

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [pytest.mark.s3_real, pytest.mark.usefixtures("seaweedfs")]

MIB = 2**20


@pytest.fixture
def s3(seaweedfs: S3Server) -> "S3Client":
    return client_for(seaweedfs)


def status_of(url: str, **headers: str) -> tuple[int, bytes]:
    """Status and body of a GET; underscores in a header's name stand for hyphens."""
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline, f"process {pid} outlived its owner"
        time.sleep(0.02)


def test_a_crc64nvme_put_by_the_client_comes_back_on_head_but_not_on_a_range(s3: "S3Client") -> None:
    """HEAD answers the full checksum that the upload carried; ranged answers and GetObjectAttributes carry none."""
    bucket, body = new_bucket(s3), os.urandom(MIB)
    s3.put_object(Bucket=bucket, Key="k", Body=body, ChecksumAlgorithm="CRC64NVME")

    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    ranged = s3.get_object(Bucket=bucket, Key="k", Range="bytes=0-9", ChecksumMode="ENABLED")
    attributes = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["Checksum", "ObjectSize"])

    assert head["ChecksumCRC64NVME"] == b64encode(crc64nvme(body).to_bytes(8, "big")).decode()
    assert ranged["Body"].read() == body[:10]
    assert "ChecksumCRC64NVME" not in set(ranged)
    assert attributes["ObjectSize"] == MIB
    assert "Checksum" not in set(attributes)


def test_boto3_uploads_in_parts_carry_a_composite_crc32(s3: "S3Client", tmp_path: Path) -> None:
    """What boto3 uploads by itself is checkable: one CRC32 of the parts' CRC32s, and the sizes of the parts."""
    bucket, path = new_bucket(s3), tmp_path / "big"
    path.write_bytes(os.urandom(18 * MIB))
    s3.upload_file(str(path), bucket, "k")

    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    attributes = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ObjectParts"])
    first_part = s3.head_object(Bucket=bucket, Key="k", PartNumber=1)

    assert head["ChecksumType"] == "COMPOSITE"
    assert head["ChecksumCRC32"].endswith("-3")
    assert [part["Size"] for part in attributes["ObjectParts"]["Parts"]] == [8 * MIB, 8 * MIB, 2 * MIB]
    assert (first_part["ContentLength"], first_part["PartsCount"]) == (8 * MIB, 3)


def test_a_presigned_url_serves_ranges_and_refuses_a_stale_etag(s3: "S3Client") -> None:
    """One signed URL serves all ranges of its object; an unsigned If-Match with another ETag answers 412."""
    bucket = new_bucket(s3)
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"0123456789")["ETag"]
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})

    assert status_of(url, Range="bytes=2-4", If_Match=etag) == (206, b"234")
    assert status_of(url, Range="bytes=8-9") == (206, b"89")
    assert status_of(url, Range="bytes=2-4", If_Match='"0123"')[0] == 412
    assert status_of(url, Range="bytes=99-")[0] == 416


@pytest.mark.parametrize("key", ["a b/c d.txt", "ünï/cødé ☃.bin", "plus+and&?#%25.txt", "日本/モデル.bin"])
def test_awkward_keys_are_listed_as_they_were_put(s3: "S3Client", key: str) -> None:
    """Spaces, Unicode and the signs of URLs survive a put, a list and a presigned URL."""
    bucket = new_bucket(s3)
    s3.put_object(Bucket=bucket, Key=key, Body=b"here")

    assert [each["Key"] for each in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    assert status_of(s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})) == (200, b"here")


def test_listing_pages_and_versions_can_be_fetched(s3: "S3Client") -> None:
    """Listings continue after a page, and an older version is still there under its id."""
    bucket = new_bucket(s3)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    first = s3.put_object(Bucket=bucket, Key="k/1", Body=b"one")["VersionId"]
    s3.put_object(Bucket=bucket, Key="k/1", Body=b"two")
    for number in range(2, 6):
        s3.put_object(Bucket=bucket, Key=f"k/{number}", Body=b"x")

    pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 2}))
    assert [len(page["Contents"]) for page in pages] == [2, 2, 1]
    assert s3.get_object(Bucket=bucket, Key="k/1", VersionId=first)["Body"].read() == b"one"
    assert s3.get_object(Bucket=bucket, Key="k/1")["Body"].read() == b"two"


def test_it_serves_tls_with_a_given_certificate(tmp_path: Path) -> None:
    """With a certificate the endpoint is https, and clients that trust the authority are served."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    certificate = Certificate(chain=tmp_path / "chain.pem", key=tmp_path / "key.pem")
    with running_seaweedfs(tmp_path / "data", certificate=certificate) as server:
        s3 = client_for(server, ca_bundle=tmp_path / "ca.pem")
        bucket = new_bucket(s3)
        s3.put_object(Bucket=bucket, Key="k", Body=b"secret")

        assert server.endpoint.startswith("https://")
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"secret"


def test_it_stops_after_an_exception_and_keeps_its_data(tmp_path: Path) -> None:
    """A server started again on the same directory serves what the one before it, ended by an exception, had stored."""
    pids: list[int] = []

    def put_and_fail() -> None:
        with running_seaweedfs(tmp_path / "data") as server:
            pids.append(server.pid)
            client_for(server).put_object(Bucket="bucket", Key="k", Body=b"kept")
            raise RuntimeError("in the block")

    with pytest.raises(RuntimeError, match="in the block"):
        put_and_fail()

    assert not psutil.pid_exists(pids[0])

    with running_seaweedfs(tmp_path / "data") as server:
        assert client_for(server).get_object(Bucket="bucket", Key="k")["Body"].read() == b"kept"


def test_a_child_dies_with_its_owner_even_by_kill_9(tmp_path: Path) -> None:
    """The owner is killed with -9 while its server runs; the server is gone as well."""
    program = (
        "import sys, pathlib; from cacheagent.demo.child import running_child\n"
        "with running_child(['/bin/sleep', '600'], log_path=pathlib.Path(sys.argv[1])) as child:\n"
        "    print(child.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert psutil.pid_exists(pid)
        owner.send_signal(signal.SIGKILL)
    wait_until_gone(pid)


def test_a_child_that_never_gets_ready_is_explained_by_its_log(tmp_path: Path) -> None:
    """A server that ends too early raises its last words, and one that stays silent raises the time waited."""
    log_path = tmp_path / "log"
    with (
        pytest.raises(CacheAgentError, match="thing ended with status 3 before it was ready: port taken"),
        running_child(["/bin/sh", "-c", "echo port taken; exit 3"], log_path=log_path) as child,
    ):
        wait_until_ready(child, lambda: False, name="thing", log_path=log_path, timeout_s=30)
    with (
        pytest.raises(CacheAgentError, match="thing was not ready after 0 s"),
        running_child(["/bin/sleep", "600"], log_path=log_path) as child,
    ):
        wait_until_ready(child, lambda: False, name="thing", log_path=log_path, timeout_s=0)
    assert not psutil.pid_exists(child.pid)
