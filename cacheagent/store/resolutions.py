"""Which version each request was last resolved to, so that a hit asks no origin."""

from __future__ import annotations

import os

import msgspec

from cacheagent.model import canonical_json
from cacheagent.store.durable import write_whole
from cacheagent.store.layout import Layout, entries
from cacheagent.store.record import Resolution


class Resolutions:
    """All of them, in memory as on disk. The store's lock is held for every change. Losing one costs a question to the
    origin, so what can't be read is dropped."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._by_key: dict[str, Resolution] = {}

    def scan(self) -> None:
        """Read what is there."""
        for entry in entries(self._layout.resolved):
            try:
                with open(entry.path, "rb") as file:
                    resolution = msgspec.json.decode(file.read(), type=Resolution)
            except (msgspec.MsgspecError, ValueError):
                os.unlink(entry.path)
                continue
            self._by_key[resolution.key] = resolution

    def find(self, key: str) -> str | None:
        """The digest, whether it is still here or not."""
        resolution = self._by_key.get(key)
        return resolution.digest if resolution else None

    def all(self) -> list[Resolution]:
        """Every one."""
        return list(self._by_key.values())

    def put(self, resolution: Resolution) -> None:
        """From now on this request means this version."""
        if self._by_key.get(resolution.key) != resolution:
            content = canonical_json(msgspec.to_builtins(resolution)) + b"\n"
            write_whole(self._layout.resolution(resolution.key), content)
            self._by_key[resolution.key] = resolution

    def drop(self, digest: str) -> None:
        """The version is gone."""
        for resolution in [known for known in self.all() if known.digest == digest]:
            os.unlink(self._layout.resolution(resolution.key))
            del self._by_key[resolution.key]
