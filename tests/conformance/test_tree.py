"""A directory tree is a source: `file://`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from cacheagent.source import open_source
from cacheagent.source.base import Source
from cacheagent.spec import SourceSpec
from tests.conformance.suite import SourceConformance


class Tree:
    """A directory that others may enter, and a locked one below it."""

    secrets = ()
    keeps_old_versions = False

    def __init__(self, root: Path) -> None:
        self._root = root
        self._clock_ns = 1_700_000_000_000_000_000

    def fill(self, files: dict[str, bytes]) -> None:
        for path, body in files.items():
            place = self._root / "tree" / path
            place.parent.mkdir(parents=True, exist_ok=True)
            self._clock_ns += 1  # mtime moves with every write, however coarse the filesystem's own clock is
            place.write_bytes(body)
            os.utime(place, ns=(self._clock_ns, self._clock_ns))

    def source(self) -> Source:
        return self._open("tree")

    def stranger(self) -> Source:
        (self._root / "locked").mkdir(mode=0o000, exist_ok=True)
        return self._open("locked")

    def nowhere(self) -> Source:
        return self._open("nowhere")

    def elsewhere(self) -> Source:
        return open_source(SourceSpec(uri=f"nfs://server/export{self._root}/tree"), mounts={"server:/export": ""})

    def _open(self, name: str) -> Source:
        return open_source(SourceSpec(uri=f"file://{quote(str(self._root / name))}"))


@pytest.fixture
def origin() -> Iterator[Tree]:
    """A folder whose name has to be quoted in a URI."""
    with tempfile.TemporaryDirectory(prefix="cacheagent tree ") as root:
        yield Tree(Path(root))


class TestTree(SourceConformance):
    """All of the suite."""
