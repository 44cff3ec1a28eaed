"""The one place that removes trees: renamed into `trash/` first, deleted after, never through a symlink."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cacheagent.store.layout import Layout


class Bin:
    """One directory of `trash/`; what is taken into it is gone from where it was."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._taken = 0

    def take(self, path: str) -> None:
        """Rename a file or directory in here. A directory that nobody may write to can't be renamed into another
        parent except by root, so it is made writable first."""
        if not os.path.islink(path) and os.path.isdir(path):
            os.chmod(path, 0o700)
        self._taken += 1
        os.rename(path, f"{self.path}/{self._taken}")


class Trash:
    """What is to be deleted."""

    def __init__(self, layout: Layout) -> None:
        self._root = layout.trash
        self._filling: set[str] = set()
        self._sweeping = threading.Lock()

    @contextmanager
    def bin(self) -> Iterator[Bin]:
        """A bin for things that go together; a sweep leaves it alone until the block ends."""
        name = secrets.token_hex(8)
        self._filling.add(name)
        try:
            path = f"{self._root}/{name}"
            os.mkdir(path, 0o700)
            yield Bin(path)
        finally:
            self._filling.discard(name)

    def sweep(self) -> None:
        """Delete what is in the trash now. Takes as long as the filesystem needs for it: call it in a thread. What
        can't be deleted doesn't keep the rest; the first reason is raised at the end as OSError."""
        with self._sweeping:
            failures = [error for name in os.listdir(self._root) if (error := self._delete(name)) is not None]
        if failures:
            raise failures[0]

    def _delete(self, name: str) -> OSError | None:
        if name in self._filling:
            return None
        path = f"{self._root}/{name}"
        try:
            _make_writable(path)
            shutil.rmtree(path)  # noqa: TID251 - the one place; by directory descriptors, so no symlink is followed
        except OSError as error:
            return error
        return None


def _make_writable(path: str) -> None:
    """Published directories are 0555, and only root may remove from such."""
    for _, _, _, fd in os.fwalk(path):
        os.fchmod(fd, 0o700)
