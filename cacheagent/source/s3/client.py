"""The blocking side of S3: boto3's client, made once, and what is asked of it. The only module that knows boto3.

Safe for concurrent use from several threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as boto
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config

from cacheagent.errors import (
    CacheAgentError,
    ChecksumMismatch,
    ConfigError,
    OriginForbidden,
    OriginUnavailable,
    OriginWrong,
    SourceChanged,
    UsageError,
)
from cacheagent.location import HttpLocation, Location
from cacheagent.model import PIECE_SIZE_BYTES, RemoteFile
from cacheagent.source.s3.checksums import Parts, found_checksums, run_lengths, to_checksums, uniform_parts
from cacheagent.source.s3.errors import s3_error
from cacheagent.source.s3.listing import ListedObject, Page, parse_page
from cacheagent.source.s3.sigv4 import CHECKSUM_MODE_HEADER, Keys, Presigner, plain_url
from cacheagent.source.web import CONNECT_TIMEOUT_S, IDLE_TIMEOUT_S, origin_of, untrusted_certificate

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_s3 import S3Client

URL_LIFETIME_S: Final = 2 * 3600
"""Twice what `Source.locate` promises; temporary credentials may end it earlier. Chosen."""
REQUESTS_AT_A_TIME: Final = 16
"""Threads and connections of one source: 1,000 large files at 20 ms each take 1.3 s. Chosen."""

# At debug level botocore logs what it signs, signatures included: no setting of ours may bring those into a log.
logging.getLogger("botocore").setLevel(logging.INFO)


@dataclass(frozen=True, kw_only=True)
class BucketAddress:
    """What the asker says; empty fields are for boto3's own settings to fill."""

    name: str
    endpoint: str
    region: str
    profile: str
    ca_bundle: str
    path_style: bool | None


@dataclass(frozen=True, kw_only=True)
class _Connection:
    """A client and what it found out. `base_url`: scheme, host and path of the bucket in the style that applies."""

    client: S3Client
    credentials: Credentials | None
    region: str
    endpoint: str
    base_url: str
    ca_bundle: str


