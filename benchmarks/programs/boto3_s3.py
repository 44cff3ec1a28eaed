"""Downloads a key list with boto3's `download_file`. Settings come as JSON in the variable REQUEST."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

request = json.loads(os.environ["REQUEST"])
client = boto3.client(
    "s3",
    endpoint_url=request["endpoint"],
    config=Config(max_pool_connections=request["files"] * request["concurrency"], s3={"addressing_style": "path"}),
)
config = TransferConfig(
    max_concurrency=request["concurrency"],
    multipart_chunksize=request["part_mib"] << 20,
    multipart_threshold=request["part_mib"] << 20,
    io_chunksize=1 << 20,
)


def download(key: str) -> None:
    """Fetch one key into its file."""
    path = Path(request["into"], key)
    path.parent.mkdir(parents=True, exist_ok=True)
    client.download_file(request["bucket"], f"{request['prefix']}/{key}", str(path), Config=config)


with ThreadPoolExecutor(request["files"]) as pool:
    list(pool.map(download, json.loads(Path(request["keys"]).read_text())))
