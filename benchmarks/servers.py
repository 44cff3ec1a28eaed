"""The servers: nginx (plain, TLS, on a link of its own) and SeaweedFS; data in memory, a control group each."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import botocore.config
import msgspec
import trustme
from boto3.s3.transfer import TransferConfig

from benchmarks.cgroup import Cgroup, new_cgroup
from benchmarks.datasets import Dataset
from benchmarks.nginx_config import Listener, write_nginx_tree
from benchmarks.pacing import Link
from benchmarks.target import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, Target
from cacheagent.demo.child import free_ports, running_child, wait_until_ready
from cacheagent.demo.seaweedfs import running_seaweedfs

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

START_TIMEOUT_S = 60.0
UPLOADS_AT_ONCE = 4
# Enough for 8 volumes of 30 GB in each of a few buckets; more would reserve memory for nothing.
SEAWEEDFS_VOLUMES = 100


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A running server: what it serves, and the group its CPU time is counted in."""

    target: Target
    group: Cgroup


@contextlib.contextmanager
def nginx(
    dataset: Dataset, scratch: Path, *, link: Link | None = None, tls: bool = False, connection_bytes_per_s: int = 0
) -> Iterator[Server]:
    """nginx serving the dataset as S3 objects, plain files and a Hub repository; behind the link if there is one, with
    so much for each connection (0: no limit)."""
    meta = scratch / "nginx"
    meta.mkdir()
    host = link.server_address if link else "127.0.0.1"
    s3_port, hub_port = free_ports(2)
    listener = Listener(
        host=host,
        s3_port=s3_port,
        hub_port=hub_port,
        certificate=meta / "server.pem" if tls else None,
        connection_bytes_per_s=connection_bytes_per_s,
    )
    _write_certificates(meta, host)
    command = ["/usr/sbin/nginx", "-p", str(meta), "-c", str(write_nginx_tree(meta, dataset, listener)), "-e", "stderr"]
    if link:
        command = ["/usr/sbin/ip", "netns", "exec", link.namespace, *command]
    target = Target(
        server="nginx-tls" if tls else "nginx",
        endpoint=listener.url(s3_port),
        hub_endpoint=listener.url(hub_port),
        prefix=dataset.root.name,
        paths=tuple(file.path for file in dataset.files),
        size_bytes=dataset.size_bytes,
        interface=link.interface if link else "lo",
        ca_bundle=meta / "ca.pem" if tls else None,
    )
    try:
        with (
            new_cgroup("nginx") as group,
            running_child(group.entering(command), log_path=meta / "log") as child,
        ):
            wait_until_ready(
                child,
                lambda: _listens(host, s3_port),
                name="nginx",
                log_path=meta / "log",
                timeout_s=START_TIMEOUT_S,
            )
            yield Server(target=target, group=group)
    finally:
        shutil.rmtree(meta)


@contextlib.contextmanager
def seaweedfs(dataset: Dataset, scratch: Path) -> Iterator[Server]:
    """SeaweedFS holding the dataset. The dataset's own files are **removed** as they go in: memory holds them once."""
    home = scratch / "seaweedfs"
    try:
        with (
            new_cgroup("seaweedfs") as group,
            running_seaweedfs(home, access_key=ACCESS_KEY, secret_key=SECRET_KEY, volumes=SEAWEEDFS_VOLUMES) as weed,
        ):
            group.adopt(weed.pid)
            target = Target(
                server="seaweedfs",
                endpoint=weed.endpoint,
                prefix=dataset.root.name,
                paths=tuple(file.path for file in dataset.files),
                size_bytes=dataset.size_bytes,
            )
            _move_in(dataset, target)
            yield Server(target=target, group=group)
    finally:
        shutil.rmtree(home)


def presigned_url(target: Target, path: str) -> str:
    """A URL that any HTTP client can fetch one file of the dataset with."""
    request = {"Bucket": BUCKET, "Key": f"{target.prefix}/{path}"}
    return _s3_client(target).generate_presigned_url("get_object", Params=request)


def _move_in(dataset: Dataset, target: Target) -> None:
    client = _s3_client(target)
    client.create_bucket(Bucket=BUCKET)
    config = TransferConfig(multipart_chunksize=64 << 20, max_concurrency=4)

    def move(path: str) -> None:
        source = dataset.root / path
        arguments = {"ChecksumAlgorithm": "CRC64NVME"}
        client.upload_file(str(source), BUCKET, f"{target.prefix}/{path}", ExtraArgs=arguments, Config=config)
        source.unlink()

    with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
        list(pool.map(move, target.paths))


def _s3_client(target: Target) -> S3Client:
    return boto3.client(
        "s3",
        endpoint_url=target.endpoint,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=botocore.config.Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )


def _write_certificates(folder: Path, host: str) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
