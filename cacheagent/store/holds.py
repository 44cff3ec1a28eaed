"""Why versions stay that neither a record nor a lease speaks for. Forgotten at the end of the process, told anew
after."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Final

ANNOUNCED_S: Final = 900.0
"""How long a version stays announced for eviction after it was last needed. Chosen: longer than the longest pause
between two tries of a model that does not fit."""
LET_GO_S: Final = 120.0
"""How long it stays announced after the controller has let go: whoever needs the room lists its source anew before it
takes it, and a controller that hears no more of it would hold it again at once. Chosen."""
NOBODYS: Final = -(2**31)
"""Priority of a version that the controller wants here no more: below whatever a ModelCache may have."""


class Holds:
    """The store's lock is held for every change but of `promised` and `kept_warm`, which are replaced as a whole, by an
    event loop: one that comes during an eviction comes after it.

    `volumes`: PersistentVolumes point at them, so they go only after the controller has let go; `announced`: those of
    them whose room is needed. `pinned`: the controller wants them to stay whatever happens. `promised`: pods wait to
    mount them. `kept_warm`: they would be fetched again at once. `priorities`: what the controller says today of the
    versions that it wants here, which holds instead of what was said when they were fetched; None without a controller.
    `mounts_known`: false until it is reported what is mounted, where somebody reports it.
    """

    def __init__(self) -> None:
        self.volumes: frozenset[str] = frozenset()
        self.pinned: frozenset[str] = frozenset()
        self.promised: frozenset[str] = frozenset()
        self.kept_warm: frozenset[str] = frozenset()
        self.priorities: Mapping[str, int] | None = None
        self.mounts_known = True
        self._announced: dict[str, float] = {}

    def hold(self, volumes: Collection[str], pinned: Collection[str]) -> bool:
        """From now on these are held; returns whether some were let go."""
        let_go = (self.volumes - frozenset(volumes)) | (self.pinned - frozenset(pinned))
        self.volumes, self.pinned = frozenset(volumes), frozenset(pinned)
        until_then = time.monotonic() - (ANNOUNCED_S - LET_GO_S)
        for digest in self._announced.keys() & let_go:
            self._announced[digest] = min(self._announced[digest], until_then)
        return bool(let_go)

    def rank(self, priorities: Mapping[str, int]) -> bool:
        """From now on these are as important as that, and others are nobody's; returns whether one has sunk."""
        before, self.priorities = self.priorities or {}, dict(priorities)
        return any(priority > priorities.get(digest, NOBODYS) for digest, priority in before.items())

    def priority(self, digest: str, at_fetching: int) -> int:
        """How important a version is now. `at_fetching`: how important it was then."""
        return at_fetching if self.priorities is None else self.priorities.get(digest, NOBODYS)

    def announce(self, digests: Iterable[str]) -> None:
        """Their room is needed."""
        now = time.monotonic()
        self._announced.update((digest, now) for digest in digests if digest in self.volumes)

    def forget(self, digest: str) -> None:
        """It is gone."""
        self._announced.pop(digest, None)

    def announced(self) -> tuple[str, ...]:
        """Those whose room was needed a while ago at most."""
        now = time.monotonic()
        return tuple(sorted(digest for digest, at in self._announced.items() if now - at < ANNOUNCED_S))
