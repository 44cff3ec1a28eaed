"""What is asked of one bucket, by boto3. The blocking side of the S3 source.

Safe for concurrent use from several threads.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError

from cacheagent.errors import OriginForbidden, OriginThrottled, OriginUnavailable, OriginWrong, SourceChanged
from cacheagent.location import HttpLocation
from cacheagent.model import PIECE_SIZE_BYTES, RemoteFile
from cacheagent.source.address import RETRY_DELAYS_S
from cacheagent.source.s3.checksums import Parts, run_lengths, uniform_parts
from cacheagent.source.s3.connection import BucketAddress, Connection, connect
from cacheagent.source.s3.errors import s3_error, translated
from cacheagent.source.s3.listing import ListedObject, Page
from cacheagent.source.s3.sigv4 import CHECKSUM_MODE_HEADER, Keys, Method, Presigner, plain_url

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

URL_LIFETIME_S: Final = 2 * 3600
"""Twice what `Source.locate` promises; temporary credentials may end it earlier. Chosen."""


class Bucket:
    """One bucket. Every method may block for the network and raises only `cacheagent.errors`."""

    def __init__(self, address: BucketAddress) -> None:
        self._address = address
        self._connecting = threading.Lock()
        self._signing = threading.Lock()
        self._connection: Connection | None = None

    def close(self) -> None:
        """Let go of connections. May be called twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.client.close()
            connection.http.close()

    def place(self) -> dict[str, str]:
        """The part of every object's identity that is the same for all."""
        here = self._connect()
        return {"endpoint": here.endpoint, "region": here.region, "bucket": self._address.name}

    def keeps_versions(self) -> bool:
        """Whether the bucket keeps versions and says so to us. A server that knows no versions, or forbids the
        question, says no."""
        here = self._connect()
        try:
            with translated("asking for versions", here.asker):
                answer = here.client.get_bucket_versioning(Bucket=self._address.name)
        except (OriginForbidden, OriginWrong):  # what is really wrong, the listing will say
            return False
        return answer.get("Status") == "Enabled"

    def may_read_version(self, item: ListedObject) -> bool:
        """Reading by version id is a permission of its own at AWS (s3:GetObjectVersion)."""
        here = self._connect()
        try:
            with translated(item.key, here.asker):
                here.client.head_object(Bucket=self._address.name, Key=item.key, VersionId=item.version_id)
        except OriginForbidden:
            return False
        return True

    def list_page(self, prefix: str, following: Mapping[str, str], *, versions: bool) -> Page:
        """One page of at most 1,000 objects below a prefix; `following` is the previous page's."""
        here = self._connect()
        ask: Any = here.client.list_object_versions if versions else here.client.list_objects_v2
        with translated(f"listing {prefix!r}", here.asker):
            answer = ask(Bucket=self._address.name, Prefix=prefix, EncodingType="url", **following)
        page: Page | None = answer.get("Page")
        if page is None:
            raise OriginWrong(f"{here.endpoint} answered no listing", hint="is the endpoint an S3 server?")
        if page.following and page.following == following:
            raise OriginWrong(f"{here.endpoint} lists in a circle")
        return page

    def read(self, file: RemoteFile) -> bytes:
        """The whole of a small object."""
        here = self._connect()
        with translated(file.path, here.asker):
            answer = here.client.get_object(**self._pinned(file))
            with answer["Body"] as stream:
                body: bytes = stream.read(file.size_bytes + 1)
        if len(body) != file.size_bytes or answer["ETag"].strip('"') != file.identity["etag"]:
            raise SourceChanged(f"{file.path} is no longer the object that was listed", hint="resolve again")
        return body

    def locate(self, files: Sequence[RemoteFile], *, method: Method = "GET") -> Sequence[HttpLocation]:
        """Signed URLs, about 10 us of CPU each; public ones without credentials. One call after the other: the files
        of the first are fetched while the next ones are signed."""
        here = self._connect()
        with self._signing:
            return self._sign(here, files, method)

    def _sign(self, here: Connection, files: Sequence[RemoteFile], method: Method) -> Sequence[HttpLocation]:
        with translated("signing", here.asker):
            sign_small, sign_large = (self._signer(here, method, checksum_mode=mode) for mode in (True, False))
        locations: list[HttpLocation] = []
        for file in files:
            # Only HEAD, and GET without Range, are answered with a checksum; larger files are fetched in ranges.
            small = method == "HEAD" or file.size_bytes <= PIECE_SIZE_BYTES
            etag = f'"{file.identity["etag"]}"'
            headers = {"If-Match": etag} | ({CHECKSUM_MODE_HEADER: "ENABLED"} if small else {})
            url = (sign_small if small else sign_large)(file.identity["key"], file.identity.get("version_id", ""))
            locations.append(
                HttpLocation(url=url, headers=headers, etag=etag, ca_bundle=here.ca_bundle, checksum_headers=small)
            )
        return locations

    def _signer(self, here: Connection, method: Method, *, checksum_mode: bool) -> Callable[[str, str], str]:
        if here.credentials is None:
            return partial(plain_url, here.base_url)
        keys = here.credentials.get_frozen_credentials()
        assert keys.access_key, "botocore found credentials without a key"
        assert keys.secret_key, "botocore found credentials without a secret"
        signer = Presigner(
            here.base_url,
            keys=Keys(access_key=keys.access_key, secret_key=keys.secret_key, session_token=keys.token),
            region=here.region,
            now=datetime.now(UTC),
            expires_s=URL_LIFETIME_S,
            checksum_mode=checksum_mode,
        )
        return partial(signer.sign, method=method)

    def part_sizes(self, file: RemoteFile, count: int) -> Parts:
        """Sizes of a multipart upload's parts; empty where the server tells them neither way."""
        here, pinned = self._connect(), self._pinned(file)
        try:
            with translated(file.path, here.asker):
                return _attributed_parts(here.client, pinned, file.size_bytes) or _headed_parts(
                    here.client, pinned, count, file.size_bytes
                )
        except (OriginForbidden, OriginWrong):
            return ()

    def head(self, location: HttpLocation, what: str) -> Mapping[str, str]:
        """Headers of one object, by its signed URL; `what` names it in errors. What may pass is tried again twice,
        shortly after: of ten thousand HEADs one may well hit a moment's trouble."""
        here = self._connect()
        for delay_s in RETRY_DELAYS_S:
            with suppress(OriginUnavailable, OriginThrottled):
                return self._head(here, location, what)
            time.sleep(delay_s * random.uniform(0.5, 1.0))
        return self._head(here, location, what)

    def _head(self, here: Connection, location: HttpLocation, what: str) -> Mapping[str, str]:
        request = AWSRequest(method="HEAD", url=location.url, headers=location.headers).prepare()
        with translated(what, here.asker):
            answer = here.http.send(request)
        if answer.status_code != 200:
            raise s3_error("", answer.status_code, what, here.asker)
        headers: Mapping[str, str] = answer.headers  # whatever their case
        return headers

    def _pinned(self, file: RemoteFile) -> dict[str, Any]:
        parameters = {
            "Bucket": self._address.name,
            "Key": file.identity["key"],
            "IfMatch": f'"{file.identity["etag"]}"',
        }
        version_id = file.identity.get("version_id")
        return parameters | ({"VersionId": version_id} if version_id else {})

    def _connect(self) -> Connection:
        with self._connecting:
            if self._connection is None:
                self._connection = connect(self._address)
            return self._connection


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
    except ClientError:  # unknown to many servers, and a permission of its own at AWS
        return ()


def _headed_parts(client: S3Client, pinned: Mapping[str, Any], count: int, size_bytes: int) -> Parts:
    first, last = (client.head_object(**pinned, PartNumber=number)["ContentLength"] for number in (1, count))
    return uniform_parts(first, last, count, size_bytes)
