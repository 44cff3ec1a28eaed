"""What the sweeps found, kept in a file beside the results, so that a peer's best settings are looked for once."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.arena import Arena, say
from benchmarks.contest import Tried, sweep_settings
from benchmarks.contestant import Contestant
from benchmarks.datasets import Dataset
from benchmarks.servers import Server

Sweeps = dict[str, dict[str, tuple[Tried, ...]]]


def with_best_settings(
    contestants: Sequence[Contestant],
    server: Server,
    dataset: Dataset,
    arena: Arena,
    *,
    workload: str,
    file: Path,
) -> list[tuple[Contestant, tuple[Tried, ...]]]:
    """Each contestant with its sweep on this server and workload: the one known, or a new one, which is kept."""
    known = read_sweeps(file)
    here = known.setdefault(f"{server.target.server}/{workload}", {})
    for each in contestants:
        if arena.is_sweeping or each.name not in here:
            say(f" settings of {each.name}")
            here[each.name] = sweep_settings(each, each.grids[workload], server, dataset, arena)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(known), indent=1))
    return [(each, here[each.name]) for each in contestants]


def read_sweeps(file: Path) -> Sweeps:
    """What is known: `server/workload` → contestant → what was tried."""
    return msgspec.json.decode(file.read_bytes(), type=Sweeps) if file.exists() else {}
