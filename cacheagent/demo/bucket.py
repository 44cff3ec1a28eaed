"""The demo's other side of S3, by boto3 as anybody would use it: uploads, the rival download, one tensor."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import boto3

from cacheagent.demo.seaweedfs import S3Server


class Bucket:
    """One bucket of a running server."""

    def __init__(self, server: S3Server, name: str) -> None:
        self._name = name
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            region_name=server.region,
        )

    def create(self) -> None:
        """Make it."""
        self._client.create_bucket(Bucket=self._name)

    def upload(self, directory: Path, prefix: str) -> int:
        """Put every file of a directory below a prefix; how many bytes that was."""
        total = 0
        for path in sorted(each for each in directory.rglob("*") if each.is_file()):
            self._client.upload_file(str(path), self._name, f"{prefix}/{path.relative_to(directory)}")
            total += path.stat().st_size
        return total

    def download(self, prefix: str, directory: Path) -> int:
        """What a start-up script does: one `download_file` after the other with boto3's own settings (ten threads a
        file), durable at the end like ours; how many bytes that was.
        """
        total = 0
        directory.mkdir(parents=True)
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=f"{prefix}/"):
            for entry in page["Contents"]:
                target = directory / entry["Key"].removeprefix(f"{prefix}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                self._client.download_file(self._name, entry["Key"], str(target))
                total += entry["Size"]
        os.sync()
        return total

    def tensor_bytes(self, key: str, tensor: str) -> bytes:
        """The bytes of one tensor, by ranges of the object."""
        length = int.from_bytes(self._range(key, 0, 8), "little")
        begin, end = json.loads(self._range(key, 8, length))[tensor]["data_offsets"]
        return self._range(key, 8 + length + begin, end - begin)

    def _range(self, key: str, offset: int, length: int) -> bytes:
        answer = self._client.get_object(Bucket=self._name, Key=key, Range=f"bytes={offset}-{offset + length - 1}")
        content: bytes = answer["Body"].read()
        return content
