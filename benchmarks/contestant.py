"""What every contestant is: a name, a version, settings to choose from, and a command that fetches a target."""

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from benchmarks.measure import Command
from benchmarks.target import Target

Settings = Mapping[str, int]


class Contestant(msgspec.Struct, frozen=True, kw_only=True):
    """`grids` names a small sweep of settings per workload (`shards`, `small`); the first of each is the default.

    `command(target, into, settings)` fetches the target into the directory; `find(into, path)` says where a file of the
    dataset is afterwards.
    """

    name: str
    version: Callable[[], str]
    command: Callable[[Target, Path, Settings], Command]
    grids: Mapping[str, tuple[Settings, ...]]
    find: Callable[[Path, str], Path]
