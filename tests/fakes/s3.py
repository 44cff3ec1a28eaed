"""A boto3 client for a test's S3 server, and buckets of a test's own."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

from cacheagent.demo.seaweedfs import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def client_for(server: S3Server, *, ca_bundle: Path | None = None) -> S3Client:
    """A client with the server's own credentials, path style, SigV4."""
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name=server.region,
        verify=str(ca_bundle) if ca_bundle else None,
        config=Config(s3={"addressing_style": "path"}, signature_version="s3v4", retries={"max_attempts": 5}),
    )


def new_bucket(client: S3Client) -> str:
    """The name of a bucket that nobody used before."""
    name = f"test-{uuid.uuid4().hex[:16]}"
    client.create_bucket(Bucket=name)
    return name