class Bucket:
    """One bucket. Every method may block for the network and raises only `cacheagent.errors`."""

    def __init__(self, address: BucketAddress) -> None:
        self._address = address
        self._connecting = threading.Lock()
        self._connection: _Connection | None = None

    def close(self) -> None:
        """Let go of connections. May be called twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.client.close()

    def place(self) -> dict[str, str]:
        """The part of every object's identity that is the same for all."""
        here = self._connect()
        return {"endpoint": here.endpoint, "region": here.region, "bucket": self._address.name}

    def keeps_versions(self) -> bool:
        """Whether the bucket keeps versions and says so to us. A server that knows no versions, or forbids the
        question, says no."""
        try:
            with self._translated("asking for versions"):
                answer = self._connect().client.get_bucket_versioning(Bucket=self._address.name)
        except (OriginForbidden, OriginWrong):  # what is really wrong, the listing will say
            return False
        return answer.get("Status") == "Enabled"

    def may_read_version(self, item: ListedObject) -> bool:
        """Reading by version id is a permission of its own at AWS (s3:GetObjectVersion)."""
        try:
            with self._translated(item.key):
                self._connect().client.head_object(Bucket=self._address.name, Key=item.key, VersionId=item.version_id)
        except OriginForbidden:
            return False
        return True

    def list_page(self, prefix: str, following: Mapping[str, str], *, versions: bool) -> Page:
        """One page of at most 1,000 objects below a prefix; `following` is the previous page's."""
        with self._translated(f"listing {prefix!r}"):
            client = self._connect().client
            ask: Any = client.list_object_versions if versions else client.list_objects_v2
            answer = ask(Bucket=self._address.name, Prefix=prefix, EncodingType="url", **following)
        page: Page | None = answer.get("Page")
        if page is None:
            raise OriginWrong(f"{self._shown_endpoint()} answered no listing", hint="is the endpoint an S3 server?")
        if page.following and page.following == following:
            raise OriginWrong(f"{self._shown_endpoint()} lists in a circle")
        return page

    def describe(self, file: RemoteFile) -> RemoteFile:
        """The same file with the checksums that the server has. Raises SourceChanged."""
        with self._translated(file.path):
            answer = self._connect().client.head_object(**self._pinned(file), ChecksumMode="ENABLED")
        if answer["ETag"].strip('"') != file.identity["etag"] or answer["ContentLength"] != file.size_bytes:
            raise SourceChanged(f"{file.path} is no longer the object that was listed", hint="resolve again")
        found = found_checksums(answer)
        count = max((parts for _, parts in found.values()), default=0)
        parts = self._part_sizes(file, count) if count else ()
        return RemoteFile(
            path=file.path, size_bytes=file.size_bytes, identity=file.identity, checksums=to_checksums(found, parts)
        )

    def read(self, file: RemoteFile) -> bytes:
        """The whole of a small object."""
        with self._translated(file.path):
            answer = self._connect().client.get_object(**self._pinned(file))
            with answer["Body"] as stream:
                body: bytes = stream.read(file.size_bytes + 1)
        if len(body) != file.size_bytes or answer["ETag"].strip('"') != file.identity["etag"]:
            raise SourceChanged(f"{file.path} is no longer the object that was listed", hint="resolve again")
        return body

    def locate(self, files: Sequence[RemoteFile]) -> Sequence[Location]:
        """Signed URLs, about 10 us of CPU each; public ones without credentials."""
        here = self._connect()
        with self._translated("signing"):
            sign_small, sign_large = (self._signer(here, checksum_mode=mode) for mode in (True, False))
        locations: list[Location] = []
        for file in files:
            # Only an answer to a GET without Range can bring a checksum; larger files are fetched in ranges.
            small = file.size_bytes <= PIECE_SIZE_BYTES
            etag = f'"{file.identity["etag"]}"'
            headers = {"If-Match": etag} | ({CHECKSUM_MODE_HEADER: "ENABLED"} if small else {})
            url = (sign_small if small else sign_large)(file.identity["key"], file.identity.get("version_id", ""))
            locations.append(
                HttpLocation(url=url, headers=headers, etag=etag, ca_bundle=here.ca_bundle, checksum_headers=small)
            )
        return locations

    def _signer(self, here: _Connection, *, checksum_mode: bool) -> Any:
        if here.credentials is None:
            return lambda key, version_id: plain_url(here.base_url, key, version_id)
        keys = here.credentials.get_frozen_credentials()
        assert keys.access_key, "botocore found credentials without a key"
        assert keys.secret_key, "botocore found credentials without a secret"
        return Presigner(
            here.base_url,
            keys=Keys(access_key=keys.access_key, secret_key=keys.secret_key, session_token=keys.token),
            region=here.region,
            now=datetime.now(UTC),
            expires_s=URL_LIFETIME_S,
            checksum_mode=checksum_mode,
        ).sign

    def _part_sizes(self, file: RemoteFile, count: int) -> Parts:
        """Sizes of a multipart upload's parts; empty where the server tells them neither way."""
        client, pinned = self._connect().client, self._pinned(file)
        try:
            with self._translated(file.path):
                return _attributed_parts(client, pinned, file.size_bytes) or _headed_parts(
                    client, pinned, count, file.size_bytes
                )
        except (OriginForbidden, OriginWrong):
            return ()

    def _pinned(self, file: RemoteFile) -> dict[str, Any]:
        parameters = {
            "Bucket": self._address.name,
            "Key": file.identity["key"],
            "IfMatch": f'"{file.identity["etag"]}"',
        }
        version_id = file.identity.get("version_id")
        return parameters | ({"VersionId": version_id} if version_id else {})

    # --- connecting ---

    def _connect(self) -> _Connection:
        with self._connecting:
            if self._connection is None:
                with self._translated(f"bucket {self._address.name!r}"):
                    self._connection = self._open()
            return self._connection

    def _open(self) -> _Connection:
        connection = _open_connection(self._address, self._address.region)
        if _is_aws(connection.endpoint):
            # A signed URL can't be sent on to another region as boto3's own requests are, so the region must be the
            # bucket's own.
            region = _bucket_region(connection.client, self._address.name)
            if region not in ("", connection.region):
                connection.client.close()
                connection = _open_connection(self._address, region)
        return connection

    # --- errors ---

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """boto3's exceptions become ours. What servers and exceptions say in their own words is left out: it may hold
        secrets."""
        try:
            yield
        except boto.ClientError as error:
            answer = error.response
            raise s3_error(
                str(answer.get("Error", {}).get("Code", "")),
                int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)),
                what=what,
                endpoint=self._shown_endpoint(),
                credential=self._shown_credential(),
            ) from error
        except boto.BotoCoreError as error:
            raise self._own_error(error, what) from error
        except RuntimeError as error:  # what botocore raises when refreshed credentials are as old as the ones before
            raise OriginForbidden(
                f"{what}: the credentials have ended and could not be renewed",
                hint=f"the request was to be made {self._shown_credential()}",
            ) from error

    def _own_error(self, error: boto.BotoCoreError, what: str) -> CacheAgentError:
        endpoint, kind = self._shown_endpoint(), type(error).__name__
        if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            return untrusted_certificate(endpoint, self._address.ca_bundle)
        if isinstance(error, boto.FlexibleChecksumError):
            return ChecksumMismatch(f"{what}: the bytes do not match the checksum that {endpoint} sent with them")
        if isinstance(error, _UNREACHABLE):
            return OriginUnavailable(
                f"{what}: {endpoint} cannot be reached: {kind}",
                hint="is the server up, and is the way to it open from this node?",
            )
        if isinstance(error, boto.ProfileNotFound):
            return ConfigError(
                f"there is no AWS profile {self._address.profile!r}",
                hint="credential names a profile in the AWS configuration files where the agent runs",
            )
        if isinstance(error, _NO_CREDENTIALS):
            return OriginForbidden(f"{what}: no credentials could be had: {kind}", hint="see boto3's credential chain")
        if isinstance(error, boto.ParamValidationError):
            return UsageError(f"{what}: boto3 refuses the names in it", hint="are bucket and prefix right?")
        return ConfigError(f"{what}: boto3 gave up: {kind}", hint="look at the AWS configuration files and variables")

    def _shown_endpoint(self) -> str:
        connection = self._connection
        return (connection.endpoint if connection else self._address.endpoint) or "AWS"

    def _shown_credential(self) -> str:
        if self._address.profile:
            return f"with profile {self._address.profile!r}"
        connection = self._connection
        if connection is None:
            return "with boto3's default credentials"
        return (
            f"with credentials found by {connection.credentials.method!r}"
            if connection.credentials
            else "without credentials"
        )


