"""The init container's program: it tells what it waits for, and ends as an init container should."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cacheagent.waiter import main, wait

PATIENCE_S = 60.0


def volume(directory: Path, *, ready: bool = False, progress: str = "") -> Path:
    """A mounted volume."""
    marks = directory / ".cacheagent"
    marks.mkdir(parents=True, exist_ok=True)
    if progress:
        (marks / "progress").write_text(progress + "\n")
    if ready:
        (marks / "ready").write_text('{"digest":"sha256:0"}\n')
    return directory


def launch(*arguments: str) -> subprocess.Popen[str]:
    """As in a pod."""
    return subprocess.Popen(
        [sys.executable, "-m", "cacheagent.waiter", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_prints_each_line_once_and_ends_when_all_are_ready(tmp_path: Path) -> None:
    """Two volumes, one after the other; what did not change is not repeated."""
    one, two = volume(tmp_path / "one", progress="one: 1 %"), volume(tmp_path / "two", ready=True)
    process = launch(str(one), str(two))
    assert process.stdout is not None
    assert process.stdout.readline() == "one: 1 %\n"
    assert "two is ready" in process.stdout.readline()
    volume(one, progress="one: 2 %")
    assert process.stdout.readline() == "one: 2 %\n"
    volume(one, ready=True)
    rest, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (0, "")
    assert "one is ready after" in rest
    assert rest.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_ends_cleanly_when_the_pod_is_deleted(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """At once and without a traceback; nothing is waited out."""
    process = launch(str(volume(tmp_path, progress="one: 1 %")))
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (code, "")


def test_the_time_can_be_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Then the exit code is that of every time-out; a ready volume ends well in no time at all."""
    assert wait([str(volume(tmp_path / "one"))], 0.0) == 3
    assert "is not ready after 0 s" in capsys.readouterr().out
    assert wait([str(volume(tmp_path / "two", ready=True))], 0.0) == 0


@pytest.mark.parametrize("arguments", [[], ["--timeout", "x", "dir"], ["--what", "dir"], ["dir", "--timeout"]])
def test_a_wrong_command_line_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Usage errors are 2, with the usage."""
    assert main(arguments) == 2
    assert "usage:" in capsys.readouterr().err


def test_it_imports_nothing_heavy() -> None:
    """It runs in every pod that waits: a tenth of a second, no asyncio, none of our dependencies."""
    heavy = "{'asyncio', 'msgspec', 'aiohttp', 'ssl', 'json'}"
    code = f"import sys, cacheagent.waiter; print(sorted(set(sys.modules) & {heavy}))"
    began = time.monotonic()
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # it imports json
    out = subprocess.run(
        [sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert out.stdout.strip() == "[]"
    assert time.monotonic() - began < PATIENCE_S
