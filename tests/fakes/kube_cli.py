"""Commands on a cluster that lives in memory: a controller plans and writes, agents answer, while a command runs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cacheagent.cli.cluster.group import cluster
from cacheagent.cli.root import run
from cacheagent.kube import client
from tests.fakes.kube_scene import Scene


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """Standard output as lines of JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


class LivingScene(Scene):
    """`silent`: nodes whose agents are dead. `interrupt_when`: Ctrl-C is pressed as soon as this holds.
    `is_controlled`: whether a controller runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **settings: Any) -> None:
        super().__init__(**settings)
        self.is_controlled = True
        self.silent: set[str] = set()
        self.interrupt_when: Callable[[], bool] | None = None
        self.on_tick: Callable[[], None] = lambda: None
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(client, "open_client", self._open)

    @asynccontextmanager
    async def _open(self, kubeconfig: Path | None = None, context: str = "") -> AsyncIterator[Any]:
        self.kube.namespace = "shop"  # type: ignore[attr-defined]
        task = asyncio.create_task(self._live())
        try:
            yield self.kube
        finally:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError), ended

    async def _live(self) -> None:
        while True:
            self.now = time.time()
            self.on_tick()
            if self.is_controlled:
                planned = self.plan()
                self.memory = planned.memory
                await self._write(planned.changes)
            self.report(*self.agents.keys() - self.silent)
            if self.interrupt_when is not None and self.interrupt_when():
                self.interrupt_when = None
                os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.01)

    def kill(self, node: str) -> None:
        """Its agent dies."""
        self.silent.add(node)
        self.agent(node, ready=False)

    def settled(self) -> None:
        """Until nothing changes, before a command runs."""
        self.now = time.time()
        self.settle()

    def run(self, *arguments: str) -> Ended:
        """`kubectl cacheagent …`."""
        self._monkeypatch.setattr(sys, "argv", ["kubectl-cacheagent", *arguments])
        with pytest.raises(SystemExit) as ended:
            run(cluster, "cacheagent")
        captured = self._capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)
