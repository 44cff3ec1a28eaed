"""The control groups of a node: a folder of its own in each hierarchy, below which its kubelet and runc work."""

from __future__ import annotations

import contextlib
import os
import signal
from functools import partial
from pathlib import Path

from tests.e2e.cluster.waiting import wait_until
from tests.privileges import as_root_for_long

CGROUPS = Path("/sys/fs/cgroup")


def _is_unified() -> bool:
    return (CGROUPS / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    """Mount points of the version 1 controllers, or of the one hierarchy of version 2."""
    if _is_unified():
        return [CGROUPS]
    return [path for path in sorted(CGROUPS.iterdir()) if path.is_dir() and not path.is_symlink()]


def make(name: str) -> None:
    """One that is there already is fine."""
    as_root_for_long(partial(_make, name))  # the folders' own modes let nobody write


def _make(name: str) -> None:
    for hierarchy in hierarchies():
        folder = hierarchy / name
        folder.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (folder / file).exists() and not _is_unified():
                (folder / file).write_text((hierarchy / file).read_text())
    if _is_unified():
        _delegate(CGROUPS)
        _delegate(CGROUPS / name)


def _delegate(folder: Path) -> None:
    wanted = " ".join(f"+{name}" for name in (folder / "cgroup.controllers").read_text().split())
    with contextlib.suppress(OSError):  # the root has them on already, or systemd says which
        (folder / "cgroup.subtree_control").write_text(wanted)


def pids(name: str, pod_uid: str | None = None) -> list[int]:
    """Processes of the node's pods, or of one pod, as this machine sees them."""
    hierarchy = CGROUPS if _is_unified() else CGROUPS / "pids"
    found: list[int] = []
    for path in (hierarchy / name).rglob("cgroup.procs"):
        if path.parent.is_relative_to(hierarchy / name) and (pod_uid is None or pod_uid in str(path)):
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in path.read_text().split()]
    return found


def kill(name: str, pod_uid: str | None = None) -> None:
    """`kill -9` to each of them."""
    for pid in pids(name, pod_uid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove(name: str) -> None:
    """Kill what is left in them, and remove all folders; ones that aren't there are fine."""
    as_root_for_long(partial(_remove, name))


def _remove(name: str) -> None:
    kill(name)
    for hierarchy in hierarchies():
        folder = hierarchy / name
        wait_until(partial(_is_removed, folder), f"control group {folder} is removed")


def _is_removed(folder: Path) -> bool:
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(path)
    return not folder.exists()
