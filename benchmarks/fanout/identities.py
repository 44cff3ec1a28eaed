"""The static list of members: every node with its address and its public key, which its own program makes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import engine
from benchmarks.fanout.network import Place

PORT = 7411


def peer_settings(nodes: Sequence[Place], roots: Sequence[Path]) -> list[dict[str, Any]]:
    """`peers:` of each node's configuration."""
    for root in roots:
        root.mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        keys = list(pool.map(_public_key, roots))
    members = [
        {"name": place.port, "address": f"{place.address}:{PORT}", "zone": "", "key": key}
        for place, key in zip(nodes, keys, strict=True)
    ]
    return [{"name": place.port, "listen": f"{place.address}:{PORT}", "members": members} for place in nodes]


def _public_key(root: Path) -> str:
    command = [engine.PROGRAM, "peers", "key", "--cache", str(root)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
