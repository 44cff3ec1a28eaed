"""A real `cacheagent agent` as a process of its own, watched through its log, its socket and its port."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.error import HTTPError
from urllib.request import urlopen

import yaml

from cacheagent.api.client import AgentClient
from cacheagent.api.schema import Status

T = TypeVar("T")
PATIENCE_S = 60.0
"""Generous: the machine may be busy, and no test is about speed."""


class RunningAgent:
    """Started and ready inside `with`; ended at the end, by SIGTERM if it still runs. Can be started again."""

    def __init__(self, directory: Path, *models: dict[str, Any], **settings: Any) -> None:
        self.directory = directory
        self.config = directory / "models.yaml"
        self.root = directory / "cache"
        self.log = directory / "log"
        self.environment: dict[str, str] = {}
        self.arguments: tuple[str, ...] = ()
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(*models)

    def configure(self, *models: dict[str, Any]) -> None:
        """Write the configuration file; a running agent wants SIGHUP to see it."""
        floor = {"store": {"floor": "64MiB"}}  # these tests run on small disks too
        content = {"root": "cache", "listen": "127.0.0.1:0", **floor, **self._settings, "models": list(models)}
        self.config.write_text(yaml.safe_dump(content))

    def start(self) -> None:
        """Returns when it is ready."""
        self.log.write_bytes(b"")
        self._process = launch(self.config, self.log, self.environment, self.arguments)
        self.wait_until(lambda: bool(self.events("ready")) or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def events(self, message: str = "") -> list[dict[str, Any]]:
        """Lines of the log whose message begins so."""
        lines = self.log.read_text().splitlines(keepends=True)
        parsed = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in parsed if event["message"].startswith(message)]

    def send(self, number: signal.Signals) -> None:
        """A signal to the agent, and to nobody else."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code, when it has ended."""
        return self.process.wait(PATIENCE_S)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until it holds; a failure shows the log."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def ask(self, question: Callable[[AgentClient], Awaitable[T]]) -> T:
        """One call over the socket."""

        async def call() -> T:
            async with AgentClient(self.root / "agent.sock") as client:
                return await question(client)

        return asyncio.run(call())

    def status(self) -> Status:
        """Everything it says of itself."""
        return self.ask(lambda client: client.status())

    def wait_until_ready(self, name: str) -> None:
        """Until a configured model is here."""
        self.wait_until(lambda: {wanted.name: wanted.state for wanted in self.status().wanted}.get(name) == "ready")

    def get(self, path: str) -> tuple[int, str]:
        """Status and body over TCP."""
        address = self.events("ready")[-1]["listen"]
        try:
            with urlopen(f"http://{address}{path}", timeout=PATIENCE_S) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.send(signal.SIGTERM)
            self.wait()


def launch(
    config: Path, log: Path, environment: Mapping[str, str] | None = None, arguments: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """`cacheagent agent --config …` with its log in a file and no credentials of this machine."""
    own = {"HOME": str(config.parent), "AWS_EC2_METADATA_DISABLED": "true"}
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "cacheagent", "agent", "--config", str(config), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**os.environ, **own, **(environment or {})},
        )
