"""What `/proc/<pid>/mountinfo` says, as values (proc(5))."""

from __future__ import annotations

import re

import msgspec


class HostMount(msgspec.Struct, frozen=True, kw_only=True):
    """One line. `root` is the path inside the file system that is mounted at `mount_point`."""

    device: str
    root: str
    mount_point: str
    options: frozenset[str]
    propagation: tuple[str, ...]
    """Like `shared:12`; empty for a private mount."""
    filesystem: str
    source: str
    superblock_options: frozenset[str]

    @property
    def is_read_only(self) -> bool:
        return "ro" in self.options


def parse_mountinfo(text: str) -> list[HostMount]:
    """All lines, in their order: the last one at a mount point is the one that is seen."""
    return [_parse(line) for line in text.splitlines()]


def _parse(line: str) -> HostMount:
    before, _, after = line.partition(" - ")
    _, _, device, root, mount_point, options, *propagation = before.split(" ")
    filesystem, source, superblock_options = after.split(" ", 2)
    return HostMount(
        device=device,
        root=_plain(root),
        mount_point=_plain(mount_point),
        options=frozenset(options.split(",")),
        propagation=tuple(propagation),
        filesystem=filesystem,
        source=_plain(source),
        superblock_options=frozenset(superblock_options.split(",")),
    )


def _plain(escaped: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), escaped)
