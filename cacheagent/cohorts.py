"""How nodes that want the same are parted into cohorts, and how these hang together in a tree: from names and zones
alone, so that everybody who knows them comes to the same. Pure.

The members of a cohort exchange with each other. One cohort, the root, is fed by the origin; every other one by the
cohort above it, and each feeds two at most.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from cacheagent.member import Member

COHORT: Final = 64
"""Members of one cohort at most: no node talks to thousands. Chosen, not measured."""
ALONE: Final = 0
ROOT: Final = 1
"""Levels of the tree, counted from the root on; a cohort that is the only one is in no tree."""
_BITS: Final = 64


@dataclass(frozen=True, slots=True)
class Cohort:
    """`above`: the name of the cohort that feeds it; None: the origin does."""

    names: tuple[str, ...]
    level: int = ALONE
    above: str | None = None


class Circle(NamedTuple):
    """With whom one node has to do for one version. `near`: its cohort, itself included. `above`: who feeds that one.
    `below`: raw public keys, by name, of those whom it feeds. `nodes`: how many there are in all cohorts, at least; 0:
    those that are near."""

    near: tuple[Member, ...] = ()
    above: tuple[Member, ...] = ()
    below: Mapping[str, tuple[bytes, ...]] = {}
    level: int = ALONE
    nodes: int = 0

    @property
    def keys(self) -> dict[str, tuple[bytes, ...]]:
        """Of all of them, by name."""
        return {**{member.name: member.keys for member in (*self.near, *self.above)}, **self.below}

    @property
    def sharers(self) -> int:
        """For one of how many nodes this one counts when what an origin may be asked is shared out. Of a tree the root
        has half, since it brings the copy, and all have the other half, for small files and where the tree is broken.
        """
        if self.level == ALONE:
            return max(1, self.nodes, len(self.near))
        return 2 * (len(self.near) if self.level == ROOT else max(self.nodes, len(self.near)))


def tree_of(zones: Mapping[str, str], *, size: int = COHORT, salt: str = "") -> dict[str, Cohort]:
    """The cohorts of these nodes, by names that say where they are cut. `zones`: of each node; empty: not known.
    `salt`: another one, another tree. A zone with more nodes than a cohort may have is parted by itself; the others
    together. One node more or less changes its own cohort alone, unless that must be parted or can be made one with
    another; and who hangs below whom changes only there.
    """
    if len(zones) <= size:
        return {"": Cohort(tuple(sorted(zones)))} if zones else {}
    tree: dict[str, Cohort] = {}
    above, level = None, ROOT
    for part, names in sorted(_parts(zones, size).items()):
        cut = {f"{part}{bits}": some for bits, some in cohorts_of(names, size=size, salt=salt).items()}
        hung = _hang(sorted(cut), len(part), above, level)
        tree |= {key: Cohort(tuple(sorted(cut[key])), *place) for key, place in hung.items()}
        above, level = min(cut), level + 1
    return tree


def circle_of(members: Sequence[Member], me: str, *, size: int = COHORT, salt: str = "") -> Circle:
    """Of one of the members, who all know all of them. Who is none of them only serves, whoever asks."""
    tree = tree_of({member.name: member.zone for member in members}, size=size, salt=salt)
    mine = next((key for key, cohort in tree.items() if me in cohort.names), None)
    if mine is None:
        return Circle(tuple(members), nodes=len(members))
    by_name = {member.name: member for member in members}
    above = tree[mine].above
    below = [name for cohort in tree.values() if cohort.above == mine for name in cohort.names]
    return Circle(
        near=tuple(by_name[name] for name in tree[mine].names),
        above=tuple(by_name[name] for name in tree[above].names) if above is not None else (),
        below={name: by_name[name].keys for name in below},
        level=tree[mine].level,
        nodes=len(members),
    )


def cohorts_of(names: Sequence[str], *, size: int = COHORT, salt: str = "") -> dict[str, tuple[str, ...]]:
    """Parts of at most `size` names, by what the bits of their names' hashes begin with: a part that is too large is
    parted by the next bit. So the same names come to the same parts, whatever was before, and one name more or less
    changes its own part alone, unless that has to be parted or can be made one with its other half.
    """
    parts: dict[str, tuple[str, ...]] = {}
    open_ended: list[tuple[str, Sequence[str]]] = [("", names)]
    while open_ended:
        prefix, inside = open_ended.pop()
        if len(inside) <= size or len(prefix) == _BITS:
            if inside:
                parts[prefix] = tuple(inside)
            continue
        bit = _BITS - 1 - len(prefix)
        halves: tuple[list[str], list[str]] = [], []
        for name in inside:
            halves[_hash(salt + name) >> bit & 1].append(name)
        open_ended += [(f"{prefix}{half}", inside) for half, inside in enumerate(halves)]
    return parts


def _parts(zones: Mapping[str, str], size: int) -> dict[str, list[str]]:
    """Nodes by how the names of their cohorts begin: those of each large zone, and the rest."""
    by_zone: defaultdict[str, list[str]] = defaultdict(list)
    for name, zone in zones.items():
        by_zone[zone].append(name)
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for zone, names in by_zone.items():
        parts[f"z{_hash(zone):016x}-" if zone and len(names) > size else ""] += names
    return parts


def _hang(keys: Sequence[str], at: int, above: str | None, level: int) -> dict[str, tuple[int, str | None]]:
    """Level and cohort above of each. `keys`: sorted, bits from the place `at` on. `above`, `level`: of the first.

    Where two halves were cut apart, the first of the right one stands for the cut: every cohort but the first of all
    stands for exactly one. It hangs below the one that stands for the cut before, which so has two below it at most,
    and the first of all has one. Who is cut in two changes nothing elsewhere.
    """
    hung = {keys[0]: (level, above)}
    cuts = [(keys, at, keys[0], level)]
    while cuts:
        some, place, before, before_level = cuts.pop()
        if len(some) == 1:
            continue
        halves = [[key for key in some if key[place] == bit] for bit in "01"]
        if not all(halves):
            cuts.append((some, place + 1, before, before_level))
            continue
        first = halves[1][0]
        hung[first] = (before_level + 1, before)
        cuts += [(half, place + 1, first, before_level + 1) for half in halves]
    return hung


@lru_cache(maxsize=16384)  # a plan asks it of every node, again and again
def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[: _BITS // 8], "big")
