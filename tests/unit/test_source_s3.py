"""S3 as a source: addresses, credentials, regions, errors; against moto and against a server that says what it is
told."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.exceptions import ClientError
from botocore.loaders import JSONFileLoader, create_loader

from cacheagent.errors import (
    ConfigError,
    OriginForbidden,
    OriginNotFound,
    OriginThrottled,
    OriginUnavailable,
    OriginWrong,
    SourceChanged,
    UsageError,
)
from cacheagent.location import HttpLocation
from cacheagent.model import MIB, RemoteFile
from cacheagent.source import s3
from cacheagent.source.s3 import S3Source, client, connection
from cacheagent.spec import SourceSpec
from tests.conformance.reading import read_whole
from tests.fakes.content import Content
from tests.fakes.exchange import Answer, Request
from tests.fakes.faults import Redirect
from tests.fakes.http_server import HttpServer
from tests.fakes.moto import running_moto
from tests.fakes.s3 import client_for, new_bucket

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from cacheagent.demo.seaweedfs import S3Server


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with running_moto() as server:
        yield server


@pytest.fixture
def writer(moto: S3Server) -> Iterator[S3Client]:
    client = client_for(moto)
    yield client
    client.close()


@pytest.fixture
def bucket(writer: S3Client) -> str:
    """A bucket with a folder, a neighbour of nearly the same name, and an object of the folder's name."""
    name = new_bucket(writer)
    for key in (
        "top.txt",
        "models/llama/config.json",
        "models/llama/a/b.bin",
        "models/llama-2/config.json",
        "models/one",
    ):
        writer.put_object(Bucket=name, Key=key, Body=key.encode())
    for key in ("models/llama/", "models/llama/a/", "empty/"):
        writer.put_object(Bucket=name, Key=key, Body=b"")
    return name


@pytest.fixture
def as_reader(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret_key)


class ScriptedS3(HttpServer):
    """Answers listings of one object, HEADs of it, and whatever error is set."""

    def __init__(self) -> None:
        super().__init__()
        self.error: tuple[int, str] | None = None
        self.body = b"not set"
        self.region = ""

    def respond(self, request: Request) -> Answer:
        answer = self._answer(request)
        if self.region:
            answer.headers["x-amz-bucket-region"] = self.region
        return answer

    def _answer(self, request: Request) -> Answer:
        if self.error is not None:
            status, code = self.error
            body = (
                f"<Error><Code>{code}</Code><Message>AKIASECRET StringToSign</Message></Error>".encode()
                if code
                else b""
            )
            return Answer(status=status, content=Content(body, etag=""), headers={"Content-Type": "application/xml"})
        body = b"<VersioningConfiguration/>" if "versioning" in request.query else self.body
        return Answer(
            status=200, content=Content(body, etag=""), headers={"Content-Type": "application/xml", "ETag": '"e9"'}
        )


@pytest.fixture
def scripted() -> Iterator[ScriptedS3]:
    with ScriptedS3() as server:
        yield server


async def files_of(spec: SourceSpec) -> tuple[RemoteFile, ...]:
    source = S3Source(spec)
    try:
        return (await source.list()).files
    finally:
        await source.close()


async def locations_of(spec: SourceSpec, *files: RemoteFile) -> list[HttpLocation]:
    source = S3Source(spec)
    try:
        return [location for location in await source.locate(files) if isinstance(location, HttpLocation)]
    finally:
        await source.close()


FILE = RemoteFile(path="a", size_bytes=3, identity={"key": "a b/ü", "etag": "e1"})
LARGE = RemoteFile(path="large", size_bytes=17 * MIB, identity={"key": "large", "etag": "e2", "version_id": "v/1"})


