"""Fixtures of the fault tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cacheagent.model import MIB
from cacheagent.source.wrap import Retrying
from tests.conftest import missing
from tests.faults.scene import Cache

SMALL_DISK_BYTES = 96 * MIB
SOURCE_RETRIES_S = (0.1, 0.2)


@pytest.fixture(autouse=True)
def impatient_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing is tried three times in a third of a second, not five times in eight."""
    monkeypatch.setattr("cacheagent.source.Retrying", partial(Retrying, delays_s=SOURCE_RETRIES_S))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache directory that does not exist yet."""
    return Cache(tmp_path / "cache")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory."""
    mountpoint = tmp_path / "small-disk"
    mountpoint.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(mountpoint)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        missing("a file system of its own", f"mount says: {mounted.stderr.strip()}")
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)
