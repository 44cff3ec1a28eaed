"""Which of a few clusters on this machine this one is: its addresses, names and folder belong to nobody else."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

import msgspec

from tests.e2e.cluster.process import run

SLOTS = 6
SERVICES = "10.96.0.0/16"
"""The same in each: service addresses exist only inside the nodes."""


def state_folder() -> Path:
    """Outside the checkout and beside the built programs: nodes' disks must be a real file system, not an overlay."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cacheagent/clusters"


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses and names that are made from one small number."""

    index: int

    @property
    def folder(self) -> Path:
        return state_folder() / str(self.index)

    @property
    def bridge(self) -> str:
        return f"cae2e{self.index}"

    @property
    def address(self) -> str:
        """Of the machine itself on the bridge: the API server's, and the one of servers for pods."""
        return f"10.{200 + self.index}.0.1"

    def node_address(self, number: int) -> str:
        return f"10.{200 + self.index}.0.{10 + number}"

    def pod_subnet(self, number: int) -> str:
        return f"10.{210 + self.index}.{number}.0/24"

    def link(self, number: int) -> str:
        """Name of a node's link on this side; at most 15 characters."""
        return f"cae2e{self.index}n{number}"

    def cgroup(self, node: str) -> str:
        return f"{self.bridge}-{node}"

    @property
    def etcd_port(self) -> int:
        return 23790 + 10 * self.index


def take_slot() -> tuple[Slot, IO[str]]:
    """The first slot that nobody holds; it is held until the file is closed, also by the end of the process.

    Raises `BlockingIOError` when all are taken.
    """
    state_folder().mkdir(parents=True, exist_ok=True)
    routes = run("ip", "-4", "route", "show").stdout
    for index in range(SLOTS):
        slot = Slot(index=index)
        foreign = [
            line
            for line in routes.splitlines()
            if line.startswith((f"10.{200 + index}.", f"10.{210 + index}.")) and slot.bridge not in line
        ]
        if foreign:
            continue
        lock = (state_folder() / f"{index}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return slot, lock
    raise BlockingIOError(
        f"all {SLOTS} clusters that this machine may have are running (or their addresses are in use)"
    )