# --- what is listed ---


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
@pytest.mark.parametrize(
    ("prefix", "paths"),
    [
        ("models/llama", {"config.json", "a/b.bin"}),
        ("models/llama/", {"config.json", "a/b.bin"}),
        ("models/one", {"one"}),
        ("top.txt", {"top.txt"}),
        (
            "",
            {"top.txt", "models/llama/config.json", "models/llama/a/b.bin", "models/llama-2/config.json", "models/one"},
        ),
    ],
)
async def test_a_prefix_ends_at_a_slash(moto: S3Server, bucket: str, prefix: str, paths: set[str]) -> None:
    """A folder, an object or the whole bucket; never a neighbour whose name begins alike, never folder markers."""
    files = await files_of(SourceSpec(uri=f"s3://{bucket}/{prefix}", endpoint=moto.endpoint))
    assert {file.path for file in files} == paths


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
@pytest.mark.parametrize("prefix", ["models/lla", "models/one/", "empty", "nothing"])
async def test_a_prefix_without_objects_is_not_found(moto: S3Server, bucket: str, prefix: str) -> None:
    """Half a name, an object's name with a slash, a folder of nothing."""
    with pytest.raises(OriginNotFound, match=f"s3://{bucket}/{prefix} holds no objects"):
        await files_of(SourceSpec(uri=f"s3://{bucket}/{prefix}", endpoint=moto.endpoint))


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
async def test_a_single_object_wins_over_nothing_but_a_folder_wins_over_it(
    moto: S3Server, bucket: str, writer: S3Client
) -> None:
    """Where `models/one` and `models/one/…` both exist, the folder is meant."""
    writer.put_object(Bucket=bucket, Key="models/one/x", Body=b"x")
    files = await files_of(SourceSpec(uri=f"s3://{bucket}/models/one", endpoint=moto.endpoint))
    assert [file.path for file in files] == ["x"]


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
async def test_versions_pin_only_where_they_may_be_read(
    moto: S3Server, bucket: str, writer: S3Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading by version id is a permission of its own: without it, the ETag alone pins."""
    writer.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    writer.put_object(Bucket=bucket, Key="models/llama/config.json", Body=b"v2")
    spec = SourceSpec(uri=f"s3://{bucket}/models/llama", endpoint=moto.endpoint)
    old, new = sorted(await files_of(spec), key=lambda file: file.path)
    assert "version_id" not in old.identity  # from before versioning
    assert new.identity["version_id"]
    monkeypatch.setattr(client.Bucket, "may_read_version", lambda self, item: False)
    assert all("version_id" not in file.identity for file in await files_of(spec))


# --- how it is addressed ---


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"endpoint": "http://storage.test:9000"}, "http://storage.test:9000/bucket/a%20b/%C3%BC"),
        ({"endpoint": "https://storage.test/", "path_style": True}, "https://storage.test/bucket/a%20b/%C3%BC"),
        ({"endpoint": "https://storage.test", "path_style": False}, "https://bucket.storage.test/a%20b/%C3%BC"),
    ],
)
async def test_path_and_host_style(fields: dict[str, object], url: str) -> None:
    """Path style at any endpoint that is not AWS's own, unless the asker says otherwise."""
    (location,) = await locations_of(SourceSpec(uri="s3://bucket/x", **fields), FILE)  # type: ignore[arg-type]
    assert location.url.partition("?")[0] == url


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
async def test_at_aws_the_buckets_own_region_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS names the region of a bucket in a header; the URL is of that region and signed for it, whatever was
    configured."""
    monkeypatch.setattr(connection, "_bucket_region", lambda client, bucket: "eu-central-1")
    for bucket, place in (
        ("bucket", "bucket.s3.eu-central-1.amazonaws.com/a%20b/%C3%BC"),
        ("dotted.bucket", "s3.eu-central-1.amazonaws.com/dotted.bucket/a%20b/%C3%BC"),
    ):
        (location,) = await locations_of(SourceSpec(uri=f"s3://{bucket}/x", region="us-west-2"), FILE)
        assert location.url.partition("?")[0] == f"https://{place}"
        assert "/eu-central-1/s3/aws4_request" in parse_qs(urlsplit(location.url).query)["X-Amz-Credential"][0]


@pytest.mark.usefixtures("as_reader")
@pytest.mark.parametrize("status", [200, 403])
def test_a_buckets_region_is_named_even_by_a_refusal(scripted: ScriptedS3, status: int) -> None:
    """AWS sends the header with 403 too; a server that sends none names none."""
    address = connection.BucketAddress(
        name="bucket", endpoint=scripted.url, region="", profile="", ca_bundle="", path_style=None
    )
    made = connection.connect(address)
    scripted.error = (status, "")
    assert connection._bucket_region(made.client, "bucket") == ""
    scripted.region = "eu-central-1"
    assert connection._bucket_region(made.client, "bucket") == "eu-central-1"
    made.client.close()


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
async def test_the_endpoint_may_come_from_the_environment(
    moto: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto3's own variables are obeyed, and the trust domain follows them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.endpoint)
    files = await files_of(SourceSpec(uri=f"s3://{bucket}/top.txt"))
    assert files[0].identity["endpoint"] == moto.endpoint
    assert S3Source(SourceSpec(uri=f"s3://{bucket}")).trust_domain.endpoint == moto.endpoint


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
async def test_locations_say_what_to_send() -> None:
    """If-Match always; the signed checksum header only where an answer without Range can bring one; the version when
    pinned."""
    spec = SourceSpec(uri="s3://bucket/x", endpoint="http://storage.test:9000")
    small, large = await locations_of(spec, FILE, LARGE)
    assert small.headers == {"If-Match": '"e1"', "x-amz-checksum-mode": "ENABLED"}
    assert parse_qs(urlsplit(small.url).query)["X-Amz-SignedHeaders"] == ["host;x-amz-checksum-mode"]
    assert large.headers == {"If-Match": '"e2"'}
    assert parse_qs(urlsplit(large.url).query)["versionId"] == ["v/1"]
    assert (small.etag, small.checksum_headers, large.checksum_headers) == ('"e1"', True, False)
    assert int(parse_qs(urlsplit(small.url).query)["X-Amz-Expires"][0]) >= 3600


# --- as whom ---


@pytest.mark.asyncio
async def test_without_credentials_nothing_is_signed(moto: S3Server, bucket: str) -> None:
    """A public bucket is read by plain URLs."""
    spec = SourceSpec(uri=f"s3://{bucket}/top.txt", endpoint=moto.endpoint)
    files = await files_of(spec)
    (location,) = await locations_of(spec, *files)
    assert location.url == f"{moto.endpoint}/{bucket}/top.txt"


@pytest.mark.asyncio
async def test_temporary_credentials_are_signed_with_as_they_are_now(
    moto: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A credential_process (like any refreshing provider) is asked again when its keys have ended; the token is in the
    URL."""
    program, counter = tmp_path / "keys", tmp_path / "counter"
    ends = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()  # within botocore's window: every call refreshes
    keys = f'{{"Version":1,"AccessKeyId":"AKIA%s","SecretAccessKey":"s","SessionToken":"t%s","Expiration":"{ends}"}}'
    program.write_text(f"#!/bin/sh\necho x >> {counter}\nn=$(wc -l < {counter})\nprintf '{keys}' $n $n\n")
    program.chmod(0o755)
    (tmp_path / "config").write_text(f"[profile temporary]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    source = S3Source(SourceSpec(uri=f"s3://{bucket}/top.txt", endpoint=moto.endpoint, credential="temporary"))
    seen = []
    for _ in range(2):
        (location,) = await source.locate([FILE])
        assert isinstance(location, HttpLocation)
        seen.append(parse_qs(urlsplit(location.url).query))
    keys_that_ended = datetime.now(UTC) - timedelta(minutes=5)
    program.write_text(program.read_text().replace(ends, keys_that_ended.isoformat()))
    with pytest.raises(OriginForbidden, match="the credentials have ended and could not be renewed"):
        await source.locate([FILE])
    await source.close()
    assert seen[0]["X-Amz-Security-Token"] != seen[1]["X-Amz-Security-Token"]
    assert seen[0]["X-Amz-Credential"] != seen[1]["X-Amz-Credential"]


class Metadata(HttpServer):
    """What answers an instance, or a container, that asks for the keys of its role."""

    ROLE = "/latest/meta-data/iam/security-credentials/"
    KEYS = (
        b'{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"AKIAOFTHEROLE","SecretAccessKey":"s","Token":"t",'
        b'"Expiration":"2099-01-01T00:00:00Z"}'
    )

    def respond(self, request: Request) -> Answer:
        answers = {
            "/latest/api/token": b"session",
            self.ROLE: b"reader",
            f"{self.ROLE}reader": self.KEYS,
            "/keys": self.KEYS,
        }
        body = answers.get(request.path)
        return Answer(status=404) if body is None else Answer(status=200, content=Content(body, etag=""))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("way", "key"),
    [
        ("web identity", "ASIA"),
        ("role of a profile", "ASIA"),
        ("container", "AKIAOFTHEROLE"),
        ("instance", "AKIAOFTHEROLE"),
    ],
)
async def test_roles_sign_however_they_are_taken(
    moto: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, key: str
) -> None:
    """The rest of boto3's chain: what a pod, a profile, a container or an instance may do."""
    role = "arn:aws:iam::123456789012:role/reader"
    (tmp_path / "token").write_text("of the pod")
    (tmp_path / "config").write_text(
        f"[profile reader]\nregion=us-east-1\nrole_arn={role}\nsource_profile=base\n"
        "[profile base]\naws_access_key_id=a\naws_secret_access_key=s\n"
    )
    with Metadata() as metadata:
        variables = {
            "web identity": {"AWS_ROLE_ARN": role, "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token")},
            "role of a profile": {"AWS_CONFIG_FILE": str(tmp_path / "config")},
            "container": {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{metadata.url}/keys"},
            "instance": {"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url},
        }[way]
        for name, value in {**variables, "AWS_ENDPOINT_URL_STS": moto.endpoint}.items():
            monkeypatch.setenv(name, value)
        spec = SourceSpec(
            uri=f"s3://{bucket}/top.txt",
            endpoint=moto.endpoint,
            credential="reader" if way == "role of a profile" else "",
        )
        (location,) = await locations_of(spec, *await files_of(spec))
    query = parse_qs(urlsplit(location.url).query)
    assert query["X-Amz-Credential"][0].startswith(key)
    assert query["X-Amz-Security-Token"]
    assert read_whole(location)[0] == b"top.txt"


@pytest.mark.asyncio
async def test_an_unknown_profile_is_a_configuration_error(moto: S3Server) -> None:
    """The message names it and the hint says where profiles live."""
    with pytest.raises(ConfigError, match="there is no AWS profile 'nobody'") as caught:
        await files_of(SourceSpec(uri="s3://bucket/x", endpoint=moto.endpoint, credential="nobody"))
    assert "AWS configuration files" in caught.value.hint


# --- what goes wrong ---


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchBucket", OriginNotFound),
        (403, "AccessDenied", OriginForbidden),
        (403, "", OriginForbidden),
        (503, "SlowDown", OriginThrottled),
        (500, "InternalError", OriginUnavailable),
        (400, "AuthorizationHeaderMalformed", OriginWrong),
    ],
)
async def test_a_servers_errors_in_our_words(
    scripted: ScriptedS3, status: int, code: str, kind: type[Exception]
) -> None:
    """From the listing itself; the server's own message is not repeated, and a refusal says as whom it was asked."""
    scripted.error = (status, code)
    with pytest.raises(kind) as caught:
        await files_of(SourceSpec(uri="s3://bucket/x", endpoint=scripted.url))
    assert type(caught.value) is kind
    assert scripted.url in str(caught.value)
    assert "StringToSign" not in str(caught.value)
    if kind is OriginForbidden:
        assert "with credentials found by 'env'" in str(caught.value)


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
async def test_a_gateway_that_redirects_is_named(scripted: ScriptedS3) -> None:
    """An endpoint with http where it wants https: one request, and a sentence that says where it leads."""
    scripted.inject(Redirect("https://storage.test/bucket?x", status=301), times=None)
    with pytest.raises(OriginWrong, match=r"answered 301, a redirect to https://storage\.test:443"):
        await files_of(SourceSpec(uri="s3://bucket/x", endpoint=scripted.url))
    assert len(scripted.requests) <= 2


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
async def test_a_server_that_is_no_s3_is_said_to_be_none(scripted: ScriptedS3) -> None:
    """A web page, and a listing without end."""
    scripted.body = b"<html><body>hello</body></html>"
    with pytest.raises(OriginWrong, match="answered no listing"):
        await files_of(SourceSpec(uri="s3://bucket/x", endpoint=scripted.url))
    going_on = "<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>"
    scripted.body = f"<ListBucketResult>{going_on}</ListBucketResult>".encode()
    with pytest.raises(OriginWrong, match="lists in a circle"):
        await files_of(SourceSpec(uri="s3://bucket/x", endpoint=scripted.url))


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
async def test_a_server_that_ignores_conditions_is_not_believed(scripted: ScriptedS3) -> None:
    """Another ETag in the answer is SourceChanged, whatever became of If-Match."""
    file = RemoteFile(path="a", size_bytes=3, identity={"key": "a", "etag": "e1"})
    large = RemoteFile(path="a", size_bytes=17 * MIB, identity={"key": "a", "etag": "e1"})
    scripted.body = b"abc"
    source = S3Source(SourceSpec(uri="s3://bucket/x", endpoint=scripted.url))
    with pytest.raises(SourceChanged, match="a is no longer the object that was listed"):
        await source.read(file, 10)
    with pytest.raises(SourceChanged, match="a is no longer the object that was listed"):
        await source.describe([large])
    same = RemoteFile(path="a", size_bytes=3, identity={"key": "a", "etag": "e9"})
    assert await source.read(same, 10) == b"abc"
    await source.close()


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
async def test_nobody_listening_is_unavailable() -> None:
    """The endpoint is in the sentence."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(OriginUnavailable, match=f"{endpoint} cannot be reached"):
            await files_of(SourceSpec(uri="s3://bucket/x", endpoint=endpoint))


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
async def test_names_that_s3_cannot_have(moto: S3Server) -> None:
    """A bucket that is none, before the network where possible."""
    for uri in ("s3://", "s3:///x", "s3://bucket//x"):
        with pytest.raises(UsageError, match="an S3 uri is s3://bucket/prefix"):
            S3Source(SourceSpec(uri=uri))
    with pytest.raises(UsageError, match="boto3 refuses the names"):
        await files_of(SourceSpec(uri="s3://no bucket/x", endpoint=moto.endpoint))
    with pytest.raises(UsageError, match="holds a user, a password or a query"):
        S3Source(SourceSpec(uri="s3://bucket", endpoint="http://user:pass@host"))


# --- checksums, where the server has fewer ways of telling ---


@pytest.mark.asyncio
@pytest.mark.usefixtures("as_reader")
async def test_an_object_without_checksums_is_described_without(
    moto: S3Server, bucket: str, writer: S3Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has none to tell yields none, not an error; the same with composites whose parts nobody knows."""

    def refuse(*_: object, **__: object) -> None:
        raise ClientError({"Error": {"Code": "NotImplemented"}}, "GetObjectAttributes")

    body = bytes(17 * MIB)
    writer.put_object(Bucket=bucket, Key="w/large", Body=body)
    spec = SourceSpec(uri=f"s3://{bucket}/w", endpoint=moto.endpoint)
    source = S3Source(spec)
    (file,) = (await source.list()).files
    with monkeypatch.context() as patch:
        patch.setattr(s3, "found_checksums", lambda _: {"crc32": ("01020304", 3)})
        patch.setattr(client, "_attributed_parts", lambda *_: ())
        patch.setattr(client, "_headed_parts", refuse)
        (described,) = await source.describe([file])
        assert described.checksums == ()
    await source.close()
    assert read_whole((await locations_of(spec, described))[0])[0] == body


