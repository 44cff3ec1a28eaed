"""nginx as an S3 server, a plain file server and a model hub: everything that is not a file's bytes is a static answer.

S3: `GET /bucket/key` with ranges is what nginx does anyway. ListObjectsV2 is answered from pages of 1,000 keys written
beforehand, chosen by the continuation token; ETags in them are nginx's own (`mtime-size` in hex), so `If-Match` works.
`x-amz-checksum-crc64nvme` comes from a map, only where S3 sends it: no range, `x-amz-checksum-mode: ENABLED`.

Hub: the model's description and file list are two JSON files; weights are redirected to the other port, as the Hub
redirects to its CDN, with the checksum in `X-Linked-ETag`.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

import msgspec

from benchmarks.datasets import DataFile, Dataset
from benchmarks.target import BUCKET, REVISION

PAGE_KEYS = 1000


class Listener(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Addresses to listen on, the certificate when it is TLS, and what a connection gives at most (0: no limit)."""

    host: str
    s3_port: int
    hub_port: int
    certificate: Path | None = None
    connection_bytes_per_s: int = 0

    @property
    def scheme(self) -> str:
        """`https` with a certificate, else `http`."""
        return "https" if self.certificate else "http"

    def url(self, port: int) -> str:
        """The base URL of one of the ports."""
        return f"{self.scheme}://{self.host}:{port}"


def write_nginx_tree(meta: Path, dataset: Dataset, listener: Listener) -> Path:
    """Write listings, Hub answers and configuration below `meta`; the configuration's path.

    The dataset lies in `<docroot>/<bucket>/<prefix>`.
    """
    prefix = dataset.root.name
    (meta / "listing").mkdir(parents=True)
    _write_listings(meta / "listing", dataset, prefix)
    (meta / "SHA256SUMS").write_text("".join(f"{file.sha256}  {file.path}\n" for file in dataset.files))
    (meta / "info.json").write_text(json.dumps(_hub_info(dataset)))
    (meta / "tree.json").write_text(json.dumps([_hub_entry(dataset, file) for file in dataset.files]))
    (meta / "maps.conf").write_text("".join(_maps(dataset, prefix)))
    config = meta / "nginx.conf"
    config.write_text(_render(meta, dataset, listener, prefix))
    return config


def _write_listings(folder: Path, dataset: Dataset, prefix: str) -> None:
    pages = [dataset.files[start : start + PAGE_KEYS] for start in range(0, len(dataset.files), PAGE_KEYS)]
    for number, page in enumerate(pages):
        is_last = number == len(pages) - 1
        token = "" if is_last else f"<NextContinuationToken>{number + 1}</NextContinuationToken>"
        (folder / f"{number}.xml").write_text(
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>{prefix}/</Prefix><KeyCount>{len(page)}</KeyCount><MaxKeys>{PAGE_KEYS}</MaxKeys>"
            f"<IsTruncated>{str(not is_last).lower()}</IsTruncated>{token}"
            + "".join(_listed(dataset, prefix, file) for file in page)
            + "</ListBucketResult>"
        )


