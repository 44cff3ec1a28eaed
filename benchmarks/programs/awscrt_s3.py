"""Downloads a key list with awscrt's S3 client, direct I/O on. Settings come as JSON in the variable REQUEST."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

from awscrt.auth import AwsCredentialsProvider
from awscrt.http import HttpHeaders, HttpRequest
from awscrt.io import ClientTlsContext, TlsContextOptions
from awscrt.s3 import (
    S3Client,
    S3FileIoOptions,
    S3RequestTlsMode,
    S3RequestType,
    create_default_s3_signing_config,
)

request = json.loads(os.environ["REQUEST"])
endpoint = urlsplit(request["endpoint"])
tls_options = None
if endpoint.scheme == "https":
    options = TlsContextOptions()
    options.override_default_trust_store_from_path(None, request["ca_bundle"])
    tls_options = ClientTlsContext(options).new_connection_options()
client = S3Client(
    region=request["region"],
    signing_config=create_default_s3_signing_config(
        region=request["region"],
        credential_provider=AwsCredentialsProvider.new_static(
            os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        ),
    ),
    tls_mode=S3RequestTlsMode.ENABLED if tls_options else S3RequestTlsMode.DISABLED,
    tls_connection_options=tls_options,
    part_size=request["part_mib"] << 20,
    throughput_target_gbps=float(request["target_gbps"]),
    fio_options=S3FileIoOptions(direct_io=True),
)


def download(key: str) -> None:
    """Fetch one key into its file."""
    path = Path(request["into"], key)
    path.parent.mkdir(parents=True, exist_ok=True)
    url = quote(f"/{request['bucket']}/{request['prefix']}/{key}")
    get = HttpRequest("GET", url, HttpHeaders([("Host", endpoint.netloc)]))
    client.make_request(
        type=S3RequestType.GET_OBJECT,
        request=get,
        recv_filepath=str(path),
        fio_options=S3FileIoOptions(direct_io=True),
    ).finished_future.result()


with ThreadPoolExecutor(request["files"]) as pool:
    list(pool.map(download, json.loads(Path(request["keys"]).read_text())))
