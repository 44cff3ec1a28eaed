"""Several agents that know each other as peers, on loopback, each with a cache and a port of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers.keys import load_or_make_keys
from tests.fakes.faults import SlowFirstByte
from tests.fakes.origin import Origin
from tests.fakes.running_agent import RunningAgent

MODEL = "m"


def shards(*pieces: int, odd: int = 4321) -> dict[str, bytes]:
    """Random files of so many whole pieces each and a bit, and a small one."""
    sizes = {number: count * PIECE_SIZE_BYTES + odd for number, count in enumerate(pieces)}
    files = {f"{MODEL}/shard-{number}.bin": os.urandom(size) for number, size in sizes.items()}
    return {**files, f"{MODEL}/config.json": b"{}"}


def add_index(origin: Origin) -> None:
    """A list of the model's files that says nothing of their bytes."""
    files = [{"path": path.removeprefix(f"{MODEL}/")} for path in origin.files]
    origin.put(f"{MODEL}/index.json", json.dumps({"files": files}).encode())


class PeerAgents:
    """`agents` by name, n0, n1 …; not started until somebody does. Ended at the end. `keys`: those that they sign
    with; the list has the next ones too. `via`: ports at which the list has some of them, in place of their own.
    `zones`: of each, in order."""

    def __init__(
        self,
        directory: Path,
        origin: Origin,
        count: int,
        via: Mapping[str, int] | None = None,
        *,
        zones: Sequence[str] = (),
        **peers: Any,
    ) -> None:
        self._stack = ExitStack()
        self.origin = origin
        names = [f"n{number}" for number in range(count)]
        self.ports = {name: free_port() for name in names}
        own = {name: load_or_make_keys(directory / name / "cache") for name in names}
        self.keys = {name: keys.current for name, keys in own.items()}
        listed = {**self.ports, **(via or {})}
        self.members = [
            {"name": name, "address": f"127.0.0.1:{listed[name]}", "key": own[name].public_text, "zone": zone}
            for name, zone in zip(names, zones or [""] * count, strict=True)
        ]
        self.agents: dict[str, RunningAgent] = {}
        for name in names:
            self.agents[name] = RunningAgent(directory / name, self.model(), peers={**self.settings(name), **peers})

    def settings(self, name: str) -> dict[str, Any]:
        """The section `peers` of one of them."""
        return {"name": name, "listen": f"127.0.0.1:{self.ports[name]}", "members": self.members}

    def model(self, **more: Any) -> dict[str, Any]:
        """As in a configuration file."""
        return {"name": MODEL, "kind": "tree", "source": f"{self.origin.url}/{MODEL}/", **more}

    def start(self, *names: str) -> None:
        """These, or all, at the same time."""
        for name in names or self.agents:
            self._stack.push(self.agents[name])
        with ThreadPoolExecutor(len(names) or len(self.agents)) as pool:
            for started in [pool.submit(self.agents[name].start) for name in names or self.agents]:
                started.result()

    def start_together(self, *names: str) -> None:
        """As `start`; none of them is told what the model consists of before all have asked."""
        lists = [path for path in self.origin.files if path in {f"{MODEL}/SHA256SUMS", f"{MODEL}/index.json"}]
        (path,) = lists
        self.origin.inject(SlowFirstByte(), path=path, times=None)
        try:
            self.start(*names)
            self.origin.wait_until(
                lambda: sum(not ask.finished for ask in self.origin.requests_for(path)) >= len(names or self.agents)
            )
        finally:
            self.origin.heal()

    def wait_until_ready(self, *names: str) -> None:
        """Until the model is published on these, or on all."""
        for name in names or self.agents:
            self.agents[name].wait_until_ready(MODEL)

    def files(self, name: str) -> dict[str, bytes]:
        """What an agent has published."""
        path = Path(self.agents[name].ask(lambda client: client.model(MODEL)).path) / "files"
        return {f"{MODEL}/{file.relative_to(path)}": file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def require(self, files: dict[str, bytes], *names: str) -> None:
        """These, or all, have published every one of the files, byte for byte."""
        for name in names or self.agents:
            assert self.files(name).items() >= files.items()

    def kill(self, name: str) -> None:
        """As a power cut would."""
        self.agents[name].send(signal.SIGKILL)
        self.agents[name].wait()

    def kill_process(self, name: str, module: str) -> None:
        """One of an agent's own processes."""
        for child in psutil.Process(self.agents[name].process.pid).children():
            if module in child.cmdline():
                child.kill()
                return
        raise AssertionError(f"{name} has no process {module}")

    def metric(self, name: str, metric: str) -> float:
        """The sum over its labels."""
        lines = self.agents[name].get("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{metric} ", f"{metric}{{")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def free_port() -> int:
    """Of loopback, a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
