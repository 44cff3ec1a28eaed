"""What a contestant is asked to fetch, and from where."""

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

ACCESS_KEY = "benchmark"
SECRET_KEY = "benchmark-secret"
REGION = "us-east-1"
BUCKET = "bench"
REVISION = "0123456789abcdef0123456789abcdef01234567"


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One dataset on one server: the same files as S3 objects and, on nginx, as plain files and a Hub repository.

    `interface`: the client's network interface that the bytes arrive on.
    """

    server: str
    endpoint: str
    prefix: str
    paths: tuple[str, ...]
    size_bytes: int
    hub_endpoint: str = ""
    interface: str = "lo"
    ca_bundle: Path | None = None

    @property
    def s3_uri(self) -> str:
        """The whole dataset as S3 sees it."""
        return f"s3://{BUCKET}/{self.prefix}"

    @property
    def port(self) -> int:
        """TCP port of the files."""
        return urlsplit(self.endpoint).port or 0

    @property
    def base_url(self) -> str:
        """Where the files are for a plain HTTP client, with the final slash."""
        return f"{self.endpoint}/{BUCKET}/{self.prefix}/"

    @property
    def repo_id(self) -> str:
        """The dataset's name on the Hub server."""
        return f"{BUCKET}/{self.prefix}"

    def environment(self) -> dict[str, str]:
        """Credentials and the certificate authority, under the names that the AWS clients and ours read."""
        variables = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        if self.ca_bundle is not None:
            variables |= {"AWS_CA_BUNDLE": str(self.ca_bundle), "SSL_CERT_FILE": str(self.ca_bundle)}
        return variables
