"""The peer program: aria2, a BitTorrent client that Debian packages, one a node; the origin seeds.

Configured so that it really exchanges: peers without limit, no upload limit, a tracker asked every two seconds,
peer exchange on; no DHT and no multicast, which would find nobody here. It checks every piece and syncs nothing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.cgroup import Cgroup, new_cgroup
from benchmarks.fanout.fleet import FetchFailed, Ground, kill
from benchmarks.fanout.network import Place
from benchmarks.fanout.torrent import ANNOUNCE_S, make_torrent, tracker
from cacheagent.demo.child import running_child

PROGRAM = "/usr/bin/aria2c"
PORT = 6881
POLL_S = 0.02
SETTLE_S = 3.0
"""The seed has announced itself and the clients wait at their gate."""
OPTIONS = (
    "--quiet=true",
    "--summary-interval=0",
    "--disable-ipv6=true",
    "--enable-dht=false",
    "--enable-dht6=false",
    "--bt-enable-lpd=false",
    "--enable-peer-exchange=true",
    "--bt-max-peers=0",
    "--bt-request-peer-speed-limit=1000M",
    "--max-upload-limit=0",
    "--max-overall-upload-limit=0",
    f"--bt-tracker-interval={ANNOUNCE_S}",
    f"--listen-port={PORT}",
    "--seed-ratio=0.0",
    "--seed-time=60",
    "--file-allocation=falloc",
    "--disk-cache=64M",
    "--async-dns=false",
)


class Aria2:
    """A fleet of clients, each behind a gate: a pipe that it reads one line from before it becomes the program."""

    def __init__(self, root: str, folders: Sequence[Path], groups: Sequence[Cgroup], gates: Sequence[int]) -> None:
        self.groups = groups
        self._root = root
        self._folders = folders
        self._gates = gates

    def fetch(self, counted: Sequence[int], timeout_s: float) -> Mapping[int, float]:
        """Open all gates. A client's hook leaves a file when it has everything and has checked it."""
        start, deadline = time.time(), time.monotonic() + timeout_s
        for gate in self._gates:
            os.write(gate, b"go\n")
        times: dict[int, float] = {}
        while missing := [node for node in counted if node not in times]:
            for node in missing:
                with contextlib.suppress(FileNotFoundError):
                    times[node] = (self._folders[node] / "done").stat().st_mtime - start
            if time.monotonic() > deadline:
                raise FetchFailed(f"{len(missing)} of {len(counted)} clients were not done after {timeout_s:.0f} s")
            time.sleep(POLL_S)
        return times

    def find(self, node: int, path: str) -> Path:
        """Where the client put it."""
        return self._folders[node] / self._root / path

    def digest(self, node: int) -> str:
        """Nothing hangs on it."""
        return ""

    def version(self) -> str:
        """Of the program."""
        said = subprocess.run([PROGRAM, "--version"], check=True, capture_output=True, text=True).stdout
        return said.splitlines()[0].split()[-1]


@contextlib.contextmanager
def aria2(ground: Ground) -> Iterator[Aria2]:
    """A seed that runs in the origin's place, and N clients that wait at their gates."""
    with contextlib.ExitStack() as stack:
        torrent = ground.scratch / "model.torrent"
        torrent.write_bytes(make_torrent(ground.dataset, stack.enter_context(tracker(ground.network.machine_address))))
        seed = _command(ground.network.origin, torrent, ground.dataset.root.parent, "--bt-seed-unverified=true")
        group = stack.enter_context(new_cgroup("seed"))
        stack.enter_context(running_child(group.entering(seed), log_path=ground.scratch / "seed.log"))
        groups, gates = [], []
        folders = [ground.workdir / place.port for place in ground.network.nodes]
        for place, folder in zip(ground.network.nodes, folders, strict=True):
            folder.mkdir()
            gates.append(_gate(folder, stack))
            group = stack.enter_context(new_cgroup(place.port))
            command = _command(place, torrent, folder, f"--on-bt-download-complete={_hook(folder)}")
            gated = ["/bin/sh", "-c", 'read go < "$0" && exec "$@"', str(folder / "gate"), *command]
            stack.enter_context(running_child(group.entering(gated), log_path=folder / "log"))
            groups.append(group)
        stack.callback(kill, groups)  # first of all: nobody needs a polite end
        time.sleep(SETTLE_S)
        yield Aria2(ground.dataset.root.name, folders, groups, gates)


def _command(place: Place, torrent: Path, into: Path, option: str) -> list[str]:
    return place.entering([PROGRAM, *OPTIONS, option, f"--dir={into}", f"--torrent-file={torrent}"])


def _gate(folder: Path, stack: contextlib.ExitStack) -> int:
    os.mkfifo(folder / "gate")
    gate = os.open(folder / "gate", os.O_RDWR)  # both ends, so that nobody waits for the other
    stack.callback(os.close, gate)
    return gate


def _hook(folder: Path) -> Path:
    hook = folder / "hook"
    hook.write_text(f"#!/bin/sh\n: > {folder}/done\n")
    hook.chmod(0o755)
    return hook