_UNREACHABLE = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.ReadTimeoutError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
)
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.MetadataRetrievalError,
    boto.SSOError,
)


def _open_connection(address: BucketAddress, wanted_region: str) -> _Connection:
    core = botocore.session.Session(profile=address.profile or None)
    region = wanted_region or core.get_config_variable("region") or "us-east-1"
    credentials = core.get_credentials()
    session = boto3.Session(botocore_session=core)

    def make(addressing_style: Literal["auto", "path", "virtual"]) -> S3Client:
        client: S3Client = session.client(
            "s3",
            region_name=region,
            endpoint_url=address.endpoint or None,
            verify=address.ca_bundle or None,
            config=Config(
                signature_version="s3v4" if credentials else UNSIGNED,
                s3={"addressing_style": addressing_style},
                retries={"mode": "standard", "total_max_attempts": 2},
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=IDLE_TIMEOUT_S,
                max_pool_connections=REQUESTS_AT_A_TIME,
            ),
        )
        for operation in ("ListObjectsV2", "ListObjectVersions"):
            # The wildcard puts it before botocore's own handlers of `before-parse.s3.*`, one of which parses every body
            # once more to see whether it is an error. Any other order is as right, and half as fast.
            client.meta.events.register(f"before-parse.*.{operation}", _parse_leanly)
        return client

    path_style = address.path_style
    if path_style is None and address.endpoint:
        path_style = not _is_aws(address.endpoint)
    client = make("auto" if path_style is None else "path" if path_style else "virtual")
    if path_style is None and not _is_aws(client.meta.endpoint_url):  # the endpoint came from boto3's own settings
        client = make("path")
    if not _is_aws(client.meta.endpoint_url):
        client.meta.events.register("before-parse.*", _refuse_redirect)
    sample = client.generate_presigned_url("get_object", Params={"Bucket": address.name, "Key": "k"})
    return _Connection(
        client=client,
        credentials=credentials,
        region=region,
        endpoint=client.meta.endpoint_url.rstrip("/"),
        base_url=_regional(sample.partition("?")[0].removesuffix("/k"), region),
        ca_bundle=address.ca_bundle or core.get_config_variable("ca_bundle") or "",
    )


