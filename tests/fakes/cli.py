"""`cacheagent …` as a person or a pipeline runs it, on one cache directory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMIT_S = 120.0
"""Generous: no test is about speed."""


class Cli:
    """Commands on `root`. Where an agent serves it, they find its socket there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def arguments(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cacheagent", *arguments, "--root", str(self.root)]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.arguments(*arguments), capture_output=True, text=True, check=False, timeout=LIMIT_S)

    def json(self, *arguments: str) -> list[Any]:
        """The values that a command prints with `-o json`, one a line. It succeeds."""
        ended = self.run(*arguments, "-o", "json")
        assert ended.returncode == 0, ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]
