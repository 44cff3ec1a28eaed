"""Programs of other projects, built from their own Go modules into the cache of engines."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.conftest import missing
from tests.stacks.environments import CACHE


class Workshop(NamedTuple):
    """Where one project's programs are kept, and what builds them."""

    go: str
    folder: Path

    def module(self, name: str, version: str) -> Path:
        """Its folder, which nobody can write to. Skips the test where it can't be had."""
        command = [self.go, "mod", "download", "-json", f"{name}@{version}"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            missing(f"{name} {version}", answer.stdout[-300:] + answer.stderr[-300:])
        return Path(json.loads(answer.stdout)["Dir"])

    def build(self, source: Path, output: Path | str, *packages: str) -> None:
        """From a copy that can be written: a module's go.sum lacks lines. `output`: as for `go build -o`."""
        copy = self.folder / "source"
        shutil.rmtree(copy, ignore_errors=True)
        subprocess.run(["cp", "-r", "--no-preserve=mode", source, copy], check=True)
        environment = os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod -buildvcs=false"}
        command = [self.go, "build", "-trimpath", "-ldflags", "-s -w", "-o", output, *packages]
        subprocess.run(command, check=True, cwd=copy, env=environment)
        shutil.rmtree(copy)

    def program(self, source: Path, name: str) -> Path:
        """One program of a module, by its name in `cmd/`; built where it is missing, there only when whole."""
        program = self.folder / name
        if not program.exists():
            beside = self.folder / f"{name}.new"
            self.build(source, beside, f"./cmd/{name}")
            beside.rename(program)
        return program


@contextmanager
def workshop(name: str, reason: str) -> Iterator[Workshop]:
    """One builder of this name at a time. Skips the test where there is no Go."""
    go = shutil.which("go", path=os.environ.get("PATH", os.defpath) + ":/usr/local/go/bin")
    if go is None:
        missing("Go", reason)
    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Workshop(go, folder)
