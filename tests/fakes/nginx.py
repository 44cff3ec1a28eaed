"""nginx over a directory on loopback: the web server that most people have.

    with running_nginx(tree, scratch) as server:
        server.url  # http://127.0.0.1:port

Its pace is per connection; for a limit on the sum of all, `tests.fakes.origin` has one, and benchmarks shape the link.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from cacheagent.demo.child import on_free_ports, running_child, wait_until_ready
from cacheagent.demo.seaweedfs import Certificate
from cacheagent.model import Value

READY_TIMEOUT_S = 30.0

_CONFIG = """\
daemon off;
{user}
worker_processes {workers};
pid {scratch}/nginx.pid;
error_log stderr warn;
events {{
    worker_connections 4096;
}}
http {{
    access_log {access_log};
    default_type application/octet-stream;
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush on;
    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    limit_rate {bytes_per_s};
    client_body_temp_path {scratch}/body;
    proxy_temp_path {scratch}/proxy;
    fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;
    server {{
        listen 127.0.0.1:{port}{ssl};
        root {root};
        {certificate}
    }}
}}
"""


class WebServer(Value):
    """A running nginx. `access_log` has a line for each request."""

    url: str
    pid: int
    access_log: Path


@contextlib.contextmanager
def running_nginx(
    root: Path,
    scratch: Path,
    *,
    program: Path = Path("/usr/sbin/nginx"),
    certificate: Certificate | None = None,
    bytes_per_s: int = 0,
    workers: int = 2,
) -> Iterator[WebServer]:
    """Serve `root` until the block ends; configuration, logs and temporary files go to `scratch` (made if missing).

    `bytes_per_s`: for each connection, 0 is unlimited. Raises `CacheAgentError` when nginx does not get ready.
    """
    scratch.mkdir(parents=True, exist_ok=True)

    def start(ports: list[int]) -> AbstractContextManager[WebServer]:
        config = _render(root, scratch, ports[0], certificate, bytes_per_s, workers)
        return _running(program, scratch, config, f"{'https' if certificate else 'http'}://127.0.0.1:{ports[0]}")

    with on_free_ports(1, start) as server:
        yield server


@contextlib.contextmanager
def _running(program: Path, scratch: Path, config: str, url: str) -> Iterator[WebServer]:
    config_path, log_path = scratch / "nginx.conf", scratch / "error.log"
    config_path.write_text(config)
    command = [str(program), "-p", str(scratch), "-c", str(config_path), "-e", "stderr"]
    # SIGTERM, also when we die: it makes the master end its workers, which SIGKILL would leave behind.
    with running_child(command, log_path=log_path) as child:
        wait_until_ready(child, lambda: _listens(url), name="nginx", log_path=log_path, timeout_s=READY_TIMEOUT_S)
        yield WebServer(url=url, pid=child.pid, access_log=scratch / "access.log")


def _render(
    root: Path, scratch: Path, port: int, certificate: Certificate | None, bytes_per_s: int, workers: int
) -> str:
    lines = f"ssl_certificate {certificate.chain}; ssl_certificate_key {certificate.key};" if certificate else ""
    return _CONFIG.format(
        user="user root;" if os.geteuid() == 0 else "",  # temporary directories are readable by their owner only
        workers=workers,
        scratch=scratch,
        access_log=scratch / "access.log",
        bytes_per_s=bytes_per_s,
        port=port,
        ssl=" ssl" if certificate else "",
        root=root,
        certificate=lines,
    )


def _listens(url: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5):
            return True
    except OSError:
        return False
