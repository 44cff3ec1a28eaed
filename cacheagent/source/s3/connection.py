"""Making boto3's client for one bucket, and what it finds out: credentials, region, the base of the bucket's URLs."""

from __future__ import annotations

import gzip
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import botocore.session
import msgspec
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.httpsession import URLLib3Session
from botocore.loaders import JSONFileLoader, Loader, create_loader
from botocore.utils import get_environ_proxies

from cacheagent.errors import OriginWrong
from cacheagent.source.address import CONNECT_TIMEOUT_S, IDLE_TIMEOUT_S, origin_of
from cacheagent.source.s3.errors import Asker, translated
from cacheagent.source.s3.listing import parse_page

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_s3 import S3Client

REQUESTS_AT_A_TIME: Final = 16
"""Threads and connections of one source: 1,000 large files at 20 ms each take 1.3 s. Chosen."""

# At debug level botocore logs what it signs, and urllib3 signed URLs, even as a warning where an answer's headers are
# malformed: no setting of ours may bring those into a log.
logging.getLogger("botocore").setLevel(logging.WARNING)
logging.getLogger("urllib3").setLevel(logging.ERROR)


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
class Connection:
    """A client and what it found out. `base_url`: scheme, host and path of the bucket in the style that applies.
    `http`: the same HTTP client as boto3's own, for signed URLs."""

    client: S3Client
    http: URLLib3Session
    credentials: Credentials | None
    region: str
    base_url: str
    ca_bundle: str
    asker: Asker

    @property
    def endpoint(self) -> str:
        """Without a slash at the end; part of every object's identity."""
        return self.client.meta.endpoint_url.rstrip("/")


def connect(address: BucketAddress) -> Connection:
    """A client for the bucket's own region. Blocking: configuration files, credential providers, at AWS one request."""
    asker = Asker(
        endpoint=address.endpoint or "S3",
        credential=f"with profile {address.profile!r}" if address.profile else "with boto3's default credentials",
        profile=address.profile,
        ca_bundle=address.ca_bundle,
    )
    with translated(f"bucket {address.name!r}", asker):
        connection = _open(address, address.region)
        if _is_aws(connection.endpoint):
            # A signed URL is not sent on to another region as boto3's own requests are, so it must be the bucket's own.
            region = _bucket_region(connection.client, address.name)
            if region not in {"", connection.region}:
                connection.client.close()
                connection.http.close()
                connection = _open(address, region)
        return connection


def _open(address: BucketAddress, wanted_region: str) -> Connection:
    core = botocore.session.Session(profile=address.profile or None)
    folders = create_loader(core.get_config_variable("data_path")).search_paths
    descriptions = _Descriptions(folders, file_loader=_JsonFiles(), include_default_search_paths=False)
    core.register_component("data_loader", descriptions)
    region = wanted_region or core.get_config_variable("region") or "us-east-1"
    credentials = core.get_credentials()

    def make(addressing_style: Literal["auto", "path", "virtual"]) -> S3Client:
        # boto3's own session makes this very client, after importing its transfer manager for a third of a second.
        made: Any = core.create_client(
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
        client: S3Client = made  # the stubs are boto3's
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
    endpoint = client.meta.endpoint_url.rstrip("/")
    ca_bundle: str = address.ca_bundle or core.get_config_variable("ca_bundle") or ""
    return Connection(
        client=client,
        http=_http(endpoint, ca_bundle),
        credentials=credentials,
        region=region,
        base_url=_regional(sample.partition("?")[0].removesuffix("/k"), region),
        ca_bundle=ca_bundle,
        asker=Asker(
            endpoint=endpoint,
            credential=_found(address.profile, credentials),
            profile=address.profile,
            ca_bundle=address.ca_bundle,
        ),
    )


class _JsonFiles(JSONFileLoader):
    """botocore's own loader takes 37 ms for the 3.6 MB that describe S3, this one 16 (CPU, measured)."""

    def load_file(self, file_path: str) -> Any:
        """See botocore: the value, or None where there is no such file."""
        for name, decompress in ((f"{file_path}.json", bytes), (f"{file_path}.json.gz", gzip.decompress)):
            with suppress(FileNotFoundError):
                return msgspec.json.decode(decompress(Path(name).read_bytes()))
        return None


class _Descriptions(Loader):
    """Of AWS's services, as botocore reads them, but that nobody looks through the folders of 400 others first. Any may
    be asked for: credentials of a role come from sts or sso."""

    def list_available_services(self, type_name: str) -> list[str]:
        return _AnyName()


class _AnyName(list[str]):
    """A name that is none is told of when its description is opened."""

    def __contains__(self, name: object, /) -> bool:
        return True


def _http(endpoint: str, ca_bundle: str) -> URLLib3Session:
    verify: Any = ca_bundle or True  # the stubs don't know that it may be a path, nor that there are two time-outs
    limits: Any = (CONNECT_TIMEOUT_S, IDLE_TIMEOUT_S)
    proxies = get_environ_proxies(endpoint)
    return URLLib3Session(verify=verify, proxies=proxies, timeout=limits, max_pool_connections=REQUESTS_AT_A_TIME)


def _found(profile: str, credentials: Credentials | None) -> str:
    if profile:
        return f"with profile {profile!r}"
    return f"with credentials found by {credentials.method!r}" if credentials else "without credentials"


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


def _bucket_region(client: S3Client, bucket: str) -> str:
    """The region that AWS names in a header, even when it refuses the request itself; empty if it names none."""
    try:
        headers = client.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    except ClientError as error:
        headers = error.response["ResponseMetadata"]["HTTPHeaders"]
    return headers.get("x-amz-bucket-region", "")


def _is_aws(endpoint_url: str) -> bool:
    host = urlsplit(endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))