def _listed(dataset: Dataset, prefix: str, file: DataFile) -> str:
    facts = (dataset.root / file.path).stat()
    return (
        f"<Contents><Key>{escape(f'{prefix}/{file.path}')}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{int(facts.st_mtime):x}-{facts.st_size:x}&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
        f"<ChecksumType>FULL_OBJECT</ChecksumType><Size>{file.size_bytes}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def _hub_info(dataset: Dataset) -> dict[str, Any]:
    return {
        "_id": "0",
        "id": f"{BUCKET}/{dataset.root.name}",
        "modelId": f"{BUCKET}/{dataset.root.name}",
        "sha": REVISION,
        "private": False,
        "gated": False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "lastModified": "2024-01-01T00:00:00.000Z",
        "createdAt": "2024-01-01T00:00:00.000Z",
        "siblings": [_hub_sibling(dataset, file) for file in dataset.files],
    }


def _hub_sibling(dataset: Dataset, file: DataFile) -> dict[str, Any]:
    entry = _hub_entry(dataset, file)
    lfs = {"lfs": {"sha256": file.sha256, "size": file.size_bytes, "pointerSize": 135}} if _is_lfs(file) else {}
    return {"rfilename": file.path, "size": file.size_bytes, "blobId": entry["oid"]} | lfs


def _hub_entry(dataset: Dataset, file: DataFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": file.path, "size": file.size_bytes, "oid": _git_oid(dataset, file)}
    if _is_lfs(file):
        entry["lfs"] = {"oid": file.sha256, "size": file.size_bytes, "pointerSize": 135}
    return entry


def _is_lfs(file: DataFile) -> bool:
    return file.path.endswith(".safetensors")


def _git_oid(dataset: Dataset, file: DataFile) -> str:
    if _is_lfs(file):
        content = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size_bytes}\n".encode()
        )
    else:
        content = (dataset.root / file.path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _maps(dataset: Dataset, prefix: str) -> Iterator[str]:
    yield "map $uri $crc64nvme {\n"
    yield from (f'  "/{BUCKET}/{prefix}/{file.path}" "{file.crc64nvme}";\n' for file in dataset.files)
    yield "}\nmap $file $hub_etag {\n"
    yield from (
        f'  "{file.path}" \'"{file.sha256 if _is_lfs(file) else _git_oid(dataset, file)}"\';\n'
        for file in dataset.files
    )
    yield "}\nmap $file $hub_size {\n"
    yield from (f'  "{file.path}" "{file.size_bytes}";\n' for file in dataset.files)
    yield "}\n"


def _render(meta: Path, dataset: Dataset, listener: Listener, prefix: str) -> str:
    tls = ""
    if listener.certificate:
        pem = listener.certificate
        tls = f"ssl_certificate {pem}; ssl_certificate_key {pem}; ssl_protocols TLSv1.3;"
    suffix = " ssl reuseport" if listener.certificate else " reuseport"
    repo = quote(f"{BUCKET}/{prefix}")
    return f"""
user root;
worker_processes {os.cpu_count()};
daemon off;
pid {meta}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {meta}/t1; proxy_temp_path {meta}/t2; fastcgi_temp_path {meta}/t3;
  uwsgi_temp_path {meta}/t4; scgi_temp_path {meta}/t5;
  sendfile on; tcp_nopush on; tcp_nodelay on; output_buffers 2 512k;
  keepalive_requests 10000000; keepalive_timeout 600;
  open_file_cache max=8000 inactive=600s;
  map_hash_max_size 262144; map_hash_bucket_size 256; variables_hash_max_size 4096;
  default_type application/octet-stream;
  {tls}
  map $uri $file {{ default ""; "~^/{repo}/resolve/[^/]+/(?<name>.+)$" $name; }}
  include {meta}/maps.conf;
  map $args $page {{ default 0; "~(^|&)continuation-token=(?<token>\\d+)" $token; }}
  map "$http_range|$http_x_amz_checksum_mode" $s3_crc {{ default ""; "|ENABLED" $crc64nvme; }}
  map $s3_crc $s3_crc_type {{ default "FULL_OBJECT"; "" ""; }}
  server {{
    listen {listener.host}:{listener.s3_port}{suffix};
    limit_rate {listener.connection_bytes_per_s};
    root {dataset.root.parent.parent};
    location ~ ^/{BUCKET}/?$ {{
      root {meta}/listing; default_type application/xml; etag off; try_files /$page.xml =404;
    }}
    location = /{BUCKET}/{prefix}/SHA256SUMS {{ alias {meta}/SHA256SUMS; default_type text/plain; }}
    location / {{
      add_header x-amz-checksum-crc64nvme $s3_crc;
      add_header x-amz-checksum-type $s3_crc_type;
    }}
  }}
  server {{
    listen {listener.host}:{listener.hub_port}{suffix};
    root {meta};
    location = /api/models/{repo} {{ default_type application/json; try_files /info.json =404; }}
    location ~ ^/api/models/{repo}/revision/[^/]+$ {{ default_type application/json; try_files /info.json =404; }}
    location ~ ^/api/models/{repo}/tree/[^/]+$ {{ default_type application/json; try_files /tree.json =404; }}
    location ~ ^/{repo}/resolve/[^/]+/.+\\.safetensors$ {{
      add_header X-Repo-Commit {REVISION}; add_header X-Linked-ETag $hub_etag; add_header X-Linked-Size $hub_size;
      return 302 {listener.url(listener.s3_port)}/{repo}/$file;
    }}
    location ~ ^/{repo}/resolve/[^/]+/.+$ {{
      root {dataset.root}; etag off;
      add_header X-Repo-Commit {REVISION}; add_header ETag $hub_etag;
      try_files /$file =404;
    }}
  }}
}}
"""
