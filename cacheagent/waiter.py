"""Waits in a pod until a volume is filled: `python -m cacheagent.waiter DIR... [--timeout SECONDS]`.

The one process of an injected init container. It needs no network and no socket: the agent writes how far it is into
the volume, and this prints it, so that `kubectl logs` tells the story. Nothing but the standard library is imported,
and little of that: it must start fast and take no memory. Ends with 0 when every volume is ready, 3 when the time is
over (the kubelet starts it again), 143 after SIGTERM, 2 for a command line that makes no sense.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

USAGE = "usage: python -m cacheagent.waiter DIRECTORY... [--timeout SECONDS]"
MARKS = ".cacheagent"
LOOK_EVERY_S = 0.25
"""A look is one stat of a file that is in memory. Chosen: a quarter of what the agent's own progress takes to
change."""


class _Ended(Exception):
    """SIGTERM or SIGINT."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    try:
        directories, limit_s = _parse(arguments)
    except ValueError as error:
        print(f"{error}\n{USAGE}", file=sys.stderr)  # noqa: T201 - a program of its own
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        return wait(directories, limit_s)
    except _Ended as ended:
        return 128 + ended.number


def wait(directories: list[str], limit_s: float | None) -> int:
    """Print each volume's progress when it changes, until all are ready: 0, or 3 when the time is over."""
    began = time.monotonic()
    told: dict[str, str] = {}
    left = list(directories)
    while True:
        for directory in list(left):
            line = _read(os.path.join(directory, MARKS, "progress"))
            if line and told.get(directory) != line:
                told[directory] = line
                _say(line)
            if os.path.exists(os.path.join(directory, MARKS, "ready")):
                left.remove(directory)
                _say(f"{directory} is ready after {time.monotonic() - began:.0f} s")
        if not left:
            return 0
        if limit_s is not None and time.monotonic() - began >= limit_s:
            _say(f"{', '.join(left)} is not ready after {limit_s:g} s")
            return 3
        time.sleep(LOOK_EVERY_S)


def _parse(arguments: list[str]) -> tuple[list[str], float | None]:
    directories, limit_s = [], None
    rest = iter(arguments)
    for argument in rest:
        if argument == "--timeout":
            limit_s = float(next(rest, ""))
        elif argument.startswith("-"):
            raise ValueError(f"unknown option {argument}")
        else:
            directories.append(argument)
    if not directories:
        raise ValueError("no directory is given")
    return directories, limit_s


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:  # not there yet
        return ""


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a program of its own


def _end(number: int, _: FrameType | None) -> None:
    raise _Ended(number)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
