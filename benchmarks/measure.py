"""One measured run: wall time to durable, CPU of the whole tree, its memory and connections, and the noise."""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from benchmarks.cgroup import Cgroup, new_cgroup
from benchmarks.sampling import Sample, Sampler, socket_bytes
from benchmarks.servers import Server

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
MESSAGE_BYTES = 2000


class RunFailed(Exception):
    """The measured program failed or took too long, or a byte differs; the message ends with what it said."""


class Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program to measure. Beside this environment it gets PATH, HOME and the locale, nothing else of ours."""

    argv: Sequence[str]
    env: Mapping[str, str] = {}
    timeout_s: float = 1200.0


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one run took.

    `wall_s`: from start until the program had ended and `sync` had returned; `exit_s`: until it had ended. `cpu_s`: of
    the whole process tree. `other_cpu_s`: whatever else ran on the machine meanwhile, the kernel's own threads
    included: the noise of this run. `peak_socket_bytes`: kernel memory of TCP above the level before, client's and
    server's together.
    """

    wall_s: float
    exit_s: float
    cpu_s: float
    cpu_user_s: float
    cpu_system_s: float
    server_cpu_s: float
    other_cpu_s: float
    peak_pss_bytes: int
    peak_socket_bytes: int
    peak_connections: int
    samples: tuple[Sample, ...]
    output: str


def measure(command: Command, *, server: Server) -> Run:
    """Run the command with a cold page cache and everybody's dirty pages written before.

    Raises RunFailed when it exits with another code than 0 or outlives its time-out.
    """
    drop_page_cache()
    with new_cgroup("client") as group, tempfile.TemporaryFile() as output:
        sockets_before, busy_before, server_before = socket_bytes(), _busy_s(), server.group.cpu_time().total_s
        start = time.monotonic()
        samples = _run_watched(command, group, server, output)
        exited = time.monotonic()
        os.sync()
        durable = time.monotonic()
        cpu, server_cpu_s = group.cpu_time(), server.group.cpu_time().total_s - server_before
        return Run(
            wall_s=durable - start,
            exit_s=exited - start,
            cpu_s=cpu.total_s,
            cpu_user_s=cpu.user_s,
            cpu_system_s=cpu.system_s,
            server_cpu_s=server_cpu_s,
            other_cpu_s=max(0.0, _busy_s() - busy_before - cpu.total_s - server_cpu_s),
            peak_pss_bytes=max((sample.pss_bytes for sample in samples), default=0),
            peak_socket_bytes=max((sample.socket_bytes - sockets_before for sample in samples), default=0),
            peak_connections=max((sample.connections for sample in samples), default=0),
            samples=samples,
            output=_tail(output),
        )


def drop_page_cache() -> None:
    """Write dirty pages and forget clean ones, so that every run starts alike. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _run_watched(command: Command, group: Cgroup, server: Server, output: IO[bytes]) -> tuple[Sample, ...]:
    sampler = Sampler(group, interface=server.target.interface, port=server.target.port)
    try:
        code = subprocess.run(
            group.entering(command.argv),
            env=_environment(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=command.timeout_s,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{command.argv[0]} did not end in {command.timeout_s:.0f} s: {_tail(output)}") from None
    finally:
        samples = sampler.stop()
    if code != 0:
        raise RunFailed(f"{' '.join(command.argv)} exited with {code}: {_tail(output)}")
    return samples


def _busy_s() -> float:
    user, nice, system, _idle, _iowait, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / CLOCK_TICKS


def _environment(command: Command) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL") if name in os.environ}
    return kept | dict(command.env)


def _tail(output: IO[bytes]) -> str:
    size = os.fstat(output.fileno()).st_size
    return os.pread(output.fileno(), MESSAGE_BYTES, max(0, size - MESSAGE_BYTES)).decode(errors="replace")
