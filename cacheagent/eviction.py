"""Which published versions go when room is needed. Pure.

The least important first, among equals the one whose last use is longest ago; never one that is pinned, mounted, being
fetched, or held for another reason. A blob that a version shares with one that stays gives nothing back, so what a plan
frees is counted blob by blob.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from cacheagent.model import Value
from cacheagent.quantity import size_text

Held = Literal[
    "",
    "pinned",
    "mounted",
    "being fetched",
    "about to be mounted",
    "under repair",
    "more important",
    "in a PersistentVolume",
    "kept warm",
    "mounted before the boot",
    "mounted, for all that is known",
]
"""Why a version stays; empty for one that may go. `about to be mounted`: a pod waits for it. `in a PersistentVolume`:
the controller must let go of it first. `kept warm`: it would be fetched again at once, so it goes only for something
more important. `mounted before the boot`, `mounted, for all that is known`: it may be, nobody has said yet."""


class Resident(Value):
    """A published version as the rule sees it. `last_used` in seconds since the epoch."""

    digest: str
    priority: int
    last_used: float
    blobs: frozenset[str]
    held: Held = ""


class Residents(Value):
    """Everything that is published: the versions, the size in bytes of each blob, and blobs that stay although no
    version may name them (a version on its way needs them)."""

    versions: Sequence[Resident]
    sizes: Mapping[str, int]
    wanted: Collection[str] = frozenset()


class Eviction(Value):
    """What goes, in this order, and how many bytes that gives back."""

    digests: tuple[str, ...]
    freed_bytes: int


def plan_eviction(residents: Residents, needed_bytes: int) -> Eviction | None:
    """The versions to evict for `needed_bytes`; None when everything that may go is not enough. What turns out to be
    unnecessary (a small one that was first in line before a large one) stays.
    """
    names = _names(residents)
    chosen: list[Resident] = []
    freed = 0
    for version in sorted(residents.versions, key=lambda version: (version.priority, version.last_used)):
        if freed >= needed_bytes:
            break
        if not version.held:
            chosen.append(version)
            names.subtract(version.blobs)
            freed += _unnamed_bytes(version, names, residents.sizes)
    if freed < needed_bytes:
        return None
    going = []
    for version in reversed(chosen):
        spared = _unnamed_bytes(version, names, residents.sizes)
        if freed - spared >= needed_bytes:
            freed -= spared
            names.update(version.blobs)
        else:
            going.append(version.digest)
    return Eviction(digests=tuple(reversed(going)), freed_bytes=freed)


def evictable_bytes(residents: Residents) -> int:
    """What evicting everything that may go would give back."""
    staying = set(residents.wanted).union(*(version.blobs for version in residents.versions if version.held))
    return sum(size for blob, size in residents.sizes.items() if blob not in staying)


def no_room_sentence(residents: Residents, *, needed_bytes: int, usable_bytes: int, freeable_bytes: int) -> str:
    """`needs 141 GB: 20 GB are free above the floor, 96 GB can be freed, 3 pinned models hold 310 GB`."""
    groups: defaultdict[Held, list[Resident]] = defaultdict(list)
    for version in residents.versions:
        if version.held:
            groups[version.held].append(version)
    reasons = [
        f"needs {size_text(needed_bytes)}: {size_text(max(0, usable_bytes))} free above the floor",
        f"{size_text(freeable_bytes)} can be freed",
    ]
    for held, versions in groups.items():
        blobs = {blob for version in versions for blob in version.blobs}
        several = len(versions) > 1
        verb = "hold" if several else "holds"
        size = size_text(sum(residents.sizes[blob] for blob in blobs))
        reasons.append(f"{len(versions)} {_described(held, 's' if several else '')} {verb} {size}")
    return ", ".join(reasons)


def _described(held: Held, plural: str) -> str:
    if held in {"pinned", "mounted", "more important"}:
        return f"{held} model{plural}"
    if held == "kept warm":
        return f"model{plural} that are kept warm" if plural else "model that is kept warm"
    if held == "in a PersistentVolume":
        return f"model{plural} that PersistentVolumes point at"
    if held == "mounted, for all that is known":
        return f"model{plural} that may be mounted"
    if held == "mounted before the boot":
        return f"model{plural} that may be mounted since before the boot"
    return f"model{plural} {held}"


def _names(residents: Residents) -> Counter[str]:
    """How many names each blob has."""
    names = Counter(dict.fromkeys(residents.wanted, 1))
    for version in residents.versions:
        names.update(version.blobs)
    return names


def _unnamed_bytes(version: Resident, names: Mapping[str, int], sizes: Mapping[str, int]) -> int:
    return sum(sizes[blob] for blob in version.blobs if names[blob] == 0)
