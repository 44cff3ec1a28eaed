"""After a boot nothing is evicted for a while: who has what mounted is not known again yet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

import msgspec

from cacheagent.model import Value, canonical_json
from cacheagent.store.durable import write_whole
from cacheagent.store.layout import Layout

_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


class Boot(Value):
    """A boot of this machine and a moment since it, in seconds: a clock that nobody sets."""

    id: str
    seconds: float


def this_boot() -> Boot:
    """The present one, now."""
    with open(_BOOT_ID, encoding="utf-8") as file:
        return Boot(id=file.read().strip(), seconds=time.clock_gettime(time.CLOCK_BOOTTIME))


class BootGrace:
    """`left_s` of grace, counted from the first start of a store after a boot; a directory that has known no other boot
    has none."""

    def __init__(self, layout: Layout, grace_s: float, boot: Callable[[], Boot]) -> None:
        self._path = layout.boot
        self._grace_s = grace_s
        self._boot = boot
        self._until_s = 0.0

    def begin(self) -> None:
        """Look which boot was known last, and write down this one."""
        known, now = self._known(), self._boot()
        if known is not None and known.id == now.id:
            self._until_s = known.seconds
        else:
            self._until_s = now.seconds + self._grace_s if known is not None else 0.0
            write_whole(self._path, canonical_json({"id": now.id, "seconds": self._until_s}) + b"\n")

    def left_s(self) -> float:
        """Seconds until eviction is allowed."""
        return max(0.0, self._until_s - self._boot().seconds)

    def _known(self) -> Boot | None:
        """The boot of the last start and the moment at which its grace ends."""
        if not os.path.exists(self._path):
            return None
        with open(self._path, "rb") as file:
            try:
                return msgspec.json.decode(file.read(), type=Boot)
            except (msgspec.MsgspecError, ValueError):
                return Boot(id="unknown", seconds=0.0)
