"""How often the log says the same thing: once a minute, with how often it happened. Pure; seconds."""

from __future__ import annotations

import math
from typing import Final

EVERY_S: Final = 60.0
MOST: Final = 64
"""Different things that are told apart: a cohort's members. Who makes up names has them counted together. Chosen."""

Key = tuple[str, str]


class Quiet:
    """Asked before a line is written."""

    def __init__(self) -> None:
        self._said: dict[Key, tuple[float, int]] = {}

    def count(self, key: Key, now: float) -> int:
        """How often it happened since it was last said, this time included; 0 if it is not to be said now."""
        if key not in self._said and len(self._said) >= MOST:
            self._said = {each: of for each, of in self._said.items() if now - of[0] < EVERY_S}
            key = key if len(self._said) < MOST else ("", "")
        said_at, unsaid = self._said.get(key, (-math.inf, 0))
        if now - said_at < EVERY_S:
            self._said[key] = said_at, unsaid + 1
            return 0
        self._said[key] = now, 0
        return unsaid + 1
