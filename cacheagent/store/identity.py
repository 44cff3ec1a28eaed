"""Which cache directory this is: a name that is made with it and that a wiped disk loses."""

from __future__ import annotations

import os
import secrets

from cacheagent.store.durable import write_whole
from cacheagent.store.layout import Layout


def make_incarnation(layout: Layout) -> None:
    """Give the directory a name if it has none."""
    if not os.path.exists(layout.incarnation):
        write_whole(layout.incarnation, secrets.token_hex(8).encode() + b"\n")


def read_incarnation(layout: Layout) -> str:
    """The name."""
    return read_or_empty(layout.incarnation).decode(errors="replace").strip()


def read_or_empty(path: str) -> bytes:
    """A small file, or nothing."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
