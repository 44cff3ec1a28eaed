"""nginx as the tests run it: ranges, conditions, TLS, and gone afterwards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil
import pytest

from cacheagent.errors import CacheAgentError
from tests.fakes.nginx import running_nginx
from tests.fakes.tls import Tls

BODY = os.urandom(100_000)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree" / "sub dir").mkdir(parents=True)
    (tmp_path / "tree" / "sub dir" / "file.bin").write_bytes(BODY)
    return tmp_path / "tree"


def test_it_serves_ranges_and_conditions_and_stops(nginx_program: Path, tree: Path, tmp_path: Path) -> None:
    """Ranges and If-Match work, requests are logged, and no process is left behind."""
    with running_nginx(tree, tmp_path / "scratch", program=nginx_program) as server, httpx2.Client() as client:
        url = f"{server.url}/sub%20dir/file.bin"
        part = client.get(url, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, BODY[10:20])
        assert client.get(url, headers={"If-Match": part.headers["ETag"]}).content == BODY
        assert client.get(url, headers={"If-Match": '"other"'}).status_code == 412
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
        assert len(processes) == 3
    assert server.access_log.read_text().count("GET /sub%20dir/file.bin") == 3
    assert not any(process.is_running() for process in processes)


def test_it_serves_tls(nginx_program: Path, tree: Path, tmp_path: Path, tls: Tls) -> None:
    """With a certificate it is https, to those who trust the authority."""
    with running_nginx(tree, tmp_path / "scratch", program=nginx_program, certificate=tls.certificate) as server:
        assert server.url.startswith("https://")
        with httpx2.Client(verify=tls.client_context()) as client:
            assert client.get(f"{server.url}/sub%20dir/file.bin").content == BODY


def test_a_rate_makes_it_slow(nginx_program: Path, tree: Path, tmp_path: Path) -> None:
    """A connection gets no more than its rate."""
    with running_nginx(tree, tmp_path / "scratch", program=nginx_program, bytes_per_s=50_000) as server:
        started_s = time.monotonic()
        assert httpx2.get(f"{server.url}/sub%20dir/file.bin").content == BODY
        assert time.monotonic() - started_s > 0.9


def test_a_server_that_can_not_start_says_why(nginx_program: Path, tree: Path, tmp_path: Path) -> None:
    """The end of nginx's own log is in the message."""
    with (
        pytest.raises(
            CacheAgentError, match=r'nginx ended with status 1 before it was ready: .*unknown directive "oops"'
        ),
        running_nginx(Path("/tmp; oops on"), tmp_path / "scratch", program=nginx_program),
    ):
        pass


def test_its_workers_die_with_their_owner_even_by_kill_9(nginx_program: Path, tree: Path, tmp_path: Path) -> None:
    """The test process is killed with -9; master and workers are gone as well."""
    program = (
        "import sys, pathlib; from tests.fakes.nginx import running_nginx\n"
        "program, tree, scratch = map(pathlib.Path, sys.argv[1:])\n"
        "with running_nginx(tree, scratch, program=program) as server:\n"
        "    print(server.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(nginx_program), str(tree), str(tmp_path / "scratch")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        master = psutil.Process(int(owner.stdout.readline()))
        processes = [master, *master.children()]
        assert len(processes) == 3
        owner.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
