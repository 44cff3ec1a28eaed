"""Our own engine as a contestant: `cacheagent pull` into an empty cache, verification on, nothing tuned."""

import subprocess
import sys
from pathlib import Path

from benchmarks.contestant import Contestant, Settings
from benchmarks.measure import Command
from benchmarks.target import REGION, Target

NAME = "cacheagent"
PROGRAM = str(Path(sys.executable).with_name("cacheagent"))


def engine(*, scheme: str = "s3", kind: str = "checkpoint", options: tuple[str, ...] = ()) -> Contestant:
    """`scheme`: `s3`, `hf` or `https`, how the target is asked for; `options`: more of the command line."""

    def command(target: Target, into: Path, settings: Settings) -> Command:
        where = ["--root", str(into), "--kind", kind, *_source(scheme, target), *options]
        if target.ca_bundle:
            where += ["--ca-bundle", str(target.ca_bundle)]
        return Command(argv=[PROGRAM, "pull", *where, "-o", "json"], env=target.environment())

    return Contestant(
        name=NAME, version=_version, command=command, grids={"shards": ({},), "small": ({},)}, find=_published
    )


def is_installed() -> bool:
    """Whether there is an engine to measure: without one the peers are measured alone."""
    return subprocess.run([PROGRAM, "--version"], capture_output=True, check=False).returncode == 0


def _source(scheme: str, target: Target) -> list[str]:
    match scheme:
        case "s3":
            return [target.s3_uri, "--endpoint", target.endpoint, "--region", REGION]
        case "hf":
            return [f"hf://{target.repo_id}", "--endpoint", target.hub_endpoint]
        case _:
            return [target.base_url]


def _version() -> str:
    said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
    return said.split()[-1]


def _published(into: Path, path: str) -> Path:
    (model,) = (into / "models").iterdir()
    return model / "files" / path
