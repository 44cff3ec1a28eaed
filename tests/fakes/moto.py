"""moto's S3 in this process.

What it does not do: it looks at no credentials unless told to (`moto.core.authorization.enable_iam_authentication`),
and told to, it fails on presigned URLs."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

from cacheagent.demo.seaweedfs import S3Server

_EVERYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
_REGION = "us-east-1"


@contextmanager
def running_moto() -> Iterator[S3Server]:
    """Serve until the block ends; the key is that of a user who may do everything at S3."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # its access log shows whole URLs, signatures included
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    try:
        access_key, secret_key = _make_user(endpoint)
        yield S3Server(endpoint=endpoint, access_key=access_key, secret_key=secret_key, region=_REGION, pid=os.getpid())
    finally:
        server.stop()


def _make_user(endpoint: str) -> tuple[str, str]:
    iam = boto3.client(
        "iam", endpoint_url=endpoint, region_name=_REGION, aws_access_key_id="root", aws_secret_access_key="root"
    )
    try:
        name = f"reader-{uuid.uuid4().hex}"  # all servers of a process share their users
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=json.dumps(_EVERYTHING))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return key["AccessKeyId"], key["SecretAccessKey"]
    finally:
        iam.close()