def _parse_leanly(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Takes a listing's body away from botocore before it parses it; errors and oddities are left to it, with its
    retries."""
    page = parse_page(response_dict["body"]) if response_dict["status_code"] == 200 else None
    if page is not None:
        customized_response_dict["Page"] = page
        response_dict["body"] = b"<ListBucketResult/>"


def _refuse_redirect(response_dict: dict[str, Any], **_: Any) -> None:
    """botocore takes every redirect for AWS's way of naming a region, and asks again without end (a gateway that wants
    https answers so).
    """
    if response_dict["status_code"] in (301, 302, 307, 308):
        target = origin_of(response_dict["headers"].get("location", ""))
        raise OriginWrong(
            f"the S3 endpoint answered {response_dict['status_code']}, a redirect to {target}",
            hint="use the endpoint that it leads to: look at scheme, host and port",
        )


def _regional(url: str, region: str) -> str:
    """boto3 presigns for AWS's global endpoint, which redirects to the bucket's region; workers follow no redirects."""
    parts = urlsplit(url)
    if parts.netloc.endswith("s3.amazonaws.com"):
        parts = parts._replace(netloc=f"{parts.netloc.removesuffix('amazonaws.com')}{region}.amazonaws.com")
    return parts.geturl()


def _attributed_parts(client: S3Client, pinned: Mapping[str, Any], size_bytes: int) -> Parts:
    asked = {name: value for name, value in pinned.items() if name != "IfMatch"}
    sizes: list[int] = []
    marker = 0
    try:
        while True:
            answer = client.get_object_attributes(**asked, ObjectAttributes=["ObjectParts"], PartNumberMarker=marker)
            parts = answer.get("ObjectParts", {})
            sizes += [part.get("Size", 0) for part in parts.get("Parts", [])]
            following = parts.get("NextPartNumberMarker", 0)
            if not parts.get("IsTruncated") or following <= marker:
                return run_lengths(sizes, size_bytes)
            marker = following
    except boto.ClientError:  # unknown to many servers, and a permission of its own at AWS
        return ()


def _headed_parts(client: S3Client, pinned: Mapping[str, Any], count: int, size_bytes: int) -> Parts:
    first, last = (client.head_object(**pinned, PartNumber=number)["ContentLength"] for number in (1, count))
    return uniform_parts(first, last, count, size_bytes)


def _bucket_region(client: S3Client, bucket: str) -> str:
    """The region that AWS names in a header, even when it refuses the request itself; empty if it names none."""
    try:
        headers = client.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    except boto.ClientError as error:
        headers = error.response["ResponseMetadata"]["HTTPHeaders"]
    return headers.get("x-amz-bucket-region", "")


def _is_aws(endpoint_url: str) -> bool:
    host = urlsplit(endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))
