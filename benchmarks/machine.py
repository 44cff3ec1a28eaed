"""What machine the figures are from: without it they mean nothing."""

import os
import platform
import subprocess
import time
from pathlib import Path

import msgspec


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hardware and the programs that are no contestants."""

    cpu: str
    cpus: int
    memory_bytes: int
    kernel: str
    filesystem: str
    python: str
    nginx: str
    fio: str
    measured_at: str


def describe_machine(workdir: Path) -> Machine:
    """This machine, with the filesystem that `workdir` is on."""
    return Machine(
        cpu=_field("/proc/cpuinfo", "model name"),
        cpus=os.cpu_count() or 0,
        memory_bytes=int(_field("/proc/meminfo", "MemTotal").split()[0]) * 1024,
        kernel=platform.release(),
        filesystem=_said("df", "--output=fstype", str(workdir)).splitlines()[-1],
        python=platform.python_version(),
        nginx=_said("/usr/sbin/nginx", "-v").rpartition("/")[2],
        fio=_said("fio", "--version"),
        measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return (done.stdout + done.stderr).strip()