def test_a_malformed_answer_brings_no_signed_url_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """urllib3 names the URL of an answer whose headers it can't read, as a warning."""

    def answer(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        with accepted:
            accepted.recv(65536)
            accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nno header\r\nETag: x\r\n\r\n")

    caplog.set_level(logging.DEBUG)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        bucket = client.Bucket(
            connection.BucketAddress(name="b", endpoint=endpoint, region="r", profile="", ca_bundle="", path_style=True)
        )
        server = threading.Thread(target=answer, args=(listener,))
        server.start()
        bucket.head(HttpLocation(url=f"{endpoint}/b/k?X-Amz-Signature=5ec2e7"), "k")
        server.join()
        bucket.close()
    assert "5ec2e7" not in caplog.text


@pytest.mark.parametrize("name", ["endpoints", "partitions", "s3/2006-03-01/service-2"])
def test_descriptions_are_read_as_botocore_reads_them(name: str, tmp_path: Path) -> None:
    theirs, ours = JSONFileLoader(), connection._JsonFiles()
    (path,) = [path for folder in create_loader().search_paths if theirs.exists(path := f"{folder}/{name}")]
    assert ours.load_file(path) == theirs.load_file(path)
    assert ours.load_file(path)
    assert ours.load_file(str(tmp_path / name)) is None
