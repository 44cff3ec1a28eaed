"""What other programs call a digest: agents report them, and one that reports nonsense must not stop the plan. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@lru_cache(maxsize=4096)  # a plan asks it of every version on every node, and they are few
def is_digest(written: str) -> bool:
    """Whether names can be made of it."""
    return _DIGEST.fullmatch(written) is not None
