"""A real `cacheagent controller` as a process of its own behind a real API server, read through port and webhook."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cacheagent.demo.child import free_ports
from tests.fakes.kube_server import ApiServer

PATIENCE_S: Final = 60.0


class RunningController:
    """Started and ready inside `with`; killed at the end."""

    def __init__(
        self, folder: Path, server: ApiServer, *, namespace: str, identity: str = "one", settings: str = ""
    ) -> None:
        self.log = folder / f"controller-{identity}.log"
        self._port, self._webhook = free_ports(2)
        self.address = f"127.0.0.1:{self._port}"
        config = folder / f"controller-{identity}.yaml"
        config.write_text(
            f"listen: {self.address}\nwebhook: {{listen: '127.0.0.1:{self._webhook}'}}\n"
            f"cold: {{enabled: true}}\nlogs: {{format: json}}\n{settings}"
        )
        program = [sys.executable, "-m", "cacheagent", "controller"]
        self._command = [*program, "--config", str(config), "--namespace", namespace, "--identity", identity]
        self._environment = {**os.environ, "KUBECONFIG": str(server.kubeconfig)}
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )
        end = time.monotonic() + PATIENCE_S
        while not self._is_ready():
            assert self._child.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child is not None
        self._child.kill()
        self._child.wait()

    def metrics(self) -> str:
        """What Prometheus scrapes."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def review(self, body: str) -> int:
        """Send something to the webhook; the status of the answer."""
        context = ssl._create_unverified_context()  # its authority is in a Secret
        request = urllib.request.Request(f"https://127.0.0.1:{self._webhook}/mutate", data=body.encode())
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
