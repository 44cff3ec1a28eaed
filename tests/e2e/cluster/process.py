"""The one place where the cluster starts programs: with all of root's rights, and so that none outlives us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.privileges import as_root, as_root_for_long

_PID_SUFFIX = ".pid"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CommandFailed(AssertionError):
    """A command of the cluster ended with another status than 0, or not in time; the message has what it printed."""


class ProgramEnded(AssertionError):
    """A server of the cluster ended by itself; the message has the end of its log."""


def environment() -> dict[str, str]:
    """Programs get no settings of a developer, and find Debian's servers."""
    return {"PATH": PATH, "HOME": "/root", "LC_ALL": "C"}


def run(
    *command: str | Path,
    check: bool = True,
    limit: float = 120.0,
    text: str | None = None,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as root, with `text` as its input. Raises `CommandFailed` if it is checked."""

    def call() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command],
            check=False,
            input=text if text is not None else "",
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit,
            env={**environment(), **(variables or {})},
        )

    shown = " ".join(map(str, command))[:500]
    try:
        result = as_root_for_long(call)
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{shown} took more than {limit:.0f} s") from error
    if check and result.returncode != 0:
        printed = (result.stderr.strip() or result.stdout.strip())[-3000:]
        raise CommandFailed(f"{shown} ended with {result.returncode}: {printed or 'it printed nothing'}")
    return result


class Program:
    """A server that was started, with its log; `pid` is its own id, also when it runs in a namespace of processes."""

    def __init__(self, name: str, child: subprocess.Popen[bytes], log: Path, *, is_entered: bool) -> None:
        self.name = name
        self.log = log
        self._child = child
        self._is_entered = is_entered

    @property
    def pid(self) -> int:
        """As this process sees it. Raises `ProgramEnded` when it is gone."""
        if not self._is_entered:
            return self._child.pid
        try:
            children = psutil.Process(self._child.pid).children()
        except psutil.NoSuchProcess:
            children = []
        if not children:
            raise ProgramEnded(f"{self.name} is not running: {self.end_of_log()}")
        return children[0].pid

    @property
    def is_running(self) -> bool:
        return self._child.poll() is None

    def stop(self, how: signal.Signals = signal.SIGTERM, *, limit: float = 15.0) -> None:
        """Send it a signal, kill it after `limit` seconds, and return when it is gone. One that is gone is fine."""
        for each in (how, signal.SIGKILL):
            self._send(each)
            try:
                self._child.wait(limit)
            except subprocess.TimeoutExpired:
                continue
            return
        self._child.kill()
        self._child.wait(limit)

    def _send(self, which: signal.Signals) -> None:
        try:
            os.kill(self.pid, which)
        except (ProgramEnded, ProcessLookupError):
            # nsenter without a child yet, or any more
            self._child.kill()

    def must_run(self) -> None:
        """Raises `ProgramEnded` with the end of the log when it doesn't."""
        if not self.is_running:
            raise ProgramEnded(f"{self.name} ended with {self._child.returncode}: {self.end_of_log()}")

    def end_of_log(self, characters: int = 2000) -> str:
        return self.log.read_text(errors="replace")[-characters:].strip() or "it wrote nothing"


def spawn(name: str, command: Sequence[str | Path], log: Path, *, enters: Sequence[str] = ()) -> Program:
    """Start a server that is killed when this process ends, however it ends. `enters` is a prefix that forks it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    full = ["setpriv", "--pdeathsig", "KILL", *enters, *map(str, command)]

    def call() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                full,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                start_new_session=True,
                cwd="/",
            )

    child = as_root(call)
    log.with_suffix(_PID_SUFFIX).write_text(f"{child.pid} {psutil.Process(child.pid).create_time()}")
    return Program(name, child, log, is_entered=bool(enters))


def kill_left_ones(logs: Path) -> None:
    """Kill the programs with a log below this folder that somebody started who is gone himself."""
    for path in logs.rglob(f"*{_PID_SUFFIX}"):
        pid, _, began = path.read_text().partition(" ")
        with contextlib.suppress(psutil.NoSuchProcess, ValueError):
            process = psutil.Process(int(pid))
            if process.create_time() == float(began):  # else the number is somebody else's by now
                process.kill()
                process.wait(10)
        path.unlink()
