"""Alternating runs of several contestants against one server; bytes are compared after each, outside its time."""

import shutil
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from benchmarks.arena import Arena, say
from benchmarks.contestant import Contestant, Settings
from benchmarks.datasets import Dataset, blake3_of
from benchmarks.measure import Run, RunFailed, measure
from benchmarks.servers import Server

GB = 1e9
REPEATS_FOR_QUIET = 3


class Tried(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One setting of a sweep and the wall time it gave, in seconds; None where the contestant failed with it."""

    settings: dict[str, int]
    wall_s: float | None


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All runs of one contestant, with the sweep that chose its settings, or why it could not go on."""

    name: str
    version: str
    settings: dict[str, int]
    sweep: tuple[Tried, ...]
    size_bytes: int
    runs: tuple[Run, ...]
    failure: str = ""

    def median(self, field: str) -> float:
        """The median over the runs of one field of `Run`."""
        return statistics.median(float(getattr(run, field)) for run in self.runs)

    @property
    def rate_bytes_per_s(self) -> float:
        """Durable rate: the dataset's size by the median wall time."""
        return self.size_bytes / self.median("wall_s")

    @property
    def cpu_s_per_gb(self) -> float:
        """CPU seconds of the whole process tree per GB of payload."""
        return self.median("cpu_s") / (self.size_bytes / GB)


def compete(
    contestants: Sequence[tuple[Contestant, tuple[Tried, ...]]], server: Server, dataset: Dataset, arena: Arena
) -> tuple[Entry, ...]:
    """Run all in turn, `arena.runs` times round, with the best settings of their sweeps.

    A contestant that fails once is out, with its reason: a rate over the runs that went well would flatter it.
    """
    runs: dict[str, list[Run]] = {each.name: [] for each, _ in contestants}
    failures: dict[str, str] = {}
    for _ in range(arena.runs):
        for each, sweep in contestants:
            if each.name in failures:
                continue
            try:
                runs[each.name].append(fetch_quietly(each, server, dataset, arena, best(sweep)))
            except RunFailed as error:
                failures[each.name] = str(error)
                say(f"  {each.name} is out: {error}")
    return tuple(
        Entry(
            name=each.name,
            version=each.version(),
            settings=best(sweep),
            sweep=sweep,
            size_bytes=dataset.size_bytes,
            runs=tuple(runs[each.name]),
            failure=failures.get(each.name, ""),
        )
        for each, sweep in contestants
    )


def sweep_settings(
    contestant: Contestant, grid: Sequence[Settings], server: Server, dataset: Dataset, arena: Arena
) -> tuple[Tried, ...]:
    """Try every setting once; a grid of one needs no trying."""
    if len(grid) == 1:
        return (Tried(settings=dict(grid[0]), wall_s=None),)
    tried = []
    for settings in grid:
        try:
            wall_s: float | None = fetch_quietly(contestant, server, dataset, arena, settings).wall_s
        except RunFailed as error:
            say(f"  {contestant.name} with {dict(settings)}: {error}")
            wall_s = None
        tried.append(Tried(settings=dict(settings), wall_s=wall_s))
    return tuple(tried)


def best(sweep: Sequence[Tried]) -> dict[str, int]:
    """The settings that took the least time."""
    return min(sweep, key=lambda tried: float("inf") if tried.wall_s is None else tried.wall_s).settings


def fetch_quietly(contestant: Contestant, server: Server, dataset: Dataset, arena: Arena, settings: Settings) -> Run:
    """One run in a quiet moment: repeated while the machine was busy with something else, as the arena wants it."""
    run = fetch_once(contestant, server, dataset, arena, settings)
    for _ in range(REPEATS_FOR_QUIET):
        if arena.quiet_cpus is None or run.other_cpu_s <= arena.quiet_cpus * run.wall_s:
            break
        run = fetch_once(contestant, server, dataset, arena, settings)
    return run


def fetch_once(contestant: Contestant, server: Server, dataset: Dataset, arena: Arena, settings: Settings) -> Run:
    """One run into an empty directory, compared with the dataset byte by byte and removed.

    Raises RunFailed also when a byte differs.
    """
    into = arena.workdir / contestant.name
    try:
        with arena.turn():
            into.mkdir(parents=True)
            run = measure(contestant.command(server.target, into, settings), server=server)
        _compare(contestant, dataset, into)
    finally:
        _remove(into)
    size_gb = dataset.size_bytes / GB
    say(
        f"  {contestant.name:16} {size_gb / run.wall_s:5.2f} GB/s {run.cpu_s / size_gb:5.2f} CPU-s/GB "
        f"{run.peak_pss_bytes / 1e6:5.0f} MB + {run.peak_socket_bytes / 1e6:4.0f} MB in {run.peak_connections} sockets "
        f"({run.wall_s:.2f} s; CPU-s: server {run.server_cpu_s:.1f}, others {run.other_cpu_s:.1f}) {dict(settings)}"
    )
    return run


def _compare(contestant: Contestant, dataset: Dataset, into: Path) -> None:
    paths = [contestant.find(into, file.path) for file in dataset.files]
    with ThreadPoolExecutor(2) as pool:
        for file, path, found in zip(dataset.files, paths, pool.map(_hash_if_there, paths), strict=True):
            if found != file.blake3:
                said = f"BLAKE3 is {found}" if found else "no such file"
                raise RunFailed(f"{contestant.name}: {path}: {said}, the dataset has {file.blake3}")


def _hash_if_there(path: Path) -> str:
    return blake3_of(path) if path.is_file() else ""


def _remove(into: Path) -> None:
    if into.exists():
        shutil.rmtree(into)
    into.with_name(f"{into.name}.keys.json").unlink(missing_ok=True)
